#include "handoff/transfer_area.hpp"

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <thread>

#include "handoff/base/fd.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

constexpr auto kTrial = TransferRun::kTrial;
constexpr auto kReal = TransferRun::kReal;
const std::vector<SectionInfo> kSections = {{"vcpu", 0, 1, 64}, {"serial", 0, 3, 5000}};

TransferArea fresh_area(const std::vector<SectionInfo>& sections = kSections) {
    const UniqueFd file = must(TransferArea::create(sections));
    return must(TransferArea::map(file.get(), sections));
}

// Finds `pattern` in a mapped area and gives the bytes around it to a hostile peer.
std::byte* find_bytes(const SharedMapping& mapping, std::string_view pattern) {
    const auto bytes = mapping.bytes();
    const auto* text = reinterpret_cast<const char*>(bytes.data());
    const size_t at = std::string_view(text, bytes.size()).find(pattern);
    REQUIRE(at != std::string_view::npos);
    return bytes.data() + at;
}

void check_refused(const std::vector<SectionInfo>& sections, const std::string& words) {
    const auto created = TransferArea::create(sections);
    REQUIRE_FALSE(created);
    CHECK(created.error().code == ErrorCode::kRefused);
    CHECK_MESSAGE(contains(created.error().message, words), created.error().message);
    const UniqueFd file = must(TransferArea::create(kSections));
    const auto mapped = TransferArea::map(file.get(), sections);
    REQUIRE_FALSE(mapped);
    CHECK_MESSAGE(contains(mapped.error().message, words), mapped.error().message);
}

} // namespace

TEST_CASE("a section that is put is found with its bytes") {
    TransferArea area = fresh_area();
    CHECK_FALSE(area.is_put(1, kReal));
    must(area.put(1, kReal, std::string(5000, 's')));
    CHECK(area.is_put(1, kReal));
    CHECK_FALSE(area.is_put(0, kReal));
    CHECK(must(area.await(1, kReal, patience())) == std::string(5000, 's'));
    must(area.put(0, kReal, ""));
    CHECK(must(area.await(0, kReal, patience())).empty());
}

TEST_CASE("two processes see one area") {
    const UniqueFd file = must(TransferArea::create(kSections));
    const TransferArea area = must(TransferArea::map(file.get(), kSections));
    Child source([&] {
        auto own = TransferArea::map(file.get(), kSections);
        return own && own->put(0, kReal, "zero") && own->put(1, kReal, "one") ? 0 : 1;
    });
    CHECK(must(area.await(0, kReal, patience())) == "zero");
    CHECK(must(area.await(1, kReal, patience())) == "one");
    CHECK(source.wait() == 0);
    CHECK(area.put_ns(0) != 0);
}

TEST_CASE("a waiter is woken by the section that it waits for") {
    TransferArea area = fresh_area();
    std::thread source([&] { must(area.put(0, kReal, "state")); });
    CHECK(must(area.await(0, kReal, Deadline::never())) == "state");
    source.join();
}

TEST_CASE("a trial's section is not taken for the real one, and is replaced by it") {
    TransferArea area = fresh_area();
    must(area.put(0, kTrial, "trial"));
    CHECK(area.is_put(0, kTrial));
    CHECK_FALSE(area.is_put(0, kReal));
    const auto early = area.await(0, kReal, soon());
    REQUIRE_FALSE(early);
    CHECK(early.error().code == ErrorCode::kTimeout);
    CHECK(must(area.await(0, kTrial, patience())) == "trial");
    must(area.put(0, kReal, "real"));
    CHECK(must(area.await(0, kReal, patience())) == "real");
    CHECK_FALSE(area.is_put(0, kTrial));
}

TEST_CASE("a section that does not come is given up at the deadline, by name") {
    const TransferArea area = fresh_area();
    const auto late = area.await(1, kReal, soon());
    REQUIRE_FALSE(late);
    CHECK(late.error().code == ErrorCode::kTimeout);
    CHECK(late.error().message == "state section serial/0 did not come");
}

TEST_CASE("more bytes than were announced are not put") {
    TransferArea area = fresh_area();
    const auto put = area.put(0, kReal, std::string(65, 'x'));
    REQUIRE_FALSE(put);
    CHECK(put.error().code == ErrorCode::kInternal);
    CHECK(contains(put.error().message, "vcpu/0 has 65 bytes, more than the 64 it announced"));
    CHECK_FALSE(area.is_put(0, kReal));
    must(area.put(0, kReal, std::string(64, 'x')));
}

TEST_CASE("a size that a hostile source writes into the area is refused, not read") {
    const UniqueFd file = must(TransferArea::create(kSections));
    TransferArea area = must(TransferArea::map(file.get(), kSections));
    const uint64_t size = must(sealed_size(file.get(), "area"));
    const SharedMapping mapping = must(SharedMapping::map(file.get(), 0, size, MapMode::kShared));
    must(area.put(0, kReal, std::string(61, 'x')));
    for (const uint32_t lie : {uint32_t{65}, uint32_t{5000}, uint32_t{1} << 31, UINT32_MAX}) {
        const uint32_t words[] = {2, 61}; // the run and the size, as the directory has them
        std::byte* entry = find_bytes(mapping, {reinterpret_cast<const char*>(words), sizeof(words)});
        std::memcpy(entry + 4, &lie, sizeof(lie));
        const auto taken = area.await(0, kReal, patience());
        REQUIRE_FALSE(taken);
        CHECK(taken.error().code == ErrorCode::kRefused);
        CHECK(contains(
            taken.error().message, "claims " + std::to_string(lie) + " bytes; it announced at most 64"));
        std::memcpy(entry + 4, &words[1], sizeof(lie));
    }
    CHECK(area.await(0, kReal, patience()));
}

TEST_CASE("what a source writes after the bytes were taken does not change them") {
    TransferArea area = fresh_area();
    must(area.put(0, kReal, "first"));
    const std::string taken = must(area.await(0, kReal, patience()));
    must(area.put(0, kReal, "later"));
    CHECK(taken == "first");
}

TEST_CASE("lists of sections that no update may have are refused with the reason") {
    check_refused({}, "no state section at all");
    check_refused({{"vcpu", 0, 1, 0}}, "wants 0 bytes");
    check_refused({{"vcpu", 0, 1, kMaxSectionBytes + 1}}, "wants 1048577 bytes");
    check_refused({{"vcpu", 0, 1, UINT32_MAX}}, "wants 4294967295 bytes");
    check_refused({{"", 0, 1, 64}}, "a name of 0 bytes");
    check_refused({{std::string(65, 'k'), 0, 1, 64}}, "a name of 65 bytes");
    check_refused({{"vcpu", 1, 1, 64}, {"vcpu", 1, 2, 32}}, "vcpu/1 is there twice");
    std::vector<SectionInfo> many;
    for (uint32_t i = 0; i <= kMaxSections; ++i)
        many.push_back({"vcpu", i, 1, 64});
    check_refused(many, "1025 state sections are more than the 1024");
    many.pop_back();
    fresh_area(many);
}

TEST_CASE("an area that was made for other sections is refused") {
    const UniqueFd file = must(TransferArea::create(kSections));
    auto wants_more = kSections;
    wants_more[1].capacity = 9000;
    const auto mapped = TransferArea::map(file.get(), wants_more);
    REQUIRE_FALSE(mapped);
    CHECK(contains(mapped.error().message, "its sections need"));
    auto one_less = kSections;
    one_less[0].capacity = 64 + 8192; // as large as both
    one_less.pop_back();
    const auto fewer = TransferArea::map(file.get(), one_less);
    REQUIRE_FALSE(fewer);
    CHECK(contains(fewer.error().message, "header does not match"));
}

TEST_CASE("an area that is no sealed memfd, or holds something else, is refused") {
    const UniqueFd file = must(TransferArea::create(kSections));
    const uint64_t size = must(sealed_size(file.get(), "area"));
    UniqueFd loose = must(fd::memfd_create("loose", MFD_ALLOW_SEALING));
    REQUIRE(::ftruncate(loose.get(), static_cast<off_t>(size)) == 0);
    CHECK(contains(TransferArea::map(loose.get(), kSections).error().message, "without the seals"));
    const UniqueFd zeroes = must(create_sealed_memfd("zeroes", size));
    CHECK(contains(TransferArea::map(zeroes.get(), kSections).error().message, "header does not match"));
    CHECK(contains(TransferArea::map(must(fd::eventfd(0)).get(), kSections).error().message, "not a memfd"));
}

TEST_CASE("a source that withdraws ends every wait") {
    TransferArea area = fresh_area();
    std::thread source([&] { area.withdraw(); });
    const auto waited = area.await(0, kReal, Deadline::never());
    source.join();
    REQUIRE_FALSE(waited);
    CHECK(waited.error().code == ErrorCode::kAborted);
    CHECK(area.withdrawn());
    CHECK_FALSE(area.refused());
}

TEST_CASE("a destination that refuses ends its other threads' waits with the reason") {
    TransferArea area = fresh_area();
    std::thread other([&] { area.refuse("vcpu 3 has no LAPIC"); });
    const auto waited = area.await(0, kReal, Deadline::never());
    other.join();
    REQUIRE_FALSE(waited);
    CHECK(waited.error().code == ErrorCode::kAborted);
    CHECK(contains(waited.error().message, "vcpu 3 has no LAPIC"));
    CHECK(area.refused());
    CHECK(area.refusal() == "vcpu 3 has no LAPIC");
}

TEST_CASE("a refusal is bounded and printable, whatever was written there") {
    TransferArea area = fresh_area();
    area.refuse(std::string(100'000, 'r'));
    CHECK(area.refusal() == std::string(511, 'r'));
    area.refuse("a\nb\x1b[31mc\x7f\xff\xfe d");
    const std::string words = area.refusal();
    CHECK(std::all_of(words.begin(), words.end(), [](char c) { return c >= 0x20 && c < 0x7f; }));
    CHECK(contains(words, "[31mc"));
}

TEST_CASE("moments and sections keep their times") {
    TransferArea area = fresh_area();
    CHECK(area.moment(Moment::kTaken) == 0);
    area.stamp_first(Moment::kFirstStopped);
    const uint64_t first = area.moment(Moment::kFirstStopped);
    CHECK(first != 0);
    area.stamp_first(Moment::kFirstStopped);
    CHECK(area.moment(Moment::kFirstStopped) == first);
    area.record(Moment::kTakenTsc, 4711);
    CHECK(area.moment(Moment::kTakenTsc) == 4711);
    area.record(Moment::kTakenTsc, 4712);
    CHECK(area.moment(Moment::kTakenTsc) == 4712);
    CHECK(area.loaded_ns(1) == 0);
    area.stamp_loaded(1);
    CHECK(area.loaded_ns(1) != 0);
    CHECK(area.loaded_ns(0) == 0);
}

TEST_CASE("every moment has words of its own") {
    std::set<std::string_view> words;
    for (uint32_t i = 0; i < static_cast<uint32_t>(Moment::kCount); ++i)
        words.insert(to_string(Moment{i}));
    CHECK(words.size() == static_cast<size_t>(Moment::kCount));
    CHECK_FALSE(words.contains("unknown"));
}

} // namespace liveupdate::handoff
