// Guests of our own VMM, which speak the handoff protocol.
#pragma once

#include <optional>

#include "supervisor/guest_driver.hpp"
#include "supervisor/guest_files.hpp"
#include "supervisor/vmm_process.hpp"

namespace liveupdate::supervisor {

class NativeDriver final : public GuestDriver {
public:
    // Both outlive the driver.
    NativeDriver(const VmConfig& config, const Paths& paths) : config_(config), paths_(paths) {}

    Result<Adoption> adopt(const handoff::NamedFds& kept) override;
    Result<void> launch(const Shelter& shelter) override;
    Result<RestoreReport> restore(const RestoreRequest& request, const Shelter& shelter) override;
    std::optional<RamToCome> ram_to_come() override;
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
    Result<void> adopt_at(const std::string& socket, const handoff::NamedFds& kept);
    Result<void> take_over(VmmProcess& owner, const handoff::NamedFds& kept);
    Result<void> check_against_kept(const handoff::NamedFds& kept) const;

    const VmConfig& config_;
    const Paths& paths_;
    std::optional<GuestFiles> files_;
    VmmProcess vmm_;
};

} // namespace liveupdate::supervisor
