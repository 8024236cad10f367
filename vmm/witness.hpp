// The witness page: an independent check of the invariant that one process at a time runs the guest. Each
// vCPU thread stamps its process's epoch in guest RAM whenever it enters and leaves KVM_RUN; the guest, and
// anybody who maps the page, sees the stamps. Switched on by `[debug] witness` in the VM's file.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace liveupdate::vmm {

// vCPU i's slot is at offset 64 * i of the page.
struct alignas(64) WitnessSlot {
    std::atomic<uint64_t> epoch;      // of the process that entered last
    std::atomic<uint64_t> inside;     // epoch + 1 of the process that is in KVM_RUN now; 0: nobody
    std::atomic<uint64_t> violations; // entries that found somebody else inside, or a later epoch
    std::atomic<uint64_t> entries;

    void enter(uint64_t my_epoch) {
        const uint64_t other = inside.exchange(my_epoch + 1, std::memory_order_acq_rel);
        const uint64_t before = epoch.exchange(my_epoch, std::memory_order_acq_rel);
        if (other != 0 || before > my_epoch) violations.fetch_add(1, std::memory_order_relaxed);
        entries.fetch_add(1, std::memory_order_relaxed);
    }
    void leave() { inside.store(0, std::memory_order_release); }
};
static_assert(sizeof(WitnessSlot) == 64);
inline constexpr size_t kWitnessSlots = 64;

} // namespace liveupdate::vmm
