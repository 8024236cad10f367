// RAM that comes out of the file of a saved guest while the guest runs: a page is there when it is touched,
// the rest comes in the background (userfaultfd, Linux's Documentation/admin-guide/mm/userfaultfd.rst).
//
// Two threads: one serves what vCPUs, devices and KVM wait for, the other fills chunk after chunk. Each chunk
// is read once, checked, and put in place as a whole; pages that are zero in the file are given when asked
// for.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "handoff/manifest.hpp"
#include "handoff/save/reader.hpp"

namespace liveupdate::vmm {

class LazyRam {
public:
    // A part of a RAM block, and where it is mapped: empty, shared, and touched by nobody yet.
    struct Part {
        std::string block;
        uint64_t offset = 0; // into the block, a multiple of 1 MiB
        std::span<std::byte> mapped;
    };
    // Takes the file. From its return on the parts may be touched. `failed` is called at most once, on a
    // thread of this object, when RAM cannot be had: the guest must not go on. kUnsupported: this kernel or
    // user cannot.
    static Result<std::unique_ptr<LazyRam>> begin(
        UniqueFd file, std::vector<Part> parts, std::function<void(std::string)> failed);
    ~LazyRam(); // whoever touches the parts has ended, or everything has been filled

    // 0: all is there, and the file is no longer needed.
    uint64_t bytes_left() const { return bytes_left_.load(std::memory_order_acquire); }

private:
    struct Chunk {
        Part* part = nullptr;
        size_t block = 0;    // of the file
        uint64_t number = 0; // in the block
        std::atomic<bool> taken{false};
    };
    class Source; // reads chunks, one at a time

    LazyRam(std::function<void(std::string)> failed) : failed_(std::move(failed)) {}
    Result<void> open(UniqueFd file, std::vector<Part> parts);
    Result<void> watch(const Part& part) const;
    void serve();
    void fill_all();
    Result<void> serve_one(Source& source);
    Result<void> fill(Source& source, Chunk& chunk);
    Result<void> give_zero(uint64_t address) const;
    Result<void> put(std::byte* to, const std::byte* from, size_t size) const;
    void finish();
    void fail(const Error& error);

    std::function<void(std::string)> failed_;
    std::atomic<bool> has_failed_{false}, ending_{false};
    std::unique_ptr<handoff::save::Reader> file_;
    UniqueFd faults_, wake_;
    std::vector<Part> parts_;
    std::vector<std::unique_ptr<Chunk>> chunks_; // by part, then ascending
    std::atomic<uint64_t> bytes_left_{0};
    std::thread server_, filler_;
};

} // namespace liveupdate::vmm
