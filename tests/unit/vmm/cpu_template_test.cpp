#include "vmm/kvm/cpu_template.hpp"

#include <doctest/doctest.h>

#include <algorithm>

namespace liveupdate::vmm::test {
namespace {

// A host that has everything.
Cpuid rich_host() {
    Cpuid host;
    for (const uint32_t function : {0u, 1u, 2u, 7u, 0xdu, 0x14u, 0x15u, 0x40000000u, 0x40000001u, 0x80000000u,
             0x80000001u, 0x80000008u}) {
        kvm_cpuid_entry2 e{};
        e.function = function;
        if (function == 7 || function == 0xd) e.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        e.eax = e.ebx = e.ecx = e.edx = ~0u;
        host.push_back(e);
    }
    return host;
}

Cpuid make(const std::string& name, unsigned vcpus = 1, bool deadline = true) {
    const Cpuid host = rich_host();
    auto table = apply_cpu_template({name, &host, vcpus, 2'000'000, deadline});
    REQUIRE(table);
    return *table;
}

kvm_cpuid_entry2 leaf(const Cpuid& table, uint32_t function, uint32_t index = 0) {
    const auto found = std::find_if(table.begin(), table.end(),
        [&](const auto& e) { return e.function == function && e.index == index; });
    REQUIRE(found != table.end());
    return *found;
}

bool shows(const Cpuid& table, uint32_t function) {
    return std::any_of(table.begin(), table.end(), [&](const auto& e) { return e.function == function; });
}

TEST_CASE("a template hides what it does not name, whatever the host has") {
    const Cpuid v2 = make("x86-64-v2.1"), v3 = make("x86-64-v3.1");
    constexpr uint32_t kAvx = 1u << 28, kAvx2 = 1u << 5, kVmx = 1u << 5;
    CHECK((leaf(v2, 1).ecx & kAvx) == 0);
    CHECK((leaf(v3, 1).ecx & kAvx) != 0);
    CHECK((leaf(v2, 7).ebx & kAvx2) == 0);
    CHECK((leaf(v3, 7).ebx & kAvx2) != 0);
    CHECK((leaf(v3, 1).ecx & kVmx) == 0);
    CHECK(leaf(v2, 0xd).eax == 3);
    CHECK(leaf(v3, 0xd).eax == 7);
    CHECK_FALSE(shows(v3, 0x14));                  // processor trace
    CHECK(leaf(v2, 0x80000008).ebx == 0x0100d004); // XSAVEERPTR, IBPB, IBRS, STIBP, SSBD
}

TEST_CASE("a guest always sees that it is one, x2APIC, and the deadline timer where KVM has it") {
    const Cpuid with = make("x86-64-v2.1"), without = make("x86-64-v2.1", 1, false);
    CHECK((leaf(with, 1).ecx >> 31 & 1) == 1);
    CHECK((leaf(with, 1).ecx >> 21 & 1) == 1);
    CHECK((leaf(with, 1).ecx >> 24 & 1) == 1);
    CHECK((leaf(without, 1).ecx >> 24 & 1) == 0);
    CHECK(leaf(with, 0x40000010).eax == 2'000'000);
}

TEST_CASE("each vCPU sees its own APIC id and all the same number of CPUs") {
    const Cpuid table = make("x86-64-v2.1", 4);
    for (unsigned i = 0; i < 4; ++i) {
        const Cpuid own = cpuid_for_vcpu(table, i);
        CHECK((leaf(own, 1).ebx >> 24) == i);
        CHECK((leaf(own, 1).ebx >> 16 & 0xff) == 4);
        CHECK(leaf(own, 0xb, 1).edx == i);
        CHECK(leaf(own, 0xb, 1).ebx == 4);
    }
}

TEST_CASE("an unknown template is refused with the names that exist") {
    const Cpuid host = rich_host();
    const auto table = apply_cpu_template({"pentium", &host, 1, 0, true});
    REQUIRE_FALSE(table);
    CHECK(table.error().message.find("pentium") != std::string::npos);
    CHECK(table.error().message.find("x86-64-v2.1") != std::string::npos);
}

} // namespace
} // namespace liveupdate::vmm::test
