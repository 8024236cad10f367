// Guests whose RAM comes from the file that they were saved into, page by page when it is touched: what they
// find, what an update of them does, and what is saved of them.
#include <signal.h>

#include <filesystem>
#include <fstream>

#include "handoff/save/reader.hpp"
#include "tests/integration/checks.hpp"
#include "tests/integration/save_checks.hpp"
#include "tests/support/origin_ram.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using ::tests::guests::kReportGpa;
using ::tests::guests::read_field;
using ::tests::guests::Report;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr unsigned kMemoryMib = 256;
constexpr uint64_t kFilledFrom = 64 * kMib; // beyond what the guest covers

nlohmann::json save(LiveVm& vm, const std::string& directory, const nlohmann::json& more = {}) {
    nlohmann::json request = {{"command", "save"}, {"directory", directory}, {"kind", "file"}};
    if (more.is_object()) request.update(more);
    const auto report = vm.call(request);
    REQUIRE_MESSAGE(report, report.error().message);
    return *report;
}

void save_and_stop(LiveVm& vm, const std::string& directory) {
    save(vm, directory, {{"stop", true}});
    REQUIRE(vm.await_supervisor_end() == 0);
}

// A guest that checks and changes its first 48 MiB, and has something in the rest, from 64 MiB on.
LiveVmOptions pattern_guest() {
    LiveVmOptions options;
    options.guest = "pattern.elf";
    options.vcpus = 2;
    options.memory_mib = kMemoryMib;
    options.cmdline = "limit_mb=48 stride=512";
    return options;
}

void fill(LiveVm& vm) {
    const auto ram = vm.ram();
    for (size_t at = kFilledFrom; at < ram.size(); at += 4096)
        ram[at] = std::byte{1};
}

// From its return on the guest's report may be read.
void restore_mapped(LiveVm& vm, const std::string& directory) {
    const auto result = vm.restore(directory, "", {"--mapped"});
    REQUIRE_MESSAGE(result, result.error().message);
    const auto touched = touch(vm.vmm_pid(), kReportGpa, sizeof(Report));
    REQUIRE_MESSAGE(touched, touched.error().message);
}

void check_goes_on(LiveVm& vm, unsigned vcpus) {
    const uint64_t counter = read_field(vm.report().vcpus[0].counter);
    CHECK(LiveVm::eventually(
        [&] { return read_field(vm.report().vcpus[0].counter) > counter + 100; }, std::chrono::seconds(60)));
    check_sound(vm, vcpus);
}

uint64_t passes(const LiveVm& vm) {
    return read_field(vm.report().vcpus[0].pattern.passes);
}

TEST_CASE("a guest whose RAM comes when it is touched finds every byte as it was, in every VMM") {
    NEEDS_KVM();
    const auto vm = started(pattern_guest());
    fill(*vm);
    const std::string folder = vm->directory() + "/saved";
    save_and_stop(*vm, folder);
    restore_mapped(*vm, folder);
    CHECK(vm->status().value("ram_origin", "") == file_in(folder));
    const auto ram = ram_file_of(vm->supervisor_pid());
    REQUIRE(ram);
    const uint64_t before = passes(*vm);
    // An update in the middle of its first pass: the destination finds what the source had not touched yet.
    for (unsigned n = 0; n < 6; ++n) {
        update_in_turn(*vm, n, 1);
        check_sound(*vm, 2);
        const uint64_t at = kFilledFrom + n * 20 * kMib;
        CHECK_FALSE(has_page(ram->get(), at)); // neither reading ahead nor an update has brought it
        const auto bytes = touch(vm->vmm_pid(), at, 4096);
        REQUIRE(bytes);
        CHECK(bytes->front() == 1);
        CHECK(has_page(ram->get(), at));
        CHECK_FALSE(has_page(ram->get(), at + 4096));
    }
    CHECK(LiveVm::eventually([&] { return passes(*vm) > before + 1; }, std::chrono::seconds(120)));
    check_sound(*vm, 2);
    CHECK(bytes_in(ram->get()) < kFilledFrom);
}

TEST_CASE("what a mapped guest has not touched is in its next save all the same, also in one that is live") {
    NEEDS_KVM();
    const auto vm = started(pattern_guest());
    fill(*vm);
    const std::string folder = vm->directory() + "/saved", second = vm->directory() + "/second";
    save_and_stop(*vm, folder);
    for (const bool live : {false, true}) {
        CAPTURE(live);
        restore_mapped(*vm, folder);
        save(*vm, second, {{"stop", true}, {"live", live}});
        REQUIRE(vm->await_supervisor_end() == 0);
        fs::remove_all(folder); // it needs the former one no longer
        const auto result = vm->restore(second);
        REQUIRE_MESSAGE(result, result.error().message);
        CHECK_FALSE(vm->status().contains("ram_origin"));
        const auto all = vm->ram();
        for (size_t at = kFilledFrom; at < all.size(); at += 4096)
            if (all[at] != std::byte{1}) FAIL("page at ", at, " is not as it was");
        check_goes_on(*vm, 2);
        save_and_stop(*vm, folder);
    }
    // Into the folder that it came from.
    restore_mapped(*vm, folder);
    save_and_stop(*vm, folder);
    restore_mapped(*vm, folder);
    check_goes_on(*vm, 2);
    const auto in_place =
        vm->call({{"command", "save"}, {"directory", vm->directory() + "/third"}, {"kind", "in-place"}});
    REQUIRE_FALSE(in_place);
    CHECK(in_place.error().message.find("not whole in its own files") != std::string::npos);
    check_sound(*vm, 2);
}

TEST_CASE("a mapped guest outlives its supervisor and its file's name, and is updated by the next one") {
    NEEDS_KVM();
    const auto vm = started(pattern_guest());
    fill(*vm);
    const std::string folder = vm->directory() + "/saved";
    save_and_stop(*vm, folder);
    restore_mapped(*vm, folder);
    fs::remove_all(folder); // its descriptors keep it
    vm->kill_supervisor();
    CHECK(vm->goes_on());
    REQUIRE(vm->start_supervisor());
    CHECK(vm->status().value("ram_origin", "").starts_with(file_in(folder)));
    update_in_turn(*vm, 0, 2);
    const auto bytes = touch(vm->vmm_pid(), 200 * kMib, 4096);
    REQUIRE(bytes);
    CHECK(bytes->front() == 1);
    check_goes_on(*vm, 2);
    const Holdings before = holdings_at_rest(*vm);
    update_in_turn(*vm, 0, 4);
    check_nothing_leaked(*vm, before);
}

TEST_CASE("faults in an update of a mapped guest leave it where the phase table says") {
    NEEDS_KVM();
    const auto vm = started(pattern_guest());
    const std::string folder = vm->directory() + "/saved";
    save_and_stop(*vm, folder);
    for (const char* phase : {"preparing", "rehearsing", "pausing", "transferring", "committing"}) {
        CAPTURE(phase);
        restore_mapped(*vm, folder);
        const auto record = vm->update(
            turn(0), {{"fault", {{"phase", phase}, {"action", "kill"}, {"victim", "destination"}}}});
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK(record->outcome != supervisor::Outcome::kCompleted);
        check_goes_on(*vm, 2);
        update_in_turn(*vm, 0, 1);
        check_sound(*vm, 2);
        REQUIRE(vm->call({{"command", "stop"}}));
        REQUIRE(vm->await_supervisor_end() == 0);
    }
}

TEST_CASE("damage in what a mapped guest touches ends it before it has seen it; elsewhere it is told of") {
    NEEDS_KVM();
    const auto vm = started(pattern_guest());
    fill(*vm);
    const std::string folder = vm->directory() + "/saved";
    save_and_stop(*vm, folder);
    uint64_t at = 0;
    {
        auto reader = handoff::save::Reader::open(file_in(folder));
        REQUIRE(reader);
        at = (*reader)->header().layout().blocks[0].pages_at + 100 * kMib;
    }
    std::fstream file(file_in(folder), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at + 5 * 4096)); // another page than is touched below
    file.put(2).flush();
    restore_mapped(*vm, folder);
    check_goes_on(*vm, 2);
    const auto saved =
        vm->call({{"command", "save"}, {"directory", vm->directory() + "/second"}, {"kind", "file"}});
    REQUIRE_FALSE(saved);
    CHECK(saved.error().message.find("chunk 100") != std::string::npos);
    check_sound(*vm, 2);
    static_cast<void>(touch(vm->vmm_pid(), 100 * kMib, 4096));
    CHECK(LiveVm::eventually([&] { return vm->status().value("state", "") == "lost"; }));
    CHECK_MESSAGE(
        vm->status().value("lost_reason", "").find("chunk 100") != std::string::npos, vm->status().dump());
}

} // namespace
} // namespace liveupdate::tests
