#include "supervisor/qemu/qemu_save.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "handoff/base/fd.hpp"
#include "handoff/base/host_clocks.hpp"
#include "handoff/manifest.hpp"
#include "supervisor/left_over_save.hpp"
#include "supervisor/qemu/command_line.hpp"
#include "supervisor/qemu/compare.hpp"
#include "supervisor/qemu/listening_plan.hpp"
#include "supervisor/qemu/offers.hpp"
#include "supervisor/qemu/open_files.hpp"
#include "supervisor/qemu/run_state.hpp"
#include "supervisor/qemu/state_stream.hpp"
#include "supervisor/qemu/transfer.hpp"
#include "supervisor/ram_image.hpp"
#include "supervisor/touched_pages.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using handoff::save::Place;

constexpr auto kAnswerTime = std::chrono::seconds(5); // for answers that need no work
constexpr auto kEndTime = std::chrono::seconds(10);   // for a QEMU to close its images
constexpr auto kBackTime = std::chrono::seconds(30);
constexpr const char* kMappedPrefix = "ram0-"; // of files that QEMU has written
constexpr const char* kTooLong =
    "saving took longer than the guest may stand still; give more time with --timeout";

uint64_t unix_us() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
}

Result<void> arm(int timer, std::chrono::microseconds span) {
    itimerspec at{};
    at.it_value.tv_sec = static_cast<time_t>(span.count() / 1'000'000);
    at.it_value.tv_nsec = static_cast<long>(span.count() % 1'000'000) * 1000;
    if (::timerfd_settime(timer, 0, &at, nullptr) < 0) return Error::from_errno("timerfd_settime");
    return {};
}

// Readable when one of them is.
Result<UniqueFd> any_of(std::initializer_list<int> files) {
    UniqueFd all(::epoll_create1(EPOLL_CLOEXEC));
    if (!all) return Error::from_errno("epoll_create1");
    for (const int file : files) {
        if (file < 0) continue;
        epoll_event event{EPOLLIN, {}};
        if (::epoll_ctl(all.get(), EPOLL_CTL_ADD, file, &event) < 0) return Error::from_errno("epoll_ctl");
    }
    return all;
}

} // namespace

QemuSave::QemuSave(Context context, SaveRequest request)
    : at_(std::move(context)), request_(std::move(request)),
      me_(handoff::next_participant(at_.source.participant())), began_ns_(monotonic_ns()) {}

QemuSave::~QemuSave() {
    if (!image_.empty()) ::unlink(image_.c_str());
}

Result<SaveReport> QemuSave::run() {
    const auto result = [&]() -> Result<void> {
        TRY(check_source());
        TRY(open_file());
        TRY(named_.sync(halt_.get()));
        TRY(describe());
        reach(SaveStep::kDescribed);
        TRY(stop_guest());
        reach(SaveStep::kStopped);
        TRY(write_ram());
        TRY(copy_disks());
        reach(SaveStep::kWritten);
        // RAM is read: a guest that goes on does so before the file is synced.
        if (request_.after == AfterSave::kGoOn) TRY(let_guest_go_on());
        TRY(finish_file());
        reach(SaveStep::kFinished);
        // A file is whole whoever has the guest; RAM that stays is the guest's until that has ended.
        if (request_.kind == SaveKind::kFile) TRY(publish());
        if (request_.after == AfterSave::kStop) TRY(end_guest());
        reach(SaveStep::kTaken);
        return request_.kind == SaveKind::kFile ? Result<void>() : publish();
    }();
    if (ended_) at_.source.end(Deadline::after(kEndTime));
    if (!result) {
        Error error = in_time(result.error()).context("save " + at_.config.name);
        const auto back = give_back();
        if (published_ && !ended_) error.message += "; as it was, it has been saved in " + writer_->path();
        if (ended_)
            error.message += "; the guest has ended and is whole in " + writer_->new_path();
        else if (!back)
            error.message += "; and QEMU does not run the guest on: " + back.error().message;
        else
            error.message += "; the guest runs on";
        return error;
    }
    named_.keep();
    report_.path = writer_->path();
    report_.written_bytes += writer_->bytes_written();
    report_.notes = writer_->notes();
    report_.after = request_.after;
    report_.duration_us = (monotonic_ns() - began_ns_) / 1000;
    return report_;
}

// Tests of what the end of this process leaves behind.
void QemuSave::reach(SaveStep step) const {
    if (request_.die_at == step) ::kill(::getpid(), SIGKILL);
}

Result<void> QemuSave::check_source() {
    const Deadline deadline = Deadline::after(kAnswerTime);
    TRY_ASSIGN(const RunState state, run_state(at_.source, deadline));
    if (!state.running)
        return Error(ErrorCode::kRefused, "the guest does not run: QEMU says it is " + state.status);
    TRY_ASSIGN(const GuestFacts facts, facts_of(at_.source, deadline, at_.hooks.cancel_fd));
    if (makes_image()) TRY(check_places());
    mapped_ram_ = !at_.guest.ram || facts.ram != RamPlace::kInFiles;
    if (mapped_ram_) TRY(check_private(deadline));
    if (request_.meanwhile == WhileSaving::kRuns && !mapped_ram_)
        return Error(ErrorCode::kUnsupported,
            "QEMU does not tell others what its guest writes, so a guest of QEMU cannot be saved while it "
            "runs; save it without --live");
    if (!facts.blocked.empty())
        return Error(ErrorCode::kRefused, "QEMU cannot save this guest: " + facts.blocked);
    return check_disks(at_.source, deadline);
}

// What the supervisor cannot read QEMU has to write.
Result<void> QemuSave::check_private(Deadline deadline) {
    const std::string why =
        "the guest's RAM is private to its QEMU, or in files that liveupdate has not made";
    if (request_.kind == SaveKind::kInPlace || makes_image())
        return Error(
            ErrorCode::kRefused, why + (makes_image() ? "; a template needs" : "; a save in place needs") +
                                     " a guest that was started with another [[memory]] backing");
    TRY_ASSIGN(const Offer offer, offer_of(at_.source, Modes::kPassOver, deadline, at_.hooks.cancel_fd));
    if (offer.capabilities.contains(kMappedRam)) return {};
    return Error(ErrorCode::kRefused, why + ", and QEMU " + offer.version +
                                          " has no migration capability 'mapped-ram' (9.0 and later do) to "
                                          "save it by");
}

Result<void> QemuSave::make_writer(uint64_t size, Place place) {
    handoff::save::IoOptions options;
    options.cancel_fd = halt_.get();
    TRY_ASSIGN(
        writer_, handoff::save::Writer::create(request_.directory, {{ram_.name, size, place}}, options));
    return {};
}

Result<void> QemuSave::open_file() {
    time_up_ = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    if (!time_up_) return Error::from_errno("timerfd_create");
    TRY_ASSIGN(halt_, any_of({time_up_.get(), at_.hooks.cancel_fd}));
    report_.ram_bytes = at_.config.memory_bytes();
    if (mapped_ram_) {
        TRY(check_left_over(request_.directory, {}));
        // Another name than the former save's, which is whole until this one is.
        ram_.name = kMappedPrefix + std::to_string(unix_us());
        return {};
    }
    const MemoryConfig& memory = at_.config.memory.front();
    struct stat status {};
    if (::fstat(at_.guest.ram.get(), &status) < 0) return Error::from_errno("stat the guest's RAM");
    TRY_ASSIGN(UniqueFd ram, fd::dup(at_.guest.ram.get()));
    TRY_ASSIGN(ram_, handoff::adopt_ram_block(kRamId, ram_kind(memory.backing),
                         static_cast<uint64_t>(status.st_size), std::move(ram)));
    report_.ram_bytes = ram_.size;
    TRY(check_left_over(request_.directory, {&ram_, 1}));
    const bool in_place = request_.kind == SaveKind::kInPlace;
    if (in_place) TRY(named_.link(ram_, request_.directory, memory.directory, at_.config.name));
    const Place place = in_place || makes_image() ? Place::kBeside : Place::kHere;
    TRY(make_writer(ram_.size, place));
    if (request_.disks == SaveDisks::kLeave) return {};
    TRY(open_disks());
    return SavedDisks::check(at_.config, disk_files_, request_.directory, request_.after);
}

// QEMU has them open by path, and check_disks() has seen that the paths lead there.
Result<void> QemuSave::open_disks() {
    for (size_t i = 0; i < at_.config.disks.size(); ++i) {
        TRY_ASSIGN(
            disk_files_.devices["disk" + std::to_string(i)], fd::open(at_.config.disks[i].path, O_RDONLY));
    }
    return {};
}

Result<void> QemuSave::describe() {
    const Deadline deadline = Deadline::after(kAnswerTime);
    const int cancel = at_.hooks.cancel_fd;
    state_.set_vm(at_.config.name);
    state_.set_config(request_.config_text);
    state_.mutable_source()->set_implementation("qemu");
    state_.mutable_source()->set_version(at_.source.monitor().version());
    describe_machine();
    handoff::proto::SavedQemu& qemu = *state_.mutable_qemu();
    qemu.set_version(at_.source.monitor().version());
    TRY_ASSIGN(const std::string type, machine_type(at_.source, deadline));
    qemu.set_machine(type);
    for (const std::string& argument : at_.guest.arguments)
        qemu.add_arguments(argument);
    TRY_ASSIGN(const ComparedSide side, side_of(at_.source, "the guest", deadline, cancel));
    for (const auto& [path, device] : side.devices) {
        auto& out = *qemu.add_devices();
        out.set_path(path);
        out.set_type(device);
    }
    if (makes_image()) TRY(check_devices());
    return set_capabilities(
        at_.source, mapped_ram_ ? Way::kCprTransfer : Way::kIgnoreShared, deadline, cancel);
}

// A clone has the template's VM file, but for what is known to differ.
Result<void> QemuSave::check_places() const {
    const auto& nets = at_.config.nets;
    const bool forwards =
        std::any_of(nets.begin(), nets.end(), [](const auto& n) { return !n.hostfwd.empty(); });
    const char* what = at_.config.qemu.vnc                               ? "has 'vnc'"
                       : forwards                                        ? "has 'hostfwd'"
                       : !listening_numbers(at_.guest.arguments).empty() ? "has devices that listen"
                                                                         : nullptr;
    if (what == nullptr) return {};
    return Error(
        ErrorCode::kRefused, std::string("the guest ") + what +
                                 ", and each clone would listen at the same place; make the template "
                                 "of a guest that was started without");
}

// QEMU gives pages back by punching holes into the file that RAM is mapped out of, whoever else maps it
// (ram_block_discard_range()).
Result<void> QemuSave::check_devices() const {
    for (const auto& device : state_.qemu().devices())
        for (const char* kind : {"virtio-balloon", "virtio-mem"})
            if (device.type().starts_with(kind))
                return Error(ErrorCode::kRefused, "the guest has a " + device.type() +
                                                      ", by which a clone could give back pages of the "
                                                      "template that others need; leave it out");
    return {};
}

// What a template's clones and readers ask of any saved guest. Where RAM lies in guest physical memory is
// QEMU's to know.
void QemuSave::describe_machine() {
    handoff::proto::Manifest& manifest = *state_.mutable_manifest();
    if (!mapped_ram_) {
        auto& block = *manifest.add_blocks();
        block.set_name(ram_.name);
        block.set_kind(handoff::to_message(ram_.kind));
        block.set_size(ram_.size);
    }
    handoff::proto::Machine& machine = *manifest.mutable_machine();
    machine.set_vcpus(at_.config.vcpus);
    machine.set_cmdline(at_.config.cmdline);
    machine.set_console(std::string(to_string(at_.config.console)));
    machine.set_rng(at_.config.rng);
    for (size_t i = 0; i < at_.config.disks.size(); ++i) {
        auto& disk = *machine.add_disks();
        disk.set_name("disk" + std::to_string(i));
        disk.set_read_only(at_.config.disks[i].read_only);
        struct stat status {};
        if (::stat(at_.config.disks[i].path.c_str(), &status) == 0)
            disk.set_sectors(static_cast<uint64_t>(status.st_size) / 512);
    }
    for (size_t i = 0; i < at_.config.nets.size(); ++i) {
        if (at_.config.nets[i].type != NetType::kTap) continue;
        auto& net = *machine.add_nets();
        const MacAddress& mac = at_.config.nets[i].mac;
        net.set_name("net" + std::to_string(i));
        net.set_mac(std::string(mac.begin(), mac.end()));
        net.set_queues(1);
    }
}

// From here on a successor gives the guest back to its QEMU.
Result<void> QemuSave::stop_guest() {
    // What an earlier update has left; an end of the guest is news.
    auto& events = at_.source.monitor().events();
    std::erase_if(events, [](const QmpEvent& e) { return e.name != "SHUTDOWN"; });
    limit_ = Deadline::after(request_.timeout);
    TRY(arm(time_up_.get(), request_.timeout));
    if (!at_.guest.baton->offer(at_.source.participant(), me_))
        return Error(ErrorCode::kInternal, "the QEMU that runs the guest does not hold it");
    offered_ = stopped_ = true;
    state_.set_epoch(at_.guest.baton->read().epoch);
    if (mapped_ram_) {
        TRY(write_mapped_ram());
    } else {
        TRY_ASSIGN(*state_.mutable_qemu()->mutable_stream(),
            take_stream(at_.source, at_.folder, limit_, at_.hooks.cancel_fd));
    }
    static_cast<void>(at_.source.monitor().take_arrived());
    for (const QmpEvent& each : events) {
        if (each.name == "SHUTDOWN")
            return Error(ErrorCode::kRefused, "the guest ended while it was being saved");
        if (each.name == "STOP") stopped_us_ = each.unix_us;
    }
    const HostClocks clocks = host_clocks();
    state_.mutable_clocks()->set_monotonic_ns(clocks.monotonic_ns);
    state_.mutable_clocks()->set_tsc(clocks.tsc);
    state_.set_saved_unix_ms(unix_us() / 1000);
    return {};
}

Result<void> QemuSave::write_mapped_ram() {
    const std::string path = request_.directory + "/" + ram_.name;
    TRY_ASSIGN(const UniqueFd file, fd::open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
    image_ = path;
    if (request_.meanwhile == WhileSaving::kStandsStill) TRY(at_.source.execute("stop", nullptr, limit_));
    TRY(set_mapped_ram(at_.source, limit_, true));
    return write_mapped(at_.source, path, limit_, at_.hooks.cancel_fd);
}

// The guest may run already: RAM is in the file.
Result<void> QemuSave::sum_mapped_ram() {
    struct stat status {};
    if (::stat(image_.c_str(), &status) < 0) return Error::from_errno("stat " + image_);
    ram_.size = handoff::save::round_up(static_cast<uint64_t>(status.st_size), handoff::save::kPage);
    if (::truncate(image_.c_str(), static_cast<off_t>(ram_.size)) < 0)
        return Error::from_errno("size " + image_);
    TRY_ASSIGN(const auto sums, sum_ram_image(image_, ram_.size, at_.hooks.cancel_fd));
    handoff::proto::SavedQemu& qemu = *state_.mutable_qemu();
    qemu.mutable_image_sums()->Add(sums.begin(), sums.end());
    auto& block = *state_.mutable_manifest()->add_blocks();
    block.set_name(ram_.name);
    block.set_size(ram_.size);
    report_.written_bytes = static_cast<uint64_t>(status.st_blocks) * 512;
    return make_writer(ram_.size, Place::kBeside);
}

// Of saves that this one has taken the place of.
void QemuSave::remove_former_files() const {
    std::error_code problem;
    for (const auto& entry : std::filesystem::directory_iterator(request_.directory, problem)) {
        const std::string name = entry.path().filename();
        if (name.starts_with(kMappedPrefix) && name != ram_.name) ::unlink(entry.path().c_str());
    }
}

Result<void> QemuSave::write_ram() {
    if (request_.kind == SaveKind::kInPlace || mapped_ram_) return {};
    TRY_ASSIGN(const auto ram,
        handoff::SharedMapping::map(ram_.file.get(), 0, ram_.size, handoff::MapMode::kReadOnly));
    const auto pages = touched_pages(ram_.file.get(), ram_.size);
    if (!makes_image()) return writer_->write_pages(0, ram.bytes(), pages);
    const std::string path = request_.directory + "/" + ram_.name;
    TRY_ASSIGN(const auto sums, write_ram_image(path, ram.bytes(), pages, halt_.get()));
    image_ = path;
    state_.mutable_qemu()->mutable_image_sums()->Add(sums.begin(), sums.end());
    report_.written_bytes += pages.count() * handoff::save::kPage;
    return {};
}

Result<void> QemuSave::copy_disks() {
    if (request_.disks == SaveDisks::kLeave) return {};
    return disks_.copy(at_.config, disk_files_, request_.directory, halt_.get());
}

void QemuSave::note_stand_still() {
    uint64_t end = unix_us();
    static_cast<void>(at_.source.monitor().take_arrived());
    for (const QmpEvent& each : at_.source.monitor().events())
        if (each.name == "RESUME") end = each.unix_us;
    if (stopped_us_ != 0 && end > stopped_us_) report_.stood_still_us = end - stopped_us_;
}

Result<void> QemuSave::let_guest_go_on() {
    TRY(give_back().context("let the guest go on"));
    note_stand_still();
    return {};
}

Result<void> QemuSave::publish() {
    if (request_.after == AfterSave::kStop && !ended_ && limit_.passed())
        return Error(ErrorCode::kTimeout, kTooLong);
    TRY(writer_->publish());
    published_ = true;
    disks_.keep();
    image_.clear();
    remove_former_files();
    return {};
}

// From the taking of the word on the guest is in the file and nowhere else.
Result<void> QemuSave::end_guest() {
    if (limit_.passed()) return Error(ErrorCode::kTimeout, kTooLong);
    if (!at_.source.alive()) return Error(ErrorCode::kPeerGone, "QEMU has ended");
    if (!at_.guest.baton->take(me_)) return Error(ErrorCode::kInternal, "the guest is not on offer any more");
    ended_ = true;
    offered_ = stopped_ = false;
    writer_->keep();
    named_.keep();
    note_stand_still();
    return {};
}

Result<void> QemuSave::finish_file() {
    const uint64_t before = monotonic_ns();
    if (mapped_ram_) TRY(sum_mapped_ram());
    TRY(named_.sync(halt_.get()));
    TRY(writer_->finish(state_.SerializeAsString()));
    report_.sync_us = (monotonic_ns() - before) / 1000;
    return {};
}

// A limit that has passed is the reason for whatever was cut short by it.
Error QemuSave::in_time(Error error) const {
    const bool cut = error.code == ErrorCode::kAborted || error.code == ErrorCode::kTimeout;
    return cut && limit_.passed() ? Error(ErrorCode::kTimeout, kTooLong) : error;
}

// Whatever its QEMU is about: from here on the guest runs there, or it is lost with it.
Result<void> QemuSave::give_back() {
    if (!stopped_) return {};
    if (offered_ && !at_.guest.baton->take_back(at_.source.participant()))
        return Error(ErrorCode::kInternal, "the baton is " + to_string(at_.guest.baton->read()));
    offered_ = false;
    TRY(make_run(at_.source, Deadline::after(kBackTime)));
    stopped_ = false;
    // The guest runs: a capability that is left behind is for the next update to see to.
    if (mapped_ram_) static_cast<void>(set_mapped_ram(at_.source, Deadline::after(kAnswerTime), false));
    return {};
}

} // namespace liveupdate::supervisor::qemu
