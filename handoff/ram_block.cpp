#include "handoff/ram_block.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>

#include "handoff/base/fd.hpp"

namespace liveupdate::handoff {
namespace {

constexpr uint64_t kPopulateStep = uint64_t{16} << 20;

Result<UniqueFd> create_unlinked_file(const std::string& directory, uint64_t size) {
    TRY_ASSIGN(UniqueFd file, fd::open(directory, O_TMPFILE | O_RDWR, 0600));
    if (::ftruncate(file.get(), static_cast<off_t>(size)) < 0)
        return Error::from_errno(
            "size a RAM file in " + directory + " to " + std::to_string(size) + " bytes");
    return file;
}

Result<UniqueFd> create_file(
    const std::string& name, RamKind kind, uint64_t size, const std::string& directory) {
    switch (kind) {
    case RamKind::kMemfd:
        return create_sealed_memfd(name, size);
    case RamKind::kTmpfs:
        return create_unlinked_file(directory.empty() ? "/dev/shm" : directory, size);
    case RamKind::kHugetlbfs:
        if (directory.empty()) return create_sealed_memfd(name, size, MFD_HUGETLB);
        return create_unlinked_file(directory, size);
    case RamKind::kFile:
        return create_unlinked_file(directory, size);
    }
    return Error(ErrorCode::kInternal, "unknown RAM kind");
}

// memfds lie on a tmpfs too, one of the kernel's own that nothing else lies on. One that comes without seals
// must not pass as a file.
Result<bool> is_memfd(const struct stat& info) {
    TRY_ASSIGN(const UniqueFd memfd, fd::memfd_create("liveupdate-compare", 0));
    struct stat own {};
    if (::fstat(memfd.get(), &own) < 0) return Error::from_errno("fstat of a memfd");
    return own.st_dev == info.st_dev;
}

bool lies_on(RamKind kind, decltype(statfs::f_type) magic) {
    if (kind == RamKind::kFile) return magic != TMPFS_MAGIC && magic != HUGETLBFS_MAGIC;
    return magic == (kind == RamKind::kTmpfs ? TMPFS_MAGIC : HUGETLBFS_MAGIC);
}

// The sizes of memfds are sealed; files on file systems cannot be (O_TMPFILE takes no seals), so
// for them the file system is what is checked.
Result<uint64_t> checked_size(const std::string& name, RamKind kind, int fd) {
    const std::string what = "RAM block " + name;
    if (kind == RamKind::kMemfd) return sealed_size(fd, what);
    struct statfs fs {};
    struct stat info {};
    if (::fstatfs(fd, &fs) < 0 || ::fstat(fd, &info) < 0) return Error::from_errno("look at " + what);
    bool fits = S_ISREG(info.st_mode) && lies_on(kind, fs.f_type);
    if (fits && kind == RamKind::kTmpfs) {
        TRY_ASSIGN(const bool memfd, is_memfd(info));
        fits = !memfd;
    }
    if (!fits)
        return Error(ErrorCode::kRefused,
            what + " is said to be a file on " + std::string(to_string(kind)) + " and is not");
    return static_cast<uint64_t>(info.st_size);
}

} // namespace

std::string_view to_string(RamKind kind) {
    switch (kind) {
    case RamKind::kMemfd:
        return "memfd";
    case RamKind::kTmpfs:
        return "tmpfs";
    case RamKind::kHugetlbfs:
        return "hugetlbfs";
    case RamKind::kFile:
        return "a disk's file system";
    }
    return "unknown";
}

Result<RamBlock> create_ram_block(
    const std::string& name, RamKind kind, uint64_t size, const std::string& directory) {
    auto file = create_file(name, kind, size, directory);
    if (!file) return std::move(file).error().context("create RAM block " + name);
    RamBlock block;
    block.name = name;
    block.kind = kind;
    block.size = size;
    block.file = std::move(file).value();
    return block;
}

Result<void> set_space_aside(const RamBlock& block) {
    if (block.kind != RamKind::kFile) return {};
    if (::fallocate(block.file.get(), 0, 0, static_cast<off_t>(block.size)) == 0) return {};
    return Error::from_errno(
        "set aside " + std::to_string(block.size) + " bytes on the disk of RAM block " + block.name);
}

Result<RamBlock> adopt_ram_block(std::string name, RamKind kind, uint64_t claimed_size, UniqueFd file) {
    TRY_ASSIGN(const uint64_t size, checked_size(name, kind, file.get()));
    if (size != claimed_size)
        return Error(ErrorCode::kRefused, "RAM block " + name + " is said to have " +
                                              std::to_string(claimed_size) + " bytes and has " +
                                              std::to_string(size));
    RamBlock block;
    block.name = std::move(name);
    block.kind = kind;
    block.size = size;
    block.file = std::move(file);
    return block;
}

std::vector<DataRange> data_ranges(int fd, uint64_t offset, uint64_t size) {
    std::vector<DataRange> ranges;
    const uint64_t end = offset + size;
    for (uint64_t at = offset; at < end;) {
        const off_t data = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
        if (data < 0 && errno == ENXIO) break; // only a hole is left
        if (data < 0) return {{offset, size}};
        const off_t hole = ::lseek(fd, data, SEEK_HOLE);
        const uint64_t from = std::min<uint64_t>(static_cast<uint64_t>(data), end);
        const uint64_t to = hole < 0 ? end : std::min<uint64_t>(static_cast<uint64_t>(hole), end);
        if (to > from) ranges.push_back({from, to - from});
        if (to <= at) break;
        at = to;
    }
    return ranges;
}

Result<void> populate(
    const SharedMapping& mapping, const RamBlock& block, uint64_t offset, const std::stop_token& stop) {
    // A page of a disk that is populated for writing is dirty.
    const int advice = block.kind == RamKind::kFile ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
    for (const DataRange& range : data_ranges(block.file.get(), offset, mapping.size())) {
        std::byte* const start = mapping.data() + (range.offset - offset);
        for (uint64_t at = 0; at < range.size; at += kPopulateStep) {
            if (stop.stop_requested()) return {};
            const uint64_t step = std::min<uint64_t>(kPopulateStep, range.size - at);
            if (::madvise(start + at, step, advice) < 0) return Error::from_errno("populate guest RAM");
        }
    }
    return {};
}

} // namespace liveupdate::handoff
