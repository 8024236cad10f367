#pragma once
/// The report: what a test guest tells the host, and the few words the host tells the guest.
///
/// It lies at a fixed guest physical address in plain RAM, so the host reads it through its own
/// mapping of the guest's RAM, while the guest runs or after its VMM has died.
///
/// Rules for both sides:
///  - every field is a 64-bit word, written by single aligned stores of one writer (`errors`,
///    `started` and `shared_counter` by atomic read-modify-writes), so a host that polls with
///    `read_field` never sees half a value; two fields are *not* mutually consistent;
///  - the guest clears the whole report when it boots and writes `magic` last, after which the
///    header's constants hold;
///  - TSC values are raw guest ticks; `tsc_khz` ticks make one millisecond.
#include <cstddef>
#include <cstdint>

namespace tests::guests {

inline constexpr std::uint64_t kReportGpa = 0x200000;
inline constexpr std::uint64_t kReportBytes = 0x200000; ///< reserved for the report
/// From here to the end of the reserved bytes guests touch nothing: for pages of the host's own,
/// such as one for `witness=`.
inline constexpr std::uint64_t kHostGpa = 0x310000;
inline constexpr std::uint64_t kReportMagic = 0x54524f5045525547; // "GUREPORT" read as bytes
inline constexpr std::uint64_t kReportVersion = 1;
inline constexpr std::size_t kMaxVcpus = 16;
inline constexpr std::size_t kGapRecords = 4096; ///< per vCPU
inline constexpr std::size_t kPassRecords = 64;  ///< per vCPU
inline constexpr std::size_t kMaxRanges = 8;
inline constexpr std::uint16_t kDebugExitPort = 0xf4;
/// Values a guest writes to the debug-exit port (the VM's exit status is 2 * value + 1).
inline constexpr std::uint32_t kExitOk = 0;    ///< asked to end, or its work is done
inline constexpr std::uint32_t kExitFault = 2; ///< exception in the guest, see `first_error`

enum class GuestKind : std::uint64_t {
    kClock = 1,
    kTimer,
    kPattern,
    kSerial,
    kDisk,
    kHostile,
    kConsole,
    kNetwork
};

/// What went wrong, with the meaning of the two arguments.
enum class ErrorCode : std::uint64_t {
    kNone = 0,
    kException,              ///< vector << 32 | error code; RIP (CR2 is in `fault_address`)
    kBadStartInfo,           ///< start info GPA; magic found, or number of memory map entries
    kBadOption,              ///< value asked for; largest allowed
    kVcpuNotStarted,         ///< vCPU; attempts
    kTscBackwards,           ///< previous TSC; TSC read
    kTscSkew,                ///< TSC published by another vCPU; smaller TSC read here after it
    kSharedCounterBackwards, ///< value seen before; value seen
    kWitnessBackwards,       ///< epoch seen before; epoch seen
    kKvmclockBackwards,      ///< ns read before; ns read
    kRegisterLost,           ///< 0x100 xmm15, 0x101 FS base, else the MSR's number; value found
    kTimerEarly,             ///< ticks too early; early interrupts so far
    kTimerLost,              ///< armed deadline (0 if periodic); TSC now
    kPitLost,                ///< PIT interrupts so far; TSC now
    kIpiLost,                ///< sequence number; TSC now
    kIpiDoubled,             ///< received; sent by the peer
    kPatternMismatch,        ///< address; value found (more in PatternSlot)
    kSerialIrqLost,          ///< interrupts so far; TSC now
    kPmTimerJump,            ///< PM timer ticks since the watch began; TSC ticks meanwhile
    kDeviceMissing,          ///< address of the device; its status
    kDiskDoubled,            ///< descriptor that came back unasked; requests completed before
    kDiskFailed,             ///< lane; status of the request
    kDiskMismatch,           ///< byte of the disk; value found
    kGuardBroken,            ///< address; value found
    kWrittenAfterReset,      ///< address of the device; of the word that it wrote
    kNetworkDoubled,         ///< queue; descriptor that came back unasked
    kNetworkMismatch,        ///< number of the answer; word found, or ~0: no request waits for it
};

enum class TimerMode : std::uint64_t { kNone = 0, kTscDeadline, kPeriodic };

/// Bits of `ReportHeader::features`.
enum Feature : std::uint64_t {
    kFeatureTscDeadline = 1, ///< CPUID offers the TSC-deadline timer
    kFeatureKvmclock = 2,    ///< kvmclock asked for, offered and in use
    kFeatureWitness = 4,     ///< `witness=` given
    kFeatureRegisters = 8,   ///< `regs=1` given
    kFeatureSmallPages = 16, ///< all RAM mapped with 4 KiB pages
    kFeatureHlt = 32,        ///< `idle=hlt` given
};

/// What the host may ask for in `ReportHeader::stop`.
enum StopCommand : std::uint64_t {
    kStopNone = 0,
    kStopExit = 1,            ///< debug exit with kExitOk
    kStopResetByKeyboard = 2, ///< 0xFE to port 0x64
    kStopResetByPort = 3,     ///< 2, then 6 to port 0xCF9
    kStopPowerOff = 4,        ///< ACPI soft-off
    kStopByButton = 5,        ///< listens to ACPI's power button, watches the PM timer, then soft-off
    kStopNotByButton = 6,     ///< listens to it, and stays as it is
};

struct alignas(64) Range {
    std::uint64_t begin_gpa;
    std::uint64_t end_gpa; ///< exclusive
    std::uint64_t reserved[6];
};

inline constexpr std::size_t kDiskLanes = 32; ///< requests in flight at once
inline constexpr std::size_t kDiskBlocks = 8; ///< of each lane, one lane's after the other's
inline constexpr std::size_t kDiskBlockBytes = 4096;
inline constexpr std::size_t kDiskBytes = kDiskLanes * kDiskBlocks * kDiskBlockBytes;

/// Disk: what the guest has been told.
struct alignas(64) DiskReport {
    std::uint64_t up; ///< 1: there is a block device
    std::uint64_t seed;
    std::uint64_t submitted;
    std::uint64_t completed;
    std::uint64_t writes;
    std::uint64_t reads; ///< whose content was right
    std::uint64_t flushes;
    std::uint64_t in_flight;
    std::uint64_t generations[kDiskLanes][kDiskBlocks]; ///< last write that completed; 0: still zeroes
};

inline constexpr std::size_t kHostileKinds = 8;

/// Hostile: what it has done to the VMM.
struct alignas(64) HostileReport {
    std::uint64_t seed;
    std::uint64_t devices;    ///< how many it has found
    std::uint64_t device_ids; ///< bit i: one of virtio's device type i
    std::uint64_t resets;
    std::uint64_t guard_checks;
    std::uint64_t reserved[3];
    std::uint64_t attacks[kHostileKinds]; ///< of each kind, in the order of hostile.cpp
};

struct alignas(64) ConsoleReport {
    std::uint64_t up;       ///< 1: there is a virtio console
    std::uint64_t lines;    ///< that were given to it
    std::uint64_t received; ///< bytes
};

/// Addresses of the network guest and of the host whose tap it is at, as on paper: 10.77.0.2 and 10.77.0.1.
inline constexpr std::uint32_t kNetworkGuest = 0x0a4d0002;
inline constexpr std::uint32_t kNetworkHost = 0x0a4d0001;
inline constexpr std::uint16_t kNetworkEchoPort = 7; ///< UDP
inline constexpr std::size_t kNetworkLanes = 64;     ///< the pump's requests in flight at once

/// Network: frames are Ethernet's, both ways.
struct alignas(64) NetworkReport {
    std::uint64_t up;        ///< 1: there is a network card
    std::uint64_t received;  ///< frames
    std::uint64_t echoes;    ///< ICMP echo requests answered
    std::uint64_t datagrams; ///< UDP sent back
    std::uint64_t dropped;   ///< frames that are neither, nor ARP, nor answers
    std::uint64_t kicks;     ///< of both queues
    std::uint64_t requests;  ///< pump: echo requests sent to the host
    std::uint64_t answers;   ///< pump: that came back once and whole
    std::uint64_t reordered; ///< pump: answers after one to a later request
    std::uint64_t in_flight; ///< pump: requests without an answer, once `go` asks for quiet
};

struct alignas(4096) ReportHeader {
    // Constants, valid once magic is there.
    std::uint64_t magic;
    std::uint64_t version;
    std::uint64_t kind; ///< GuestKind
    std::uint64_t vcpus;
    std::uint64_t tsc_khz;
    std::uint64_t features;  ///< Feature bits
    std::uint64_t gap_ticks; ///< a longer gap between two TSC reads is recorded
    std::uint64_t boot_tsc;  ///< TSC on entry to ring 3
    // Progress and errors.
    alignas(64) std::uint64_t started; ///< bit i: vCPU i runs its main loop
    std::uint64_t errors;              ///< number of errors on all vCPUs
    std::uint64_t first_error_claim;   ///< internal
    std::uint64_t first_error;         ///< ErrorCode, written after the next four
    std::uint64_t first_error_vcpu;
    std::uint64_t first_error_args[2];
    std::uint64_t fault_address; ///< CR2 of the last exception
    // Written by the host only.
    /// Pattern with step=1: passes that may have been started; disk, console, network: be quiet.
    alignas(64) std::uint64_t go;
    std::uint64_t stop; ///< StopCommand for vCPU 0; 0 again after a reset, or once it listens
    // Shared by all vCPUs.
    alignas(64) std::uint64_t shared_counter; ///< clock: never goes back
    alignas(64) std::uint64_t shared_tsc;     ///< clock: a recent TSC of any vCPU
    // Pattern: what is covered.
    alignas(64) std::uint64_t pattern_bytes; ///< of all ranges
    std::uint64_t pattern_stride;            ///< bytes from one 8-byte slot to the next
    std::uint64_t pattern_seed;
    std::uint64_t pattern_ranges; ///< number of valid entries in `ranges`
    Range ranges[kMaxRanges];
    DiskReport disk;
    HostileReport hostile;
    ConsoleReport console;
    NetworkReport network;
};

struct alignas(64) ClockSlot {
    std::uint64_t gap_count; ///< gaps ever; record n is gaps[vcpu][n % kGapRecords]
    std::uint64_t gap_sum_ticks;
    std::uint64_t gap_max_ticks;
    std::uint64_t gap_max_start_tsc;
    std::uint64_t skew_max_ticks; ///< largest lag behind another vCPU's TSC
    std::uint64_t witness_epoch;  ///< last value
    std::uint64_t witness_changes;
    std::uint64_t register_checks;
    std::uint64_t kvmclock_ns; ///< last value
    std::uint64_t kvmclock_reads;
    std::uint64_t kvmclock_step_max_ns; ///< largest |step of kvmclock - step of TSC|
    std::uint64_t kvmclock_updates;     ///< changes of the page's version
    std::uint64_t kvmclock_stopped;     ///< reads that found PVCLOCK_GUEST_STOPPED
    std::uint64_t reserved[3];
};

/// Ticks here are TSC ticks unless "interrupts" is said.
struct alignas(64) TimerSlot {
    std::uint64_t mode;   ///< TimerMode
    std::uint64_t t0_tsc; ///< first deadline; in periodic mode when the timer was started
    std::uint64_t period_ticks;
    std::uint64_t deadline_tsc; ///< armed now; always t0 + interrupts * period
    std::uint64_t interrupts;   ///< LAPIC timer interrupts, the early ones not counted
    std::uint64_t early;        ///< interrupts before their deadline (deadline was re-armed)
    std::uint64_t early_max_ticks;
    std::uint64_t late_max_ticks;
    std::uint64_t pit_interrupts; ///< vCPU 0 only, like the next three
    std::uint64_t pit_start_tsc;
    std::uint64_t pit_divisor; ///< of 1193182 Hz; 0: the PIT is not used
    std::uint64_t pit_pin;     ///< IOAPIC pin that works: 2 or 0
    std::uint64_t spurious;    ///< spurious LAPIC interrupts
    std::uint64_t reserved0[3];
    std::uint64_t ipi_from; ///< internal: address of the slot whose IPIs arrive here
    std::uint64_t ipi_received;
    std::uint64_t reserved1[6];
    alignas(64) std::uint64_t ipi_sent; ///< also the sequence number
    std::uint64_t ipi_acked;            ///< sequence number, written by the receiver's handler
    std::uint64_t ipi_lost;
    std::uint64_t ipi_max_ticks; ///< longest time from send to acknowledgement
};

struct alignas(64) PatternSlot {
    std::uint64_t passes;  ///< completed; pass n was written with number n, from 1 on
    std::uint64_t running; ///< 1 during a pass
    std::uint64_t slots_written;
    std::uint64_t slots_verified;
    std::uint64_t mismatches;
    std::uint64_t first_mismatch_gpa;
    std::uint64_t first_mismatch_expected;
    std::uint64_t first_mismatch_found;
    std::uint64_t begin_slot; ///< this vCPU's share, counted in slots over all ranges
    std::uint64_t end_slot;
    std::uint64_t pass_max_ticks;
    std::uint64_t reserved[5];
};

struct alignas(64) SerialSlot {
    std::uint64_t lines;    ///< numbered lines sent completely; the next has this number
    std::uint64_t bytes;    ///< sent, echoes included
    std::uint64_t received; ///< bytes
    std::uint64_t echoes;   ///< echo lines sent
    std::uint64_t interrupts;
    std::uint64_t irq_mode; ///< 1: transmits on THR-empty interrupts
    std::uint64_t fifo;     ///< bytes sent per THR-empty
    std::uint64_t dropped;  ///< received, but not echoed for want of room
};

/// One vCPU's part. While the vCPU runs its GS base points here, for the interrupt handlers.
struct alignas(64) VcpuSlot {
    std::uint64_t index;
    std::uint64_t apic_id;
    std::uint64_t now_tsc; ///< latest TSC read by the main loop
    std::uint64_t counter; ///< iterations of the main loop
    std::uint64_t errors;  ///< of this vCPU
    std::uint64_t reserved[3];
    ClockSlot clock;
    TimerSlot timer;
    PatternSlot pattern;
    SerialSlot serial;
};

struct GapRecord {
    std::uint64_t start_tsc;
    std::uint64_t end_tsc;
};

struct PassRecord {
    std::uint64_t start_tsc;
    std::uint64_t end_tsc; ///< 0 while the pass runs
};

struct Report {
    ReportHeader header;
    VcpuSlot vcpus[kMaxVcpus];
    alignas(4096) PassRecord passes[kMaxVcpus][kPassRecords]; ///< pass n in [(n - 1) % kPassRecords]
    alignas(4096) GapRecord gaps[kMaxVcpus][kGapRecords];
};

// Both sides are built from this file, but a host test may outlive a guest image: the layout is
// fixed, and kReportVersion changes with it.
static_assert(offsetof(ReportHeader, started) == 64);
static_assert(offsetof(ReportHeader, go) == 128);
static_assert(offsetof(ReportHeader, shared_counter) == 192);
static_assert(offsetof(ReportHeader, pattern_bytes) == 320);
static_assert(offsetof(ReportHeader, ranges) == 384);
static_assert(offsetof(ReportHeader, disk) == 896);
static_assert(sizeof(ReportHeader) == 4096);
static_assert(sizeof(ClockSlot) == 128);
static_assert(sizeof(TimerSlot) == 256);
static_assert(sizeof(PatternSlot) == 128);
static_assert(sizeof(SerialSlot) == 64);
static_assert(sizeof(VcpuSlot) == 640);
static_assert(offsetof(Report, passes) == 0x4000);
static_assert(offsetof(Report, gaps) == 0x8000);
static_assert(sizeof(Report) == 0x108000 && kReportGpa + sizeof(Report) <= kHostGpa);

/// Value that slot `gpa` holds after pass `pass`.
constexpr std::uint64_t pattern_value(std::uint64_t gpa, std::uint64_t pass, std::uint64_t seed) {
    return (gpa * 0x9e3779b97f4a7c15) ^ (pass * 0xd1b54a32d192ed03 + seed);
}

/// Word `i` of a block that was written with `generation`.
constexpr std::uint64_t disk_word(
    std::uint64_t lane, std::uint64_t block, std::uint64_t generation, std::uint64_t i, std::uint64_t seed) {
    return generation == 0 ? 0 : pattern_value(lane << 32 | block << 16 | i, generation, seed);
}

/// One single 64-bit load, acquire: fields written before the one read are visible after it.
inline std::uint64_t read_field(const std::uint64_t& field) {
    return __atomic_load_n(&field, __ATOMIC_ACQUIRE);
}

/// One single 64-bit store, release.
inline void write_field(std::uint64_t& field, std::uint64_t value) {
    __atomic_store_n(&field, value, __ATOMIC_RELEASE);
}

} // namespace tests::guests
