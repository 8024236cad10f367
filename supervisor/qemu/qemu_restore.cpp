#include "supervisor/qemu/qemu_restore.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "handoff/base/fd.hpp"
#include "handoff/base/words.hpp"
#include "handoff/manifest.hpp"
#include "handoff/save/nbd_uri.hpp"
#include "handoff/save/saved_guest.hpp"
#include "supervisor/guest_files.hpp"
#include "supervisor/named_ram.hpp"
#include "supervisor/qemu/command_line.hpp"
#include "supervisor/qemu/compare.hpp"
#include "supervisor/qemu/moved_places.hpp"
#include "supervisor/qemu/run_state.hpp"
#include "supervisor/qemu/state_stream.hpp"
#include "supervisor/qemu/transfer.hpp"
#include "supervisor/ram_image.hpp"
#include "supervisor/used_save.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using handoff::save::is_nbd_uri;
using handoff::save::Place;

constexpr handoff::Participant kFirst = 1;
constexpr auto kStartTime = std::chrono::seconds(60); // of the QEMU, until it has loaded the guest
constexpr auto kRunTime = std::chrono::seconds(10);
constexpr size_t kMostWords = 300;

std::string value_of(const std::vector<std::string>& arguments, const std::string& option) {
    const auto at = std::find(arguments.begin(), arguments.end(), option);
    return at == arguments.end() || at + 1 == arguments.end() ? "" : *(at + 1);
}

template <typename Step>
Result<void> timed(uint64_t& us, Step step) {
    const uint64_t before = monotonic_ns();
    auto done = step();
    us = (monotonic_ns() - before) / 1000;
    return done;
}

bool has_resumed(QemuProcess& qemu) {
    static_cast<void>(qemu.monitor().take_arrived());
    const auto& events = qemu.monitor().events();
    return std::any_of(events.begin(), events.end(), [](const QmpEvent& e) { return e.name == "RESUME"; });
}

} // namespace

QemuRestore::QemuRestore(Context context, const RestoreRequest& request)
    : at_(std::move(context)), request_(request), path_(save_at(request.from)) {}

Result<RestoredQemu> QemuRestore::run() {
    RestoreReport& report = restored_.report;
    const auto result = [&]() -> Result<void> {
        TRY(open_save());
        TRY(make_guest());
        TRY(timed(report.ram_us, [&] { return fill_ram(); }));
        deadline_ = Deadline::after(kStartTime);
        TRY(timed(report.start_us, [&] { return start_qemu(); }));
        TRY(timed(report.prepare_us, [&] { return load(); }));
        return timed(report.hand_over_us, [&] { return let_run(); });
    }();
    if (result) {
        for (const std::string& note : save_->notes())
            report.notes.push_back(note);
        return std::move(restored_);
    }
    restored_.vmm.kill();
    drop(std::move(restored_.guest));
    return Error(result.error()).context("restore " + request_.from);
}

Result<void> QemuRestore::open_save() {
    TRY(check(request_));
    TRY_ASSIGN(save_, handoff::save::Reader::open(path_));
    const handoff::proto::SavedGuest& guest = save_->guest();
    if (!guest.has_qemu())
        return Error(ErrorCode::kRefused, path_ + " is no guest of QEMU, and " + at_.config.path +
                                              " has driver = \"qemu\"; write driver = \"native\" in [vmm]");
    TRY(handoff::save::check_blocks_against(guest.manifest(), save_->header().specs()).context(path_));
    const auto specs = save_->header().specs();
    if (specs.size() != 1 || !specs.front().name.starts_with(kRamId))
        return Error(ErrorCode::kRefused, path_ + " has other RAM blocks than a guest of QEMU");
    mapped_ram_ = guest.qemu().stream().empty();
    image_ = guest.qemu().image_sums_size() > 0 && !mapped_ram_;
    in_place_ = specs.front().place == Place::kBeside && !image_ && !mapped_ram_;
    if (request_.ram == RestoreRam::kLazy || (request_.ram == RestoreRam::kMapped && !image_))
        return Error(ErrorCode::kUnsupported,
            "the RAM of a guest of QEMU does not come while it runs; restore it without --lazy and --mapped");
    if (is_nbd_uri(request_.from) && specs.front().place == Place::kBeside)
        return Error(ErrorCode::kRefused, "the guest's RAM lies in a file beside " +
                                              std::string(handoff::save::kFileName) +
                                              ", which is not in the export; restore it on the host that "
                                              "has it");
    return {};
}

std::string QemuRestore::image_path() const {
    return request_.from + "/" + save_->header().blocks.front().spec.name;
}

std::vector<uint64_t> QemuRestore::image_sums() const {
    const auto& sums = save_->guest().qemu().image_sums();
    return {sums.begin(), sums.end()};
}

Result<void> QemuRestore::check_ram() const {
    if (mapped_ram_) return {}; // QEMU has written it, and compares it by itself
    const uint64_t size = save_->header().blocks.front().spec.size;
    if (!at_.config.qemu.command_line.empty())
        return Error(ErrorCode::kRefused,
            at_.config.path + " has a 'command_line' in [qemu], and guests of one are not saved");
    const MemoryConfig& memory = at_.config.memory.front();
    if (memory.backing == Backing::kPrivate || memory.size != size)
        return Error(ErrorCode::kRefused, at_.config.path +
                                              " describes other RAM than the saved guest has, " +
                                              std::to_string(size) + " bytes; make [[memory]] as it was");
    return {};
}

// Fresh files, as for a launch, but for the machine, which is the saved one to the version.
Result<void> QemuRestore::make_guest() {
    TRY(check_ram());
    TRY(make_files());
    // Epochs go on: in the guest's lifetime none comes twice.
    TRY(restored_.guest.make_baton(save_->guest().epoch()));
    if (request_.identity == Identity::kNew) TRY(give_new_generation());
    return check_arguments();
}

// An image is not read, so nobody has looked at what is in it: `template show --verify` does.
Result<void> QemuRestore::make_files() {
    const std::string& machine = save_->guest().qemu().machine();
    if (request_.ram != RestoreRam::kMapped) {
        TRY_ASSIGN(restored_.guest, QemuGuest::create(at_.config, at_.paths, machine,
                                        in_place_ ? RamSpace::kOfAnother : RamSpace::kSetAside));
        return {};
    }
    TRY_ASSIGN(UniqueFd image, fd::open(image_path(), O_RDONLY | O_NOFOLLOW));
    const uint64_t size = save_->header().blocks.front().spec.size;
    struct stat status {};
    if (::fstat(image.get(), &status) < 0) return Error::from_errno("stat " + image_path());
    if (static_cast<uint64_t>(status.st_size) != size)
        return Error(ErrorCode::kRefused, image_path() + " has " + std::to_string(status.st_size) +
                                              " bytes, not the " + std::to_string(size) +
                                              " that the guest's RAM has");
    TRY_ASSIGN(restored_.guest, QemuGuest::create_clone(at_.config, at_.paths, machine, std::move(image)));
    return {};
}

// QEMU writes it to where the guest looks for it when it has loaded the guest, and sends the interrupt.
Result<void> QemuRestore::give_new_generation() {
    constexpr size_t kUuidLength = 36;
    TRY_ASSIGN(std::string uuid, fd::read_file("/proc/sys/kernel/random/uuid", 64));
    uuid.resize(std::min(uuid.size(), kUuidLength));
    if (!set_generation(restored_.guest.arguments, uuid))
        restored_.report.notes.push_back("the guest has no generation id (-device vmgenid in extra_args), so "
                                         "it does not learn that it is a copy; make it seed its random "
                                         "numbers anew");
    return {};
}

// QEMU finds out about most of what differs, in its own words, but not about what has no state.
Result<void> QemuRestore::check_arguments() const {
    const auto& list = save_->guest().qemu().arguments();
    const std::vector<std::string> saved(list.begin(), list.end());
    for (const char* option : {"-machine", "-accel", "-cpu", "-smp", "-m"}) {
        const std::string was = value_of(saved, option), is = value_of(restored_.guest.arguments, option);
        if (was != is)
            return Error(ErrorCode::kRefused,
                at_.config.path + " describes another machine than the saved one: QEMU's " + option +
                    " was '" + printable(was, kMostWords) + "' and is '" + is + "'");
    }
    return {};
}

Result<void> QemuRestore::fill_ram() {
    if (in_place_) return take_beside();
    if (request_.ram == RestoreRam::kMapped) return {};
    const uint64_t size = save_->header().blocks.front().spec.size;
    if (mapped_ram_) return read_ram_image(image_path(), size, image_sums(), {});
    if (image_) {
        TRY_ASSIGN(const auto ram,
            handoff::SharedMapping::map(restored_.guest.ram.get(), 0, size, handoff::MapMode::kShared));
        return read_ram_image(image_path(), size, image_sums(), ram.bytes());
    }
    TRY(save_->load_tables());
    return save_->read_block(0, restored_.guest.ram.get(), ram_kind(at_.config.memory.front().backing));
}

Result<void> QemuRestore::take_beside() {
    TRY_ASSIGN(UniqueFd file, open_named_ram(request_.from, kRamId));
    const auto& saved = save_->guest().manifest().blocks(0);
    TRY_ASSIGN(const handoff::RamKind kind, handoff::ram_kind_of(saved));
    TRY_ASSIGN(
        handoff::RamBlock block, handoff::adopt_ram_block(kRamId, kind, saved.size(), std::move(file)));
    restored_.guest.ram = std::move(block.file);
    return {};
}

Result<void> QemuRestore::start_qemu() {
    TRY_ASSIGN(const OpenBinary binary, OpenBinary::open(at_.config.vmm_binary));
    const auto& saved = save_->guest().qemu();
    auto started = QemuProcess::spawn(binary, restored_.guest.arguments, QemuProcess::Role::kIncoming, kFirst,
        at_.folder, restored_.guest.fds(), deadline_, -1);
    if (!started)
        return std::move(started).error().context("start the machine '" + printable(saved.machine(), 64) +
                                                  "' that QEMU " + printable(saved.version(), 64) + " saved");
    restored_.vmm = std::move(*started);
    at_.shelter({restored_.vmm.pid(), restored_.vmm.pidfd(), restored_.vmm.session_file()});
    ComparedSide then{"the saved guest", printable(saved.version(), 64), {}};
    for (const auto& device : saved.devices())
        then.devices[printable(device.path(), kMostWords)] = printable(device.type(), kMostWords);
    TRY_ASSIGN(ComparedSide now, side_of(restored_.vmm, "the machine of the VM file", deadline_, -1));
    return compare_devices(std::move(then), std::move(now));
}

Result<void> QemuRestore::load() {
    const auto& saved = save_->guest().qemu();
    const std::string what = "QEMU " + restored_.vmm.monitor().version() + " loads what QEMU " +
                             printable(saved.version(), 64) + " saved";
    TRY(set_capabilities(restored_.vmm, mapped_ram_ ? Way::kCprTransfer : Way::kIgnoreShared, deadline_, -1));
    if (!mapped_ram_) return give_stream(restored_.vmm, at_.folder, saved.stream(), deadline_).context(what);
    TRY(set_mapped_ram(restored_.vmm, deadline_, true).context(what));
    TRY(read_mapped(restored_.vmm, image_path(), deadline_).context(what));
    return set_mapped_ram(restored_.vmm, deadline_, false);
}

// Once the guest runs, RAM beside is no longer that of the save.
Result<void> QemuRestore::let_run() {
    QemuProcess& vmm = restored_.vmm;
    if (at_.config.qemu.command_line.empty())
        TRY(pin_machine(at_.config, at_.paths, save_->guest().qemu().machine()));
    TRY(attach_console(vmm, restored_.guest.console_backend(), deadline_));
    const auto missed = complete_places(vmm, at_.config, restored_.guest.arguments, deadline_);
    if (!missed.empty()) return missed.front();
    if (in_place_) TRY(use_up_save(path_));
    if (!restored_.guest.baton->claim(kFirst))
        return Error(ErrorCode::kInternal, "a fresh baton is not free");
    auto runs = make_run(vmm, Deadline::after(kRunTime));
    restored_.report.entered_ns = monotonic_ns();
    if (runs) {
        if (in_place_) forget_used_save(path_);
        return {};
    }
    vmm.kill(); // QEMU says RESUME before any vCPU runs
    if (in_place_ && !has_resumed(vmm)) put_save_back(path_);
    return runs;
}

} // namespace liveupdate::supervisor::qemu
