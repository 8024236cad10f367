// Reads and writes of a whole disk at random places, several at once, against a model of what was
// acknowledged.
#pragma once

#include <linux/aio_abi.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/linux/guest/report.hpp"
#include "tests/linux/pattern.hpp"

namespace linux_guest {

struct DiskOptions {
    std::string name;            // "vda"
    std::uint32_t disk = 0;      // its number in what is written
    std::uint64_t blocks = 2048; // of 4 KiB, from the disk's beginning
    unsigned depth = 8;          // requests in flight
    unsigned request_blocks = 4; // at most in one request
    std::uint64_t pause_us = 0;  // after each round
    bool wander = false;         // another CPU for each round
};

// The disk is all zero at the beginning. No two requests for one block are ever in flight together, so that
// what each read must find is certain.
class DiskCheck : public Check {
public:
    explicit DiskCheck(DiskOptions options);
    ~DiskCheck() override;
    void run(const std::atomic<bool>& stop) override;
    std::string progress() const override;

private:
    enum class Kind { kRead, kWrite, kFlush };
    struct Request {
        iocb call{};
        Kind kind = Kind::kRead;
        std::uint64_t first = 0;
        std::uint64_t count = 0;
        std::uint64_t since_ns = 0;
        Block* buffer = nullptr;
        bool busy = false;
    };

    bool open();
    bool choose(Request& request);
    void prepare(Request& request, Kind kind);
    void submit_free();
    void reap(long at_least);
    bool lost();
    void complete(Request& request, long long result);
    void verify(const Request& request);
    void complain(std::uint64_t block, const Block& found, const char* how);
    void read_all();
    std::uint64_t random();

    const DiskOptions options_;
    int fd_ = -1;
    aio_context_t context_ = 0;
    std::uint64_t random_state_;
    std::uint64_t in_flight_ = 0;
    bool lost_ = false;
    std::vector<Request> requests_;
    std::unique_ptr<Block> expected_ = std::make_unique<Block>();
    std::vector<std::uint32_t> acknowledged_; // generation by block
    std::vector<std::uint32_t> tried_;        // the last generation that was ever sent
    std::vector<bool> taken_;                 // a request for it is in flight
    std::atomic<std::uint64_t> reads_ = 0, writes_ = 0, flushes_ = 0;
    Maximum slowest_ns_;
};

} // namespace linux_guest
