#include "handoff/negotiation.hpp"

#include <algorithm>

#include "handoff/base/words.hpp"

namespace liveupdate::handoff {
namespace {

using Supports = google::protobuf::RepeatedPtrField<proto::SectionSupport>;

const proto::SectionSupport* find(const Supports& supports, const std::string& kind) {
    const auto found =
        std::find_if(supports.begin(), supports.end(), [&](const auto& s) { return s.kind() == kind; });
    return found == supports.end() ? nullptr : &*found;
}

std::string range(uint32_t oldest, uint32_t newest) {
    if (oldest == newest) return "version " + std::to_string(oldest);
    return "versions " + std::to_string(oldest) + " to " + std::to_string(newest);
}

std::string build(const proto::Offer& offer) {
    return printable(offer.implementation(), 64) + " " + printable(offer.version(), 64);
}

Result<void> check_capabilities(const proto::Offer& who, const proto::Offer& peer, std::string_view role) {
    for (const std::string& wanted : who.required_capabilities()) {
        const auto& has = peer.capabilities();
        if (std::find(has.begin(), has.end(), wanted) == has.end())
            return Error(ErrorCode::kRefused, "the " + std::string(role) + " (" + build(who) +
                                                  ") needs its peer to have the capability '" +
                                                  printable(wanted, 64) + "'; " + build(peer) + " has not");
    }
    return {};
}

Result<uint32_t> version_for(
    const proto::Offer& source, const proto::Offer& destination, const SectionInfo& section) {
    const auto* loads = find(destination.loads(), section.kind);
    if (loads == nullptr)
        return Error(ErrorCode::kRefused, "the destination (" + build(destination) +
                                              ") does not know the state section '" +
                                              printable(section.kind, 64) + "'");
    const auto* saves = find(source.saves(), section.kind);
    const uint32_t oldest = saves == nullptr ? section.version : saves->oldest();
    const uint32_t newest = saves == nullptr ? section.version : saves->newest();
    const uint32_t version = std::min(newest, loads->newest());
    if (version < oldest || version < loads->oldest())
        return Error(ErrorCode::kRefused,
            "state section '" + printable(section.kind, 64) + "': the source (" + build(source) + ") saves " +
                range(oldest, newest) + ", the destination (" + build(destination) + ") loads " +
                range(loads->oldest(), loads->newest()));
    return version;
}

} // namespace

Result<uint32_t> agree_on_protocol(
    uint32_t our_oldest, uint32_t our_newest, uint32_t their_oldest, uint32_t their_newest) {
    const uint32_t newest = std::min(our_newest, their_newest);
    if (newest < our_oldest || newest < their_oldest || newest == 0)
        return Error(ErrorCode::kRefused, "no protocol version in common: we speak " +
                                              range(our_oldest, our_newest) + ", the peer " +
                                              range(their_oldest, their_newest));
    return newest;
}

Result<Agreement> negotiate(
    const proto::Offer& source, const proto::Offer& destination, const std::vector<SectionInfo>& sections) {
    Agreement agreement;
    TRY_ASSIGN(agreement.protocol, agree_on_protocol(source.oldest_protocol(), source.newest_protocol(),
                                       destination.oldest_protocol(), destination.newest_protocol()));
    TRY(check_capabilities(source, destination, "source"));
    TRY(check_capabilities(destination, source, "destination"));
    for (SectionInfo section : sections) {
        TRY_ASSIGN(section.version, version_for(source, destination, section));
        agreement.sections.push_back(std::move(section));
    }
    return agreement;
}

std::vector<SectionInfo> sections_from(const google::protobuf::RepeatedPtrField<proto::Section>& messages) {
    std::vector<SectionInfo> sections;
    for (const proto::Section& m : messages)
        sections.push_back({m.kind(), m.instance(), m.version(), m.capacity()});
    return sections;
}

void add_sections(
    const std::vector<SectionInfo>& sections, google::protobuf::RepeatedPtrField<proto::Section>* out) {
    for (const SectionInfo& s : sections) {
        auto* message = out->Add();
        message->set_kind(s.kind);
        message->set_instance(s.instance);
        message->set_version(s.version);
        message->set_capacity(s.capacity);
    }
}

} // namespace liveupdate::handoff
