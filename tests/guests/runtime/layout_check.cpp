// Nothing but checks that the assembly's constants are the C++ types' layout.
#include "tests/guests/report.hpp"
#include "tests/guests/runtime/layout.h"

namespace tests::guests {

constexpr std::size_t timer_offset(std::size_t field) {
    return offsetof(VcpuSlot, timer) + field;
}

static_assert(LAYOUT_MAX_VCPUS == kMaxVcpus);
static_assert(REPORT_BASE == kReportGpa);
static_assert(REPORT_SLOTS == kReportGpa + offsetof(Report, vcpus));
static_assert(SLOT_SIZE == sizeof(VcpuSlot));
static_assert(SLOT_PERIOD == timer_offset(offsetof(TimerSlot, period_ticks)));
static_assert(SLOT_DEADLINE == timer_offset(offsetof(TimerSlot, deadline_tsc)));
static_assert(SLOT_INTERRUPTS == timer_offset(offsetof(TimerSlot, interrupts)));
static_assert(SLOT_EARLY == timer_offset(offsetof(TimerSlot, early)));
static_assert(SLOT_EARLY_MAX == timer_offset(offsetof(TimerSlot, early_max_ticks)));
static_assert(SLOT_LATE_MAX == timer_offset(offsetof(TimerSlot, late_max_ticks)));
static_assert(SLOT_PIT_INTERRUPTS == timer_offset(offsetof(TimerSlot, pit_interrupts)));
static_assert(SLOT_SPURIOUS == timer_offset(offsetof(TimerSlot, spurious)));
static_assert(SLOT_IPI_FROM == timer_offset(offsetof(TimerSlot, ipi_from)));
static_assert(SLOT_IPI_RECEIVED == timer_offset(offsetof(TimerSlot, ipi_received)));
static_assert(SLOT_IPI_SENT == timer_offset(offsetof(TimerSlot, ipi_sent)));
static_assert(SLOT_IPI_ACKED == timer_offset(offsetof(TimerSlot, ipi_acked)));
static_assert(SLOT_SERIAL_INTERRUPTS == offsetof(VcpuSlot, serial) + offsetof(SerialSlot, interrupts));

} // namespace tests::guests
