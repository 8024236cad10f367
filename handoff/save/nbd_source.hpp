// A saved guest that an NBD server has, read through libnbd.
//
// A connection that is lost, or whose server is silent for too long, is an error of what was being read and
// is given up; the next read makes a new one. Trying again is up to whoever reads.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "handoff/save/libnbd.hpp"
#include "handoff/save/source.hpp"

namespace liveupdate::handoff::save {

struct NbdOptions {
    std::chrono::milliseconds silence = std::chrono::seconds(30); // of the server, while something is awaited
    int cancel_fd = -1;                                           // readable: reads end, with kAborted
};

class NbdConnection;

class NbdSource final : public Source {
public:
    // Connects, to see that the export is there. kInvalid: not a URI of the two kinds that can be read.
    // kUnsupported: there is no libnbd. kNotFound: there is no such export, or no such socket. kPeerGone: the
    // server cannot be reached, or does not answer.
    static Result<std::unique_ptr<Source>> open(const std::string& uri, NbdOptions options);
    ~NbdSource() override;

    const std::string& name() const override { return uri_; }
    Result<uint64_t> size() const override { return size_; }
    // A connection for each, when the server says that several see the same; else there is one, which its
    // users take in turn.
    Result<std::unique_ptr<ReadQueue>> queue(unsigned depth, Engine wanted) override;
    void close_idle() override;
    int fd() const override { return -1; }
    std::vector<std::string> notes() const override { return {}; }

private:
    class Queue;
    NbdSource(const LibNbd& nbd, std::string uri, NbdOptions options);
    Result<std::unique_ptr<NbdConnection>> connect() const;
    Result<std::unique_ptr<NbdConnection>> take();
    void put_back(std::unique_ptr<NbdConnection> connection); // null: it was lost

    const LibNbd& nbd_;
    const std::string uri_;
    const NbdOptions options_;
    uint64_t size_ = 0;
    size_t most_ = 1; // connections
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::unique_ptr<NbdConnection>> idle_;
    size_t used_ = 0;                     // connections
    uint64_t next_ticket_ = 0, turn_ = 0; // who comes first is served first
};

} // namespace liveupdate::handoff::save
