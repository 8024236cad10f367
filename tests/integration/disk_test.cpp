// Updates under a guest that keeps 32 disk requests in flight, on a fast disk and on one that takes 200 ms
// for each. LIVEUPDATE_TEST_UPDATES: how many (20).
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "handoff/base/fd.hpp"
#include "tests/integration/checks.hpp"
#include "tests/support/net_namespace.hpp"
#include "tests/support/slow_disk.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

using ::tests::guests::disk_word;
using ::tests::guests::DiskReport;
using ::tests::guests::kDiskBlockBytes;
using ::tests::guests::kDiskBlocks;
using ::tests::guests::kDiskBytes;
using ::tests::guests::kDiskLanes;
using ::tests::guests::read_field;
using ::tests::guests::write_field;

unsigned updates() {
    return std::max(2u, number_from("LIVEUPDATE_TEST_UPDATES", 20));
}

std::string fresh_disk(const TemporaryFolder& folder) {
    const std::string path = folder.at("disk.img");
    auto file = fd::open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(file);
    REQUIRE(::ftruncate(file->get(), kDiskBytes) == 0);
    return path;
}

LiveVmOptions with_disk(const std::string& path, const std::string& more = "") {
    LiveVmOptions options;
    options.guest = "disk.elf";
    options.extra_toml = "[[disk]]\npath = \"" + path + "\"\n" + more;
    return options;
}

const DiskReport& disk_of(const LiveVm& vm) {
    return vm.report().header.disk;
}

// Lets the guest's requests run out, and holds the disk's content against what the guest was told.
void check_content(LiveVm& vm, const std::string& path) {
    write_field(vm.writable_report().header.go, 1);
    REQUIRE(
        LiveVm::eventually([&] { return read_field(disk_of(vm).in_flight) == 0; }, std::chrono::seconds(60)));
    const DiskReport& disk = disk_of(vm);
    CHECK(read_field(disk.submitted) == read_field(disk.completed));
    const auto file = fd::open(path, O_RDONLY);
    REQUIRE(file);
    std::array<uint64_t, kDiskBlockBytes / 8> words{};
    for (uint64_t lane = 0; lane < kDiskLanes; ++lane)
        for (uint64_t block = 0; block < kDiskBlocks; ++block) {
            const auto at = static_cast<off_t>((lane * kDiskBlocks + block) * kDiskBlockBytes);
            REQUIRE(::pread(file->get(), words.data(), kDiskBlockBytes, at) == ssize_t{kDiskBlockBytes});
            const uint64_t generation = read_field(disk.generations[lane][block]);
            for (uint64_t i = 0; i < words.size(); ++i)
                if (words[i] != disk_word(lane, block, generation, i, disk.seed))
                    FAIL("lane ", lane, " block ", block, " is not what was written last");
        }
    check_sound(vm, 1);
}

void check_updates(const std::string& path, const std::string& more, unsigned count) {
    const auto vm = started(with_disk(path, more));
    REQUIRE(LiveVm::eventually([&] { return read_field(disk_of(*vm).completed) > 64; }));
    const Holdings before = (update_in_turn(*vm, 0, 2), holdings_at_rest(*vm));
    for (unsigned n = 2; n < count; ++n) {
        const uint64_t completed = read_field(disk_of(*vm).completed);
        update_in_turn(*vm, n, 1);
        REQUIRE(LiveVm::eventually([&] { return read_field(disk_of(*vm).completed) > completed + 64; }));
    }
    check_content(*vm, path);
    CHECK(read_field(disk_of(*vm).writes) > 64);
    CHECK(read_field(disk_of(*vm).reads) > 64);
    if (count % 2 == 0) check_nothing_leaked(*vm, before);
}

TEST_CASE("32 requests in flight on a file go through updates, each exactly once") {
    NEEDS_KVM();
    TemporaryFolder folder;
    check_updates(fresh_disk(folder), "direct = true\n", updates());
}

TEST_CASE("32 requests in flight through the page cache go through updates, each exactly once") {
    NEEDS_KVM();
    TemporaryFolder folder;
    check_updates(fresh_disk(folder), "direct = false\n", updates());
}

// Stopped by its save and restored, over and over, by either build: each request is carried out, also those
// that were in flight and whose io_uring ended with the VMM.
void check_saves(const std::string& path, const std::string& more, const nlohmann::json& way) {
    TemporaryFolder saves;
    const auto vm = started(with_disk(path, more));
    for (unsigned n = 0; n < 6; ++n) {
        const uint64_t completed = read_field(disk_of(*vm).completed);
        REQUIRE(LiveVm::eventually([&] { return read_field(disk_of(*vm).completed) > completed + 64; }));
        nlohmann::json request = {{"command", "save"}, {"directory", saves.at("saved")}, {"stop", true}};
        request.update(way);
        const auto report = vm->call(request);
        REQUIRE_MESSAGE(report, report.error().message);
        CHECK(vm->await_supervisor_end() == 0);
        const auto restored =
            vm->restore(saves.at("saved"), n % 2 == 0 ? "liveupdate-vmm-next" : "liveupdate-vmm");
        REQUIRE_MESSAGE(restored, restored.error().message);
    }
    check_content(*vm, path);
}

TEST_CASE("32 requests in flight on a file go through saves and restores, none lost") {
    NEEDS_KVM();
    TemporaryFolder folder;
    check_saves(fresh_disk(folder), "direct = true\n", {{"live", false}});
}

TEST_CASE("32 requests in flight on a file go through saves under the running guest, none lost") {
    NEEDS_KVM();
    TemporaryFolder folder;
    check_saves(fresh_disk(folder), "direct = false\n", {{"live", true}});
}

TEST_CASE("32 requests in flight on a disk of 200 ms go through updates that do not wait for it") {
    NEEDS_KVM();
    if (const std::string why = SlowDisk::why_none(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return;
    }
    TemporaryFolder folder;
    const SlowDisk slow(fresh_disk(folder), kDiskBytes, folder.at("nbd.sock"));
    REQUIRE(slow.up());
    check_updates(slow.path(), "direct = true\n", updates());
}

TEST_CASE("32 requests in flight on a disk of 200 ms go through saves and restores, none lost") {
    NEEDS_KVM();
    if (const std::string why = SlowDisk::why_none(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return;
    }
    TemporaryFolder folder;
    const SlowDisk slow(fresh_disk(folder), kDiskBytes, folder.at("nbd.sock"));
    REQUIRE(slow.up());
    check_saves(slow.path(), "direct = true\n", {{"live", true}});
}

TEST_CASE("a source that is killed leaves its requests to the destination") {
    NEEDS_KVM();
    if (const std::string why = SlowDisk::why_none(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return;
    }
    TemporaryFolder folder;
    const SlowDisk slow(fresh_disk(folder), kDiskBytes, folder.at("nbd.sock"));
    REQUIRE(slow.up());
    const auto vm = started(with_disk(slow.path()));
    REQUIRE(LiveVm::eventually([&] { return read_field(disk_of(*vm).completed) > 64; }));
    for (unsigned n = 0; n < 6; ++n) {
        const auto record = vm->update(
            turn(n), {{"fault", {{"phase", "probation"}, {"action", "kill"}, {"victim", "source"}}}});
        REQUIRE_MESSAGE(record, record.error().message);
        REQUIRE_MESSAGE(record->outcome == supervisor::Outcome::kCompleted, record->reason);
    }
    check_content(*vm, slow.path());
}

// What a VM file allows at most, in one message with everything else of the VM.
TEST_CASE("a VM with as many RAM blocks, disks and queues of taps as there may be is updated") {
    NEEDS_KVM();
    constexpr unsigned kCards = 2, kQueues = 8, kDisks = 8, kBlocks = 30;
    TemporaryFolder folder;
    LiveVmOptions options = with_disk(fresh_disk(folder));
    for (unsigned i = 1; i < kBlocks; ++i) // one is there
        options.extra_toml += "[[memory]]\nsize = \"2M\"\n";
    for (unsigned i = 1; i < kDisks; ++i) {
        const std::string path = folder.at("more" + std::to_string(i) + ".img");
        const auto file = fd::open(path, O_RDWR | O_CREAT, 0600);
        REQUIRE(file);
        REQUIRE(::ftruncate(file->get(), 1 << 20) == 0);
        options.extra_toml += "[[disk]]\npath = \"" + path + "\"\n";
    }
    std::unique_ptr<NetNamespace> network;
    std::optional<NetNamespace::Stay> stay;
    if (const std::string why = NetNamespace::why_none(); !why.empty()) {
        std::printf("SKIPPED: the queues of taps: %s\n", why.c_str());
    } else {
        std::vector<std::string> taps;
        for (unsigned i = 0; i < kCards; ++i) {
            taps.push_back("tap" + std::to_string(i));
            options.extra_toml +=
                "[[net]]\ntap = \"" + taps.back() + "\"\nqueues = " + std::to_string(kQueues) + "\n";
        }
        auto made = NetNamespace::make_multi_queue(taps);
        REQUIRE_MESSAGE(made, made.error().message);
        network = std::move(*made);
        stay.emplace(*network);
    }
    const auto vm = started(options);
    update_in_turn(*vm, 0, 2);
    check_content(*vm, folder.at("disk.img"));
}

TEST_CASE("a disk that another VM has is refused in words") {
    NEEDS_KVM();
    TemporaryFolder folder;
    const std::string path = fresh_disk(folder);
    const auto first = started(with_disk(path));
    const auto second = LiveVm::start(with_disk(path));
    REQUIRE_FALSE(second);
    CHECK_MESSAGE(second.error().message.find("another process holds its lock") != std::string::npos,
        second.error().message);
    update_in_turn(*first, 0, 1); // the lock is the guest's, not the process's
    CHECK_FALSE(LiveVm::start(with_disk(path)));
}

} // namespace
} // namespace liveupdate::tests
