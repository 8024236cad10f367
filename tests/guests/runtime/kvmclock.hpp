#pragma once
/// kvmclock of one vCPU, read in ring 3 (Linux, Documentation/virt/kvm/x86/msr.rst).
#include <cstdint>

namespace tests::guests {

class Kvmclock {
public:
    /// Whether CPUID offers MSR_KVM_SYSTEM_TIME_NEW.
    static bool offered();

    /// Asks KVM to keep this vCPU's page. Only if offered.
    void enable(std::uint64_t vcpu);
    bool enabled() const { return page_ != nullptr; }

    struct Reading {
        std::uint64_t ns;      ///< since boot
        std::uint64_t tsc;     ///< the TSC it was derived from
        std::uint32_t version; ///< of the page
        bool stopped;          ///< PVCLOCK_GUEST_STOPPED: the host says that it paused the guest
    };
    Reading read() const;

private:
    struct Page {
        std::uint32_t version;
        std::uint32_t reserved0;
        std::uint64_t tsc;
        std::uint64_t ns;
        std::uint32_t multiplier;
        std::int8_t shift;
        std::uint8_t flags;
        std::uint8_t reserved1[2];
    };
    static_assert(sizeof(Page) == 32);

    volatile Page* page_ = nullptr;
};

} // namespace tests::guests
