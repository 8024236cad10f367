#include "handoff/save/saved_guest.hpp"

#include <algorithm>

#include "handoff/base/words.hpp"
#include "handoff/negotiation.hpp"

namespace liveupdate::handoff::save {
namespace {

constexpr size_t kMaxConfigBytes = size_t{1} << 20;
constexpr size_t kMaxNameLength = 63;
constexpr uint32_t kMaxEpoch = 1u << 31; // leaves room for as many changes of hands
constexpr size_t kMaxFixedBytes = size_t{1} << 20;
constexpr int kMostArguments = 4096, kMostDevices = 65536;

Error refused(std::string words) {
    return {ErrorCode::kRefused, "the saved state " + std::move(words)};
}

// Of the message and all in it, but for `except`.
bool has_unknown_fields(
    const google::protobuf::Message& message, const google::protobuf::Message* except = nullptr) {
    if (&message == except) return false;
    const auto& reflection = *message.GetReflection();
    if (!reflection.GetUnknownFields(message).empty()) return true;
    std::vector<const google::protobuf::FieldDescriptor*> fields;
    reflection.ListFields(message, &fields);
    return std::any_of(fields.begin(), fields.end(), [&](const auto* field) {
        if (field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) return false;
        if (!field->is_repeated()) return has_unknown_fields(reflection.GetMessage(message, field), except);
        for (int i = 0; i < reflection.FieldSize(message, field); ++i)
            if (has_unknown_fields(reflection.GetRepeatedMessage(message, field, i), except)) return true;
        return false;
    });
}

Result<void> check_qemu(const proto::SavedGuest& guest) {
    const proto::SavedQemu& qemu = guest.qemu();
    if (guest.sections_size() != 0 || !guest.fixed_state().empty())
        return refused("has sections beside QEMU's stream");
    if (qemu.version().empty() || qemu.machine().empty() || qemu.arguments().empty() ||
        (qemu.stream().empty() && qemu.image_sums().empty()))
        return refused("lacks QEMU's version, machine type, arguments or stream");
    if (qemu.arguments_size() > kMostArguments || qemu.devices_size() > kMostDevices)
        return refused("has more arguments or devices than a QEMU may have");
    return {};
}

Result<void> check_sections(const proto::SavedGuest& guest) {
    if (guest.sections_size() == 0 || static_cast<size_t>(guest.sections_size()) > kMaxSections)
        return refused("has " + std::to_string(guest.sections_size()) + " sections");
    for (const proto::SavedSection& each : guest.sections()) {
        const std::string& kind = each.section().kind();
        if (kind.empty() || kind.size() > 64) return refused("has a section without a name");
        if (each.section().capacity() > kMaxSectionBytes || each.state().size() > each.section().capacity())
            return refused("has more bytes in section '" + printable(kind, 64) + "' than that may have");
    }
    return {};
}

} // namespace

Result<proto::SavedGuest> parse_saved_guest(std::string_view bytes) {
    proto::SavedGuest guest;
    if (!guest.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return refused("cannot be read");
    if (has_unknown_fields(guest, &guest.source()))
        return refused("holds something that this build does not know; it was saved by " +
                       printable(guest.source().implementation() + " " + guest.source().version(), 100) +
                       ", use that or a later release");
    if (!guest.has_source() || !guest.has_manifest() || !guest.has_clocks())
        return refused("lacks the source, the manifest or the clocks");
    if (guest.vm().empty() || guest.vm().size() > kMaxNameLength || guest.config().size() > kMaxConfigBytes ||
        guest.fixed_state().size() > kMaxFixedBytes)
        return refused("has a name, a VM file or a fixed state of an impossible size");
    if (guest.epoch() > kMaxEpoch) return refused("has an impossible epoch");
    TRY(guest.has_qemu() ? check_qemu(guest) : check_sections(guest));
    return guest;
}

std::vector<SectionInfo> sections_of(const proto::SavedGuest& guest) {
    std::vector<SectionInfo> sections;
    for (const proto::SavedSection& each : guest.sections())
        sections.push_back({each.section().kind(), each.section().instance(), each.section().version(),
            each.section().capacity()});
    return sections;
}

Result<void> check_blocks_against(const proto::Manifest& manifest, const std::vector<BlockSpec>& blocks) {
    for (const BlockSpec& block : blocks)
        if (std::none_of(manifest.blocks().begin(), manifest.blocks().end(),
                [&](const auto& b) { return b.name() == block.name && b.size() == block.size; }))
            return refused("knows no RAM block " + block.name + " of the file's size");
    for (const proto::RamBlock& wanted : manifest.blocks()) {
        if (std::none_of(
                blocks.begin(), blocks.end(), [&](const BlockSpec& b) { return b.name == wanted.name(); }))
            return refused(
                "has a RAM block '" + printable(wanted.name(), kMaxNameBytes) + "' that is not in the file");
    }
    return {};
}

} // namespace liveupdate::handoff::save
