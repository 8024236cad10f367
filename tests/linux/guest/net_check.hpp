// A TCP stream to the host and one from it, both at once and both checked byte by byte. Pings of the host are
// answered by the kernel.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/linux/guest/report.hpp"

namespace linux_guest {

struct NetOptions {
    std::string interface = "eth0";
    std::string address; // "10.77.0.2", in a /24
    std::string peer;    // "10.77.0.1"
    std::uint64_t chunk = 16384;
    std::uint64_t pause_us = 10000; // between two chunks sent
    bool wander = false;            // another CPU for each of them
};

// Gives the interface its address and sets it up; what went wrong goes to error().
bool set_up_interface(const std::string& interface, const std::string& address);

class NetCheck : public Check {
public:
    explicit NetCheck(NetOptions options) : options_(std::move(options)) {}
    // Before run(), while nothing else keeps the guest busy: its first packets are lost until its kernel has
    // found the time to see that the link is up, and TCP sends them again ever more rarely.
    void connect();
    void run(const std::atomic<bool>& stop) override;
    std::string progress() const override;

private:
    void send_some();
    // False at the end of the stream.
    bool receive_some();
    void exchange(const std::atomic<bool>& stop);

    const NetOptions options_;
    int fd_ = -1;
    std::uint64_t next_send_ns_ = 0;
    bool broken_ = false;
    std::vector<std::uint8_t> buffer_;
    std::atomic<std::uint64_t> sent_ = 0, received_ = 0;
};

} // namespace linux_guest
