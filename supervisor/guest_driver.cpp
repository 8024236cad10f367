#include "supervisor/guest_driver.hpp"

#include "supervisor/native_driver.hpp"
#include "supervisor/qemu/qemu_driver.hpp"

namespace liveupdate::supervisor {

std::unique_ptr<GuestDriver> make_driver(const VmConfig& config, const Paths& paths) {
    if (config.driver == DriverKind::kQemu) return std::make_unique<qemu::QemuDriver>(config, paths);
    return std::make_unique<NativeDriver>(config, paths);
}

} // namespace liveupdate::supervisor
