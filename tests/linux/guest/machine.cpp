#include "tests/linux/guest/machine.hpp"

#include <fcntl.h>
#include <linux/input.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "tests/linux/guest/options.hpp"
#include "tests/linux/guest/report.hpp"

namespace linux_guest {

void mount_file_systems() {
    const auto mount = [](const char* type, const char* path) {
        ::mkdir(path, 0755);
        if (::mount(type, path, type, 0, nullptr) != 0 && errno != EBUSY)
            error(text("mount %s: %s", path, std::strerror(errno)));
    };
    mount("devtmpfs", "/dev");
    mount("proc", "/proc");
    mount("sysfs", "/sys");
    mount("tmpfs", "/tmp");
}

void load_modules() {
    for (const std::string& path : split(content_of("/modules"), " \n")) {
        const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (::syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)
            error(text("load %s: %s", path.c_str(), std::strerror(errno)));
        ::close(fd);
    }
}

std::string kernel_command_line() {
    return content_of("/proc/cmdline");
}

void quiet_console() {
    constexpr int kConsoleLevel = 8; // syslog(2), SYSLOG_ACTION_CONSOLE_LEVEL
    ::klogctl(kConsoleLevel, nullptr, 1);
}

void on_power_button(void (*orderly)()) {
    for (int number = 0; number < 8; ++number) {
        const std::string path = "/dev/input/event" + std::to_string(number);
        const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        std::thread([fd, orderly] {
            input_event event{};
            while (::read(fd, &event, sizeof(event)) == sizeof(event))
                if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) orderly();
        }).detach();
    }
}

void power_off() {
    ::sync();
    // Without ACPI a machine cannot be switched off, but a VMM may take a reset for the end.
    ::reboot(::access("/sys/firmware/acpi/tables/FACP", F_OK) == 0 ? RB_POWER_OFF : RB_AUTOBOOT);
    for (;;)
        ::pause();
}

} // namespace linux_guest
