// A guest that runs in this process, and may leave it.
#pragma once

#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "handoff/guest.hpp"
#include "vmm/lazy_ram.hpp"
#include "vmm/machine.hpp"
#include "vmm/origin_ram.hpp"
#include "vmm/save_job.hpp"
#include "vmm/vcpu_thread.hpp"

namespace liveupdate::vmm {

using VcpuThreads = std::vector<std::unique_ptr<VcpuThread>>;

class RunningGuest final : public handoff::SourceGuest {
public:
    struct Parts {
        handoff::Manifest manifest;
        handoff::NamedFds fds; // "kvm" and what the console is made of: kept for a new supervisor
        Cpuid cpuid;
        uint32_t tsc_khz = 0; // of the host; a vCPU that runs cannot be asked
        std::unique_ptr<Machine> machine;
        std::unique_ptr<LazyRam> lazy_ram; // of a guest that was restored so; ends before the machine
        std::unique_ptr<OriginRam> origin; // of a guest whose RAM has one; the same
        VcpuThreads threads;               // one for each vCPU, started or about to be
        bool populate_behind = false;      // page tables are to be filled while it runs
    };
    explicit RunningGuest(Parts parts);
    ~RunningGuest() override;

    Result<handoff::GuestDescription> describe() override;
    Result<void> save(handoff::Outgoing& out, Deadline deadline) override;
    void resume() override;
    void update_over() override;
    Result<void> begin_write_log(handoff::WriteMap map) override;
    Result<void> collect_writes() override;
    void let_go() override;

    handoff::proto::Status status() override;
    bool ask_to_end() override;
    const handoff::Manifest& manifest() const override { return parts_.manifest; }
    std::vector<handoff::FdToSend> adoption_fds() const override;
    std::optional<handoff::proto::GuestEvent> take_event() override;

    void collect(std::vector<pollfd>& fds) override;
    void dispatch(const std::vector<pollfd>& fds) override;
    Deadline wake_at() const override;

private:
    void flush_console();
    Machine& machine() const { return *parts_.machine; }

    Parts parts_;
    std::shared_ptr<SaveJob> job_;
    bool updating_ = false;
    std::optional<handoff::WriteMap> writes_; // while they are logged
    std::jthread populate_;
};

} // namespace liveupdate::vmm
