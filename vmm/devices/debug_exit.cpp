#include "vmm/devices/debug_exit.hpp"

namespace liveupdate::vmm {

uint32_t DebugExit::read(uint16_t /*offset*/, unsigned /*size*/) {
    return 0;
}

void DebugExit::write(uint16_t offset, unsigned /*size*/, uint32_t value) {
    if (offset == 0) machine_.request_exit((value << 1) | 1);
}

} // namespace liveupdate::vmm
