#include "supervisor/vm.hpp"

#include <dirent.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <set>

#include "handoff/base/fd.hpp"
#include "liveupdate_version.hpp"
#include "supervisor/journal.hpp"

namespace liveupdate::supervisor {
namespace {

using handoff::proto::Message;

constexpr auto kLaunchTime = std::chrono::seconds(30);
constexpr auto kConnectTime = std::chrono::seconds(2);
constexpr size_t kHistoryDefault = 20;

using FileId = std::pair<dev_t, ino_t>;

std::optional<FileId> id_of(const std::string& path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) < 0) return std::nullopt;
    return FileId{status.st_dev, status.st_ino};
}

// Those of the runtime folder, and those that were kept and lie there no more.
std::vector<std::string> session_sockets(const std::string& directory, const handoff::NamedFds& kept) {
    std::vector<std::string> found;
    std::set<FileId> seen;
    const auto add = [&](const std::string& path) {
        const auto id = id_of(path);
        if (id && seen.insert(*id).second) found.push_back(path);
    };
    if (DIR* dir = ::opendir(directory.c_str())) {
        while (const dirent* entry = ::readdir(dir)) {
            const std::string name = entry->d_name;
            if (name.starts_with("vmm-") && name.ends_with(".sock")) add(directory + "/" + name);
        }
        ::closedir(dir);
    }
    for (const auto& [name, file] : kept)
        if (name.starts_with("session-")) add("/proc/self/fd/" + std::to_string(file.get()));
    return found;
}

} // namespace

VmSupervisor::VmSupervisor(
    systemd::EventLoop& loop, VmConfig config, Paths paths, History history, Service& service)
    : loop_(loop), service_(service), config_(std::move(config)), paths_(std::move(paths)),
      history_(std::move(history)), test_faults_(std::getenv("LIVEUPDATE_TEST_FAULTS") != nullptr) {}

VmSupervisor::~VmSupervisor() {
    if (update_thread_.joinable()) update_thread_.join();
    // A supervisor that fails is no reason for a guest to end, once somebody has seen it run.
    const bool runs = state_ == State::kRunning || state_ == State::kUpdating;
    if (runs && (adopted_ || listener_ >= 0)) vmm_.forget();
}

std::string_view VmSupervisor::word(State state) {
    switch (state) {
    case State::kStarting:
        return "starting";
    case State::kRunning:
        return "running";
    case State::kUpdating:
        return "updating";
    case State::kStopping:
        return "stopping";
    case State::kStopped:
        return "stopped";
    case State::kLost:
        return "lost";
    }
    return "unknown";
}

Result<void> VmSupervisor::start(handoff::NamedFds kept) {
    auto adopted = adopt(kept);
    // Whoever it is may be on its way out, or in the middle of a switchover.
    if (!adopted) return Error(ErrorCode::kBusy, adopted.error().message);
    if (!*adopted && kept.contains("baton")) {
        guest_gone("its VMM ended while no supervisor was there");
        return {};
    }
    if (!*adopted) TRY(launch());
    take_previous(kept);
    state_ = State::kRunning;
    watch();
    return {};
}

// VMMs of a former supervisor: the owner of the guest is taken over, all others are told to end.
Result<bool> VmSupervisor::adopt(const handoff::NamedFds& kept) {
    for (const std::string& socket : session_sockets(paths_.vm_runtime_dir(config_.name), kept)) {
        auto process = VmmProcess::connect(socket, Deadline::after(kConnectTime));
        if (!process) {
            // Somebody lives there and may run the guest: a second one beside it would be worse than none.
            if (process.error().code == ErrorCode::kTimeout)
                return Error(ErrorCode::kBusy,
                    "the VMM at " + socket + " lives, but does not answer; end it, or wait");
            // Nobody listens any more, or it ended just now.
            const bool gone =
                process.error().code == ErrorCode::kNotFound || process.error().code == ErrorCode::kPeerGone;
            if (gone) ::unlink(socket.c_str());
            continue;
        }
        if (process->participant() == 0) continue; // its end is in VmmProcess's destructor
        if (auto taken = take_over(*process, kept); !taken) {
            process->forget(); // it runs the guest, whatever is wrong with it or with us
            return std::move(taken).error();
        }
        vmm_ = std::move(process).value();
        adopted_ = true;
        log_event({EventKind::kRecovered, config_.name, "", "", "",
            "adopted the VMM with pid " + std::to_string(vmm_.pid()) + " (" + vmm_.binary().info.path + ")"});
    }
    if (!vmm_) TRY(await_end_of_kept(kept));
    return static_cast<bool>(vmm_);
}

Result<void> VmSupervisor::launch() {
    TRY_ASSIGN(const OpenBinary binary, OpenBinary::open(config_.vmm_binary));
    TRY_ASSIGN(const handoff::NamedFds boot_files, open_boot_files(config_));
    TRY_ASSIGN(files_, GuestFiles::create(config_, paths_));
    const Deadline deadline = Deadline::after(kLaunchTime);
    const std::string socket = paths_.vm_runtime_dir(config_.name) + "/vmm-1.sock";
    TRY_ASSIGN(vmm_, VmmProcess::spawn(binary, 1, socket, deadline, -1));
    service_.shelter(vmm_);
    Message message;
    *message.mutable_launch()->mutable_manifest() = handoff::to_message(files_->manifest);
    message.mutable_launch()->set_participant(1);
    auto fds = files_->to_send();
    for (const auto& [name, file] : boot_files)
        fds.push_back({name, file.get()});
    auto launched = vmm_.request(std::move(message), fds, Message::kLaunched, deadline);
    if (!launched) {
        vmm_.kill();
        return std::move(launched).error().context("start the guest");
    }
    log_event({EventKind::kStarted, config_.name, "", "", "source",
        "started in " + vmm_.offer().implementation() + " " + vmm_.offer().version() + " (build-id " +
            short_build_id(vmm_.binary().info.build_id) + "), pid " + std::to_string(vmm_.pid())});
    return {};
}

void VmSupervisor::watch() {
    running_ = {vmm_.binary().info.path, vmm_.offer().version(), vmm_.binary().info.build_id};
    running_pid_ = vmm_.pid();
    running_since_ = vmm_.offer().started_unix();
    keep_for_successor();
    tell_status();
    auto pidfd = loop_.add_io(vmm_.pidfd(), EPOLLIN, [this](uint32_t) { vmm_spoke(); });
    auto channel = loop_.add_io(vmm_.channel_fd(), EPOLLIN, [this](uint32_t) { vmm_spoke(); });
    if (pidfd) pidfd_source_ = std::move(pidfd).value();
    if (channel) channel_source_ = std::move(channel).value();
    vmm_spoke(); // what came while nobody watched
}

void VmSupervisor::unwatch() {
    pidfd_source_.reset();
    channel_source_.reset();
}

void VmSupervisor::vmm_spoke() {
    const bool lives = vmm_.drain_events();
    while (!vmm_.events().empty()) {
        const auto event = vmm_.events().front();
        vmm_.events().pop_front();
        guest_event(event);
        if (!vmm_) return;
    }
    if (!lives) {
        unwatch();
        vmm_.kill();
        const std::string how = vmm_.how_it_ended();
        guest_gone("its VMM " + (how.empty() ? "is gone" : how));
    }
}

void VmSupervisor::guest_event(const handoff::proto::GuestEvent& event) {
    using Event = handoff::proto::GuestEvent;
    if (state_ == State::kStopping) return guest_ended_stopping(event);
    if (event.kind() == Event::RESET) return restart_guest("the guest asked for a reset");
    if (event.kind() == Event::EXITED) {
        if (event.powered_off())
            spdlog::info("{}: the guest has powered itself off", config_.name);
        else
            spdlog::info("{}: the guest ended with status {}", config_.name, event.status());
        unwatch();
        vmm_.kill();
        state_ = State::kStopped;
        loop_.stop(event.status() <= 1 ? 0 : 1);
        return;
    }
    unwatch();
    vmm_.kill();
    guest_gone("the guest failed: " + event.detail());
}

void VmSupervisor::guest_gone(const std::string& why) {
    if (state_ == State::kStopping) return finish_stop("cut", Deadline::after({}));
    log_event({EventKind::kLost, config_.name, "", "", "", "the guest is lost: " + why});
    lost_why_ = why;
    state_ = State::kLost;
    running_pid_ = 0;
    keep_for_successor();
    tell_status();
    if (config_.on_lost == OnLost::kRestart) restart_guest("the policy on_lost says so");
}

void VmSupervisor::restart_guest(const std::string& why) {
    spdlog::warn("{}: the guest starts anew: {}", config_.name, why);
    unwatch();
    vmm_.kill();
    files_.reset();
    if (auto launched = launch(); !launched) {
        state_ = State::kLost;
        lost_why_ = launched.error().message;
        spdlog::error("{}: {}", config_.name, launched.error().message);
        return;
    }
    state_ = State::kRunning;
    watch();
}

void VmSupervisor::handle(nlohmann::json request, std::shared_ptr<ControlReply> reply) {
    const std::string command = request.at("command");
    if (command == "status") return reply->finish(status());
    if (command == "version") return reply->finish({{"version", kVersion}, {"pid", ::getpid()}});
    if (command == "history") {
        nlohmann::json records = nlohmann::json::array();
        for (const UpdateRecord& r : history_.newest(request.value("limit", kHistoryDefault)))
            records.push_back(to_json(r));
        return reply->finish({{"records", std::move(records)}});
    }
    if (command == "update") return begin_update(request, std::move(reply));
    if (command == "abort") {
        const bool updating = abort_update();
        return reply->finish({{"update", updating ? nlohmann::json(update_id_) : nlohmann::json(nullptr)}});
    }
    if (command == "stop") return begin_stop(request, std::move(reply));
    if (command == "reexec") return begin_reexec(reply);
    reply->fail({ErrorCode::kInvalid, "there is no command '" + command + "'"});
}

nlohmann::json VmSupervisor::status() const {
    nlohmann::json j = {{"name", config_.name}, {"state", word(state_)},
        {"supervisor", {{"pid", ::getpid()}, {"version", kVersion}}}, {"vcpus", config_.vcpus},
        {"memory_bytes", config_.memory_bytes()}, {"config", config_.path}, {"outdated", false},
        {"vmm", nullptr}, {"previous", nullptr}, {"update", nullptr}, {"last_update", nullptr},
        {"console", {{"type", to_string(config_.console)}, {"device", to_string(config_.console_device)},
                        {"path", console_path(config_, paths_)}}}};
    if (running_pid_ != 0)
        j["vmm"] = {{"pid", running_pid_}, {"binary", running_.binary}, {"version", running_.version},
            {"build_id", running_.build_id}, {"started_unix", running_since_}};
    if (auto disk = inspect_binary(config_.vmm_binary)) {
        j["on_disk"] = {{"binary", disk->path}, {"build_id", disk->build_id}};
        j["outdated"] = running_pid_ != 0 && disk->build_id != running_.build_id;
    } else {
        j["on_disk"] = {{"binary", config_.vmm_binary}, {"build_id", ""}, {"error", disk.error().message}};
    }
    if (previous_)
        j["previous"] = {{"binary", previous_->info.path}, {"version", previous_version_},
            {"build_id", previous_->info.build_id}};
    if (state_ == State::kUpdating) j["update"] = {{"id", update_id_}, {"phase", update_phase_}};
    if (const auto last = history_.newest(1); !last.empty()) j["last_update"] = to_json(last.front());
    if (state_ == State::kLost) j["lost_reason"] = lost_why_;
    return j;
}

Result<UpdateRequest> VmSupervisor::read_request(const nlohmann::json& request, UpdateKind kind) {
    UpdateRequest update;
    update.kind = kind;
    if (kind == UpdateKind::kRollback) {
        if (!previous_)
            return Error(ErrorCode::kNotFound,
                "there is no previous binary to roll back to; no update has completed "
                "since this supervisor started");
        update.binary.info = previous_->info;
        TRY_ASSIGN(update.binary.file, fd::dup(previous_->file.get()));
    } else {
        TRY_ASSIGN(update.binary, OpenBinary::open(request.value("binary", config_.vmm_binary)));
    }
    const auto timeout_ms = request.value("timeout_ms", uint64_t{0});
    update.timeout = timeout_ms == 0 ? config_.timeout : std::chrono::milliseconds(timeout_ms);
    if (!request.contains("fault")) return update;
    if (!test_faults_)
        return Error(
            ErrorCode::kRefused, "faults are injected only by a supervisor that was started for tests");
    const auto& fault = request.at("fault");
    const auto phase = handoff::parse_phase(fault.at("phase").get<std::string>());
    if (!phase) return Error(ErrorCode::kInvalid, "the fault names no phase that exists");
    const std::string victim = fault.at("victim");
    update.fault = FaultRequest{*phase,
        victim == "source"        ? handoff::Party::kSource
        : victim == "destination" ? handoff::Party::kDestination
                                  : handoff::Party::kSupervisor,
        fault.value("action", "kill") == "fail" ? handoff::FaultAction::kFail : handoff::FaultAction::kKill};
    return update;
}

bool VmSupervisor::is_current(const UpdateRequest& request) const {
    return request.binary.info.build_id == running_.build_id;
}

void VmSupervisor::begin_update(const nlohmann::json& request, std::shared_ptr<ControlReply> reply) {
    if (state_ == State::kUpdating)
        return reply->fail(
            {ErrorCode::kBusy, config_.name + " is being updated already (" + update_id_ + ")"});
    if (state_ != State::kRunning)
        return reply->fail({ErrorCode::kRefused,
            config_.name + " is " + std::string(word(state_)) + ", so there is nothing to update"});
    const auto kind = parse_update_kind(request.value("kind", "update"));
    if (!kind) return reply->fail({ErrorCode::kInvalid, "the kind of an update is update, plan or rollback"});
    auto update = read_request(request, *kind);
    if (!update &&
        (update.error().code == ErrorCode::kInvalid || update.error().code == ErrorCode::kNotFound)) {
        // A binary that cannot be one: refused, and on record.
        UpdateRecord record;
        record.id = new_update_id();
        record.kind = *kind;
        record.outcome = Outcome::kRefused;
        record.started_unix_ms = static_cast<uint64_t>(std::time(nullptr)) * 1000;
        record.from = running_;
        record.to.binary = request.value("binary", config_.vmm_binary);
        record.reason = update.error().message;
        return update_over(std::move(record), std::nullopt, reply);
    }
    if (!update) return reply->fail(update.error());
    if (request.value("if_outdated", false) && is_current(*update)) {
        UpdateRecord record;
        record.id = new_update_id();
        record.kind = *kind;
        record.outcome = Outcome::kNothingToDo;
        record.started_unix_ms = static_cast<uint64_t>(std::time(nullptr)) * 1000;
        record.from = record.to = running_;
        return reply->finish(to_json(record));
    }
    run_update(std::move(*update), std::move(reply));
}

void VmSupervisor::run_update(UpdateRequest request, std::shared_ptr<ControlReply> reply) {
    auto cancel = fd::eventfd(0);
    if (!cancel) return reply->fail(cancel.error());
    cancel_fd_ = std::move(cancel).value();
    unwatch();
    state_ = State::kUpdating;
    update_id_ = new_update_id();
    update_phase_ = "negotiating";
    service_.reloading();
    tell_status();
    const auto on_phase = [this, reply](handoff::Phase phase, uint64_t elapsed_us) {
        reply->event({{"phase", to_string(phase)}, {"update", update_id_}, {"elapsed_us", elapsed_us}});
        loop_.post([this, phase] {
            update_phase_ = to_string(phase);
            tell_status();
        });
    };
    const auto on_spawned = [this](const VmmProcess& vmm) { service_.shelter(vmm); };
    if (update_thread_.joinable()) update_thread_.join();
    update_thread_ = std::thread([this, request = std::move(request), reply, on_phase, on_spawned]() mutable {
        Update update({config_, paths_, *files_, vmm_, cancel_fd_.get(), on_phase, on_spawned},
            std::move(request), update_id_);
        UpdateRecord record = update.run();
        auto previous = std::make_shared<std::optional<OpenBinary>>(update.take_previous());
        loop_.post([this, record = std::move(record), previous, reply]() mutable {
            update_over(std::move(record), std::move(*previous), reply);
        });
    });
}

void VmSupervisor::update_over(
    UpdateRecord record, std::optional<OpenBinary> previous, const std::shared_ptr<ControlReply>& reply) {
    if (update_thread_.joinable()) update_thread_.join();
    if (previous) {
        previous_ = std::move(previous);
        previous_version_ = record.from.version;
    }
    log_end(record);
    if (auto kept = history_.append(record); !kept)
        spdlog::error("{}: the history could not be written: {}", config_.name, kept.error().message);
    const bool was_updating = state_ == State::kUpdating;
    if (was_updating) {
        state_ = State::kRunning;
        service_.ready(); // before the answer, which ends a reload
    }
    reply->finish(to_json(record));
    if (!was_updating) return;
    if (vmm_)
        watch();
    else
        guest_gone(record.reason);
}

bool VmSupervisor::abort_update() {
    if (state_ != State::kUpdating) return false;
    const uint64_t one = 1;
    static_cast<void>(::write(cancel_fd_.get(), &one, sizeof(one)));
    return true;
}

} // namespace liveupdate::supervisor
