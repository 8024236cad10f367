#include "supervisor/vm.hpp"

#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "handoff/base/fd.hpp"
#include "liveupdate_version.hpp"
#include "supervisor/guest_files.hpp"
#include "supervisor/journal.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr size_t kHistoryDefault = 20;

} // namespace

VmSupervisor::VmSupervisor(
    systemd::EventLoop& loop, VmConfig config, Paths paths, History history, Service& service)
    : loop_(loop), service_(service), config_(std::move(config)), paths_(std::move(paths)),
      history_(std::move(history)), driver_(make_driver(config_, paths_)),
      test_faults_(std::getenv("LIVEUPDATE_TEST_FAULTS") != nullptr) {}

VmSupervisor::~VmSupervisor() {
    if (update_thread_.joinable()) update_thread_.join();
    // A supervisor that fails is no reason for a guest to end, once somebody has seen it run.
    const bool runs = state_ == State::kRunning || driver_is_busy();
    if (runs && (adopted_ || listener_ >= 0)) driver_->let_go();
}

std::string_view VmSupervisor::word(State state) {
    switch (state) {
    case State::kStarting:
        return "starting";
    case State::kRunning:
        return "running";
    case State::kUpdating:
        return "updating";
    case State::kSaving:
        return "saving";
    case State::kStopping:
        return "stopping";
    case State::kStopped:
        return "stopped";
    case State::kLost:
        return "lost";
    }
    return "unknown";
}

Result<void> VmSupervisor::start(handoff::NamedFds kept, const std::optional<RestoreRequest>& restore) {
    const auto adoption = driver_->adopt(kept);
    // Whoever it is may be on its way out, or in the middle of a switchover.
    if (!adoption) return Error(ErrorCode::kBusy, adoption.error().message);
    if (*adoption == Adoption::kEnded) {
        guest_gone("its VMM ended while no supervisor was there");
        return {};
    }
    adopted_ = *adoption == Adoption::kAdopted;
    lazy_ = adopted_; // for all that is known; the VMM will say
    if (adopted_ && restore) {
        driver_->let_go();
        return Error(
            ErrorCode::kBusy, "the guest runs already; stop it before another is restored in its place");
    }
    if (!adopted_) TRY(restore ? this->restore(*restore) : launch());
    if (const RunningVmm vmm = driver_->running(); adopted_)
        log_event({EventKind::kRecovered, config_.name, "", "", "",
            "adopted the VMM with pid " + std::to_string(vmm.pid) + " (" + vmm.binary.binary + ")"});
    take_previous(kept);
    state_ = State::kRunning;
    watch();
    return {};
}

Result<void> VmSupervisor::launch() {
    TRY(driver_->launch([this](const StartedVmm& vmm) { service_.shelter(vmm); }));
    const RunningVmm vmm = driver_->running();
    log_event({EventKind::kStarted, config_.name, "", "", "source",
        "started in " + vmm.binary.binary + " " + vmm.binary.version + " (build-id " +
            short_build_id(vmm.binary.build_id) + "), pid " + std::to_string(vmm.pid)});
    return {};
}

Result<void> VmSupervisor::restore(const RestoreRequest& request) {
    TRY_ASSIGN(
        restored_, driver_->restore(request, [this](const StartedVmm& vmm) { service_.shelter(vmm); }));
    lazy_ = request.ram == RestoreRam::kLazy;
    for (const std::string& note : restored_->notes)
        spdlog::info("{}: {}", config_.name, note);
    const RunningVmm vmm = driver_->running();
    log_event({EventKind::kStarted, config_.name, "", "", "destination",
        "restored from " + request.from + " in " + vmm.binary.binary + " " + vmm.binary.version +
            " (build-id " + short_build_id(vmm.binary.build_id) + "), pid " + std::to_string(vmm.pid)});
    return {};
}

void VmSupervisor::watch() {
    running_ = driver_->running();
    ram_origin_ = driver_->ram_origin();
    keep_for_successor();
    tell_status();
    for (const int file : driver_->watched())
        if (auto source = loop_.add_io(file, EPOLLIN, [this](uint32_t) { vmm_spoke(); }))
            vmm_sources_.push_back(std::move(source).value());
    vmm_spoke(); // what came while nobody watched
}

void VmSupervisor::unwatch() {
    vmm_sources_.clear();
}

void VmSupervisor::vmm_spoke() {
    const pid_t pid = driver_->running().pid;
    std::deque<GuestNews> news;
    const bool lives = driver_->take_news(news);
    for (const GuestNews& each : news) {
        guest_did(each);
        if (driver_->running().pid != pid) return;
    }
    if (lives || pid == 0) return;
    unwatch();
    driver_->kill();
    const std::string how = driver_->how_it_ended();
    guest_gone("its VMM " + (how.empty() ? "is gone" : how));
}

void VmSupervisor::guest_did(const GuestNews& news) {
    if (state_ == State::kStopping) return guest_ended_stopping(news);
    if (news.kind == GuestNews::Kind::kReset) return restart_guest("the guest asked for a reset");
    unwatch();
    driver_->kill();
    if (news.kind == GuestNews::Kind::kFailed) return guest_gone("the guest failed: " + news.detail);
    if (news.powered_off)
        spdlog::info("{}: the guest has powered itself off", config_.name);
    else
        spdlog::info("{}: the guest ended with status {}", config_.name, news.status);
    state_ = State::kStopped;
    loop_.stop(news.status <= 1 ? 0 : 1);
}

void VmSupervisor::guest_gone(const std::string& why) {
    if (state_ == State::kStopping) return finish_stop("cut", Deadline::after({}));
    log_event({EventKind::kLost, config_.name, "", "", "", "the guest is lost: " + why});
    lost_why_ = why;
    state_ = State::kLost;
    running_ = {};
    keep_for_successor();
    tell_status();
    if (config_.on_lost == OnLost::kRestart) restart_guest("the policy on_lost says so");
}

void VmSupervisor::restart_guest(const std::string& why) {
    spdlog::warn("{}: the guest starts anew: {}", config_.name, why);
    unwatch();
    driver_->kill();
    keep_for_successor(); // lets go of its RAM before there is more
    lazy_ = false;
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
    if (command == "save") return begin_save(request, std::move(reply));
    if (command == "stop") return begin_stop(request, std::move(reply));
    if (command == "reexec") return begin_reexec(reply);
    reply->fail({ErrorCode::kInvalid, "there is no command '" + command + "'"});
}

nlohmann::json VmSupervisor::status() {
    nlohmann::json j = {{"name", config_.name}, {"state", word(state_)},
        {"supervisor", {{"pid", ::getpid()}, {"version", kVersion}}}, {"vcpus", config_.vcpus},
        {"driver", to_string(config_.driver)}, {"memory_bytes", config_.memory_bytes()},
        {"config", config_.path}, {"outdated", false}, {"vmm", nullptr}, {"previous", nullptr},
        {"update", nullptr}, {"last_update", nullptr},
        {"console", {{"type", to_string(config_.console)}, {"device", to_string(config_.console_device)},
                        {"path", console_path(config_, paths_)}}}};
    if (running_.pid != 0)
        j["vmm"] = {{"pid", running_.pid}, {"binary", running_.binary.binary},
            {"version", running_.binary.version}, {"build_id", running_.binary.build_id},
            {"started_unix", running_.started_unix}};
    if (auto disk = inspect_binary(config_.vmm_binary)) {
        j["on_disk"] = {{"binary", disk->path}, {"build_id", disk->build_id}};
        j["outdated"] = running_.pid != 0 && disk->build_id != running_.binary.build_id;
    } else {
        j["on_disk"] = {{"binary", config_.vmm_binary}, {"build_id", ""}, {"error", disk.error().message}};
    }
    if (previous_)
        j["previous"] = {{"binary", previous_->info.path}, {"version", previous_version_},
            {"build_id", previous_->info.build_id}};
    if (state_ == State::kUpdating) j["update"] = {{"id", update_id_}, {"phase", update_phase_}};
    if (const auto last = history_.newest(1); !last.empty()) j["last_update"] = to_json(last.front());
    if (restored_) j["restored"] = to_json(*restored_);
    if (lazy_ && state_ == State::kRunning) {
        const auto left = driver_->ram_to_come();
        // What came while it was asked is waiting to be heard.
        loop_.post([this] {
            if (!vmm_sources_.empty()) vmm_spoke();
        });
        if (restored_)
            j["restored"]["ram_to_fill"] = left ? nlohmann::json(left->bytes) : nlohmann::json(nullptr);
        lazy_ = !left || left->bytes > 0;
        if (left && lazy_) j["ram_to_come"] = {{"bytes", left->bytes}, {"trouble", left->trouble}};
    }
    if (running_.pid != 0 && !ram_origin_.empty()) j["ram_origin"] = ram_origin_;
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
    update.way = request.value("way", "");
    if (!update.way.empty() && config_.driver != DriverKind::kQemu)
        return Error(ErrorCode::kInvalid, "ways are told apart for guests of QEMU only; leave 'way' out");
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
    return request.binary.info.build_id == running_.binary.build_id;
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
        record.started_unix_ms = unix_ms();
        record.from = running_.binary;
        record.to.binary = request.value("binary", config_.vmm_binary);
        record.reason = update.error().message;
        return update_over({std::move(record), std::nullopt}, reply);
    }
    if (!update) return reply->fail(update.error());
    if (request.value("if_outdated", false) && is_current(*update)) {
        UpdateRecord record;
        record.id = new_update_id();
        record.kind = *kind;
        record.outcome = Outcome::kNothingToDo;
        record.started_unix_ms = unix_ms();
        record.from = record.to = running_.binary;
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
    const Shelter shelter = [this](const StartedVmm& vmm) { service_.shelter(vmm); };
    if (update_thread_.joinable()) update_thread_.join();
    update_thread_ = std::thread([this, request = std::move(request), reply, on_phase, shelter]() mutable {
        auto result = std::make_shared<UpdateResult>(
            driver_->update(std::move(request), update_id_, {cancel_fd_.get(), on_phase, shelter}));
        loop_.post([this, result, reply] { update_over(std::move(*result), reply); });
    });
}

void VmSupervisor::update_over(UpdateResult result, const std::shared_ptr<ControlReply>& reply) {
    if (update_thread_.joinable()) update_thread_.join();
    const UpdateRecord& record = result.record;
    if (result.previous) {
        previous_ = std::move(result.previous);
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
    if (driver_->running().pid != 0)
        watch();
    else
        guest_gone(record.reason);
}

bool VmSupervisor::abort_update() {
    if (!driver_is_busy()) return false;
    const uint64_t one = 1;
    static_cast<void>(::write(cancel_fd_.get(), &one, sizeof(one)));
    return true;
}

} // namespace liveupdate::supervisor
