#include "supervisor/qemu/foreign_qemu.hpp"

#include <unistd.h>

#include "supervisor/qemu/foreign_arguments.hpp"
#include "supervisor/qemu/offers.hpp"
#include "supervisor/qemu/open_files.hpp"
#include "supervisor/qemu/run_state.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using nlohmann::json;

// Who listens at the socket may have been given it by another process: the vCPUs' threads tell whose it is.
Result<unsigned> count_vcpus(QemuProcess& qemu, Deadline deadline) {
    TRY_ASSIGN(const json vcpus, qemu.execute("query-cpus-fast", nullptr, deadline));
    if (!vcpus.is_array() || vcpus.empty()) return Error(ErrorCode::kProtocol, "QEMU tells of no vCPU");
    for (const json& each : vcpus) {
        const auto thread = each.find("thread-id");
        if (thread == each.end() || !thread->is_number_integer())
            return Error(ErrorCode::kProtocol, "QEMU tells no vCPU's thread");
        const std::string task =
            "/proc/" + std::to_string(qemu.pid()) + "/task/" + std::to_string(thread->get<pid_t>());
        if (::access(task.c_str(), F_OK) < 0)
            return Error(ErrorCode::kRefused,
                "the monitor's socket was made by process " + std::to_string(qemu.pid()) +
                    ", which is not the QEMU that answers; give one that QEMU has made");
    }
    return static_cast<unsigned>(vcpus.size());
}

Result<uint64_t> memory_size(QemuProcess& qemu, Deadline deadline) {
    TRY_ASSIGN(const json sizes, qemu.execute("query-memory-size-summary", nullptr, deadline));
    const auto base = sizes.find("base-memory");
    if (base == sizes.end() || !base->is_number_unsigned())
        return Error(ErrorCode::kProtocol, "QEMU tells no size of memory");
    return base->get<uint64_t>();
}

Result<void> read_arguments(QemuProcess& qemu, ForeignQemu& found, Deadline deadline) {
    TRY_ASSIGN(const std::string machine, machine_type(qemu, deadline));
    TRY_ASSIGN(const auto all, arguments_of(qemu.pid()));
    const std::string folder = "/proc/" + std::to_string(qemu.pid()) + "/cwd/";
    auto read = read_foreign_arguments(
        all, machine, [&](const std::string& path) { return ::access((folder + path).c_str(), F_OK) == 0; });
    found.adopted.arguments = std::move(read.arguments);
    found.obstacles = std::move(read.obstacles);
    return {};
}

// What QEMU itself has against an update.
Result<void> ask_guest(QemuProcess& qemu, ForeignQemu& found, Deadline deadline) {
    TRY_ASSIGN(const RunState state, run_state(qemu, deadline));
    if (!state.running) found.obstacles.push_back("the guest does not run: QEMU says it is " + state.status);
    TRY_ASSIGN(const GuestFacts facts, facts_of(qemu, deadline, -1));
    const Modes modes = facts.aux_ram_is_shared ? Modes::kAsk : Modes::kPassOver;
    TRY_ASSIGN(const Offer offer, offer_of(qemu, modes, deadline, -1));
    auto way = choose_way(offer, offer, facts, std::nullopt);
    if (way)
        found.way = std::move(*way);
    else
        found.obstacles.push_back(way.error().message);
    if (auto disks = check_disks(qemu, deadline); !disks && disks.error().code == ErrorCode::kRefused)
        found.obstacles.push_back(disks.error().message);
    else
        TRY(disks);
    return {};
}

} // namespace

Result<ForeignQemu> inspect_foreign(const std::string& monitor, Deadline deadline) {
    auto attached = QemuProcess::attach(monitor, deadline);
    if (!attached && attached.error().code == ErrorCode::kTimeout)
        return Error(ErrorCode::kTimeout, "no QEMU answers at " + monitor +
                                              ": another program may be connected to this monitor, which has "
                                              "room for one; give QEMU another -qmp, or end that program");
    if (!attached) return std::move(attached).error().context("QEMU's monitor " + monitor);
    QemuProcess& qemu = *attached;
    const auto looked = [&]() -> Result<ForeignQemu> {
        ForeignQemu found;
        TRY_ASSIGN(found.vcpus, count_vcpus(qemu, deadline));
        TRY_ASSIGN(found.memory, memory_size(qemu, deadline));
        found.adopted.pid = qemu.pid();
        TRY_ASSIGN(found.adopted.start_ticks, start_ticks_of(qemu.pid()));
        found.binary = qemu.binary().info.path;
        found.version = qemu.monitor().version();
        TRY(read_arguments(qemu, found, deadline));
        TRY(ask_guest(qemu, found, deadline));
        return found;
    }();
    qemu.forget(); // it is nobody's yet but its own
    return looked;
}

std::string vm_file_of(const ForeignQemu& qemu) {
    const auto quoted = [](const std::string& text) {
        return json(text).dump();
    }; // TOML's strings are JSON's
    std::string file =
        "# Written by `liveupdate adopt`: the guest of a QEMU that was started by somebody else.\n";
    file += "[vmm]\ndriver = \"qemu\"\nbinary = " + quoted(qemu.binary) + "\n\n[qemu]\ncommand_line = [\n";
    for (const std::string& argument : qemu.adopted.arguments)
        file += "    " + quoted(argument) + ",\n";
    return file + "]\n\n[machine]\nvcpus = " + std::to_string(qemu.vcpus) +
           "\n\n[[memory]]\nsize = " + std::to_string(qemu.memory) + "\n\n[console]\ntype = \"none\"\n";
}

} // namespace liveupdate::supervisor::qemu
