// One connection to an NBD server. Of one thread at a time.
#pragma once

#include <list>
#include <memory>
#include <span>

#include "handoff/save/nbd_source.hpp"

namespace liveupdate::handoff::save {

class NbdConnection {
public:
    static Result<std::unique_ptr<NbdConnection>> open(
        const LibNbd& nbd, const std::string& uri, const NbdOptions& options);
    ~NbdConnection(); // what is in flight is given up
    NbdConnection(const NbdConnection&) = delete;
    NbdConnection& operator=(const NbdConnection&) = delete;

    Result<uint64_t> size() const; // bytes, of the export
    bool several_see_the_same() const;

    // `pending` is raised now and lowered by progress(); it and the bytes stay where they are until then, or
    // until the connection ends.
    Result<void> begin_read(uint64_t offset, std::span<std::byte> into, uint32_t& pending);
    // Waits until something has come, no longer than the server may be silent. An error is of this or any
    // former request.
    Result<void> progress();
    void drain(); // waits for all that is in flight, unless the connection is lost
    bool good() const { return !lost_ && first_failure_; } // nothing has failed
    size_t in_flight() const { return requests_.size(); }

private:
    struct Request {
        NbdConnection* connection = nullptr;
        uint64_t offset = 0;
        size_t size = 0;
        uint32_t* pending = nullptr;
        std::list<Request>::iterator self;
    };
    NbdConnection(const LibNbd& nbd, const std::string& uri, const NbdOptions& options);
    Result<void> connect();
    Result<void> wait_once();
    Error why_not_good() const;
    Error failed(const std::string& what) const; // of the call that has just failed
    static int ended(void* request, int* error);

    const LibNbd& nbd_;
    const std::string uri_;
    const NbdOptions options_;
    nbd_handle* handle_ = nullptr;
    std::list<Request> requests_;
    Result<void> first_failure_;
    bool lost_ = false;
};

} // namespace liveupdate::handoff::save
