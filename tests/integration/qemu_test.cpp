// The same guest images on QEMU, so that both VMMs can be measured with the same guest.
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fcntl.h>

#include "handoff/base/fd.hpp"
#include "tests/integration/checks.hpp"
#include "tests/support/command.hpp"

extern char** environ;

namespace liveupdate::tests {
namespace {

using ::tests::guests::read_field;
using ::tests::guests::Report;

constexpr uint64_t kRam = 64 << 20;

class Qemu {
public:
    Qemu(const std::string& image, const std::string& cmdline)
        : ram_path_("/dev/shm/liveupdate-test-qemu-" + std::to_string(::getpid())) {
        const UniqueFd file(::open(ram_path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        REQUIRE(file);
        REQUIRE(::ftruncate(file.get(), kRam) == 0);
        auto mapped = handoff::SharedMapping::map(file.get(), 0, kRam, handoff::MapMode::kShared);
        REQUIRE(mapped);
        ram_ = std::move(*mapped);
        std::vector<std::string> arguments = {"qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-M",
            "microvm,pit=on,pic=on,rtc=off,memory-backend=m0", "-m", "64", "-smp", "2", "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-object",
            "memory-backend-file,id=m0,size=64M,share=on,mem-path=" + ram_path_, "-serial", "null", "-kernel",
            guest_image(image), "-append", cmdline};
        std::vector<char*> argv;
        for (auto& a : arguments)
            argv.push_back(a.data());
        argv.push_back(nullptr);
        REQUIRE(::posix_spawnp(&pid_, argv[0], nullptr, nullptr, argv.data(), environ) == 0);
    }
    Qemu(const Qemu&) = delete;
    Qemu& operator=(const Qemu&) = delete;
    ~Qemu() {
        if (pid_ > 0) {
            ::kill(pid_, SIGKILL);
            ::waitpid(pid_, nullptr, 0);
        }
        ::unlink(ram_path_.c_str());
    }
    const Report& report() const {
        return *reinterpret_cast<const Report*>(ram_.data() + ::tests::guests::kReportGpa);
    }

private:
    std::string ram_path_;
    handoff::SharedMapping ram_;
    pid_t pid_ = -1;
};

bool no_qemu() {
    if (run_command({"qemu-system-x86_64", "--version"}).status == 0) return false;
    std::printf("SKIPPED: there is no qemu-system-x86_64\n");
    return true;
}

void runs_on_qemu(const std::string& image, const std::string& cmdline) {
    const Qemu qemu(image, cmdline);
    const auto& header = qemu.report().header;
    REQUIRE(LiveVm::eventually(
        [&] {
            return read_field(header.magic) == ::tests::guests::kReportMagic &&
                   read_field(header.started) == 3;
        },
        std::chrono::seconds(30)));
    for (unsigned v = 0; v < 2; ++v) {
        const auto& slot = qemu.report().vcpus[v];
        CHECK(LiveVm::eventually([&] { return read_field(slot.counter) > 1000; }));
        if (image == "timer.elf")
            CHECK(LiveVm::eventually([&] { return read_field(slot.timer.interrupts) > 100; }));
    }
    CHECK_MESSAGE(read_field(header.errors) == 0, "first error ", read_field(header.first_error));
}

TEST_CASE("the clock guest runs on QEMU") {
    NEEDS_KVM();
    if (no_qemu()) return;
    runs_on_qemu("clock.elf", "vcpus=2 skew_us=1000");
}

TEST_CASE("the timer guest runs on QEMU") {
    NEEDS_KVM();
    if (no_qemu()) return;
    runs_on_qemu("timer.elf", "vcpus=2");
}

} // namespace
} // namespace liveupdate::tests
