// Follows the kernel's log for the words of a kernel that was hurt: stalls, lock-ups, hung tasks, I/O errors.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "tests/linux/guest/report.hpp"

namespace linux_guest {

// True for a line that an undisturbed guest does not write.
bool tells_of_harm(const std::string& line);

class KernelLog : public Check {
public:
    void run(const std::atomic<bool>& stop) override;
    std::string progress() const override;

private:
    void read_all(int fd);
    std::atomic<std::uint64_t> lines_ = 0;
};

} // namespace linux_guest
