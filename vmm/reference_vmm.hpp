// The reference VMM, as the handoff library sees it.
#pragma once

#include <string>

#include "handoff/guest.hpp"

namespace liveupdate::vmm {

class ReferenceVmm final : public handoff::Vmm {
public:
    // `version` is what this build calls itself in its offer.
    explicit ReferenceVmm(const std::string& version);

    handoff::proto::Offer offer() const override { return offer_; }
    Result<std::unique_ptr<handoff::SourceGuest>> launch(handoff::LaunchOrder order) override;
    std::unique_ptr<handoff::DestinationGuest> destination() override;

private:
    handoff::proto::Offer offer_;
};

} // namespace liveupdate::vmm
