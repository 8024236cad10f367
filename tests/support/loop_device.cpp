#include "tests/support/loop_device.hpp"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"

namespace liveupdate::tests {

std::string LoopDevice::why_none() {
    const auto made = make(1 << 20);
    return made ? std::string() : "no loop device: " + made.error().message;
}

Result<std::unique_ptr<LoopDevice>> LoopDevice::make(uint64_t bytes) {
    const UniqueFd memory(::memfd_create("disk", MFD_CLOEXEC));
    if (!memory || ::ftruncate(memory.get(), static_cast<off_t>(bytes)) != 0)
        return Error::from_errno("make a memory file");
    TRY_ASSIGN(const UniqueFd control, fd::open("/dev/loop-control", O_RDWR));
    loop_config config{};
    config.fd = static_cast<uint32_t>(memory.get());
    config.block_size = 512;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
    for (;;) {
        const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
        if (number < 0) return Error::from_errno("LOOP_CTL_GET_FREE");
        std::unique_ptr<LoopDevice> made(new LoopDevice);
        made->name_ = "loop" + std::to_string(number);
        TRY_ASSIGN(made->fd_, fd::open(made->path(), O_RDWR));
        if (::ioctl(made->fd_.get(), LOOP_CONFIGURE, &config) == 0) return made;
        if (errno != EBUSY) return Error::from_errno("LOOP_CONFIGURE " + made->path());
        // somebody else was faster
    }
}

} // namespace liveupdate::tests
