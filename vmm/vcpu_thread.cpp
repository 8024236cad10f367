#include "vmm/vcpu_thread.hpp"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <algorithm>

#include "vmm/kvm/internal_error.hpp"

namespace liveupdate::vmm {

int kick_signal() {
    return SIGRTMIN;
}

void install_kick_signal() {
    struct sigaction action {};
    action.sa_handler = [](int) {}; // its arrival alone ends KVM_RUN
    ::sigaction(kick_signal(), &action, nullptr);
}

VcpuThread::VcpuThread(Machine& machine, Vcpu& vcpu, const handoff::Baton& baton, handoff::Participant me)
    : machine_(machine), vcpu_(vcpu), baton_(baton), me_(me) {}

VcpuThread::~VcpuThread() {
    quit();
    if (thread_.joinable()) thread_.join();
}

void VcpuThread::start(std::function<bool()> arrive) {
    thread_ = std::thread([this, arrive = std::move(arrive)] { main(arrive); });
}

void VcpuThread::give(Order order) {
    const uint32_t count = (order_.load(std::memory_order_relaxed) >> 2) + 1;
    order_.store(count << 2 | static_cast<uint32_t>(order), std::memory_order_seq_cst);
    order_.notify_all();
}

void VcpuThread::kick() {
    // The page says it even if the signal comes just before KVM_RUN.
    std::atomic_ref<__u8>(vcpu_.run_page().immediate_exit).store(1, std::memory_order_seq_cst);
    if (thread_.joinable()) ::pthread_kill(thread_.native_handle(), kick_signal());
}

void VcpuThread::ask_stop(std::shared_ptr<StopJob> job) {
    {
        const std::lock_guard lock(job_mutex_);
        job_ = std::move(job);
    }
    give(Order::kStop);
    kick();
}

void VcpuThread::resume() {
    give(Order::kRun);
}

void VcpuThread::quit() {
    give(Order::kQuit);
    kick();
}

uint64_t VcpuThread::cpu_ns() const {
    clockid_t clock{};
    timespec used{};
    auto& thread = const_cast<std::thread&>(thread_);
    if (!thread.joinable() || ::pthread_getcpuclockid(thread.native_handle(), &clock) != 0) return 0;
    ::clock_gettime(clock, &used);
    return static_cast<uint64_t>(used.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(used.tv_nsec);
}

void VcpuThread::main(const std::function<bool()>& arrive) {
    if (!arrive()) return;
    for (;;) {
        const uint32_t seen = order_.load(std::memory_order_acquire);
        if (order_of(seen) == Order::kQuit) return;
        if (order_of(seen) == Order::kStop) {
            stand(seen);
            continue;
        }
        if (!let_enter(seen)) continue;
        const handoff::BatonWord word = baton_.read();
        const bool mine = word.state == handoff::BatonState::kHeld && word.owner == me_;
        if (machine_.ended() || !mine)
            order_.wait(seen);
        else
            run_guest(word.epoch);
    }
}

// A kick whose order has been taken back since, perhaps before this thread has seen it, keeps nobody out of
// the guest. False: there is another order. kick() gives the order first, so that one of the two is seen
// here.
bool VcpuThread::let_enter(uint32_t seen) {
    const std::atomic_ref<__u8> immediate_exit(vcpu_.run_page().immediate_exit);
    if (immediate_exit.load(std::memory_order_relaxed) == 0) return true;
    immediate_exit.store(0, std::memory_order_seq_cst);
    return order_.load(std::memory_order_seq_cst) == seen;
}

void VcpuThread::run_guest(uint32_t epoch) {
    WitnessSlot* witness = machine_.witness(vcpu_.index());
    if (witness != nullptr) witness->enter(epoch);
    auto exited = vcpu_.enter();
    if (witness != nullptr) witness->leave();
    exits_.fetch_add(1, std::memory_order_relaxed);
    io_pending_ = false;
    if (!exited) {
        machine_.fault(exited.error().message);
    } else if (*exited && !handle_exit()) {
        const kvm_run& page = vcpu_.run_page();
        machine_.fault("vCPU " + std::to_string(vcpu_.index()) + ": exit reason " +
                       std::to_string(page.exit_reason) + " is not one that this machine can handle");
    }
}

bool VcpuThread::handle_exit() {
    kvm_run& page = vcpu_.run_page();
    switch (page.exit_reason) {
    case KVM_EXIT_IO: {
        const auto& io = page.io;
        auto* data = reinterpret_cast<uint8_t*>(&page) + io.data_offset;
        const std::span<uint8_t> bytes(data, size_t{io.size} * io.count);
        io_pending_ = true;
        if (io.direction == KVM_EXIT_IO_OUT)
            machine_.bus().write_string(io.port, io.size, bytes);
        else
            machine_.bus().read_string(io.port, io.size, bytes);
        return true;
    }
    case KVM_EXIT_MMIO: {
        const std::span<uint8_t> bytes(page.mmio.data, std::min<size_t>(page.mmio.len, 8));
        io_pending_ = true;
        if (page.mmio.is_write != 0)
            machine_.mmio().write(page.mmio.phys_addr, bytes);
        else
            machine_.mmio().read(page.mmio.phys_addr, bytes);
        return true;
    }
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return true;
    case KVM_EXIT_SHUTDOWN:
        machine_.fault("vCPU " + std::to_string(vcpu_.index()) + ": triple fault");
        return true;
    case KVM_EXIT_SYSTEM_EVENT:
        if (page.system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN)
            machine_.request_exit(0);
        else
            machine_.request_reset();
        return true;
    case KVM_EXIT_INTERNAL_ERROR:
        machine_.fault("vCPU " + std::to_string(vcpu_.index()) + ": " +
                       describe_internal_error(page, vcpu_.instruction_pointer()));
        return true;
    case KVM_EXIT_FAIL_ENTRY:
        machine_.fault("vCPU " + std::to_string(vcpu_.index()) +
                       ": KVM refuses to enter the guest, hardware reason " +
                       std::to_string(page.fail_entry.hardware_entry_failure_reason));
        return true;
    default:
        return false;
    }
}

// KVM finishes the instruction of a port or MMIO exit at the start of the next KVM_RUN; with immediate_exit
// it does that and nothing else.
void VcpuThread::complete_pending() {
    if (!io_pending_) return;
    std::atomic_ref<__u8>(vcpu_.run_page().immediate_exit).store(1, std::memory_order_release);
    static_cast<void>(vcpu_.enter());
    io_pending_ = false;
}

void VcpuThread::stand(uint32_t seen) {
    complete_pending();
    std::shared_ptr<StopJob> job;
    {
        const std::lock_guard lock(job_mutex_);
        job = std::exchange(job_, nullptr);
    }
    if (job) job->run(vcpu_);
    job.reset();
    order_.wait(seen);
}

} // namespace liveupdate::vmm
