#include "supervisor/guest_files.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <termios.h>
#include <unistd.h>

#include <cstring>

#include "handoff/base/fd.hpp"
#include "supervisor/disk_file.hpp"
#include "supervisor/memory_layout.hpp"
#include "supervisor/tap.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr uint64_t kPage = 4096;

Result<void> add_ram(const VmConfig& config, handoff::Manifest& manifest) {
    std::vector<uint64_t> sizes;
    for (size_t i = 0; i < config.memory.size(); ++i) {
        const MemoryConfig& m = config.memory[i];
        TRY(check_ram_folder(m));
        TRY_ASSIGN(handoff::RamBlock block,
            handoff::create_ram_block("ram" + std::to_string(i), ram_kind(m.backing), m.size, m.directory));
        manifest.blocks.push_back(std::move(block));
        sizes.push_back(m.size);
    }
    TRY_ASSIGN(manifest.regions, lay_out_memory(sizes));
    return {};
}

// One page beside RAM, or the firmware image padded at its front to whole pages.
Result<void> add_block(handoff::Manifest& manifest, const std::string& name, uint64_t gpa, uint64_t size,
    bool read_only, std::string_view content) {
    TRY_ASSIGN(handoff::RamBlock block, handoff::create_ram_block(name, handoff::RamKind::kMemfd, size));
    if (!content.empty()) {
        TRY_ASSIGN(const auto mapping,
            handoff::SharedMapping::map(block.file.get(), 0, size, handoff::MapMode::kShared));
        std::memset(mapping.data(), 0xff, size - content.size());
        std::memcpy(mapping.data() + (size - content.size()), content.data(), content.size());
    }
    manifest.blocks.push_back(std::move(block));
    manifest.regions.push_back({gpa, size, manifest.blocks.size() - 1, 0, read_only});
    return {};
}

Result<void> add_firmware(const VmConfig& config, handoff::Manifest& manifest) {
    auto image = fd::read_file(config.firmware, kFirmwareMaxSize);
    if (!image) return std::move(image).error().context("firmware");
    constexpr size_t kResetVector = 16;
    if (image->size() < kResetVector)
        return Error(ErrorCode::kInvalid, "firmware " + config.firmware + " has " +
                                              std::to_string(image->size()) +
                                              " bytes; the reset vector alone needs 16");
    const uint64_t size = (image->size() + kPage - 1) / kPage * kPage;
    return add_block(manifest, "firmware", kPciHoleEnd - size, size, true, *image);
}

Result<void> open_pty(handoff::NamedFds& devices, const std::string& link) {
    UniqueFd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
    char name[128];
    if (!master || ::grantpt(master.get()) < 0 || ::unlockpt(master.get()) < 0 ||
        ::ptsname_r(master.get(), name, sizeof(name)) != 0)
        return Error::from_errno("open a pseudo-terminal for the console");
    TRY_ASSIGN(UniqueFd slave, fd::open(name, O_RDWR | O_NOCTTY));
    termios settings{};
    if (::tcgetattr(slave.get(), &settings) < 0) return Error::from_errno("tcgetattr of the console");
    ::cfmakeraw(&settings);
    if (::tcsetattr(slave.get(), TCSANOW, &settings) < 0)
        return Error::from_errno("tcsetattr of the console");
    ::unlink(link.c_str());
    if (::symlink(name, link.c_str()) < 0) return Error::from_errno("link " + link);
    devices["console"] = std::move(master);
    devices["console-slave"] = std::move(slave);
    return {};
}

Result<void> open_disks(const VmConfig& config, GuestFiles& files) {
    for (size_t i = 0; i < config.disks.size(); ++i) {
        const std::string name = "disk" + std::to_string(i);
        TRY_ASSIGN(DiskFile opened, open_disk(config.disks[i], name));
        *files.manifest.machine.add_disks() = std::move(opened.disk);
        files.devices[name] = std::move(opened.file);
    }
    return {};
}

Result<void> open_nets(const VmConfig& config, handoff::proto::Machine& machine, handoff::NamedFds& devices) {
    for (size_t i = 0; i < config.nets.size(); ++i) {
        const NetConfig& card = config.nets[i];
        TRY_ASSIGN(OpenTap tap, open_tap(card.tap, card.queues, TapHeaders::kVirtio));
        handoff::proto::Net& net = *machine.add_nets();
        net.set_name("net" + std::to_string(i));
        net.set_mac(std::string(card.mac.begin(), card.mac.end()));
        net.set_queues(card.queues);
        net.set_mtu(tap.mtu);
        net.set_offloads(tap.offloads);
        for (size_t queue = 0; queue < tap.queues.size(); ++queue)
            devices[queue == 0 ? net.name() : net.name() + "-" + std::to_string(queue)] =
                std::move(tap.queues[queue]);
    }
    return {};
}

} // namespace

handoff::RamKind ram_kind(Backing backing) {
    switch (backing) {
    case Backing::kMemfd:
    case Backing::kPrivate: // of no file: driver 'qemu' does not ask for one
        return handoff::RamKind::kMemfd;
    case Backing::kTmpfs:
        return handoff::RamKind::kTmpfs;
    case Backing::kHugetlbfs:
        return handoff::RamKind::kHugetlbfs;
    case Backing::kFile:
        return handoff::RamKind::kFile;
    }
    return handoff::RamKind::kMemfd;
}

// What lies on a disk is another kind: it is written back all the while, and comes neither lazily nor in huge
// pages.
Result<void> check_ram_folder(const MemoryConfig& memory) {
    if (memory.directory.empty()) return {};
    struct statfs where {};
    if (::statfs(memory.directory.c_str(), &where) < 0)
        return Error::from_errno("look at the folder " + memory.directory + " of [[memory]]");
    const bool huge = where.f_type == HUGETLBFS_MAGIC, tmpfs = where.f_type == TMPFS_MAGIC;
    const std::string there = huge ? "hugetlbfs" : tmpfs ? "tmpfs" : "file";
    const std::string wanted(to_string(memory.backing));
    if (wanted == there) return {};
    const std::string is = there == "file" ? "a disk's file system" : "a " + there;
    const std::string otherwise =
        wanted == "file" ? "name a folder on a disk" : "name a folder on a " + wanted;
    return Error(ErrorCode::kInvalid, "the folder " + memory.directory + " of [[memory]] is on " + is +
                                          ", and backing is '" + wanted + "'; " + otherwise +
                                          ", or write backing = \"" + there + "\"");
}

std::string console_path(const VmConfig& config, const Paths& paths) {
    switch (config.console) {
    case ConsoleType::kNone:
        return {};
    case ConsoleType::kFile:
        return config.console_path;
    case ConsoleType::kPty:
        return paths.vm_runtime_dir(config.name) + "/console";
    case ConsoleType::kSocket:
        return paths.vm_runtime_dir(config.name) + "/console.sock";
    }
    return {};
}

Result<void> open_console(const VmConfig& config, const Paths& paths, handoff::NamedFds& devices) {
    const std::string path = console_path(config, paths);
    switch (config.console) {
    case ConsoleType::kNone:
        return {};
    case ConsoleType::kPty:
        return open_pty(devices, path);
    case ConsoleType::kFile: {
        TRY_ASSIGN(devices["console"], fd::open(path, O_WRONLY | O_CREAT | O_APPEND, 0640));
        return {};
    }
    case ConsoleType::kSocket: {
        TRY_ASSIGN(devices["console"], fd::unix_listen(path, SOCK_STREAM, 4));
        return {};
    }
    }
    return {};
}

Result<GuestFiles> GuestFiles::create(const VmConfig& config, const Paths& paths) {
    GuestFiles files;
    TRY(add_ram(config, files.manifest));
    if (config.witness) TRY(add_block(files.manifest, kWitnessBlock, kWitnessGpa, kPage, false, {}));
    if (!config.firmware.empty()) TRY(add_firmware(config, files.manifest));
    auto& machine = files.manifest.machine;
    machine.set_vcpus(config.vcpus);
    machine.set_cpu_template(config.cpu_template);
    machine.set_cmdline(config.cmdline);
    machine.set_boot(config.firmware.empty() ? "kernel" : "firmware");
    machine.set_console(std::string(to_string(config.console)));
    machine.set_rng(config.rng);
    if (config.console_device != ConsoleDevice::kSerial)
        machine.set_console_device(std::string(to_string(config.console_device)));
    if (config.witness) machine.set_witness_gpa(kWitnessGpa);

    TRY_ASSIGN(files.baton_fd, handoff::Baton::create_segment());
    TRY_ASSIGN(handoff::Baton baton, handoff::Baton::map(files.baton_fd.get()));
    files.baton = std::make_unique<handoff::Baton>(std::move(baton));
    auto kvm = fd::open("/dev/kvm", O_RDWR);
    if (!kvm)
        return std::move(kvm).error().context("the guest needs KVM; load the kvm module, or join the group "
                                              "kvm (`liveupdate doctor` tells more)");
    files.devices["kvm"] = std::move(kvm).value();
    TRY(open_console(config, paths, files.devices));
    TRY(open_disks(config, files));
    TRY(open_nets(config, machine, files.devices));
    return files;
}

Result<GuestFiles> GuestFiles::adopt(const handoff::proto::Manifest& manifest, handoff::NamedFds fds) {
    GuestFiles files;
    TRY_ASSIGN(files.manifest, handoff::take_manifest(manifest, fds));
    TRY_ASSIGN(files.baton_fd, handoff::take_fd(fds, "baton"));
    TRY_ASSIGN(handoff::Baton baton, handoff::Baton::map(files.baton_fd.get()));
    files.baton = std::make_unique<handoff::Baton>(std::move(baton));
    files.devices = std::move(fds);
    return files;
}

int GuestFiles::origin() const {
    const auto found = devices.find(handoff::kOriginFd);
    return manifest.machine.ram_origin() && found != devices.end() ? found->second.get() : -1;
}

std::vector<handoff::FdToSend> GuestFiles::to_send() const {
    auto fds = handoff::fds_of(manifest);
    fds.push_back({"baton", baton_fd.get()});
    for (const auto& [name, fd] : devices)
        fds.push_back({name, fd.get()});
    return fds;
}

Result<handoff::NamedFds> open_boot_files(const VmConfig& config) {
    handoff::NamedFds files;
    if (!config.kernel.empty()) {
        TRY_ASSIGN(files["kernel"], fd::open(config.kernel, O_RDONLY).context("kernel"));
    }
    if (!config.initrd.empty()) {
        TRY_ASSIGN(files["initrd"], fd::open(config.initrd, O_RDONLY).context("initrd"));
    }
    return files;
}

} // namespace liveupdate::supervisor
