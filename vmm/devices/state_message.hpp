// The strict way between a device's protobuf message and its bytes. Used by devices only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "handoff/base/result.hpp"
#include "vmm/devices/device.hpp"

namespace google::protobuf {
class Message;
}

namespace liveupdate::vmm {

// Nothing a device of ours saves comes near this; a peer that sends more is refused unread.
constexpr size_t kMaxStateBytes = size_t{1} << 20;

// The same message always gives the same bytes.
Result<std::string> serialise_state(const google::protobuf::Message& message);

// Fills `message` from what a peer wrote as `version`. Refused: a version outside `schema`, more than
// kMaxStateBytes, bytes that do not parse, fields that the message does not have, and, when `version` is the
// schema's own, fields that are not there (state fields are declared `optional` so that absence shows).
// For an older version the device itself decides what absence means. Ranges are the device's to check.
Result<void> parse_state(
    google::protobuf::Message& message, std::string_view bytes, uint32_t version, const StateSchema& schema);

// Refuses `value` above `limit`, in words.
Result<void> check_at_most(std::string_view field, uint64_t value, uint64_t limit);

// Refuses bits of `value` outside `mask`, in words.
Result<void> check_bits(std::string_view field, uint64_t value, uint64_t mask);

} // namespace liveupdate::vmm
