// Guests of QEMU, driven through QMP only: any QEMU, which knows nothing of liveupdate.
//
// Who runs the guest is the baton's word, as for our own VMM; here the supervisor moves it. Every QEMU is
// started stopped (-S) and told to run only when the word names it, so a supervisor that dies anywhere
// leaves no two of them running, and its successor reads the word.
#pragma once

#include <optional>

#include "supervisor/guest_driver.hpp"
#include "supervisor/qemu/qemu_guest.hpp"

namespace liveupdate::supervisor::qemu {

class QemuDriver final : public GuestDriver {
public:
    // Both outlive the driver.
    QemuDriver(const VmConfig& config, const Paths& paths);

    Result<Adoption> adopt(const handoff::NamedFds& kept) override;
    Result<void> launch(const Shelter& shelter) override;
    Result<RestoreReport> restore(const RestoreRequest& request, const Shelter& shelter) override;
    std::optional<RamToCome> ram_to_come() override { return RamToCome{}; }
    std::string ram_origin() const override;
    RunningVmm running() const override;
    std::vector<int> watched() const override;
    bool take_news(std::deque<GuestNews>& news) override;
    bool ask_to_end() override;
    void end(Deadline deadline) override;
    void kill() override;
    void let_go() override { vmm_.forget(); }
    std::string how_it_ended() const override { return vmm_.how_it_ended(); }
    std::vector<handoff::FdToSend> keepsakes() const override;
    UpdateResult update(UpdateRequest request, std::string id, const UpdateHooks& hooks) override;
    Result<SaveReport> save(SaveRequest request, const UpdateHooks& hooks) override;

private:
    Result<void> check_nobody_lives() const;
    Result<void> start_pinned(const OpenBinary& binary, const Shelter& shelter);
    Result<void> take_owner(std::vector<QemuProcess> found, const handoff::NamedFds& kept);
    Result<void> find_owner(std::vector<QemuProcess>& found, const handoff::NamedFds& kept);
    Result<void> find_heir(std::vector<QemuProcess>& found);
    Result<void> see_whether_heir_runs(std::vector<QemuProcess>& found);
    Result<void> look_at_status(std::deque<GuestNews>& news);
    void drop_guest();

    const VmConfig& config_;
    const Paths& paths_;
    QemuFolder folder_;
    std::optional<QemuGuest> guest_;
    QemuProcess vmm_;
};

} // namespace liveupdate::supervisor::qemu
