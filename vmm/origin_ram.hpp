// RAM that has an origin, the file of a saved guest: a page that a RAM block lacks comes from there when it
// is first touched, and not before. So what the guest has touched is its own and lies in its RAM blocks,
// which cross to another VMM as they always do; all else costs no memory, and many guests may have one
// origin. The origin is needed for as long as the guest runs.
//
// Every VMM that maps such RAM, also for a rehearsal, has one of these for each mapping. They need not know
// of each other: a page is put into the block once, by whoever is first, and all give the same.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "handoff/manifest.hpp"
#include "handoff/save/reader.hpp"
#include "vmm/userfault.hpp"

namespace liveupdate::vmm {

class OriginRam {
public:
    // `mapped`: where each region of the manifest is mapped, touched by nobody yet; blocks that are not
    // "ram0" and so on have no origin. `file` is borrowed, and open for reading. `failed` is called at most
    // once, on a thread of this object, when RAM cannot be had: the guest must not go on.
    // kUnsupported: this kernel or user cannot, or RAM is of huge pages.
    static Result<std::unique_ptr<OriginRam>> begin(int file, const handoff::Manifest& manifest,
        const std::function<std::span<std::byte>(size_t region)>& mapped,
        std::function<void(std::string)> failed);
    ~OriginRam(); // whoever touches the RAM has ended

private:
    struct Part {
        size_t block = 0;        // of the file
        uint64_t first_page = 0; // in the block
        std::span<std::byte> mapped;
    };
    class Buffer;

    explicit OriginRam(Userfault faults) : faults_(std::move(faults)) {}
    Result<void> add(const handoff::RamBlock& block, uint64_t offset, std::span<std::byte> mapped);
    void serve();
    Result<void> serve_one(const Buffer& buffer, uint64_t address);
    Result<std::span<const std::byte>> page_of(const Buffer& buffer, size_t block, uint64_t page);

    std::function<void(std::string)> failed_;
    Userfault faults_;
    UniqueFd wake_;
    std::unique_ptr<handoff::save::Reader> file_;
    handoff::save::Layout layout_;
    std::vector<Part> parts_;
    std::vector<std::vector<bool>> checked_; // by block of the file and chunk: its sum is right
    std::atomic<bool> ending_{false};
    std::thread server_;
};

} // namespace liveupdate::vmm
