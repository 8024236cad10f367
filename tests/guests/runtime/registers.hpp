#pragma once
/// Register state that a VMM must carry over and that code seldom looks at: an XMM register, the
/// FS base, MSRs that nothing here uses. The values differ per vCPU.
#include <cstdint>

#include "tests/guests/report.hpp"

namespace tests::guests {

class RegisterCheck {
public:
    /// Loads the registers if kFeatureRegisters is set; `msr_period_ticks`: how often MSRs are read
    /// (each costs a call into ring 0).
    RegisterCheck(VcpuSlot& slot, std::uint64_t msr_period_ticks);

    /// Reports kRegisterLost for each value that is not there any more, then loads it again.
    void check(std::uint64_t now_tsc);

private:
    void check_msrs();

    VcpuSlot& slot_;
    std::uint64_t period_;
    std::uint64_t next_ = 0;
    bool enabled_;
};

} // namespace tests::guests
