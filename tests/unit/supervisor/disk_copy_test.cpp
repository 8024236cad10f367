#include "supervisor/disk_copy.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "handoff/base/fd.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/unit/supervisor/test_folder.hpp"

namespace liveupdate::supervisor {
namespace {

namespace fs = std::filesystem;

constexpr off_t kSize = off_t{64} << 20;

// Something at both ends and nothing between.
UniqueFd sparse_file(const std::string& path) {
    auto file = fd::open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(file);
    REQUIRE(::ftruncate(file->get(), kSize) == 0);
    REQUIRE(::pwrite(file->get(), "begin", 5, 0) == 5);
    REQUIRE(::pwrite(file->get(), "end", 3, kSize - 3) == 3);
    return std::move(*file);
}

void check_same(const std::string& path) {
    const auto content = fd::read_file(path, size_t{kSize});
    REQUIRE(content);
    REQUIRE(content->size() == size_t{kSize});
    CHECK(content->starts_with("begin"));
    CHECK(content->ends_with("end"));
    CHECK(content->find_first_not_of('\0', 5) == size_t{kSize} - 3);
}

uint64_t backed(const std::string& path) {
    struct stat status {};
    REQUIRE(::stat(path.c_str(), &status) == 0);
    return static_cast<uint64_t>(status.st_blocks) * 512;
}

TEST_CASE("a disk is copied whole, and its holes stay holes") {
    const TestFolder folder;
    const UniqueFd disk = sparse_file(folder.file("disk"));
    const auto copy = copy_disk(disk.get(), folder.file("copy"), CopyWay::kAny);
    REQUIRE_MESSAGE(copy, copy.error().message);
    check_same(folder.file("copy"));
    CHECK(backed(folder.file("copy")) < uint64_t{1} << 20);
    if (!copy->shares) CHECK(copy->bytes < uint64_t{1} << 20);
}

TEST_CASE("a disk is copied from one file system to another") {
    const TestFolder folder;
    const tests::TemporaryFolder shm("/dev/shm");
    const UniqueFd disk = sparse_file(folder.file("disk"));
    const auto refused = copy_disk(disk.get(), shm.at("copy"), CopyWay::kReflink);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ErrorCode::kUnsupported);
    CHECK_FALSE(fs::exists(shm.at("copy")));
    const auto copy = copy_disk(disk.get(), shm.at("copy"), CopyWay::kAny);
    REQUIRE_MESSAGE(copy, copy.error().message);
    CHECK_FALSE(copy->shares);
    check_same(shm.at("copy"));
}

TEST_CASE("what is there already is not overwritten, and what is cancelled leaves nothing") {
    const TestFolder folder;
    const UniqueFd disk = sparse_file(folder.file("disk"));
    folder.write("copy", "mine");
    const auto there = copy_disk(disk.get(), folder.file("copy"), CopyWay::kAny);
    REQUIRE_FALSE(there);
    CHECK(there.error().system_errno == EEXIST);
    CHECK(*fd::read_file(folder.file("copy")) == "mine");
    const auto cancel = fd::eventfd(1);
    const tests::TemporaryFolder shm("/dev/shm"); // where nothing can be shared
    const auto cancelled = copy_disk(disk.get(), shm.at("other"), CopyWay::kAny, cancel->get());
    REQUIRE_FALSE(cancelled);
    CHECK(cancelled.error().code == ErrorCode::kAborted);
    CHECK_FALSE(fs::exists(shm.at("other")));
    const auto folder_fd = fd::open(folder.path(), O_RDONLY);
    const auto no_file = copy_disk(folder_fd->get(), folder.file("third"), CopyWay::kAny);
    REQUIRE_FALSE(no_file);
    CHECK(no_file.error().code == ErrorCode::kInvalid);
}

} // namespace
} // namespace liveupdate::supervisor
