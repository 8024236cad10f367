#include "handoff/ram_block.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>

#include "handoff/base/fd.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kPage = 4096;

// Pages of the mapping that this process's page tables have, by /proc/self/pagemap (bit 63: present).
uint64_t pages_in_table(const SharedMapping& mapping) {
    const UniqueFd pagemap = must(fd::open("/proc/self/pagemap", O_RDONLY));
    std::vector<uint64_t> entries(mapping.size() / kPage);
    const auto first = reinterpret_cast<uintptr_t>(mapping.data()) / kPage;
    const auto bytes = static_cast<ssize_t>(entries.size() * 8);
    REQUIRE(
        ::pread(pagemap.get(), entries.data(), entries.size() * 8, static_cast<off_t>(first * 8)) == bytes);
    return static_cast<uint64_t>(
        std::count_if(entries.begin(), entries.end(), [](uint64_t entry) { return entry >> 63 != 0; }));
}

UniqueFd dup_of(const RamBlock& block) {
    return must(fd::dup(block.file.get()));
}

std::string refusal_of(RamKind kind, uint64_t size, UniqueFd file) {
    const auto adopted = adopt_ram_block("ram0", kind, size, std::move(file));
    REQUIRE_FALSE(adopted);
    CHECK(adopted.error().code == ErrorCode::kRefused);
    CHECK(contains(adopted.error().message, "RAM block ram0"));
    return adopted.error().message;
}

} // namespace

TEST_CASE("a block that was created is adopted by its kind and size") {
    for (const RamKind kind : {RamKind::kMemfd, RamKind::kTmpfs}) {
        const RamBlock block = must(create_ram_block("ram0", kind, 2 * kMiB));
        const RamBlock adopted = must(adopt_ram_block("ram0", kind, 2 * kMiB, dup_of(block)));
        CHECK(adopted.kind == kind);
        CHECK(adopted.size == 2 * kMiB);
        CHECK(adopted.name == "ram0");
    }
}

TEST_CASE("a block on a disk has its space set aside, and is no other kind") {
    const std::string folder = tests::folder_on_disk();
    if (folder.empty()) {
        MESSAGE("SKIPPED: all that tests may write to is on tmpfs");
        return;
    }
    const RamBlock block = must(create_ram_block("ram0", RamKind::kFile, kMiB, folder));
    must(set_space_aside(block));
    struct stat status {};
    REQUIRE(::fstat(block.file.get(), &status) == 0);
    CHECK(static_cast<uint64_t>(status.st_blocks) * 512 >= kMiB);
    CHECK(status.st_nlink == 0);
    CHECK(must(adopt_ram_block("ram0", RamKind::kFile, kMiB, dup_of(block))).kind == RamKind::kFile);
    CHECK(contains(refusal_of(RamKind::kTmpfs, kMiB, dup_of(block)), "file on tmpfs and is not"));
    const RamBlock tmpfs = must(create_ram_block("ram0", RamKind::kTmpfs, kMiB));
    CHECK(contains(refusal_of(RamKind::kFile, kMiB, dup_of(tmpfs)), "disk's file system and is not"));
    must(set_space_aside(tmpfs)); // of nothing
    const auto large = create_ram_block("ram0", RamKind::kFile, uint64_t{1} << 43, folder);
    if (large) CHECK_FALSE(set_space_aside(*large).has_value());
}

TEST_CASE("a block's size is what fstat says, never what a peer says") {
    const RamBlock memfd = must(create_ram_block("ram0", RamKind::kMemfd, kMiB));
    CHECK(contains(
        refusal_of(RamKind::kMemfd, 2 * kMiB, dup_of(memfd)), "said to have 2097152 bytes and has 1048576"));
    CHECK(contains(refusal_of(RamKind::kMemfd, kMiB - 4096, dup_of(memfd)), "has 1048576"));
    const RamBlock tmpfs = must(create_ram_block("ram0", RamKind::kTmpfs, kMiB));
    CHECK(contains(refusal_of(RamKind::kTmpfs, 2 * kMiB, dup_of(tmpfs)), "has 1048576"));
}

TEST_CASE("a memfd without seals is no block") {
    UniqueFd loose = must(fd::memfd_create("loose", MFD_ALLOW_SEALING));
    REQUIRE(::ftruncate(loose.get(), kMiB) == 0);
    CHECK(contains(refusal_of(RamKind::kMemfd, kMiB, std::move(loose)), "without the seals"));
}

TEST_CASE("a memfd without seals does not pass as a tmpfs file") {
    UniqueFd loose = must(fd::memfd_create("loose", MFD_ALLOW_SEALING));
    REQUIRE(::ftruncate(loose.get(), kMiB) == 0);
    CHECK(contains(refusal_of(RamKind::kTmpfs, kMiB, std::move(loose)), "file on tmpfs"));
}

TEST_CASE("a file elsewhere does not pass as one on a tmpfs or a hugetlbfs") {
    UniqueFd proc = must(fd::open("/proc/self/maps", O_RDONLY));
    CHECK(contains(refusal_of(RamKind::kTmpfs, 4096, std::move(proc)), "file on tmpfs and is not"));
    const RamBlock tmpfs = must(create_ram_block("ram0", RamKind::kTmpfs, kMiB));
    CHECK(contains(refusal_of(RamKind::kHugetlbfs, kMiB, dup_of(tmpfs)), "file on hugetlbfs and is not"));
    CHECK(contains(refusal_of(RamKind::kMemfd, kMiB, dup_of(tmpfs)), "without the seals"));
}

TEST_CASE("a folder on a tmpfs is no block") {
    UniqueFd folder = must(fd::open("/dev/shm", O_RDONLY | O_DIRECTORY));
    CHECK(contains(refusal_of(RamKind::kTmpfs, 4096, std::move(folder)), "and is not"));
}

TEST_CASE("a block in a folder that is not there cannot be created, and says where") {
    const auto block = create_ram_block("ram0", RamKind::kTmpfs, kMiB, "/nowhere");
    REQUIRE_FALSE(block);
    CHECK(block.error().system_errno == ENOENT);
    CHECK(contains(block.error().message, "create RAM block ram0"));
    CHECK(contains(block.error().message, "/nowhere"));
}

TEST_CASE("the parts of a block that have pages are found, and holes are not") {
    const RamBlock block = must(create_ram_block("ram0", RamKind::kMemfd, kMiB));
    CHECK(data_ranges(block.file.get(), 0, kMiB).empty());
    REQUIRE(::pwrite(block.file.get(), "x", 1, 5 * kPage) == 1);
    REQUIRE(::pwrite(block.file.get(), "x", 1, 6 * kPage) == 1);
    REQUIRE(::pwrite(block.file.get(), "x", 1, 100 * kPage) == 1);
    const auto ranges = data_ranges(block.file.get(), 0, kMiB);
    REQUIRE(ranges.size() == 2);
    CHECK(ranges[0].offset == 5 * kPage);
    CHECK(ranges[0].size == 2 * kPage);
    CHECK(ranges[1].offset == 100 * kPage);
    const auto part = data_ranges(block.file.get(), 6 * kPage, 94 * kPage);
    REQUIRE(part.size() == 1);
    CHECK(part[0].offset == 6 * kPage);
    CHECK(part[0].size == kPage);
}

TEST_CASE("populating fills the page tables where a block has pages, and allocates none") {
    const RamBlock block = must(create_ram_block("ram0", RamKind::kMemfd, 40 * kMiB));
    for (uint64_t at = 0; at < 20 * kMiB; at += kPage) // more than one step
        REQUIRE(::pwrite(block.file.get(), "x", 1, static_cast<off_t>(at)) == 1);
    const SharedMapping mapping =
        must(SharedMapping::map(block.file.get(), kMiB, 39 * kMiB, MapMode::kShared));
    CHECK(pages_in_table(mapping) == 0);
    must(populate(mapping, block, kMiB));
    CHECK(pages_in_table(mapping) == 19 * kMiB / kPage);
    CHECK(data_ranges(block.file.get(), 0, block.size).back().size == 20 * kMiB);
    CHECK(mapping.bytes()[0] == std::byte{'x'});
}

TEST_CASE("every kind of RAM has a word") {
    CHECK(to_string(RamKind::kMemfd) == "memfd");
    CHECK(to_string(RamKind::kTmpfs) == "tmpfs");
    CHECK(to_string(RamKind::kHugetlbfs) == "hugetlbfs");
}

} // namespace liveupdate::handoff
