// RAM that comes out of a saved guest, a file or an NBD export, while the guest runs: a page is there when it
// is touched, the rest comes in the background.
//
// Two threads: one serves what vCPUs, devices and KVM wait for, the other fills chunk after chunk. Each chunk
// is read once, checked, and put in place as a whole; pages that are zero in the save are given when asked
// for.
//
// A chunk that an NBD server does not give is asked for again, over a new connection: when the others have
// been, or, once somebody waits for it, until that has lasted longer than `patience`. Whoever touches it
// waits: the guest is whole meanwhile.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "handoff/manifest.hpp"
#include "handoff/save/reader.hpp"
#include "vmm/userfault.hpp"

namespace liveupdate::vmm {

class LazyRam {
public:
    // A part of a RAM block, and where it is mapped: empty, shared, and touched by nobody yet.
    struct Part {
        std::string block;
        uint64_t offset = 0; // into the block, a multiple of 1 MiB
        std::span<std::byte> mapped;
    };
    // Where it comes from.
    struct Save {
        UniqueFd file;               // or:
        std::string uri;             // of an NBD export
        std::optional<uint64_t> sum; // of the header of the save that the device state comes from
        std::chrono::milliseconds patience = std::chrono::minutes(5); // with an NBD server
    };
    // From its return on the parts may be touched. `failed` is called at most once, on a thread of this
    // object, when RAM cannot be had: the guest must not go on. kUnsupported: this kernel or user cannot.
    // kRefused: the save is damaged, another one than `sum` says, or without these parts.
    static Result<std::unique_ptr<LazyRam>> begin(
        Save save, std::vector<Part> parts, std::function<void(std::string)> failed);
    ~LazyRam(); // whoever touches the parts has ended, or everything has been filled

    // 0: all is there, and the save is no longer needed.
    uint64_t bytes_left() const { return bytes_left_.load(std::memory_order_acquire); }
    // Why nothing comes, in words; empty while it does. Any thread.
    std::string trouble() const;

private:
    struct Chunk {
        Part* part = nullptr;
        size_t block = 0;    // of the save
        uint64_t number = 0; // in the block
        std::atomic<bool> taken{false};
        std::atomic<uint64_t> waited_since_ns{0}; // 0: nobody has touched it
    };
    class Buffer; // of one thread

    LazyRam(Userfault faults, std::function<void(std::string)> failed);
    Result<void> open(Save save, std::vector<Part> parts);
    void serve();
    void fill_all();
    Result<void> serve_one(Buffer& buffer, uint64_t address);
    Result<void> fill(Buffer& buffer, Chunk& chunk);
    Result<void> put_in_place(Buffer& buffer, const Chunk& chunk);
    Result<bool> read(Buffer& buffer, const Chunk& chunk);
    void leave();
    void finish();
    void fail(const Error& error);
    void set_trouble(std::string why);

    Userfault faults_;
    std::function<void(std::string)> failed_;
    std::atomic<bool> has_failed_{false}, ending_{false};
    UniqueFd wake_;                               // outlives the reader, which looks at it
    std::unique_ptr<handoff::save::Reader> save_; // until both threads have ended
    std::atomic<unsigned> readers_{2};
    std::chrono::milliseconds patience_{}; // 0: what cannot be read is not asked for again
    std::vector<Part> parts_;
    std::vector<std::unique_ptr<Chunk>> chunks_; // by part, then ascending
    std::atomic<uint64_t> bytes_left_{0};
    mutable std::mutex trouble_mutex_;
    std::string trouble_;
    uint64_t trouble_since_ns_ = 0;
    std::thread server_, filler_;
};

} // namespace liveupdate::vmm
