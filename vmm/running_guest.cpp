#include "vmm/running_guest.hpp"

#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <system_error>

#include "vmm/fixed_state.hpp"
#include "vmm/quiet_work.hpp"

namespace liveupdate::vmm {
namespace {

constexpr uint64_t kMib = uint64_t{1} << 20;

constexpr auto kLastWordsTime = std::chrono::milliseconds(500); // for a console that takes nothing

// What the guest still waits for in this process's hands; after that the kernel ends what it has not begun,
// and the destination carries it out.
constexpr auto kRestTime = std::chrono::seconds(30);

std::string with_trouble(const std::string& trouble) {
    return trouble.empty() ? "" : " once it comes again: " + trouble;
}

} // namespace

RunningGuest::RunningGuest(Parts parts) : parts_(std::move(parts)) {
    if (!parts_.populate_behind) return;
    try {
        populate_ = std::jthread([this](const std::stop_token& stop) {
            be_quiet();
            machine().populate_behind(parts_.manifest, stop);
        });
    } catch (const std::system_error&) {
        return; // no thread can be had: the guest fills its page tables itself
    }
}

// Threads first: they use everything else.
RunningGuest::~RunningGuest() {
    populate_ = {};
    parts_.threads.clear();
}

Result<handoff::GuestDescription> RunningGuest::describe() {
    if (machine().ended())
        return Error(ErrorCode::kRefused, "the guest has ended; there is nothing to hand over");
    // The next process would find zeros where RAM has not come yet.
    if (const uint64_t left = parts_.lazy_ram ? parts_.lazy_ram->bytes_left() : 0; left > 0)
        return Error(
            ErrorCode::kBusy, std::to_string((left + kMib - 1) / kMib) +
                                  " MiB of the guest's RAM have yet to come from its save; try again" +
                                  with_trouble(parts_.lazy_ram->trouble()));
    parts_.lazy_ram.reset();
    populate_ = {};
    updating_ = true;
    machine().pit().expect_freeze(machine().vm());
    machine().console().freeze_client();
    handoff::GuestDescription description;
    description.sections = machine().sections();
    const auto to_take = machine().virtio().carried();
    description.fixed_state = save_fixed_state(parts_.cpuid, machine().vcpus(), to_take, parts_.tsc_khz);
    if (!to_take.empty()) ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY); // where Yama asks for it
    if (const int client = machine().console().client_fd(); client >= 0)
        description.fds.push_back({"console-client", client});
    return description;
}

Result<void> RunningGuest::save(handoff::Outgoing& out, Deadline deadline) {
    machine().virtio().hold(); // at once: they have stopped by the time the vCPUs have
    TRY(machine().console().hold(deadline));
    const auto last_writes = [this] { return writes_ ? collect_writes() : Result<void>(); };
    job_ = std::make_shared<SaveJob>(machine(), out, deadline, last_writes);
    for (const auto& thread : parts_.threads)
        thread->ask_stop(job_);
    auto saved = job_->wait(deadline);
    if (!saved) job_->cancel();
    return saved;
}

void RunningGuest::resume() {
    if (job_ && job_->frozen_pit())
        static_cast<void>(machine().pit().thaw(machine().vm(), *job_->frozen_pit()));
    for (const auto& thread : parts_.threads)
        thread->resume();
    job_.reset();
    machine().virtio().unhold();
    machine().console().unhold();
    if (updating_) machine().console().freeze_client();
}

Result<void> RunningGuest::begin_write_log(handoff::WriteMap map) {
    writes_.emplace(std::move(map)); // update_over() ends what has begun, also when not all has
    return machine().begin_write_log(parts_.manifest);
}

Result<void> RunningGuest::collect_writes() {
    if (!writes_) return Error(ErrorCode::kProtocol, "writes are not being tracked");
    writes_->clear();
    return machine().collect_writes(parts_.manifest, *writes_);
}

void RunningGuest::update_over() {
    if (writes_) machine().end_write_log(parts_.manifest);
    writes_.reset();
    updating_ = false;
    machine().pit().expect_none();
    ::prctl(PR_SET_PTRACER, 0);
    machine().console().unhold();
}

void RunningGuest::let_go() {
    quietly([&] {
        // Their threads stay meanwhile: the kernel completes some requests on the thread that submitted them.
        machine().virtio().await_rest(Deadline::after(kRestTime));
        parts_.threads.clear();
        parts_.machine.reset();
        return true;
    });
}

handoff::proto::Status RunningGuest::status() {
    handoff::proto::Status status;
    uint64_t exits = 0;
    for (const auto& thread : parts_.threads) {
        exits += thread->exits();
        status.add_vcpu_cpu_ns(thread->cpu_ns());
    }
    status.set_exits(exits);
    if (parts_.lazy_ram) {
        status.set_ram_to_fill(parts_.lazy_ram->bytes_left());
        status.set_ram_trouble(parts_.lazy_ram->trouble());
    }
    if (const auto offset = machine().vcpus()[0]->tsc_offset()) status.set_tsc_offset(*offset);
    status.set_dropped_console_bytes(machine().console_frontend().dropped_output());
    return status;
}

bool RunningGuest::ask_to_end() {
    return machine().acpi_pm().press_power_button();
}

std::vector<handoff::FdToSend> RunningGuest::adoption_fds() const {
    std::vector<handoff::FdToSend> fds;
    for (const auto& [name, fd] : parts_.fds)
        fds.push_back({name, fd.get()});
    return fds;
}

std::optional<handoff::proto::GuestEvent> RunningGuest::take_event() {
    if (!machine().ended()) return std::nullopt;
    auto event = machine().take_event();
    if (event) flush_console();
    return event;
}

// Whoever hears of the end may end this process: the guest's last words come first.
void RunningGuest::flush_console() {
    const Deadline deadline = Deadline::after(kLastWordsTime);
    std::array<uint8_t, 1> next{};
    while (machine().console_frontend().peek_output(next) > 0 && !deadline.passed()) {
        std::vector<pollfd> fds;
        machine().console().collect(fds);
        const Deadline turn = deadline.earlier(machine().console().next_wake());
        ::poll(fds.data(), fds.size(), std::min(turn.poll_ms(), 10));
        machine().console().dispatch(fds);
    }
}

void RunningGuest::collect(std::vector<pollfd>& fds) {
    if (!parts_.machine) return;
    fds.push_back({machine().event_fd(), POLLIN, 0});
    if (const int ended = machine().pit().wake_fd(); ended >= 0) fds.push_back({ended, POLLIN, 0});
    machine().console().collect(fds);
}

void RunningGuest::dispatch(const std::vector<pollfd>& fds) {
    if (!parts_.machine) return;
    machine().console().dispatch(fds);
    machine().pit().due(machine().vm());
}

Deadline RunningGuest::wake_at() const {
    if (!parts_.machine) return Deadline::never();
    return machine().console().next_wake().earlier(machine().pit().wake_at());
}

} // namespace liveupdate::vmm
