// A guest that is about to come to this process: everything is built while it still runs elsewhere.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "handoff/guest.hpp"
#include "vmm/machine.hpp"
#include "vmm/running_guest.hpp"

namespace liveupdate::vmm {

class ArrivingGuest final : public handoff::DestinationGuest {
public:
    ArrivingGuest() = default;
    ~ArrivingGuest() override;

    Result<handoff::proto::Prepared> prepare(handoff::PrepareOrder order) override;
    Result<void> rehearse(handoff::Incoming& in) override;
    Result<void> load(std::shared_ptr<handoff::Incoming> in) override;
    std::unique_ptr<handoff::SourceGuest> run() override;

private:
    Result<void> build(handoff::PrepareOrder& order);
    Result<void> begin_lazy_ram(handoff::PrepareOrder& order);
    Result<std::unique_ptr<OriginRam>> begin_origin(Machine& machine, const handoff::Manifest& manifest);

    handoff::Baton* baton_ = nullptr;
    handoff::Participant me_ = 0;
    std::optional<handoff::proto::HostClocks> saved_clocks_;
    RunningGuest::Parts parts_;
    std::unique_ptr<OriginRam> trial_origin_;
    std::unique_ptr<Machine> trial_; // over RAM mapped copy on write, thrown away after the rehearsal
};

// The sections that this build loads must be exactly those that are announced.
Result<void> check_sections(
    const std::vector<handoff::SectionInfo>& ours, const std::vector<handoff::SectionInfo>& announced);

} // namespace liveupdate::vmm
