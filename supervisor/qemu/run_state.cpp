#include "supervisor/qemu/run_state.hpp"

#include <unistd.h>

#include <algorithm>

#include "supervisor/qemu/command_line.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr auto kLook = std::chrono::milliseconds(1);

bool is_over(const std::string& status) {
    return status.empty() || status == "none" || status == "completed" || status == "failed" ||
           status == "cancelled";
}

} // namespace

Result<RunState> run_state(QemuProcess& qemu, Deadline deadline) {
    TRY_ASSIGN(const nlohmann::json answer, qemu.execute("query-status", nullptr, deadline));
    RunState state;
    state.status = word_in(answer, "status");
    state.running = state.status == "running";
    if (state.status.empty()) return Error(ErrorCode::kProtocol, "query-status: QEMU tells no status");
    return state;
}

Result<std::string> machine_type(QemuProcess& qemu, Deadline deadline) {
    TRY_ASSIGN(const nlohmann::json answer,
        qemu.execute("qom-get", {{"path", "/machine"}, {"property", "type"}}, deadline));
    const std::string type = answer.is_string() ? answer.get<std::string>() : "";
    constexpr std::string_view kSuffix = "-machine";
    if (!type.ends_with(kSuffix)) return Error(ErrorCode::kProtocol, "QEMU tells no machine type");
    return type.substr(0, type.size() - kSuffix.size());
}

Result<bool> is_deprecated(QemuProcess& qemu, const std::string& machine_type, Deadline deadline) {
    TRY_ASSIGN(const nlohmann::json machines, qemu.execute("query-machines", nullptr, deadline));
    return std::any_of(machines.begin(), machines.end(), [&](const auto& machine) {
        return word_in(machine, "name") == machine_type &&
               machine.value("deprecated", nlohmann::json()) == true;
    });
}

std::string deprecation_note(const std::string& machine_type, const std::string& qemu_version) {
    return "the machine type '" + machine_type + "' is deprecated in QEMU " + qemu_version +
           ": a later release may be without it; plan a restart with another one";
}

Result<std::string> migration_status(QemuProcess& qemu, Deadline deadline) {
    TRY_ASSIGN(const nlohmann::json answer, qemu.execute("query-migrate", nullptr, deadline));
    return word_in(answer, "status");
}

Result<std::string> settled_migration(QemuProcess& qemu, Deadline deadline) {
    for (;; ::usleep(std::chrono::microseconds(kLook).count())) {
        TRY_ASSIGN(std::string status, migration_status(qemu, deadline));
        if (is_over(status) || status == "postcopy-paused") return status;
        if (deadline.passed())
            return Error(ErrorCode::kTimeout, "QEMU's migration does not end: it is " + status);
    }
}

Result<void> start_postcopy(QemuProcess& source, Deadline deadline) {
    TRY(source.execute("migrate-start-postcopy", nullptr, deadline));
    return {};
}

// "completed" may be said of the migration by which it got the guest itself.
Result<bool> has_all_pages(QemuProcess& source, Deadline deadline) {
    TRY_ASSIGN(const std::string status, settled_migration(source, deadline));
    if (status != "completed") return is_over(status);
    const auto started = start_postcopy(source, deadline);
    if (!started && started.error().code != ErrorCode::kRefused) return started.error();
    return !started;
}

Result<bool> has_come_whole(QemuProcess& destination, Deadline deadline) {
    const auto status = settled_migration(destination, deadline);
    if (!status && status.error().code == ErrorCode::kPeerGone) return false;
    if (!status) return status.error();
    return *status == "completed";
}

Result<std::optional<uint64_t>> downtime_us(QemuProcess& qemu, Deadline deadline) {
    TRY_ASSIGN(const nlohmann::json answer, qemu.execute("query-migrate", nullptr, deadline));
    const auto ms = answer.find("downtime");
    if (ms == answer.end() || !ms->is_number_unsigned()) return std::optional<uint64_t>();
    return std::optional<uint64_t>(ms->get<uint64_t>() * 1000);
}

Result<void> make_run(QemuProcess& qemu, Deadline deadline) {
    TRY_ASSIGN(std::string migration, migration_status(qemu, deadline));
    if (migration.starts_with("postcopy"))
        return Error(ErrorCode::kRefused, "pages of the guest's RAM are with another QEMU");
    if (!is_over(migration)) TRY(qemu.execute("migrate_cancel", nullptr, deadline));
    for (; !is_over(migration); ::usleep(std::chrono::microseconds(kLook).count())) {
        if (deadline.passed())
            return Error(ErrorCode::kTimeout, "QEMU's migration does not end: it is " + migration);
        TRY_ASSIGN(migration, migration_status(qemu, deadline));
    }
    // A migration that was cut short makes the guest run by itself, a moment after it has ended.
    for (;; ::usleep(std::chrono::microseconds(kLook).count())) {
        TRY_ASSIGN(const RunState state, run_state(qemu, deadline));
        if (state.running || state.status == "shutdown") return {};
        if (state.status != "finish-migrate") break;
        if (deadline.passed()) return Error(ErrorCode::kTimeout, "QEMU does not finish its migration");
    }
    TRY(qemu.execute("cont", nullptr, deadline));
    TRY_ASSIGN(const RunState state, run_state(qemu, deadline));
    if (state.running) return {};
    return Error(ErrorCode::kRefused, "QEMU does not run the guest: it is " + state.status);
}

Result<void> attach_console(QemuProcess& qemu, const nlohmann::json& backend, Deadline deadline) {
    if (backend.is_null()) return {};
    TRY(qemu.execute("chardev-change", {{"id", kConsoleId}, {"backend", backend}}, deadline));
    return {};
}

} // namespace liveupdate::supervisor::qemu
