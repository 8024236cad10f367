// Updates of a guest that attacks its virtio devices all the while: no VMM dies of it, and nothing outside
// the guest's RAM, nor of its RAM what it has not given to a device, is written. LIVEUPDATE_TEST_UPDATES: how
// many (20). LIVEUPDATE_TEST_SEED: the guest's seed (1).
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "handoff/base/fd.hpp"
#include "tests/integration/checks.hpp"
#include "tests/support/net_namespace.hpp"
#include "tests/support/slow_disk.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

using ::tests::guests::HostileReport;
using ::tests::guests::kHostileKinds;
using ::tests::guests::pattern_value;
using ::tests::guests::read_field;

constexpr uint64_t kMiB = 1 << 20;
constexpr unsigned kResetInMidRequest = 5;    // kAttacks of the guest
constexpr uint64_t kSiblingBegin = 24 * kMiB; // no device is ever told of it
constexpr uint64_t kSiblingEnd = 40 * kMiB;

std::span<uint64_t> sibling(const LiveVm& vm) {
    const auto bytes = vm.ram().subspan(kSiblingBegin, kSiblingEnd - kSiblingBegin);
    return {reinterpret_cast<uint64_t*>(bytes.data()), bytes.size() / 8};
}

uint64_t attacks(const HostileReport& report) {
    uint64_t sum = 0;
    for (const uint64_t& kind : report.attacks)
        sum += read_field(kind);
    return sum;
}

std::string fresh_disk(const TemporaryFolder& folder) {
    const std::string disk = folder.at("disk.img");
    const auto file = fd::open(disk, O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(file);
    REQUIRE(::ftruncate(file->get(), kMiB) == 0);
    return disk;
}

LiveVmOptions hostile(const TemporaryFolder& folder, const std::string& disk) {
    LiveVmOptions options;
    options.guest = "hostile.elf";
    options.cmdline = "seed=" + std::to_string(number_from("LIVEUPDATE_TEST_SEED", 1));
    options.console_toml = "type = \"file\"\ndevice = \"virtio\"\npath = \"" + folder.at("console") + "\"\n";
    options.extra_toml = "[[disk]]\npath = \"" + disk + "\"\nqueues = 2\n";
    return options;
}

TEST_CASE("a guest that attacks its devices goes through updates, and hurts nobody but itself") {
    NEEDS_KVM();
    TemporaryFolder folder;
    LiveVmOptions options = hostile(folder, fresh_disk(folder));
    std::unique_ptr<NetNamespace> net;
    std::optional<NetNamespace::Stay> stay;
    uint64_t devices = 3;
    if (const std::string why = NetNamespace::why_none(); why.empty()) {
        auto made = NetNamespace::make("hostile0", "10.78.0.1/24");
        if (!made) FAIL(made.error().message);
        net = std::move(*made);
        stay.emplace(*net);
        options.extra_toml += "[[net]]\ntap = \"hostile0\"\n";
        devices = 4;
    } else {
        std::printf("SKIPPED: the guest's network: %s\n", why.c_str());
    }
    const auto vm = started(options);
    const HostileReport& report = vm->report().header.hostile;
    REQUIRE(read_field(report.devices) == devices);
    const auto words = sibling(*vm);
    for (uint64_t i = 0; i < words.size(); ++i)
        words[i] = pattern_value(i, 1, 7);

    const unsigned updates = std::max(2u, number_from("LIVEUPDATE_TEST_UPDATES", 20));
    for (unsigned n = 0; n < updates; ++n) {
        const uint64_t before = attacks(report);
        update_in_turn(*vm, n, 1);
        REQUIRE(LiveVm::eventually([&] { return attacks(report) > before + 20; }, std::chrono::seconds(60)));
    }
    REQUIRE(LiveVm::eventually(
        [&] {
            return std::all_of(std::begin(report.attacks), std::end(report.attacks),
                [](const uint64_t& kind) { return read_field(kind) > 20; });
        },
        std::chrono::seconds(60)));
    uint64_t changed = 0;
    for (uint64_t i = 0; i < words.size(); ++i)
        changed += words[i] != pattern_value(i, 1, 7) ? 1 : 0;
    CHECK(changed == 0);
    CHECK(read_field(report.guard_checks) > 20);
    check_sound(*vm, 1);
    std::printf("%llu attacks, %llu resets, in %u updates\n",
        static_cast<unsigned long long>(attacks(report)),
        static_cast<unsigned long long>(read_field(report.resets)), updates);
}

// The disk takes 200 ms for a request: most resets find some in flight, and the vCPU that waits for their end
// in the reset is stopped there by each update, which carries them as orphans.
TEST_CASE(
    "a guest that resets a slow disk in mid-request goes through updates, and is not written to later") {
    NEEDS_KVM();
    if (const std::string why = SlowDisk::why_none(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return;
    }
    TemporaryFolder folder;
    const SlowDisk slow(fresh_disk(folder), kMiB, folder.at("nbd.sock"));
    REQUIRE(slow.up());
    LiveVmOptions options = hostile(folder, slow.path());
    options.cmdline += " kinds=" + std::to_string(1u << kResetInMidRequest);
    const auto vm = started(options);
    const HostileReport& report = vm->report().header.hostile;
    const unsigned updates = std::max(2u, number_from("LIVEUPDATE_TEST_UPDATES", 20));
    for (unsigned n = 0; n < updates; ++n) {
        const uint64_t before = read_field(report.resets);
        update_in_turn(*vm, n, 1);
        REQUIRE(LiveVm::eventually(
            [&] { return read_field(report.resets) > before + 4; }, std::chrono::seconds(60)));
    }
    check_sound(*vm, 1);
    std::printf(
        "%llu resets in %u updates\n", static_cast<unsigned long long>(read_field(report.resets)), updates);
}

} // namespace
} // namespace liveupdate::tests
