#include "vmm/boot/reset_state.hpp"

namespace liveupdate::vmm {

InitialState reset_state() {
    constexpr uint64_t kCachesOffExtensionType = 0x60000010; // CD, NW, ET
    constexpr uint8_t kCodeReadAccessed = 0xB;
    constexpr uint8_t kDataWriteAccessed = 0x3;
    constexpr uint8_t kLdt = 0x2;
    constexpr uint8_t kBusyTss32 = 0xB;

    InitialState state;
    state.rip = 0xFFF0;
    state.cr0 = kCachesOffExtensionType;
    state.cs = {.base = 0xFFFF0000, .selector = 0xF000, .type = kCodeReadAccessed};
    state.data = {.type = kDataWriteAccessed};
    state.tr = {.type = kBusyTss32, .code_or_data = false};
    state.ldt = {.type = kLdt, .code_or_data = false};
    return state;
}

} // namespace liveupdate::vmm
