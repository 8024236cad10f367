// The file of a saved guest from a stranger: its header with a right checksum, and its state.
#include <algorithm>
#include <cstring>
#include <string>

#include "handoff/save/checksum.hpp"
#include "handoff/save/header.hpp"
#include "handoff/save/saved_guest.hpp"

namespace {

using namespace liveupdate::handoff::save;

// Magic, version and checksum are given: the rest is what must not be believed.
void try_header(const uint8_t* data, size_t size) {
    HeaderPage page = encode({{{{"ram0", kPage, Place::kHere}, 0, 0}}, 1, 0});
    std::memcpy(page.data() + 12, data, std::min<size_t>(size, 4088 - 12));
    const uint64_t sum = checksum({reinterpret_cast<const char*>(page.data()), 4088});
    std::memcpy(page.data() + 4088, &sum, sizeof(sum));
    uint64_t file_size = 0; // as it says itself
    std::memcpy(&file_size, page.data() + 16, sizeof(file_size));
    const auto header = decode(page, file_size);
    if (!header) return;
    for (const BlockHeader& block : header->blocks)
        if (block.written > pages_in(block.spec.size)) __builtin_trap();
    const HeaderPage again = encode(*header);
    if (std::memcmp(again.data(), page.data(), page.size()) != 0) __builtin_trap();
}

void try_state(const uint8_t* data, size_t size) {
    const auto guest = parse_saved_guest({reinterpret_cast<const char*>(data), size});
    if (!guest) return;
    for (const auto& each : guest->sections())
        if (each.state().size() > each.section().capacity()) __builtin_trap();
    static_cast<void>(sections_of(*guest));
    static_cast<void>(check_blocks_against(guest->manifest(), {{"ram0", kPage, Place::kHere}}));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    if (data[0] % 2 == 0)
        try_header(data + 1, size - 1);
    else
        try_state(data + 1, size - 1);
    return 0;
}
