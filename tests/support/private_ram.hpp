// The report of a guest whose RAM is private to its VMM, read out of the process that runs it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "tests/guests/report.hpp"

namespace liveupdate::tests {

class PrivateRam {
public:
    // Of the guest of the one VMM that `supervisor` has; zeros while there is none to be found. `size`: of
    // RAM, in bytes. Valid until the next call.
    const ::tests::guests::Report& report(pid_t supervisor, uint64_t size);

private:
    bool read_from(pid_t vmm);
    bool find(pid_t vmm, uint64_t size);

    std::unique_ptr<::tests::guests::Report> copy_ = std::make_unique<::tests::guests::Report>();
    pid_t vmm_ = 0;
    uint64_t ram_ = 0; // address in the VMM
};

// The processes that `parent`'s threads have started.
std::vector<pid_t> children_of(pid_t parent);

} // namespace liveupdate::tests
