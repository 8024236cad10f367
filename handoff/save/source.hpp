// Where the bytes of a saved guest are read from: a file, or an export of an NBD server (nbd_source.hpp).
// What is asked of the bytes is the same (reader.hpp).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "handoff/save/io_queue.hpp"

namespace liveupdate::handoff::save {

// Reads of one thread, several in flight.
class ReadQueue {
public:
    ReadQueue() = default;
    ReadQueue(const ReadQueue&) = delete;
    ReadQueue& operator=(const ReadQueue&) = delete;
    virtual ~ReadQueue() = default; // nothing is in flight any more

    // As IoQueue::read() and await(): offsets, addresses and sizes are multiples of 4096; `pending` is raised
    // now and lowered when it has been done.
    virtual Result<void> read(uint64_t offset, std::span<std::byte> into, uint32_t& pending) = 0;
    virtual Result<void> await(const uint32_t& pending) = 0;
};

// Shared by threads.
class Source {
public:
    Source() = default;
    Source(const Source&) = delete;
    Source& operator=(const Source&) = delete;
    virtual ~Source() = default; // after its queues

    virtual const std::string& name() const = 0; // what errors call it: a path, a URI
    virtual Result<uint64_t> size() const = 0;   // bytes
    // At most `depth` requests in flight. Blocks while there are as many queues as the source can have.
    virtual Result<std::unique_ptr<ReadQueue>> queue(unsigned depth, Engine wanted) = 0;
    // Gives up the connections that nobody uses; the next queue makes one. Of a file: nothing.
    virtual void close_idle() = 0;
    virtual int fd() const = 0; // of a file; -1
    // What did not go as it should have, in words for a user.
    virtual std::vector<std::string> notes() const = 0;
};

class FileSource final : public Source {
public:
    // kRefused when it is no regular file; a pipe is not waited for.
    static Result<std::unique_ptr<Source>> open(const std::string& path);
    // One that somebody else has opened for reading.
    static Result<std::unique_ptr<Source>> adopt(UniqueFd file, std::string name);

    const std::string& name() const override { return file_->path(); }
    Result<uint64_t> size() const override;
    Result<std::unique_ptr<ReadQueue>> queue(unsigned depth, Engine wanted) override;
    void close_idle() override {}
    int fd() const override { return file_->fd(); }
    std::vector<std::string> notes() const override;

private:
    explicit FileSource(std::unique_ptr<DirectFile> file) : file_(std::move(file)) {}

    std::unique_ptr<DirectFile> file_;
    std::atomic<bool> without_ring_{false};
};

} // namespace liveupdate::handoff::save
