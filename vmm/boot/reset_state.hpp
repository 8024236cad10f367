// The state of a CPU after RESET (Intel SDM volume 3, "Processor state after reset"): real mode, the next
// instruction at 0xFFFFFFF0. Firmware starts there: its image is a read-only RAM block that ends at 4 GiB.
#pragma once

#include "vmm/boot/initial_state.hpp"

namespace liveupdate::vmm {

InitialState reset_state();

} // namespace liveupdate::vmm
