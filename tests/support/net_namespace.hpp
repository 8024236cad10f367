// A network namespace of a test's own, with one tap device in it: nothing of the host's network is touched,
// and all of it is gone with the last process and descriptor in it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::tests {

// What the kernel counted at the tap, seen from the host: `sent` goes to the guest.
struct TapCounters {
    uint64_t received = 0, receive_errors = 0, receive_dropped = 0;
    uint64_t sent = 0, send_errors = 0, send_dropped = 0;
};

class NetNamespace {
public:
    // Why none can be made here, e.g. "no CAP_NET_ADMIN"; empty when one can.
    static std::string why_none();

    // The tap `name` is up and has `address`, such as "10.77.0.1/24". More than one queue: multi_queue.
    static Result<std::unique_ptr<NetNamespace>> make(
        const std::string& tap, const std::string& address, unsigned queues = 1);

    // Taps of several queues, up and without an address.
    static Result<std::unique_ptr<NetNamespace>> make_multi_queue(const std::vector<std::string>& taps);

    // Puts the calling thread, and what it starts, into the namespace as long as this lives.
    class Stay {
    public:
        explicit Stay(const NetNamespace& in);
        ~Stay();
        Stay(const Stay&) = delete;
        Stay& operator=(const Stay&) = delete;

    private:
        UniqueFd home_;
    };

    const std::string& tap() const { return tap_; } // empty with several
    Result<TapCounters> counters() const;

private:
    NetNamespace() = default;
    static Result<std::unique_ptr<NetNamespace>> make_empty();
    UniqueFd fd_;
    std::string tap_;
};

} // namespace liveupdate::tests
