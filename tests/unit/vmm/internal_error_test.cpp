#include "vmm/kvm/internal_error.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <memory>

namespace liveupdate::vmm::test {
namespace {

// vmmcall, as KVM leaves it behind.
std::unique_ptr<kvm_run> emulation_failure() {
    auto page = std::make_unique<kvm_run>();
    page->exit_reason = KVM_EXIT_INTERNAL_ERROR;
    auto& failure = page->emulation_failure;
    failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
    failure.ndata = 3;
    failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
    failure.insn_size = 3;
    constexpr std::array<uint8_t, 3> kBytes{0x0f, 0x01, 0xd9};
    std::copy(kBytes.begin(), kBytes.end(), failure.insn_bytes);
    return page;
}

TEST_CASE("an instruction that KVM cannot emulate is told with its place and its bytes") {
    CHECK(describe_internal_error(*emulation_failure(), 0xffffffff81000000) ==
          "KVM gives up: an instruction that it cannot emulate, at RIP 0xffffffff81000000, bytes 0f 01 d9");
}

TEST_CASE("bytes that KVM does not vouch for are not told") {
    const std::string without = "KVM gives up: an instruction that it cannot emulate, at RIP 0x10";
    const auto unflagged = emulation_failure(), short_data = emulation_failure();
    unflagged->emulation_failure.flags = 0;
    short_data->emulation_failure.ndata = 2;
    CHECK(describe_internal_error(*unflagged, 0x10) == without);
    CHECK(describe_internal_error(*short_data, 0x10) == without);
}

TEST_CASE("a size beyond the bytes that KVM has room for is not believed") {
    const auto page = emulation_failure();
    page->emulation_failure.insn_size = 255;
    const std::string text = describe_internal_error(*page, std::nullopt);
    CHECK(text.ends_with(", bytes 0f 01 d9 00 00 00 00 00 00 00 00 00 00 00 00"));
    CHECK(text.find("RIP") == std::string::npos);
}

TEST_CASE("an error that this build does not know keeps its number") {
    const auto page = emulation_failure();
    page->internal.suberror = 77;
    CHECK(describe_internal_error(*page, std::nullopt) == "KVM gives up: internal error 77");
}

} // namespace
} // namespace liveupdate::vmm::test
