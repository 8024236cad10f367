#include "handoff/negotiation.hpp"

#include <doctest/doctest.h>

#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

struct Range {
    uint32_t oldest, newest;
};

// An offer of a build that saves and loads "vcpu" and "serial".
proto::Offer offer(const std::string& version, Range saves = {1, 2}, Range loads = {1, 2}) {
    proto::Offer out;
    out.set_oldest_protocol(kOldestProtocol);
    out.set_newest_protocol(kNewestProtocol);
    out.set_implementation("vmm");
    out.set_version(version);
    for (const char* kind : {"vcpu", "serial"}) {
        auto* s = out.add_saves();
        s->set_kind(kind);
        s->set_oldest(saves.oldest);
        s->set_newest(saves.newest);
        auto* l = out.add_loads();
        l->set_kind(kind);
        l->set_oldest(loads.oldest);
        l->set_newest(loads.newest);
    }
    return out;
}

const std::vector<SectionInfo> kSections = {
    {"vcpu", 0, 2, 4096}, {"vcpu", 1, 2, 4096}, {"serial", 0, 2, 128}};

std::string refusal_of(const proto::Offer& source, const proto::Offer& destination,
    const std::vector<SectionInfo>& sections = kSections) {
    const auto agreed = negotiate(source, destination, sections);
    REQUIRE_FALSE(agreed);
    CHECK(agreed.error().code == ErrorCode::kRefused);
    return agreed.error().message;
}

} // namespace

TEST_CASE("two builds of one version agree on every section as it is announced") {
    const Agreement agreement = must(negotiate(offer("1"), offer("1"), kSections));
    CHECK(agreement.protocol == kNewestProtocol);
    CHECK(agreement.sections == kSections);
}

TEST_CASE("an update to a newer build uses the newest version that the source saves") {
    const auto agreement = must(negotiate(offer("1", {1, 2}, {1, 2}), offer("2", {2, 5}, {2, 5}), kSections));
    for (const SectionInfo& section : agreement.sections)
        CHECK(section.version == 2);
}

TEST_CASE("an update to an older build uses the newest version that the destination loads") {
    const auto agreement = must(negotiate(offer("2", {1, 5}, {1, 5}), offer("1", {1, 3}, {1, 3}), kSections));
    for (const SectionInfo& section : agreement.sections)
        CHECK(section.version == 3);
}

TEST_CASE("a destination that has forgotten the source's versions is refused, with both ranges") {
    const std::string words = refusal_of(offer("1", {1, 2}, {1, 2}), offer("9", {7, 9}, {7, 9}));
    CHECK(contains(words, "state section 'vcpu'"));
    CHECK(contains(words, "the source (vmm 1) saves versions 1 to 2"));
    CHECK(contains(words, "the destination (vmm 9) loads versions 7 to 9"));
}

TEST_CASE("a source that no longer saves what an older destination loads is refused, with both ranges") {
    const std::string words = refusal_of(offer("9", {7, 9}, {7, 9}), offer("1", {1, 1}, {1, 1}));
    CHECK(contains(words, "saves versions 7 to 9"));
    CHECK(contains(words, "loads version 1"));
}

TEST_CASE("a section that the destination does not know is refused by name") {
    proto::Offer destination = offer("2");
    destination.mutable_loads()->RemoveLast();
    CHECK(contains(refusal_of(offer("1"), destination), "(vmm 2) does not know the state section 'serial'"));
    CHECK(negotiate(offer("1"), destination, {{"vcpu", 0, 2, 4096}}));
}

TEST_CASE("a section outside what the source said it saves is taken at its own version only") {
    proto::Offer source = offer("1");
    source.mutable_saves()->RemoveLast();
    CHECK(must(negotiate(source, offer("2", {1, 9}, {2, 9}), kSections)).sections[2].version == 2);
    CHECK(
        contains(refusal_of(source, offer("2", {3, 9}, {1, 1}), {{"serial", 0, 2, 128}}), "saves version 2"));
}

TEST_CASE("a capability that a side requires and its peer has not is refused by name") {
    proto::Offer needy = offer("1");
    needy.add_required_capabilities("lazy-restore");
    CHECK(contains(refusal_of(needy, offer("2")),
        "the source (vmm 1) needs its peer to have the capability 'lazy-restore'; vmm 2 has not"));
    CHECK(contains(refusal_of(offer("2"), needy), "the destination (vmm 1) needs"));
    proto::Offer able = offer("2");
    able.add_capabilities("rehearse");
    able.add_capabilities("lazy-restore");
    CHECK(negotiate(needy, able, kSections));
    CHECK(negotiate(able, needy, kSections));
}

TEST_CASE("the protocol is the newest that both ranges contain") {
    CHECK(*agree_on_protocol(1, 3, 2, 5) == 3);
    CHECK(*agree_on_protocol(2, 5, 1, 3) == 3);
    CHECK(*agree_on_protocol(1, 1, 1, 1) == 1);
    CHECK(*agree_on_protocol(1, 9, 4, 4) == 4);
}

TEST_CASE("builds without a common protocol are refused with both ranges") {
    const auto apart = agree_on_protocol(1, 2, 3, 4);
    REQUIRE_FALSE(apart);
    CHECK(apart.error().code == ErrorCode::kRefused);
    CHECK(contains(apart.error().message, "we speak versions 1 to 2, the peer versions 3 to 4"));
    CHECK_FALSE(agree_on_protocol(3, 4, 1, 2));
    CHECK_FALSE(agree_on_protocol(1, 1, 0, 0)); // an unset range
    CHECK_FALSE(agree_on_protocol(1, 9, 5, 4)); // a range upside down
    proto::Offer future = offer("9");
    future.set_oldest_protocol(kNewestProtocol + 1);
    future.set_newest_protocol(kNewestProtocol + 1);
    CHECK(contains(refusal_of(offer("1"), future), "no protocol version in common"));
}

TEST_CASE("sections go into messages and back") {
    proto::Description message;
    add_sections(kSections, message.mutable_sections());
    CHECK(sections_from(message.sections()) == kSections);
}

} // namespace liveupdate::handoff
