// Needs /dev/kvm: a vCPU's state, saved from one real vCPU and loaded into another.
#include "vmm/kvm/vcpu.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <random>
#include <set>

#include "handoff/base/fd.hpp"
#include "vmm/kvm/vm_state.hpp"
#include "vmm/vcpu_thread.hpp"

namespace liveupdate::vmm::test {
namespace {

struct OneVcpu {
    KvmSystem system;
    Vm vm;
    std::unique_ptr<Vcpu> vcpu;

    static std::optional<OneVcpu> make() {
        auto kvm = fd::open("/dev/kvm", O_RDWR);
        if (!kvm) {
            MESSAGE("SKIPPED: /dev/kvm cannot be opened");
            return std::nullopt;
        }
        auto system = KvmSystem::from(std::move(*kvm));
        REQUIRE(system);
        auto vm = Vm::create(*system);
        REQUIRE(vm);
        REQUIRE(vm->add_chips());
        auto vcpu = Vcpu::create(*system, *vm, 0);
        REQUIRE(vcpu);
        const auto host = system->supported_cpuid();
        REQUIRE(host);
        auto cpuid = apply_cpu_template({"x86-64-v2.1", &*host, 1, 2'000'000, true});
        REQUIRE(cpuid);
        REQUIRE((*vcpu)->set_cpuid(*system, *cpuid));
        return OneVcpu{std::move(*system), std::move(*vm), std::move(*vcpu)};
    }
};

// A state that no fresh vCPU has, within what KVM takes.
void make_recognisable(state::Vcpu& registers, state::VcpuInterrupts& interrupts) {
    for (int i = 0; i < 16; ++i)
        registers.set_general(i, 0x1111111111111111u * static_cast<uint64_t>(i + 1));
    registers.set_general(16, 0x7c00);
    registers.set_debug(0, 0x1234);
    interrupts.mutable_events()->set_nmi_masked(1);
    interrupts.mutable_events()->set_nmi_pending(1);
}

TEST_CASE("what crosses of the MSRs is those that can be read and set one by one") {
    auto one = OneVcpu::make();
    if (!one) return;
    state::Vcpu saved;
    REQUIRE(one->vcpu->save_registers(saved));
    const std::set<uint32_t> crossing(saved.msr_index().begin(), saved.msr_index().end());
    CHECK(crossing.size() == static_cast<size_t>(saved.msr_index_size()));
    std::set<uint32_t> left;
    for (const uint32_t msr : one->system.msr_indices()) {
        KvmTable<kvm_msr_entry> table(1);
        table.entries()[0] = {msr, 0, 0};
        const bool works = ::ioctl(one->vcpu->fd(), kGetMsrs, table.data()) == 1 &&
                           ::ioctl(one->vcpu->fd(), kSetMsrs, table.data()) == 1;
        INFO("MSR ", msr);
        if (!works)
            CHECK(!crossing.contains(msr));
        else if (!crossing.contains(msr))
            left.insert(msr);
    }
    CHECK(left == std::set<uint32_t>{0x10, 0x6e0}); // the TSC and its deadline have fields of their own
}

TEST_CASE("MSRs that KVM does not know leave out nothing else") {
    auto one = OneVcpu::make();
    if (!one) return;
    std::vector<kvm_msr_entry> listed;
    const auto add = [&](uint32_t msr) { listed.push_back({msr, 0, 0}); };
    const auto unknown = [&] { add(0x12345678); };
    constexpr std::array<uint32_t, 4> kKnown{0x10, 0x3b, 0x174, 0x277}; // TSC, TSC_ADJUST, SYSENTER_CS, PAT
    unknown();
    for (const uint32_t msr : kKnown) {
        add(msr);
        unknown();
        unknown();
    }
    const auto found = those_that_work(one->vcpu->fd(), listed, kGetMsrs, "KVM_GET_MSRS");
    REQUIRE(found);
    std::vector<uint32_t> indices;
    for (const kvm_msr_entry& entry : *found)
        indices.push_back(entry.index);
    CHECK(indices == std::vector<uint32_t>(kKnown.begin(), kKnown.end()));
    CHECK(found->back().data == 0x0007040600070406); // PAT after a reset
    // More than KVM takes at once.
    const std::vector<kvm_msr_entry> many(1000, kvm_msr_entry{0x277, 0, found->back().data});
    const auto set = those_that_work(one->vcpu->fd(), many, kSetMsrs, "KVM_SET_MSRS");
    REQUIRE(set);
    CHECK(set->size() == many.size());
}

TEST_CASE("a vCPU's state comes out of another vCPU as it went in") {
    auto from = OneVcpu::make(), to = OneVcpu::make();
    if (!from || !to) return;
    state::Vcpu registers;
    state::VcpuInterrupts interrupts;
    REQUIRE(from->vcpu->save_registers(registers));
    REQUIRE(from->vcpu->save_interrupts(interrupts));
    make_recognisable(registers, interrupts);
    REQUIRE(to->vcpu->check(registers));
    REQUIRE(to->vcpu->check(interrupts));
    REQUIRE(to->vcpu->load_registers(registers));
    REQUIRE(to->vcpu->load_interrupts(interrupts));
    state::Vcpu again;
    state::VcpuInterrupts interrupts_again;
    REQUIRE(to->vcpu->save_registers(again));
    REQUIRE(to->vcpu->save_interrupts(interrupts_again));
    for (int i = 0; i < registers.general_size(); ++i)
        CHECK(again.general(i) == registers.general(i));
    CHECK(again.debug(0) == 0x1234);
    CHECK(again.xsave() == registers.xsave());
    CHECK(again.tsc_offset() == registers.tsc_offset());
    CHECK(interrupts_again.lapic() == interrupts.lapic());
    CHECK(interrupts_again.events().nmi_masked() == 1);
    CHECK(interrupts_again.events().nmi_pending() == 1);
    for (int i = 0; i < registers.msr_index_size(); ++i) {
        INFO("MSR ", registers.msr_index(i));
        CHECK(again.msr_value(i) == registers.msr_value(i));
    }
}

TEST_CASE("what was primed and then changed is loaded all the same") {
    auto from = OneVcpu::make(), to = OneVcpu::make();
    if (!from || !to) return;
    state::Vcpu registers;
    REQUIRE(from->vcpu->save_registers(registers));
    REQUIRE(to->vcpu->prime(registers));
    registers.set_debug(1, 0x5678);
    registers.mutable_segments(0)->set_selector(0x1000);
    registers.mutable_segments(0)->set_base(0x10000);
    (*registers.mutable_xsave())[160] = 0x5a; // XMM0
    registers.set_xsave(registers.xsave());
    (*registers.mutable_xsave())[512] = 3; // XSTATE_BV: x87 and SSE are in use
    REQUIRE(to->vcpu->load_registers(registers));
    state::Vcpu again;
    REQUIRE(to->vcpu->save_registers(again));
    CHECK(again.debug(1) == 0x5678);
    CHECK(again.segments(0).base() == 0x10000);
    CHECK(again.xsave()[160] == 0x5a);
}

void queue_interrupt(const Vcpu& vcpu, bool queued) {
    kvm_vcpu_events events{};
    REQUIRE(::ioctl(vcpu.fd(), KVM_GET_VCPU_EVENTS, &events) == 0);
    events.interrupt.injected = queued ? 1 : 0;
    events.interrupt.nr = 0x41;
    REQUIRE(::ioctl(vcpu.fd(), KVM_SET_VCPU_EVENTS, &events) == 0);
}

// KVM shows it in its special registers too, and queues what is set there.
TEST_CASE("an interrupt that was about to be injected when it was primed, and has been since, is not "
          "injected again") {
    auto from = OneVcpu::make(), to = OneVcpu::make();
    if (!from || !to) return;
    state::Vcpu primed, registers;
    state::VcpuInterrupts interrupts;
    queue_interrupt(*from->vcpu, true);
    REQUIRE(from->vcpu->save_registers(primed));
    queue_interrupt(*from->vcpu, false);
    REQUIRE(from->vcpu->save_registers(registers));
    REQUIRE(from->vcpu->save_interrupts(interrupts));
    REQUIRE(to->vcpu->prime(primed));
    REQUIRE(to->vcpu->load_registers(registers));
    REQUIRE(to->vcpu->load_interrupts(interrupts));
    kvm_vcpu_events events{};
    REQUIRE(::ioctl(to->vcpu->fd(), KVM_GET_VCPU_EVENTS, &events) == 0);
    CHECK(events.interrupt.injected == 0);
}

TEST_CASE("an interrupt that is about to be injected crosses") {
    auto from = OneVcpu::make(), to = OneVcpu::make();
    if (!from || !to) return;
    state::Vcpu registers;
    state::VcpuInterrupts interrupts;
    queue_interrupt(*from->vcpu, true);
    REQUIRE(from->vcpu->save_registers(registers));
    REQUIRE(from->vcpu->save_interrupts(interrupts));
    REQUIRE(to->vcpu->load_registers(registers));
    REQUIRE(to->vcpu->load_interrupts(interrupts));
    kvm_vcpu_events events{};
    REQUIRE(::ioctl(to->vcpu->fd(), KVM_GET_VCPU_EVENTS, &events) == 0);
    CHECK(events.interrupt.injected == 1);
    CHECK(events.interrupt.nr == 0x41);
}

TEST_CASE("warming a vCPU up runs nothing of the guest and changes nothing of its state") {
    auto one = OneVcpu::make();
    if (!one) return;
    install_kick_signal();
    constexpr size_t kSize = 64 << 10, kCode = 0x1000, kTarget = 0x2000;
    constexpr std::array<uint8_t, 7> kProgram = {0xc6, 0x06, 0x00, 0x20, 0x5a, // mov byte [0x2000], 0x5a
        0xe6, 0x10};                                                           // out 0x10, al
    auto* ram = static_cast<uint8_t*>(
        ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(ram != MAP_FAILED);
    REQUIRE(one->vm.add_memory(0, 0, kSize, ram, false));
    std::copy(kProgram.begin(), kProgram.end(), ram + kCode);
    InitialState start;
    start.rip = kCode;
    start.cs.type = 0xb;
    start.data.type = 0x3;
    start.tr = {.type = 0xb, .code_or_data = false};
    start.ldt = {.type = 0x2, .code_or_data = false};
    REQUIRE(one->vcpu->set_initial_state(start));
    state::Vcpu before, after;
    REQUIRE(one->vcpu->save_registers(before));
    REQUIRE(one->vcpu->warm_up(kick_signal()));
    REQUIRE(one->vcpu->save_registers(after));
    CHECK(ram[kTarget] == 0);
    CHECK(std::equal(before.general().begin(), before.general().end(), after.general().begin()));
    CHECK(before.segments(0).SerializeAsString() == after.segments(0).SerializeAsString());
    sigset_t pending;
    REQUIRE(::sigpending(&pending) == 0);
    CHECK(::sigismember(&pending, kick_signal()) == 0);

    auto exited = one->vcpu->enter();
    REQUIRE(exited);
    CHECK(*exited);
    CHECK(one->vcpu->run_page().exit_reason == KVM_EXIT_IO);
    CHECK(ram[kTarget] == 0x5a);
    one.reset();
    ::munmap(ram, kSize);
}

TEST_CASE("states that cannot be a vCPU's are refused before anything is set") {
    auto one = OneVcpu::make();
    if (!one) return;
    state::Vcpu good;
    state::VcpuInterrupts interrupts;
    REQUIRE(one->vcpu->save_registers(good));
    REQUIRE(one->vcpu->save_interrupts(interrupts));
    auto bad = good;
    bad.clear_general();
    CHECK_FALSE(one->vcpu->check(bad));
    bad = good;
    bad.add_segments();
    CHECK_FALSE(one->vcpu->check(bad));
    bad = good;
    bad.mutable_xsave()->resize(100);
    CHECK_FALSE(one->vcpu->check(bad));
    bad = good;
    bad.mutable_xsave()->resize(1 << 20);
    CHECK_FALSE(one->vcpu->check(bad));
    bad = good;
    bad.add_msr_index(0x12345678);
    bad.add_msr_value(0);
    CHECK_FALSE(one->vcpu->check(bad));
    auto bad_interrupts = interrupts;
    bad_interrupts.clear_lapic();
    CHECK_FALSE(one->vcpu->check(bad_interrupts));
    bad_interrupts = interrupts;
    bad_interrupts.clear_events();
    CHECK_FALSE(one->vcpu->check(bad_interrupts));
    bad_interrupts = interrupts;
    bad_interrupts.set_mp_state(77);
    CHECK_FALSE(one->vcpu->check(bad_interrupts));
}

TEST_CASE("random bytes as a vCPU's state never crash and never half-load") {
    auto one = OneVcpu::make();
    if (!one) return;
    state::Vcpu good;
    REQUIRE(one->vcpu->save_registers(good));
    std::string bytes = good.SerializeAsString();
    std::mt19937 random(7);
    for (int round = 0; round < 2000; ++round) {
        std::string damaged = bytes;
        for (int i = 0; i < 3; ++i)
            damaged[random() % damaged.size()] = static_cast<char>(random());
        state::Vcpu message;
        if (!message.ParseFromString(damaged) || !one->vcpu->check(message)) continue;
        static_cast<void>(one->vcpu->load_registers(message)); // KVM may refuse; it must not harm us
    }
    CHECK(one->vcpu->load_registers(good));
}

TEST_CASE("a PIT that cannot be is refused") {
    state::Pit pit;
    for (int i = 0; i < 3; ++i)
        pit.add_channel()->set_mode(2);
    pit.set_ticks_delivered(7);
    pit.set_in_flight(1);
    REQUIRE(PitKeeper::check(pit));
    pit.set_in_flight(2);
    CHECK_FALSE(PitKeeper::check(pit));
    pit.set_in_flight(0);
    pit.set_ticks_delivered(UINT64_MAX);
    CHECK_FALSE(PitKeeper::check(pit));
    pit.set_ticks_delivered(7);
    pit.mutable_channel(0)->set_mode(6);
    CHECK_FALSE(PitKeeper::check(pit));
    pit.mutable_channel(0)->set_mode(2);
    pit.mutable_channel(0)->set_count(0x10001);
    CHECK_FALSE(PitKeeper::check(pit));
    pit.mutable_channel(0)->set_count(1193);
    REQUIRE(PitKeeper::check(pit));
    pit.mutable_channel()->RemoveLast();
    CHECK_FALSE(PitKeeper::check(pit));
}

TEST_CASE("the interrupt controllers and the PIT come out of another VM as they went in") {
    auto from = OneVcpu::make(), to = OneVcpu::make();
    if (!from || !to) return;
    PitKeeper pit, other;
    state::Vm vm;
    REQUIRE(save_vm(from->vm, pit, vm));
    vm.mutable_pic_master()->set_imr(0xa5);
    vm.mutable_ioapic()->set_redirection(4, 0x10024); // masked, vector 0x24
    vm.mutable_pit()->mutable_channel(0)->set_count(1193);
    vm.mutable_pit()->mutable_channel(0)->set_mode(2);
    REQUIRE(check_vm(vm));
    REQUIRE(load_vm(to->vm, vm));
    REQUIRE(other.thaw(to->vm, vm.pit()));
    state::Vm again;
    REQUIRE(save_vm(to->vm, other, again));
    CHECK(again.pic_master().imr() == 0xa5);
    CHECK(again.ioapic().redirection(4) == 0x10024);
    CHECK(again.pit().channel(0).count() == 1193);
    CHECK(again.pit().channel(0).mode() == 2);
    CHECK(again.pit().reference_ns() == vm.pit().reference_ns());
    CHECK(again.pit().ticks_delivered() >= vm.pit().ticks_delivered());
    CHECK(again.clock_ns() >= vm.clock_ns());
}

// A real-mode guest that lets the master 8259 interrupt it once, ends the interrupt, and exits at port 0x10.
constexpr std::array<uint8_t, 27> kTakesOneTick = {
    0xb0, 0x11, 0xe6, 0x20, // ICW1: edge, cascade, ICW4 follows
    0xb0, 0x20, 0xe6, 0x21, // ICW2: vectors from 0x20
    0xb0, 0x04, 0xe6, 0x21, // ICW3
    0xb0, 0x01, 0xe6, 0x21, // ICW4: 8086
    0xb0, 0xfe, 0xe6, 0x21, // only line 0
    0xe6, 0x10,             // exit: it is ready for a tick
    0xfb,                   // sti
    0xf4,                   // hlt
    0xeb, 0xfd,             // again
};
constexpr std::array<uint8_t, 7> kEndsOneTick = {0xb0, 0x20, 0xe6, 0x20, 0xe6, 0x10, 0xcf}; // EOI; exit; iret

TEST_CASE("a tick that a vCPU has ended before the PIT is started does not come again") {
    auto one = OneVcpu::make();
    if (!one) return;
    PitKeeper pit;
    REQUIRE(pit.count_ticks(one->vm));
    constexpr size_t kSize = 64 << 10, kCode = 0x1000, kHandler = 0x2000;
    auto* ram = static_cast<uint8_t*>(
        ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(ram != MAP_FAILED);
    REQUIRE(one->vm.add_memory(0, 0, kSize, ram, false));
    std::copy(kTakesOneTick.begin(), kTakesOneTick.end(), ram + kCode);
    std::copy(kEndsOneTick.begin(), kEndsOneTick.end(), ram + kHandler);
    constexpr std::array<uint8_t, 4> kVector = {kHandler & 0xff, kHandler >> 8, 0, 0};
    std::copy(kVector.begin(), kVector.end(), ram + 0x20 * 4);
    InitialState start;
    start.rip = kCode;
    start.idt = {.base = 0, .limit = 0x3ff};
    start.cs.type = 0xb;
    start.data.type = 0x3;
    start.tr = {.type = 0xb, .code_or_data = false};
    start.ldt = {.type = 0x2, .code_or_data = false};
    REQUIRE(one->vcpu->set_initial_state(start));
    REQUIRE(one->vcpu->enter());
    REQUIRE(one->vcpu->run_page().exit_reason == KVM_EXIT_IO);

    state::Pit saved;
    REQUIRE(pit.freeze(one->vm, saved));
    // As if one tick were in flight, and the next due in half a period of 55 ms.
    saved.mutable_channel(0)->set_count(0xffff);
    saved.mutable_channel(0)->set_mode(2);
    saved.set_ticks_delivered(1);
    saved.set_in_flight(1);
    const uint64_t period_ns = 0xffff * 1'000'000'000ull / 1193182;
    saved.set_reference_ns(monotonic_ns() - period_ns - period_ns / 2);
    pit.expect_thaw(one->vm);
    REQUIRE(one->vm.pulse_irq(0));
    REQUIRE(one->vcpu->enter()); // up to the end of the tick, before whoever took the baton comes to the PIT
    REQUIRE(one->vcpu->run_page().exit_reason == KVM_EXIT_IO);
    REQUIRE(pit.thaw(one->vm, saved));
    state::Pit after;
    REQUIRE(pit.freeze(one->vm, after));
    CHECK(after.in_flight() == 0);
    CHECK(after.ticks_delivered() == 1);
    one.reset();
    ::munmap(ram, kSize);
}

} // namespace
} // namespace liveupdate::vmm::test
