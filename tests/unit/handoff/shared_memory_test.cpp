#include "handoff/shared_memory.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "handoff/base/fd.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {

TEST_CASE("a sealed memfd has its size for good") {
    const UniqueFd file = must(create_sealed_memfd("block", 8192));
    CHECK(must(sealed_size(file.get(), "block")) == 8192);
    CHECK(::ftruncate(file.get(), 4096) < 0);
    CHECK(::ftruncate(file.get(), 16384) < 0);
    CHECK(::fcntl(file.get(), F_ADD_SEALS, F_SEAL_WRITE) < 0);
    CHECK(must(sealed_size(file.get(), "block")) == 8192);
}

TEST_CASE("a memfd that lacks one of the two seals is refused") {
    for (const int seal : {0, F_SEAL_SHRINK, F_SEAL_GROW}) {
        const UniqueFd file = must(fd::memfd_create("loose", MFD_ALLOW_SEALING));
        REQUIRE(::ftruncate(file.get(), 4096) == 0);
        if (seal != 0) REQUIRE(::fcntl(file.get(), F_ADD_SEALS, seal) == 0);
        const auto size = sealed_size(file.get(), "the fd");
        REQUIRE_FALSE(size);
        CHECK(size.error().code == ErrorCode::kRefused);
        CHECK(contains(size.error().message, "the fd is a memfd without the seals"));
    }
}

TEST_CASE("what is no memfd has no sealed size") {
    const UniqueFd folder = must(fd::open("/", O_RDONLY));
    const auto size = sealed_size(folder.get(), "the fd");
    REQUIRE_FALSE(size);
    CHECK(size.error().message == "the fd is not a memfd");
    CHECK_FALSE(sealed_size(-1, "no fd"));
}

TEST_CASE("two shared mappings show one memory") {
    const UniqueFd file = must(create_sealed_memfd("block", 8192));
    const SharedMapping one = must(SharedMapping::map(file.get(), 0, 8192, MapMode::kShared));
    const SharedMapping other = must(SharedMapping::map(file.get(), 4096, 4096, MapMode::kShared));
    const SharedMapping reader = must(SharedMapping::map(file.get(), 0, 8192, MapMode::kReadOnly));
    one.bytes()[5000] = std::byte{42};
    CHECK(other.bytes()[904] == std::byte{42});
    CHECK(reader.bytes()[5000] == std::byte{42});
    CHECK(other.size() == 4096);
}

TEST_CASE("what is written to a private mapping never reaches the file") {
    const UniqueFd file = must(create_sealed_memfd("block", 4096));
    const SharedMapping shared = must(SharedMapping::map(file.get(), 0, 4096, MapMode::kShared));
    const SharedMapping trial = must(SharedMapping::map(file.get(), 0, 4096, MapMode::kPrivate));
    shared.bytes()[0] = std::byte{1};
    trial.bytes()[0] = std::byte{2};
    CHECK(shared.bytes()[0] == std::byte{1});
    CHECK(trial.bytes()[0] == std::byte{2});
}

TEST_CASE("a file descriptor that cannot be mapped is an error in words") {
    const UniqueFd event = must(fd::eventfd(0));
    const auto mapping = SharedMapping::map(event.get(), 0, 4096, MapMode::kShared);
    REQUIRE_FALSE(mapping);
    CHECK(mapping.error().code == ErrorCode::kSystem);
    CHECK(contains(mapping.error().message, "map 4096 bytes"));
}

TEST_CASE("a mapping that was moved from is empty, and the memory lives on in the other") {
    const UniqueFd file = must(create_sealed_memfd("block", 4096));
    SharedMapping from = must(SharedMapping::map(file.get(), 0, 4096, MapMode::kShared));
    from.bytes()[1] = std::byte{9};
    const SharedMapping to = std::move(from);
    CHECK(to.bytes()[1] == std::byte{9});
    CHECK(SharedMapping().data() == nullptr);
    CHECK(SharedMapping().size() == 0);
}

} // namespace liveupdate::handoff
