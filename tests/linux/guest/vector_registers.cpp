#include "tests/linux/guest/vector_registers.hpp"

#include <array>
#include <atomic>
#include <cstring>

#include "tests/linux/guest/report.hpp"
#include "tests/linux/pattern.hpp"

namespace linux_guest {
namespace {

constexpr std::size_t kRegisters = 16;

template <std::size_t Bytes>
using Registers = std::array<std::array<std::uint8_t, Bytes>, kRegisters>;

template <std::size_t Bytes>
void fill(Registers<Bytes>& registers) {
    static std::atomic<std::uint64_t> stream = 100;
    const std::uint64_t now = stream++;
    for (std::size_t i = 0; i < kRegisters; ++i)
        fill_stream(registers[i], now, i * Bytes);
}

#define EACH_REGISTER(DO)                                                                                    \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
#define LOAD_XMM(N) "movdqu 16*" #N "(%[in]), %%xmm" #N "\n\t"
#define STORE_XMM(N) "movdqu %%xmm" #N ", 16*" #N "(%[out])\n\t"
#define LOAD_YMM(N) "vmovdqu 32*" #N "(%[in]), %%ymm" #N "\n\t"
#define STORE_YMM(N) "vmovdqu %%ymm" #N ", 32*" #N "(%[out])\n\t"
#define SPIN                                                                                                 \
    "1: pause\n\t"                                                                                           \
    "dec %[spins]\n\t"                                                                                       \
    "jnz 1b\n\t"
#define CLOBBERED                                                                                            \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",        \
        "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc"

void hold(const Registers<16>& in, Registers<16>& out, std::uint64_t spins) {
    asm volatile(EACH_REGISTER(LOAD_XMM) SPIN EACH_REGISTER(STORE_XMM)
                 : [spins] "+r"(spins)
                 : [in] "r"(&in), [out] "r"(&out)
                 : CLOBBERED);
}

void hold(const Registers<32>& in, Registers<32>& out, std::uint64_t spins) {
    asm volatile(EACH_REGISTER(LOAD_YMM) SPIN EACH_REGISTER(STORE_YMM) "vzeroupper\n\t"
                 : [spins] "+r"(spins)
                 : [in] "r"(&in), [out] "r"(&out)
                 : CLOBBERED);
}

// The x87 stack and the control words of both units.
bool hold_x87(std::uint64_t spins) {
    const std::array<double, 2> in = {1.0 / 3.0, 2.0 / 7.0};
    std::array<double, 2> out{};
    const std::uint16_t control = 0x0f7f, normal_control = 0x037f;
    const std::uint32_t mxcsr = 0x7f80, normal_mxcsr = 0x1f80;
    std::uint16_t control_after = 0;
    std::uint32_t mxcsr_after = 0;
    asm volatile("fldcw %[control]\n\t"
                 "ldmxcsr %[mxcsr]\n\t"
                 "fldl %[in1]\n\t"
                 "fldl %[in0]\n\t" SPIN "fstpl %[out0]\n\t"
                 "fstpl %[out1]\n\t"
                 "fnstcw %[control_after]\n\t"
                 "stmxcsr %[mxcsr_after]\n\t"
                 "fldcw %[normal_control]\n\t"
                 "ldmxcsr %[normal_mxcsr]\n\t"
                 : [spins] "+r"(spins), [out0] "=m"(out[0]), [out1] "=m"(out[1]),
                 [control_after] "=m"(control_after), [mxcsr_after] "=m"(mxcsr_after)
                 : [control] "m"(control), [mxcsr] "m"(mxcsr), [in0] "m"(in[0]), [in1] "m"(in[1]),
                 [normal_control] "m"(normal_control), [normal_mxcsr] "m"(normal_mxcsr)
                 : "cc");
    return std::memcmp(in.data(), out.data(), sizeof(in)) == 0 && control_after == control &&
           mxcsr_after == mxcsr;
}

template <std::size_t Bytes>
std::string compare(const char* name, std::uint64_t spins) {
    Registers<Bytes> in{}, out{};
    fill(in);
    hold(in, out, spins);
    for (std::size_t i = 0; i < kRegisters; ++i)
        if (in[i] != out[i]) return text("register %s%zu lost its value", name, i);
    return {};
}

} // namespace

bool kernel_offers_avx() {
    return content_of("/proc/cpuinfo").find(" avx ") != std::string::npos;
}

std::string check_vector_registers(std::uint64_t spins) {
    static const bool avx = kernel_offers_avx();
    if (!hold_x87(spins)) return "x87 stack, control word or MXCSR lost its value";
    if (std::string lost = compare<16>("xmm", spins); !lost.empty()) return lost;
    return avx ? compare<32>("ymm", spins) : std::string();
}

} // namespace linux_guest
