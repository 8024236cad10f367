// What has gone through a disk or a network, counted by the host's kernel behind the VMM, whoever that is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "tests/support/loop_device.hpp"
#include "tests/support/net_namespace.hpp"

namespace liveupdate::tests {

class Meter {
public:
    static Result<Meter> of(const LoopDevice& disk);
    static Result<Meter> of(const NetNamespace& network);
    static Result<Meter> packets_of(const NetNamespace& network);

    // Bytes or packets so far, both ways: what the disk has completed, what was given to the tap and taken
    // from it.
    uint64_t count() const { return count_(content(), name_); }

private:
    using Count = uint64_t (*)(const std::string& content, const std::string& name);
    Meter(UniqueFd file, std::string name, Count how)
        : file_(std::move(file)), name_(std::move(name)), count_(how) {}
    static Result<Meter> of_tap(const NetNamespace& network, Count how);
    std::string content() const;

    UniqueFd file_; // of /sys or /proc: each read from its beginning counts anew
    std::string name_;
    Count count_;
};

// MB/s, or millions of packets a second, over each of `stretches` stretches of `seconds`, one after the
// other.
std::vector<double> rates(const Meter& meter, unsigned stretches, double seconds);

} // namespace liveupdate::tests
