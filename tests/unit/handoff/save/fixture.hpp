// A small saved guest in a folder of its own, and its RAM.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>

#include <cstring>
#include <random>

#include "handoff/base/fd.hpp"
#include "handoff/negotiation.hpp"
#include "handoff/save/reader.hpp"
#include "handoff/save/writer.hpp"
#include "handoff/shared_memory.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff::save {

inline constexpr uint64_t kMib = uint64_t{1} << 20;

// Page-aligned zeroed memory.
class Memory {
public:
    explicit Memory(uint64_t size)
        : file_(must(create_sealed_memfd("test-ram", size))),
          mapping_(must(SharedMapping::map(file_.get(), 0, size, MapMode::kShared))) {}
    std::span<std::byte> bytes() const { return mapping_.bytes(); }
    int file() const { return file_.get(); }
    std::byte* page(uint64_t n) const { return mapping_.data() + n * kPage; }
    // Makes a page its number and `salt` say.
    void fill(uint64_t n, uint64_t salt = 1) const {
        std::mt19937_64 random(n * 1000003 + salt);
        for (uint64_t at = 0; at < kPage; at += 8) {
            const uint64_t value = random();
            std::memcpy(page(n) + at, &value, sizeof(value));
        }
    }
    bool operator==(const Memory& other) const {
        return bytes().size() == other.bytes().size() &&
               std::memcmp(bytes().data(), other.bytes().data(), bytes().size()) == 0;
    }

private:
    UniqueFd file_;
    SharedMapping mapping_;
};

inline PageMap all_pages(uint64_t size) {
    PageMap map(pages_in(size));
    map.set_run({0, map.pages()});
    return map;
}

inline proto::SavedGuest sample_guest(const std::vector<BlockSpec>& blocks) {
    proto::SavedGuest guest;
    guest.set_vm("web1");
    guest.set_config("[machine]\nvcpus = 1\n");
    guest.set_saved_unix_ms(1764108196000);
    guest.mutable_source()->set_implementation("liveupdate-vmm");
    guest.mutable_source()->set_version("0.1.0");
    uint64_t gpa = 0;
    for (const BlockSpec& block : blocks) {
        auto* b = guest.mutable_manifest()->add_blocks();
        b->set_name(block.name);
        b->set_size(block.size);
        b->set_kind(proto::RAM_KIND_MEMFD);
        auto* region = guest.mutable_manifest()->add_regions();
        region->set_block(block.name);
        region->set_gpa(gpa);
        region->set_size(block.size);
        gpa += block.size;
    }
    guest.mutable_manifest()->mutable_machine()->set_vcpus(1);
    guest.set_fixed_state("fixed");
    for (const char* kind : {"vcpu", "vm"}) {
        auto* section = guest.add_sections();
        section->mutable_section()->set_kind(kind);
        section->mutable_section()->set_version(1);
        section->mutable_section()->set_capacity(4096);
        section->set_state(std::string(100, kind[1]));
    }
    guest.mutable_clocks()->set_monotonic_ns(123456789);
    guest.mutable_clocks()->set_tsc(987654321);
    return guest;
}

// Two blocks: 2 MiB and 24 KiB with some pages, and 20 KiB that is all zero.
struct SmallGuest {
    std::vector<BlockSpec> blocks = {
        {"ram0", 2 * kMib + 6 * kPage, Place::kHere}, {"ram1", 5 * kPage, Place::kHere}};
    Memory ram0{blocks[0].size};
    Memory ram1{blocks[1].size};

    SmallGuest() {
        for (const uint64_t page : {0, 1, 2, 7, 255, 256, 300, 517})
            ram0.fill(page);
    }
    // Writes it into `folder`; the file's path.
    std::string save(const std::string& folder, IoOptions options = {}) const {
        auto writer = must(Writer::create(folder, blocks, options));
        must(writer->write_pages(0, ram0.bytes(), all_pages(blocks[0].size)));
        must(writer->write_pages(1, ram1.bytes(), all_pages(blocks[1].size)));
        must(writer->finish(sample_guest(blocks).SerializeAsString()));
        must(writer->publish());
        return writer->path();
    }
};

// All of a file read as a restore does: the error, or whether RAM is that of `guest`.
inline Result<bool> read_and_compare(const std::string& path, const SmallGuest& guest, IoOptions options = {},
    RamKind kind = RamKind::kMemfd) {
    TRY_ASSIGN(auto reader, Reader::open(path, options));
    if (reader->header().specs() != guest.blocks) return false;
    TRY(reader->load_tables());
    const Memory ram0(guest.blocks[0].size), ram1(guest.blocks[1].size);
    TRY(reader->read_block(0, ram0.file(), kind));
    TRY(reader->read_block(1, ram1.file(), kind));
    return ram0 == guest.ram0 && ram1 == guest.ram1 &&
           reader->guest().SerializeAsString() == sample_guest(guest.blocks).SerializeAsString();
}

} // namespace liveupdate::handoff::save
