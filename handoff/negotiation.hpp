// What two builds can do together, decided by pure functions over what each has said of itself.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/proto/session.pb.h"
#include "handoff/transfer_area.hpp"

namespace liveupdate::handoff {

// Versions of the session protocol that this library speaks.
inline constexpr uint32_t kOldestProtocol = 1;
inline constexpr uint32_t kNewestProtocol = 1;

// The newest protocol version that both ranges contain.
Result<uint32_t> agree_on_protocol(
    uint32_t our_oldest, uint32_t our_newest, uint32_t their_oldest, uint32_t their_newest);

struct Agreement {
    uint32_t protocol = 0;
    std::vector<SectionInfo> sections; // in the transfer area's order, each with the version to save in
};

// `source` and `destination` are their offers; `sections` is what the source's guest consists of. Refuses, in
// words that name the section and both versions, when the destination could not load all of it.
Result<Agreement> negotiate(
    const proto::Offer& source, const proto::Offer& destination, const std::vector<SectionInfo>& sections);

std::vector<SectionInfo> sections_from(const google::protobuf::RepeatedPtrField<proto::Section>& messages);
void add_sections(
    const std::vector<SectionInfo>& sections, google::protobuf::RepeatedPtrField<proto::Section>* out);

} // namespace liveupdate::handoff
