// Reads and writes of one thread on one file, several of them in flight.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::handoff::save {

// A file that is read or written past the page cache, where its file system can. Shared by threads.
class DirectFile {
public:
    // flags as for open(2), without O_DIRECT.
    static Result<std::unique_ptr<DirectFile>> open(const std::string& path, int flags, mode_t mode = 0);

    // One that somebody else has opened.
    static Result<std::unique_ptr<DirectFile>> adopt(UniqueFd file, std::string name);

    int fd() const { return file_.get(); }
    const std::string& path() const { return path_; }
    bool direct() const { return direct_.load(); }
    // The file system took O_DIRECT at the opening and refuses it now.
    Result<void> give_up_direct();

private:
    UniqueFd file_;
    std::string path_;
    std::atomic<bool> direct_{false};
};

// What to do it with. Tests and benchmarks choose; everybody else takes what there is.
enum class Engine { kRing, kCalls };

class IoQueue {
public:
    // At most `depth` requests in flight. Where io_uring cannot be had, one after the other. `file` outlives
    // the queue.
    IoQueue(DirectFile& file, unsigned depth, Engine wanted);
    ~IoQueue(); // waits for what is in flight
    IoQueue(const IoQueue&) = delete;
    IoQueue& operator=(const IoQueue&) = delete;

    Engine engine() const;

    // Offsets, addresses and sizes are multiples of 4096. `pending` is raised now and lowered when it has
    // been done; it and the bytes stay where they are until then. An error is of this or any former request.
    Result<void> read(uint64_t offset, std::span<std::byte> into, uint32_t& pending);
    Result<void> write(uint64_t offset, std::span<const std::byte> from, uint32_t& pending);
    Result<void> await(const uint32_t& pending); // until it is 0
    Result<void> await_all();

private:
    struct Request;
    struct Ring;
    enum class Way : uint8_t { kRead, kWrite };

    Result<void> begin(Way way, uint64_t offset, std::byte* at, size_t size, uint32_t& pending);
    Result<void> submit(Request& request);
    Result<void> reap_one();
    Result<void> ended(Request& request, ssize_t result);
    Result<void> do_now(Request& request);
    Error failed(const Request& request, int problem) const;

    DirectFile& file_;
    std::unique_ptr<Ring> ring_; // null: plain calls
    std::vector<Request> requests_;
    std::vector<Request*> free_;
};

} // namespace liveupdate::handoff::save
