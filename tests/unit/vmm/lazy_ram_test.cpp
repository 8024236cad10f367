#include "vmm/lazy_ram.hpp"

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "tests/support/nbd_server.hpp"
#include "tests/unit/handoff/save/fixture.hpp"

namespace liveupdate::vmm {
namespace {

namespace fs = std::filesystem;

using handoff::must;
using handoff::save::kMib;
using handoff::save::Memory;
using handoff::save::Reader;
using handoff::save::SmallGuest;
using tests::NbdServer;
using tests::TemporaryFolder;

#define NEEDS_USERFAULTFD_AND_NBDKIT()                                                                       \
    if (const auto faults = Userfault::open("do without"); !faults) {                                        \
        std::printf("SKIPPED: %s\n", faults.error().message.c_str());                                        \
        return;                                                                                              \
    }                                                                                                        \
    if (const std::string why = NbdServer::why_none(); !why.empty()) {                                       \
        std::printf("SKIPPED: %s\n", why.c_str());                                                           \
        return;                                                                                              \
    }

// RAM of a SmallGuest that is to come, and what is said when it does not.
struct Coming {
    Memory ram0, ram1;
    std::atomic<unsigned> failures{0};
    std::string why; // once failures is not 0
    std::unique_ptr<LazyRam> lazy;

    explicit Coming(const SmallGuest& guest) : ram0(guest.blocks[0].size), ram1(guest.blocks[1].size) {}
    Result<void> begin(LazyRam::Save save) {
        std::vector<LazyRam::Part> parts;
        parts.push_back({"ram0", 0, ram0.bytes()});
        parts.push_back({"ram1", 0, ram1.bytes()});
        TRY_ASSIGN(lazy, LazyRam::begin(std::move(save), std::move(parts), [this](std::string words) {
            why = std::move(words);
            ++failures;
        }));
        return {};
    }
    Result<void> begin(const std::string& uri) {
        LazyRam::Save save;
        save.uri = uri;
        return begin(std::move(save));
    }
    static bool eventually(const std::function<bool()>& condition) {
        for (const Deadline limit = handoff::patience(); !limit.passed();) {
            if (condition()) return true;
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        return false;
    }
    bool all_comes() const {
        return eventually([this] { return lazy->bytes_left() == 0; });
    }
};

TEST_CASE("RAM comes only out of the save that the state was read from") {
    NEEDS_USERFAULTFD_AND_NBDKIT();
    const SmallGuest guest, later;
    later.ram0.fill(7, 2);
    const TemporaryFolder folder;
    const std::string path = guest.save(folder.at(""));
    const NbdServer server(folder.at("nbd.sock"), path);
    REQUIRE(server.up());
    const auto from = [&](bool by_nbd) {
        LazyRam::Save save;
        if (by_nbd)
            save.uri = server.uri();
        else
            save.file = must(fd::open(path, O_RDONLY));
        save.sum = must(Reader::open(path))->header().sum();
        return save;
    };
    for (const bool by_nbd : {true, false}) {
        Coming same(guest);
        must(same.begin(from(by_nbd)));
        CHECK(same.all_comes());
        CHECK(same.ram0 == guest.ram0);
        same.lazy.reset();
        // A whole other one of the same size takes its name, as that of a guest which runs on.
        auto save = from(by_nbd);
        later.save(folder.at(""));
        if (!by_nbd) save.file = must(fd::open(path, O_RDONLY));
        Coming other(guest);
        const auto refused = other.begin(std::move(save));
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == ErrorCode::kRefused);
        CHECK_MESSAGE(refused.error().message.find("another save by now") != std::string::npos,
            refused.error().message);
        guest.save(folder.at(""));
    }
}

bool is_open(const std::string& path) {
    for (const auto& fd : fs::directory_iterator("/proc/self/fd")) {
        std::error_code ignored;
        if (fs::read_symlink(fd.path(), ignored) == path) return true;
    }
    return false;
}

TEST_CASE("a save is let go of when all of its RAM has come") {
    NEEDS_USERFAULTFD_AND_NBDKIT();
    const SmallGuest guest;
    const TemporaryFolder folder;
    const std::string path = fs::canonical(guest.save(folder.at("")));
    Coming from_file(guest);
    LazyRam::Save save;
    save.file = must(fd::open(path, O_RDONLY));
    must(from_file.begin(std::move(save)));
    REQUIRE(from_file.all_comes());
    CHECK(Coming::eventually([&] { return !is_open(path); }));
    // A server of one client at a time takes the next one.
    const NbdServer server(folder.at("nbd.sock"), path,
        {"--filter=multi-conn", "--filter=limit", "multi-conn-mode=disable", "limit=1"});
    REQUIRE(server.up());
    Coming from_server(guest);
    must(from_server.begin(server.uri()));
    REQUIRE(from_server.all_comes());
    CHECK(Coming::eventually([&] { return Reader::open(server.uri()).has_value(); }));
}

TEST_CASE("a chunk that a server cannot read keeps none of the others away, and is asked for again") {
    NEEDS_USERFAULTFD_AND_NBDKIT();
    const SmallGuest guest;
    const TemporaryFolder folder;
    const std::string path = guest.save(folder.at("")), bad = folder.at("bad");
    const uint64_t first = must(Reader::open(path))->header().layout().blocks[0].pages_at;
    std::ofstream(bad) << "x";
    // Of the first MiB of RAM it reads nothing while the file "bad" is there.
    const std::string read = "pread=if [ -e " + bad + " ] && [ $4 -ge " + std::to_string(first) +
                             " ] && [ $4 -lt " + std::to_string(first + kMib) +
                             " ]; then echo EIO >&2; exit 1; fi; dd if=" + path +
                             " skip=$4 count=$3 iflag=count_bytes,skip_bytes 2>/dev/null";
    const NbdServer server(
        folder.at("nbd.sock"), "", {"eval", "get_size=stat -c %s " + path, read, "can_multi_conn=exit 0"});
    REQUIRE(server.up());
    Coming coming(guest);
    must(coming.begin(server.uri()));
    CHECK(Coming::eventually([&] { return coming.lazy->bytes_left() == kMib; }));
    CHECK(Coming::eventually([&] { return !coming.lazy->trouble().empty(); }));
    fs::remove(bad);
    CHECK(coming.all_comes());
    CHECK(coming.failures == 0);
    CHECK(coming.ram0 == guest.ram0);
}

} // namespace
} // namespace liveupdate::vmm
