// ICMP echo requests with a number in each, at a fixed rate while not too many are unanswered; each answer is
// checked byte by byte and counted. It neither waits nor has a thread: whoever has it calls.
#pragma once

#include <netinet/in.h>
#include <netinet/ip_icmp.h>

#include <array>
#include <cstdint>
#include <vector>

#include "handoff/base/unique_fd.hpp"

namespace liveupdate::tests {

class Pinger {
public:
    struct Figures {
        uint64_t sent = 0;
        uint64_t held_back = 0; // were due with `window` unanswered, or found no room in the tap's queue
        uint64_t answered = 0;  // the first time
        uint64_t doubled = 0;   // answers after the first
        uint64_t reordered = 0; // answers after one to a later request
        uint64_t damaged = 0;   // answers that do not hold what was asked
        uint64_t slowest_us = 0;
    };

    // `guest`: an address, such as "10.77.0.2". `hz` 0: none at all.
    Pinger(const char* guest, uint64_t hz, uint64_t window);

    // In the network namespace of the calling thread. False: errno tells why.
    bool open();
    int fd() const { return fd_.get(); }
    void turn(bool on) { on_ = on && period_ns_ != 0; }
    bool on() const { return on_; }
    // Until the next request is due.
    uint64_t next_ns() const;
    void send_due();
    void receive_all();
    bool all_answered() const { return figures_.sent == figures_.answered; }
    const Figures& figures() const { return figures_; }

private:
    struct Echo {
        icmphdr icmp;
        uint64_t number;
        uint64_t sent_ns;
        std::array<uint8_t, 40> rest;
    };
    void send_one(uint64_t now);
    void take(const Echo& echo);

    const sockaddr_in guest_;
    const uint64_t period_ns_, window_;
    UniqueFd fd_;
    bool on_ = false;
    uint64_t next_ns_ = 0;
    uint64_t newest_ = 0;
    Figures figures_;
    std::vector<bool> seen_;
};

} // namespace liveupdate::tests
