// A block device of the host: a loop device over memory, so that nothing but the kernel is behind it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::tests {

class LoopDevice {
public:
    // Why none can be made here; empty when one can.
    static std::string why_none();

    // All zero. The device is the kernel's again once this object and whoever else has it open are gone.
    static Result<std::unique_ptr<LoopDevice>> make(uint64_t bytes);

    std::string path() const { return "/dev/" + name_; }
    // Such as "loop0", its name in /sys/block.
    const std::string& name() const { return name_; }

private:
    LoopDevice() = default;
    UniqueFd fd_;
    std::string name_;
};

} // namespace liveupdate::tests
