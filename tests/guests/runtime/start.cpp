// From ring 3's first instruction to the guest's own run().
#include "tests/guests/runtime/apic.hpp"
#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/guest.hpp"
#include "tests/guests/runtime/memory.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/status.hpp"

namespace tests::guests {

namespace {

void clear_report() {
    auto* words = reinterpret_cast<std::uint64_t*>(kReportGpa);
    // `magic` goes first, so that nobody takes a former boot's report for this one's.
    for (std::size_t i = 0; i < sizeof(Report) / sizeof(*words); ++i)
        write_field(words[i], 0);
    for (std::size_t i = 0; i < kMaxVcpus; ++i)
        report().vcpus[i].index = i;
}

/// What the host said, else what CPUID says: the hypervisor's leaf, the crystal's ratio, the base
/// frequency (which is the TSC's on the processors that report it).
std::uint64_t find_tsc_khz() {
    if (const std::uint64_t given = option_number("tsc_khz", 0); given != 0) return given;
    if ((cpuid(1).ecx >> 31) != 0 && cpuid(0x40000000).eax >= 0x40000010) {
        if (const std::uint64_t khz = cpuid(0x40000010).eax; khz != 0) return khz;
    }
    const std::uint32_t leaves = cpuid(0).eax;
    if (leaves >= 0x15) {
        const CpuidResult crystal = cpuid(0x15);
        if (crystal.eax != 0 && crystal.ebx != 0 && crystal.ecx != 0) {
            return std::uint64_t{crystal.ecx} * crystal.ebx / crystal.eax / 1000;
        }
    }
    if (leaves >= 0x16 && (cpuid(0x16).eax & 0xffff) != 0) return (cpuid(0x16).eax & 0xffff) * 1000;
    return 2000000;
}

std::uint64_t find_vcpus() {
    const std::uint64_t vcpus = option_number("vcpus", 1);
    if (vcpus >= 1 && vcpus <= kMaxVcpus) return vcpus;
    report_error(ErrorCode::kBadOption, vcpus, kMaxVcpus);
    return 1;
}

[[noreturn]] void enter_main_loop(VcpuSlot& slot) {
    initialize_lapic();
    put(slot.apic_id, lapic_id());
    put(slot.now_tsc, read_tsc());
    __atomic_fetch_or(&header().started, std::uint64_t{1} << slot.index, __ATOMIC_RELEASE);
    run(slot);
}

} // namespace

} // namespace tests::guests

/// Called by boot.S on vCPU 0, once per boot, with the BSS cleared.
extern "C" [[noreturn]] void runtime_start() {
    using namespace tests::guests;
    const std::uint64_t boot_tsc = read_tsc();
    clear_report();
    initialize_interrupts();
    read_start_info();
    ReportHeader& head = header();
    put(head.version, kReportVersion);
    put(head.kind, static_cast<std::uint64_t>(kGuestKind));
    put(head.vcpus, find_vcpus());
    put(head.tsc_khz, find_tsc_khz());
    put(head.boot_tsc, boot_tsc);
    const bool small_pages = option_is("pages", "4k");
    if (small_pages) put(head.features, kFeatureSmallPages);
    map_all_ram(small_pages);
    initialize_lapic();
    set_up();
    write_field(head.magic, kReportMagic);
    for (std::uint32_t i = 1; i < head.vcpus; ++i)
        start_vcpu(i);
    enter_main_loop(report().vcpus[0]);
}

/// Called by boot.S on every other vCPU.
extern "C" [[noreturn]] void runtime_start_vcpu(std::uint64_t index) {
    using namespace tests::guests;
    enter_main_loop(report().vcpus[index]);
}
