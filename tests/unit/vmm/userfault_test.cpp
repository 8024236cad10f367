#include "vmm/userfault.hpp"

#include <doctest/doctest.h>
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <optional>
#include <thread>
#include <vector>

#include "handoff/shared_memory.hpp"

namespace liveupdate::vmm {
namespace {

using handoff::MapMode;
using handoff::SharedMapping;

constexpr size_t kPage = 4096;

// Four pages that nobody has touched, and who watches them.
struct Watched {
    UniqueFd file;
    SharedMapping mapped;
    std::optional<Userfault> faults;

    explicit Watched(MapMode mode) : file(std::move(*handoff::create_sealed_memfd("test", 4 * kPage))) {
        mapped = std::move(*SharedMapping::map(file.get(), 0, 4 * kPage, mode));
        auto opened = Userfault::open("do without");
        if (!opened) {
            CHECK(opened.error().code == ErrorCode::kUnsupported);
            CHECK(opened.error().message.ends_with("do without"));
            std::printf("SKIPPED: %s\n", opened.error().message.c_str());
            return;
        }
        faults.emplace(std::move(*opened));
        REQUIRE(faults->watch(mapped.bytes()));
    }
    uint64_t address(size_t page) const { return reinterpret_cast<uint64_t>(mapped.data()) + page * kPage; }
    bool has(size_t page) const {
        const auto at = static_cast<off_t>(page * kPage);
        return ::lseek(file.get(), at, SEEK_DATA) == at;
    }
    // What a thread that touches `page` reads there; `serve` is called with the address that it waits at.
    template <typename Serve>
    std::byte touch(size_t page, Serve serve) const {
        std::byte seen{};
        std::thread reader([&] { seen = *(mapped.data() + page * kPage + 17); });
        pollfd waiting{faults->fd(), POLLIN, 0};
        CHECK(::poll(&waiting, 1, 10'000) == 1);
        const auto asked = faults->next();
        CHECK(asked);
        if (asked && *asked) serve(**asked);
        reader.join();
        return seen;
    }
};

const std::vector<std::byte> kContent(kPage, std::byte{0x5a});

TEST_CASE("who touches a page gets what is given, and the file has it then") {
    const Watched watched(MapMode::kShared);
    if (!watched.faults) return;
    CHECK_FALSE(watched.has(2));
    const auto seen = watched.touch(2, [&](uint64_t address) {
        CHECK(address == watched.address(2));
        CHECK(watched.faults->give(address, kContent));
    });
    CHECK(seen == std::byte{0x5a});
    CHECK(watched.has(2));
    CHECK_FALSE(watched.has(1));
    const auto zero = watched.touch(0, [&](uint64_t address) { CHECK(watched.faults->give_zeros(address)); });
    CHECK(zero == std::byte{0});
    CHECK(watched.has(0));
    const auto nobody = watched.faults->next();
    REQUIRE(nobody);
    CHECK_FALSE(nobody->has_value());
}

TEST_CASE("a page that is there already stays, and who waits goes on") {
    const Watched watched(MapMode::kShared);
    if (!watched.faults) return;
    const std::vector<std::byte> other(kPage, std::byte{0x77});
    const auto seen = watched.touch(3, [&](uint64_t address) {
        // As another process of the same guest, between the fault and the answer.
        REQUIRE(::pwrite(watched.file.get(), other.data(), kPage, 3 * kPage) == ssize_t{kPage});
        CHECK(watched.faults->give(address, kContent));
        CHECK(watched.faults->give_zeros(address));
    });
    CHECK(seen == std::byte{0x77});
}

TEST_CASE("what is mapped privately gets pages of its own, and the file none") {
    const Watched watched(MapMode::kPrivate);
    if (!watched.faults) return;
    const auto seen =
        watched.touch(1, [&](uint64_t address) { CHECK(watched.faults->give(address, kContent)); });
    CHECK(seen == std::byte{0x5a});
    CHECK_FALSE(watched.has(1));
}

TEST_CASE("a page for memory that is mapped no more is no error") {
    Watched watched(MapMode::kShared);
    if (!watched.faults) return;
    const uint64_t address = watched.address(0);
    watched.mapped = SharedMapping();
    CHECK(watched.faults->give(address, kContent));
}

} // namespace
} // namespace liveupdate::vmm
