// How a VM is saved: on the update's thread, which has the driver to itself meanwhile.
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"
#include "supervisor/guest_files.hpp"
#include "supervisor/vm.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr uint64_t kLongestMs = 600'000; // as long as a VMM lets its guest stand still
constexpr uint64_t kFileMs = kLongestMs;
constexpr uint64_t kInPlaceMs = 10'000;
constexpr size_t kMaxConfig = size_t{1} << 20;

} // namespace

Result<SaveRequest> VmSupervisor::read_save_request(const nlohmann::json& request) const {
    SaveRequest save;
    save.directory = request.value("directory", "");
    if (save.directory.empty() || save.directory.front() != '/')
        return Error(ErrorCode::kInvalid, "a save needs the absolute path of a folder");
    const auto kind = parse_save_kind(request.value("kind", "file"));
    if (!kind) return Error(ErrorCode::kInvalid, "the kind of a save is file or in-place");
    save.kind = *kind;
    if (request.value("live", false)) save.meanwhile = WhileSaving::kRuns;
    if (save.meanwhile == WhileSaving::kRuns && save.kind == SaveKind::kInPlace)
        return Error(ErrorCode::kInvalid, "a save in place writes no RAM, so there is nothing to do live");
    const bool stop = request.value("stop", false) || save.kind == SaveKind::kInPlace;
    save.after = stop ? AfterSave::kStop : AfterSave::kGoOn;
    if (request.value("disks", "leave") == "copy") save.disks = SaveDisks::kCopy;
    if (save.disks == SaveDisks::kCopy && save.kind == SaveKind::kInPlace)
        return Error(ErrorCode::kInvalid, "disks are copied beside a file only, not in place");
    if (request.value("ram", "save") == "image") save.ram = SaveRam::kImage;
    if (save.ram == SaveRam::kImage && save.kind == SaveKind::kInPlace)
        return Error(ErrorCode::kInvalid, "a save in place writes no RAM, so there is no image of it");
    const auto default_ms = save.kind == SaveKind::kInPlace ? kInPlaceMs : kFileMs;
    const auto timeout_ms = request.value("timeout_ms", default_ms);
    if (timeout_ms == 0 || timeout_ms > kLongestMs)
        return Error(ErrorCode::kInvalid, "a guest may stand still for 1 ms to 10 min while it is saved");
    save.timeout = std::chrono::milliseconds(timeout_ms);
    if (request.contains("die_at")) {
        if (!test_faults_)
            return Error(
                ErrorCode::kRefused, "faults are injected only by a supervisor that was started for tests");
        save.die_at = parse_save_step(request.at("die_at").get<std::string>());
        if (!save.die_at) return Error(ErrorCode::kInvalid, "the fault names no step that exists");
    }
    TRY_ASSIGN(save.config_text, fd::read_file(config_.path, kMaxConfig));
    return save;
}

void VmSupervisor::begin_save(const nlohmann::json& request, std::shared_ptr<ControlReply> reply) {
    if (driver_is_busy())
        return reply->fail({ErrorCode::kBusy,
            config_.name + " is " + std::string(word(state_)) + " already; wait until that is over"});
    if (state_ != State::kRunning)
        return reply->fail({ErrorCode::kRefused,
            config_.name + " is " + std::string(word(state_)) + ", so there is nothing to save"});
    auto save = read_save_request(request);
    if (!save) return reply->fail(save.error());
    if (auto made = make_directories(save->directory); !made) return reply->fail(made.error());
    auto cancel = fd::eventfd(0);
    if (!cancel) return reply->fail(cancel.error());
    cancel_fd_ = std::move(cancel).value();
    unwatch();
    state_ = State::kSaving;
    tell_status();
    if (update_thread_.joinable()) update_thread_.join();
    update_thread_ = std::thread([this, save = std::move(*save), reply]() mutable {
        auto result = std::make_shared<Result<SaveReport>>(
            driver_->save(std::move(save), {cancel_fd_.get(), [](handoff::Phase, uint64_t) {}, {}}));
        loop_.post([this, result, reply] { save_over(*result, reply); });
    });
}

void VmSupervisor::save_over(const Result<SaveReport>& result, const std::shared_ptr<ControlReply>& reply) {
    if (update_thread_.joinable()) update_thread_.join();
    const bool was_saving = state_ == State::kSaving; // else it is being stopped
    if (was_saving) state_ = State::kRunning;
    if (result) {
        spdlog::info(
            "{}: saved to {}, stood still for {} us", config_.name, result->path, result->stood_still_us);
        reply->finish(to_json(*result));
    } else {
        spdlog::warn("{}: {}", config_.name, result.error().message);
        reply->fail(result.error());
    }
    if (!was_saving) return;
    const bool meant_to_end = result && result->after == AfterSave::kStop;
    if (driver_->running().pid != 0) return watch();
    if (!meant_to_end) return guest_gone("its VMM ended while it was being saved");
    driver_->kill();
    keep_for_successor(); // nothing of this guest
    if (config_.console != ConsoleType::kFile) ::unlink(console_path(config_, paths_).c_str());
    state_ = State::kStopped;
    running_ = {};
    loop_.post([this] { loop_.stop(0); });
}

} // namespace liveupdate::supervisor
