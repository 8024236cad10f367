#include "tests/guests/runtime/kvmclock.hpp"

#include "tests/guests/report.hpp"
#include "tests/guests/runtime/cpu.hpp"

namespace tests::guests {

namespace {

constexpr std::uint32_t kMsrSystemTime = 0x4b564d01;
constexpr std::uint32_t kFeatureBit = 1 << 3; // KVM_FEATURE_CLOCKSOURCE2
constexpr std::uint8_t kStopped = 2;          // PVCLOCK_GUEST_STOPPED

__extension__ using Uint128 = unsigned __int128;

alignas(64) std::uint64_t pages[kMaxVcpus][8];

} // namespace

bool Kvmclock::offered() {
    if ((cpuid(1).ecx >> 31) == 0) return false;
    const CpuidResult id = cpuid(0x40000000);
    const bool is_kvm = id.ebx == 0x4b4d564b && id.ecx == 0x564b4d56 && id.edx == 0x4d;
    return is_kvm && (cpuid(0x40000001).eax & kFeatureBit) != 0;
}

void Kvmclock::enable(std::uint64_t vcpu) {
    const auto gpa = reinterpret_cast<std::uint64_t>(&pages[vcpu]);
    page_ = reinterpret_cast<volatile Page*>(gpa);
    write_msr(kMsrSystemTime, gpa | 1);
}

Kvmclock::Reading Kvmclock::read() const {
    Reading reading{};
    do {
        while (((reading.version = page_->version) & 1) != 0)
            pause();
        asm volatile("" : : : "memory");
        reading.tsc = read_tsc();
        std::uint64_t delta = reading.tsc - page_->tsc;
        const std::int8_t shift = page_->shift;
        delta = shift >= 0 ? delta << shift : delta >> -shift;
        const auto product = static_cast<Uint128>(delta) * page_->multiplier;
        reading.ns = page_->ns + static_cast<std::uint64_t>(product >> 32);
        reading.stopped = (page_->flags & kStopped) != 0;
        asm volatile("" : : : "memory");
    } while (page_->version != reading.version);
    return reading;
}

} // namespace tests::guests
