#include "vmm/kvm/internal_error.hpp"

#include <algorithm>
#include <iomanip>
#include <span>
#include <sstream>

namespace liveupdate::vmm {
namespace {

std::string kind_of(uint32_t suberror) {
    switch (suberror) {
    case KVM_INTERNAL_ERROR_EMULATION:
        return "an instruction that it cannot emulate";
    case KVM_INTERNAL_ERROR_SIMUL_EX:
        return "two exceptions at once";
    case KVM_INTERNAL_ERROR_DELIVERY_EV:
        return "an event that it cannot deliver";
    case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
        return "an exit that it does not know";
    default:
        return "internal error " + std::to_string(suberror);
    }
}

// Valid only when KVM says so: older ones leave these words as they were.
std::span<const uint8_t> instruction_of(const kvm_run& page) {
    const auto& failure = page.emulation_failure;
    // flags, then the size with fifteen bytes: three 64-bit words.
    if (failure.suberror != KVM_INTERNAL_ERROR_EMULATION || failure.ndata < 3 ||
        (failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0)
        return {};
    return {failure.insn_bytes, std::min<size_t>(failure.insn_size, sizeof(failure.insn_bytes))};
}

} // namespace

std::string describe_internal_error(const kvm_run& page, std::optional<uint64_t> rip) {
    std::ostringstream text;
    text << "KVM gives up: " << kind_of(page.internal.suberror) << std::hex << std::setfill('0');
    if (rip) text << ", at RIP 0x" << *rip;
    const auto bytes = instruction_of(page);
    if (!bytes.empty()) text << ", bytes";
    for (const uint8_t byte : bytes)
        text << ' ' << std::setw(2) << unsigned{byte};
    return text.str();
}

} // namespace liveupdate::vmm
