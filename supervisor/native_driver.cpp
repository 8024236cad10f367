#include "supervisor/native_driver.hpp"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "handoff/base/fd.hpp"
#include "handoff/base/words.hpp"
#include "supervisor/guest_restore.hpp"
#include "supervisor/guest_save.hpp"
#include "supervisor/kept_vmms.hpp"
#include "supervisor/memory_layout.hpp"
#include "supervisor/update.hpp"

namespace liveupdate::supervisor {
namespace {

using handoff::proto::GuestEvent;
using handoff::proto::Message;

constexpr auto kLaunchTime = std::chrono::seconds(30);
// A destination that a former supervisor has armed answers when it has given up, within about as long.
constexpr auto kConnectTime = std::chrono::seconds(10);
constexpr auto kAdoptTime = std::chrono::seconds(10);
constexpr auto kOthersEndTime = std::chrono::seconds(10); // of VMMs that have no guest and no supervisor
constexpr size_t kMostWords = 500;                        // of a VMM, about what it waits for
constexpr auto kAskTime = std::chrono::seconds(2);        // for a VMM to answer

// Of the runtime folder.
std::vector<std::string> sockets_in(const std::string& directory) {
    std::vector<std::string> found;
    DIR* dir = ::opendir(directory.c_str());
    if (dir == nullptr) return found;
    while (const dirent* entry = ::readdir(dir)) {
        const std::string name = entry->d_name;
        if (name.starts_with("vmm-") && name.ends_with(".sock")) found.push_back(directory + "/" + name);
    }
    ::closedir(dir);
    return found;
}

GuestNews news_from(const GuestEvent& event) {
    switch (event.kind()) {
    case GuestEvent::RESET:
        return {GuestNews::Kind::kReset};
    case GuestEvent::EXITED:
        return {GuestNews::Kind::kEnded, event.powered_off(), event.status()};
    default:
        return {GuestNews::Kind::kFailed, false, 0, event.detail()};
    }
}

} // namespace

// VMMs of a former supervisor: the owner of the guest is taken over, all others are told to end.
Result<Adoption> NativeDriver::adopt(const handoff::NamedFds& kept) {
    const std::string folder = paths_.vm_runtime_dir(config_.name);
    for (const std::string& socket : session_sockets(sockets_in(folder), kept))
        TRY(adopt_at(socket, kept));
    if (vmm_) return Adoption::kAdopted;
    // Those that have no guest end by themselves.
    TRY(await_end_of_kept(kept, Deadline::after(kOthersEndTime), folder));
    return kept.contains("baton") ? Adoption::kEnded : Adoption::kNobody;
}

Result<void> NativeDriver::adopt_at(const std::string& socket, const handoff::NamedFds& kept) {
    auto process = VmmProcess::connect(socket, Deadline::after(kConnectTime));
    if (!process) {
        // Somebody lives there and may run the guest: a second one beside it would be worse than none.
        if (process.error().code == ErrorCode::kTimeout)
            return Error(
                ErrorCode::kBusy, "the VMM at " + socket + " lives, but does not answer; end it, or wait");
        // Nobody listens any more, or it ended just now.
        const bool gone =
            process.error().code == ErrorCode::kNotFound || process.error().code == ErrorCode::kPeerGone;
        if (gone) ::unlink(socket.c_str());
        return {};
    }
    if (process->participant() == 0) return {}; // its end is in VmmProcess's destructor
    if (auto taken = take_over(*process, kept); !taken) {
        process->forget(); // it runs the guest, whatever is wrong with it or with us
        return std::move(taken).error();
    }
    vmm_ = std::move(process).value();
    return {};
}

// Files and baton of the guest, from the VMM that runs it.
Result<void> NativeDriver::take_over(VmmProcess& owner, const handoff::NamedFds& kept) {
    handoff::proto::Message message;
    message.mutable_adopt();
    TRY_ASSIGN(handoff::Received answer,
        owner.request(std::move(message), {}, handoff::proto::Message::kAdopted, Deadline::after(kAdoptTime))
            .context("adopt the VMM that runs the guest"));
    TRY_ASSIGN(files_, GuestFiles::adopt(answer.message.adopted().manifest(), std::move(answer.fds)));
    return check_against_kept(kept);
}

// The VMM gave these back; a VMM that was taken over by its guest must not give others than the guest's own.
Result<void> NativeDriver::check_against_kept(const handoff::NamedFds& kept) const {
    for (const auto& ours : files_->to_send()) {
        const auto found = kept.find(ours.name);
        if (found == kept.end()) continue;
        struct stat before {
        }, now{};
        if (::fstat(found->second.get(), &before) < 0 || ::fstat(ours.fd, &now) < 0)
            return Error::from_errno("stat " + ours.name);
        if (before.st_dev != now.st_dev || before.st_ino != now.st_ino)
            return Error(ErrorCode::kProtocol,
                "the VMM gives back another '" + ours.name + "' than the guest was started with");
    }
    return {};
}

Result<void> NativeDriver::launch(const Shelter& shelter) {
    TRY_ASSIGN(const OpenBinary binary, OpenBinary::open(config_.vmm_binary));
    TRY_ASSIGN(const handoff::NamedFds boot_files, open_boot_files(config_));
    TRY_ASSIGN(files_, GuestFiles::create(config_, paths_));
    for (const handoff::RamBlock& block : files_->manifest.blocks)
        TRY(handoff::set_space_aside(block));
    const Deadline deadline = Deadline::after(kLaunchTime);
    const std::string socket = paths_.vm_runtime_dir(config_.name) + "/vmm-1.sock";
    TRY_ASSIGN(vmm_, VmmProcess::spawn(binary, 1, socket, deadline, -1));
    shelter({vmm_.pid(), vmm_.pidfd(), vmm_.session_file()});
    // Firmware gets no tables of the VMM's that would tell of it.
    const auto& can = vmm_.offer().capabilities();
    if (config_.firmware.empty() &&
        std::find(can.begin(), can.end(), handoff::kGenerationCapability) != can.end())
        files_->manifest.machine.set_generation_id_gpa(kGenerationIdGpa);
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
    return {};
}

std::optional<RamToCome> NativeDriver::ram_to_come() {
    if (!vmm_) return std::nullopt;
    Message message;
    message.mutable_query();
    const auto answer = vmm_.request(std::move(message), {}, Message::kStatus, Deadline::after(kAskTime));
    if (!answer) return std::nullopt;
    const auto& status = answer->message.status();
    return RamToCome{status.ram_to_fill(), printable(status.ram_trouble(), kMostWords)};
}

std::string NativeDriver::ram_origin() const {
    const int file = files_ ? files_->origin() : -1;
    if (file < 0) return "";
    std::error_code problem;
    const auto path = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(file), problem);
    return problem ? "unknown" : path.string();
}

RunningVmm NativeDriver::running() const {
    if (!vmm_) return {};
    return {vmm_.pid(), {vmm_.binary().info.path, vmm_.offer().version(), vmm_.binary().info.build_id},
        vmm_.offer().started_unix()};
}

std::vector<int> NativeDriver::watched() const {
    if (!vmm_) return {};
    return {vmm_.pidfd(), vmm_.channel_fd()};
}

bool NativeDriver::take_news(std::deque<GuestNews>& news) {
    const bool lives = vmm_.drain_events();
    for (const GuestEvent& event : vmm_.events())
        news.push_back(news_from(event));
    vmm_.events().clear();
    return lives;
}

// False also for a VMM that does not know the question.
bool NativeDriver::ask_to_end() {
    if (!vmm_) return false;
    Message message;
    message.mutable_ask_to_end();
    const auto answer = vmm_.request(std::move(message), {}, Message::kAskedToEnd, Deadline::after(kAskTime));
    return answer && answer->message.asked_to_end().heard();
}

void NativeDriver::end(Deadline deadline) {
    Message message;
    message.mutable_stop();
    if (vmm_) static_cast<void>(vmm_.tell(std::move(message)));
    vmm_.wait_or_kill(deadline);
}

void NativeDriver::kill() {
    vmm_.kill();
    files_.reset();
}

std::vector<handoff::FdToSend> NativeDriver::keepsakes() const {
    std::vector<handoff::FdToSend> all;
    if (!vmm_ || !files_) return all;
    all.push_back({kept_pidfd(vmm_.pid()), vmm_.pidfd()});
    all.push_back({kept_session(vmm_.pid()), vmm_.session_file()});
    all.push_back({"baton", files_->baton_fd.get()});
    for (const auto& block : handoff::fds_of(files_->manifest))
        all.push_back(block);
    if (files_->origin() >= 0) all.push_back({handoff::kOriginFd, files_->origin()});
    return all;
}

UpdateResult NativeDriver::update(UpdateRequest request, std::string id, const UpdateHooks& hooks) {
    Update update({config_, paths_, *files_, vmm_, hooks}, std::move(request), std::move(id));
    UpdateResult result;
    result.record = update.run();
    result.previous = update.take_previous();
    return result;
}

Result<SaveReport> NativeDriver::save(SaveRequest request, const UpdateHooks& hooks) {
    return GuestSave({config_, *files_, vmm_, hooks}, std::move(request)).run();
}

Result<RestoreReport> NativeDriver::restore(const RestoreRequest& request, const Shelter& shelter) {
    TRY_ASSIGN(RestoredGuest guest, GuestRestore(config_, paths_, request, shelter).run());
    files_ = std::move(guest.files);
    vmm_ = std::move(guest.vmm);
    return std::move(guest.report);
}

} // namespace liveupdate::supervisor
