#include "handoff/manifest.hpp"

#include <algorithm>

#include "handoff/base/fd.hpp"
#include "handoff/base/words.hpp"

namespace liveupdate::handoff {
namespace {

constexpr uint64_t kPage = 4096;

Error refused(std::string words) {
    return {ErrorCode::kRefused, "manifest: " + std::move(words)};
}

std::string hex(uint64_t n) {
    char text[19];
    std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(n));
    return text;
}

bool name_is_plain(const std::string& name) {
    return !name.empty() && name.size() <= 32 && std::all_of(name.begin(), name.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
    });
}

Result<void> take_blocks(const proto::Manifest& message, NamedFds& fds, Manifest& out) {
    if (message.blocks_size() == 0) return refused("there is no RAM block");
    if (static_cast<size_t>(message.blocks_size()) > kMaxRamBlocks)
        return refused(std::to_string(message.blocks_size()) + " RAM blocks are more than " +
                       std::to_string(kMaxRamBlocks));
    for (const proto::RamBlock& b : message.blocks()) {
        if (!name_is_plain(b.name())) return refused("a RAM block's name is not 1 to 32 of [a-z0-9-]");
        for (const RamBlock& other : out.blocks)
            if (other.name == b.name()) return refused("RAM block " + b.name() + " is there twice");
        if (b.size() == 0 || b.size() % kPage != 0 || b.size() > kMaxGuestPhysical)
            return refused("RAM block " + b.name() + " has an impossible size of " +
                           std::to_string(b.size()) + " bytes");
        TRY_ASSIGN(const RamKind kind, ram_kind_of(b));
        TRY_ASSIGN(UniqueFd file, take_fd(fds, b.name()));
        TRY_ASSIGN(RamBlock block, adopt_ram_block(b.name(), kind, b.size(), std::move(file)));
        out.blocks.push_back(std::move(block));
    }
    return {};
}

Result<RamRegion> check_region(const proto::RamRegion& r, const std::vector<RamBlock>& blocks) {
    const auto found =
        std::find_if(blocks.begin(), blocks.end(), [&](const RamBlock& b) { return b.name == r.block(); });
    if (found == blocks.end())
        return refused("a region shows RAM block '" + printable(r.block(), 64) + "', which is not there");
    const std::string where = "region at " + hex(r.gpa());
    if (r.size() == 0 || (r.gpa() | r.size() | r.offset()) % kPage != 0)
        return refused(where + " is not made of whole pages");
    if (r.gpa() > kMaxGuestPhysical || r.size() > kMaxGuestPhysical - r.gpa())
        return refused(where + " ends beyond the guest physical addresses that exist");
    if (r.offset() > found->size || r.size() > found->size - r.offset())
        return refused(where + " reaches beyond the end of RAM block " + found->name);
    return RamRegion{
        r.gpa(), r.size(), static_cast<size_t>(found - blocks.begin()), r.offset(), r.read_only()};
}

Result<void> take_regions(const proto::Manifest& message, Manifest& out) {
    if (message.regions_size() == 0) return refused("no RAM block is shown anywhere");
    if (static_cast<size_t>(message.regions_size()) > kMaxRamRegions)
        return refused(std::to_string(message.regions_size()) + " regions are more than " +
                       std::to_string(kMaxRamRegions));
    for (const proto::RamRegion& r : message.regions()) {
        TRY_ASSIGN(const RamRegion region, check_region(r, out.blocks));
        out.regions.push_back(region);
    }
    std::sort(out.regions.begin(), out.regions.end(),
        [](const RamRegion& a, const RamRegion& b) { return a.gpa < b.gpa; });
    for (size_t i = 1; i < out.regions.size(); ++i)
        if (out.regions[i - 1].gpa + out.regions[i - 1].size > out.regions[i].gpa)
            return refused("the regions at " + hex(out.regions[i - 1].gpa) + " and " +
                           hex(out.regions[i].gpa) + " overlap");
    return {};
}

} // namespace

Result<RamKind> ram_kind_of(const proto::RamBlock& block) {
    switch (block.kind()) {
    case proto::RAM_KIND_MEMFD:
        return RamKind::kMemfd;
    case proto::RAM_KIND_TMPFS:
        return RamKind::kTmpfs;
    case proto::RAM_KIND_HUGETLBFS:
        return RamKind::kHugetlbfs;
    case proto::RAM_KIND_FILE:
        return RamKind::kFile;
    default:
        return refused("RAM block " + block.name() + " is of a kind that this build does not know");
    }
}

proto::RamKind to_message(RamKind kind) {
    switch (kind) {
    case RamKind::kMemfd:
        return proto::RAM_KIND_MEMFD;
    case RamKind::kTmpfs:
        return proto::RAM_KIND_TMPFS;
    case RamKind::kHugetlbfs:
        return proto::RAM_KIND_HUGETLBFS;
    case RamKind::kFile:
        return proto::RAM_KIND_FILE;
    }
    return proto::RAM_KIND_UNSPECIFIED;
}

Result<Manifest> take_manifest(const proto::Manifest& message, NamedFds& fds) {
    Manifest manifest;
    TRY(take_blocks(message, fds, manifest));
    TRY(take_regions(message, manifest));
    manifest.machine = message.machine();
    return manifest;
}

proto::Manifest to_message(const Manifest& manifest) {
    proto::Manifest message;
    for (const RamBlock& b : manifest.blocks) {
        auto* block = message.add_blocks();
        block->set_name(b.name);
        block->set_kind(to_message(b.kind));
        block->set_size(b.size);
    }
    for (const RamRegion& r : manifest.regions) {
        auto* region = message.add_regions();
        region->set_gpa(r.gpa);
        region->set_size(r.size);
        region->set_block(manifest.blocks[r.block].name);
        region->set_offset(r.offset);
        region->set_read_only(r.read_only);
    }
    *message.mutable_machine() = manifest.machine;
    return message;
}

std::vector<FdToSend> fds_of(const Manifest& manifest) {
    std::vector<FdToSend> fds;
    for (const RamBlock& b : manifest.blocks)
        fds.push_back({b.name, b.file.get()});
    return fds;
}

Result<Manifest> duplicate(const Manifest& manifest) {
    Manifest copy;
    for (const RamBlock& b : manifest.blocks) {
        TRY_ASSIGN(UniqueFd file, fd::dup(b.file.get()));
        RamBlock block;
        block.name = b.name;
        block.kind = b.kind;
        block.size = b.size;
        block.file = std::move(file);
        copy.blocks.push_back(std::move(block));
    }
    copy.regions = manifest.regions;
    copy.machine = manifest.machine;
    return copy;
}

} // namespace liveupdate::handoff
