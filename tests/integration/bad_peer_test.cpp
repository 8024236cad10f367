// Destinations and sources that are no VMMs, or that lie: the update is refused or rolled back with a
// sentence that names the cause, the guest runs on where it ran, and the next update completes.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/integration/checks.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using supervisor::Outcome;

constexpr unsigned kShort = 3000;    // ms, for peers that hang
constexpr unsigned kPatient = 15000; // ms, for peers that answer

// A folder of bad binaries.
class Folder : public TemporaryFolder {
public:
    // hostile_vmm under the name of its lie.
    std::string hostile(const std::string& lie) const {
        fs::create_symlink(program("hostile_vmm"), at("hostile-" + lie));
        return at("hostile-" + lie);
    }
    std::string file(const std::string& name, const std::string& content, fs::perms mode) const {
        std::ofstream(at(name), std::ios::binary) << content;
        fs::permissions(at(name), mode);
        return at(name);
    }
};

struct Expected {
    std::string name; // of the lie, or a path
    Outcome outcome;
    std::string word; // in the reason
    unsigned timeout_ms = kPatient;
};

LiveVmOptions one_vm() {
    LiveVmOptions options;
    options.cmdline = "skew_us=1000";
    options.update_toml = "probation = \"20ms\"\nblackout_limit = \"2s\"\n";
    return options;
}

void expect(LiveVm& vm, const std::string& binary, const Expected& expected) {
    CAPTURE(expected.name);
    const pid_t source = vm.vmm_pid();
    const auto record = vm.update(binary, {{"timeout_ms", expected.timeout_ms}});
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK_MESSAGE(record->outcome == expected.outcome, to_string(record->outcome), ": ", record->reason);
    CHECK_MESSAGE(record->reason.find(expected.word) != std::string::npos, "'", record->reason,
        "' does not say '", expected.word, "'");
    CHECK(vm.vmm_pid() == source);
    check_sound(vm, 1);
}

// All of them against one VM, and good updates before and after.
void expect_all(const std::vector<Expected>& cases, bool lies) {
    const Folder folder;
    const auto vm = started(one_vm());
    update_in_turn(*vm, 0, 2);
    const Holdings before = holdings_at_rest(*vm);
    for (const Expected& e : cases)
        expect(*vm, lies ? folder.hostile(e.name) : e.name, e);
    check_nothing_leaked(*vm, before);
    update_in_turn(*vm, 0, 2);
    check_sound(*vm, 1);
}

TEST_CASE("a destination that does not speak the protocol is refused") {
    NEEDS_KVM();
    expect_all(
        {
            {"speaks-garbage", Outcome::kRefused, "no message"},
            {"sends-an-empty-message", Outcome::kRefused, "empty"},
            {"closes-at-once", Outcome::kRefused, "exited with status 0"},
            {"hangs", Outcome::kRefused, "did not answer", kShort},
            {"dies-at-hello", Outcome::kRefused, "something is wrong with my configuration"},
            {"sends-100-fds", Outcome::kRefused, "more file descriptors"},
            {"misnames-fds", Outcome::kRefused, "names 2 file descriptors and carries 1"},
            {"names-fds-twice", Outcome::kRefused, "two file descriptors"},
            {"sends-a-large-packet", Outcome::kRefused, "128 KiB"},
            {"answers-wrongly", Outcome::kRefused, "launched"},
            {"floods", Outcome::kRefused, "events", kShort},
        },
        true);
}

TEST_CASE("a destination that cannot take this guest is refused before anything is prepared") {
    NEEDS_KVM();
    expect_all(
        {
            {"offers-no-sections", Outcome::kRefused, "does not know the state section"},
            {"speaks-newer-protocol", Outcome::kRefused, "no protocol version in common"},
            {"speaks-older-protocol", Outcome::kRefused, "no protocol version in common"},
            {"needs-a-capability", Outcome::kRefused, "time-travel"},
            {"needs-newer-state", Outcome::kRefused, "versions 77 to 99"},
        },
        true);
}

TEST_CASE("a destination that fails while it prepares or rehearses leaves the guest untouched") {
    NEEDS_KVM();
    expect_all(
        {
            {"dies-in-prepare", Outcome::kAbandoned, "too large for me"},
            {"hangs-in-prepare", Outcome::kAbandoned, "deadline", kShort},
            {"answers-prepare-wrongly", Outcome::kRefused, "armed"},
            {"refuses-to-prepare", Outcome::kRefused, "no room for"},
            {"dies-in-the-trial", Outcome::kAbandoned, "makes no sense"},
            {"hangs-in-the-trial", Outcome::kAbandoned, "deadline", kShort},
            {"refuses-the-trial", Outcome::kRefused, "trial state has a register"},
            {"refuses-to-arm", Outcome::kRefused, "on strike"},
        },
        true);
}

TEST_CASE("a destination that fails in the switchover costs the guest no more than the blackout limit") {
    NEEDS_KVM();
    expect_all(
        {
            {"dies-when-armed", Outcome::kRolledBack, "destination died"},
            {"never-takes-the-baton", Outcome::kRolledBack, "blackout limit"},
            {"refuses-the-state", Outcome::kRolledBack, "real state has a register"},
            {"says-committed", Outcome::kRolledBack, "blackout limit"},
        },
        true);
}

std::string read_binary(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

TEST_CASE("a file that is no VMM is refused by what it is") {
    NEEDS_KVM();
    const Folder folder;
    constexpr auto kProgram = fs::perms::owner_all;
    const std::string real = read_binary(program("liveupdate-vmm"));
    std::string foreign = real;
    foreign[18] = '\xb7'; // e_machine: AArch64
    fs::create_directory(folder.at("directory"));
    expect_all(
        {
            {folder.at("nothing"), Outcome::kRefused, "does not exist"},
            {folder.file("plain", real, fs::perms::owner_read), Outcome::kRefused, "not executable"},
            {folder.file("text", "I am a VMM, honestly\n", kProgram), Outcome::kRefused, "not an ELF file"},
            {folder.file("script", "#!/bin/sh\nsleep 60\n", kProgram), Outcome::kRefused, "script"},
            {folder.file("empty", "", kProgram), Outcome::kRefused, "empty"},
            {folder.file("foreign", foreign, kProgram), Outcome::kRefused, "not for x86-64"},
            {folder.file("half", real.substr(0, 100), kProgram), Outcome::kRefused, "truncated"},
            {folder.at("directory"), Outcome::kRefused, "directory"},
            {"/bin/true", Outcome::kRefused, "exited with status 0"},
            {"/usr/bin/tail", Outcome::kRefused, "unrecognized option"},
        },
        false);
}

// A source that lies has no guest to show; what counts is that it is refused in words, that the supervisor
// stays sound, and that the process with the guest is not touched.
void expect_from_source(const Folder& folder, const Expected& expected) {
    CAPTURE(expected.name);
    LiveVmOptions options = one_vm();
    options.vmm = folder.hostile(expected.name);
    options.witness = false;
    const auto started = LiveVm::start(options);
    REQUIRE_MESSAGE(started, started.error().message);
    LiveVm& vm = **started;
    const pid_t source = vm.vmm_pid();
    REQUIRE(source > 0);
    for (int again = 0; again < 2; ++again) {
        const auto record = vm.update(program("liveupdate-vmm"), {{"timeout_ms", expected.timeout_ms}});
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK_MESSAGE(record->outcome == expected.outcome, to_string(record->outcome), ": ", record->reason);
        CHECK_MESSAGE(record->reason.find(expected.word) != std::string::npos, "'", record->reason,
            "' does not say '", expected.word, "'");
        CHECK(vm.vmm_pid() == source);
        CHECK(vm.status().value("state", "") == "running");
    }
    CHECK(LiveVm::eventually([&] { return vm.holdings().processes == 2; }));
}

TEST_CASE("a source that lies about its guest is refused, however large the lie") {
    NEEDS_KVM();
    const Folder folder;
    for (const Expected& e : std::vector<Expected>{
             {"describes-many-sections", Outcome::kRefused, "more than the 1024"},
             {"describes-by-a-large-packet", Outcome::kRefused, "128 KiB"},
             {"describes-huge-sections", Outcome::kRefused, "2147483648 bytes"},
             {"describes-a-section-twice", Outcome::kRefused, "there twice"},
             {"describes-an-unknown-section", Outcome::kRefused, "flux-capacitor"},
             {"describes-a-long-name", Outcome::kRefused, "does not know the state section"},
             {"describes-no-section", Outcome::kRefused, "no state section at all"},
             {"describes-wrongly", Outcome::kRefused, "prepared"},
             {"describes-other-machine-fds", Outcome::kRefused, "'kvm'"},
             {"describes-garbage", Outcome::kRefused, "fixed state"},
         })
        expect_from_source(folder, e);
}

} // namespace
} // namespace liveupdate::tests
