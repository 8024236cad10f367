#include "supervisor/guest_driver.hpp"

#include "supervisor/native_driver.hpp"

namespace liveupdate::supervisor {

std::unique_ptr<GuestDriver> make_driver(const VmConfig& config, const Paths& paths) {
    return std::make_unique<NativeDriver>(config, paths);
}

} // namespace liveupdate::supervisor
