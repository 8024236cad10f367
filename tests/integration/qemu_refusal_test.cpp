// What is refused of a QEMU guest, in words and before the guest is touched.
#include <signal.h>
#include <sys/socket.h>

#include <fstream>

#include "handoff/base/fd.hpp"
#include "supervisor/qemu/qmp.hpp"
#include "tests/integration/qemu_checks.hpp"
#include "tests/support/command.hpp"

namespace liveupdate::tests {
namespace {

using supervisor::Outcome;

std::string pinned_machine(const LiveVm& vm) {
    std::ifstream file(vm.directory() + "/state/vm/qemu-machine.json");
    return nlohmann::json::parse(file)["pinned"];
}

void check_refused(
    LiveVm& vm, const std::string& binary, const std::string& words, const nlohmann::json& more = {}) {
    const pid_t before = vm.vmm_pid();
    const auto record = vm.update(binary, more);
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK(record->outcome == Outcome::kRefused);
    CHECK_MESSAGE(record->reason.find(words) != std::string::npos, record->reason);
    CHECK_FALSE(record->blackout_us.has_value());
    CHECK(vm.vmm_pid() == before);
    check_runs(vm);
}

TEST_CASE("a binary that is no QEMU is refused with its last words") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    check_refused(*vm, program("liveupdate-vmm"), "last words");
}

TEST_CASE("a QEMU without the guest's machine type, or without one of its devices, is refused in its words") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const OtherQemu without_machine, without_device;
    without_machine.forget(pinned_machine(*vm));
    check_refused(*vm, without_machine.path(), "unsupported machine type");
    without_device.forget("virtio-rng-pci");
    check_refused(*vm, without_device.path(), "'virtio-rng-pci' is not a valid device model name");
}

TEST_CASE("a QEMU that makes another machine of the same arguments is refused") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    options.qemu_toml += "extra_args = [\"-machine\", \"q35\"]\n"; // outdoes the type that is pinned
    const auto vm = started(options);
    const std::string newest = pinned_machine(*vm) + "-machine";
    const std::string older = "pc-q35-7.1-machine";
    REQUIRE(newest.size() == older.size());
    const OtherQemu other;
    other.exchange(newest, older);
    check_refused(
        *vm, other.path(), "'" + newest + "' in the source and a '" + older + "' in the destination");
}

TEST_CASE("a guest that has got a device since it started is refused before it is touched") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    const TemporaryFolder folder;
    const std::string monitor = folder.at("monitor");
    options.qemu_toml +=
        "extra_args = [\"-device\", \"pcie-root-port,id=root1\", \"-chardev\", \"socket,id=second,path=" +
        monitor + ",server=on\", \"-mon\", \"chardev=second,mode=control\"]\n";
    const auto vm = started(options);
    auto socket = fd::unix_connect(monitor, SOCK_STREAM);
    REQUIRE(socket.has_value());
    const Deadline deadline = Deadline::after(std::chrono::seconds(20));
    auto channel = supervisor::qemu::QmpChannel::open(std::move(*socket), deadline);
    REQUIRE(channel.has_value());
    const auto added = channel->execute(
        "device_add", {{"driver", "virtio-rng-pci"}, {"id", "late"}, {"bus", "root1"}}, deadline);
    REQUIRE_MESSAGE(added, added.error().message);
    check_refused(*vm, kQemuPath, "the destination has no /machine/peripheral/late");
}

TEST_CASE("a QEMU whose monitor does not answer is not waited for any longer than its time") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const pid_t source = vm->vmm_pid();
    SUBCASE("the source") {
        REQUIRE(::kill(source, SIGSTOP) == 0);
        const auto record = vm->update(kQemuPath);
        REQUIRE(::kill(source, SIGCONT) == 0);
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK(record->outcome == Outcome::kRefused);
        CHECK_MESSAGE(
            record->reason.find("QEMU's monitor does not answer") != std::string::npos, record->reason);
        CHECK(vm->vmm_pid() == source);
        check_runs(*vm);
    }
    SUBCASE("the destination") {
        check_refused(*vm, program("silent_program"), "did not answer as a QEMU within the time limit",
            {{"timeout_ms", 2000}});
    }
}

void make_image(const std::string& path) {
    std::ofstream(path, std::ios::binary);
    std::filesystem::resize_file(path, 1 << 20);
}

TEST_CASE("a disk that another process has locked is refused at the start") {
    NEEDS_QEMU();
    const TemporaryFolder folder;
    make_image(folder.at("disk"));
    auto options = qemu_guest();
    options.extra_toml += "[[disk]]\npath = \"" + folder.at("disk") + "\"\ndirect = false\n";
    const auto vm = started(options);
    const auto second = LiveVm::start(options);
    REQUIRE(!second);
    CHECK_MESSAGE(second.error().message.find("Failed to get \"write\" lock") != std::string::npos,
        second.error().message);
    check_runs(*vm);
}

TEST_CASE("a disk whose path leads to another file by now is refused before the guest is touched") {
    NEEDS_QEMU();
    const TemporaryFolder folder;
    make_image(folder.at("disk"));
    auto options = qemu_guest();
    options.extra_toml += "[[disk]]\npath = \"" + folder.at("disk") + "\"\ndirect = false\n";
    const auto vm = started(options);
    namespace fs = std::filesystem;
    fs::rename(folder.at("disk"), folder.at("moved"));
    check_refused(*vm, kQemuPath, "No such file or directory");
    make_image(folder.at("disk"));
    check_refused(*vm, kQemuPath, folder.at("disk") + " is not the file any more that the guest has");
    // Which is also what stands in the way of a disk that somebody else has locked: he has another file.
    fs::rename(folder.at("moved"), folder.at("disk"));
    const auto record = vm->update(kQemuPath);
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK_MESSAGE(record->outcome == Outcome::kCompleted, record->reason);
}

} // namespace
} // namespace liveupdate::tests
