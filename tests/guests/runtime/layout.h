/* Constants shared by the guests' assembly and C++ code; layout_check.cpp compares them with the
 * C++ types. Macros, because the assembler reads this file too. */
#ifndef TESTS_GUESTS_RUNTIME_LAYOUT_H
#define TESTS_GUESTS_RUNTIME_LAYOUT_H

#define LAYOUT_MAX_VCPUS 16
#define LAYOUT_TRAMPOLINE 0x8000 /* AP start page, below 1 MiB, 4 KiB aligned */
#define LAYOUT_TSS_BASE 0x400000 /* start of the image: the GDT is assembled, not computed */
#define LAYOUT_TSS_SIZE 128
#define LAYOUT_IO_MAP_SIZE 512 /* bytes, one bit per port */
#define LAYOUT_KERNEL_STACK 4096
#define LAYOUT_USER_STACK 16384

#define SELECTOR_CODE64 0x08
#define SELECTOR_DATA 0x10
#define SELECTOR_CODE32 0x18
#define SELECTOR_USER_DATA 0x23
#define SELECTOR_USER_CODE 0x2b
#define SELECTOR_TSS 0x30 /* plus 16 * vCPU */

#define VECTOR_TIMER 0x40
#define VECTOR_PIT 0x41
#define VECTOR_IPI 0x42
#define VECTOR_SERIAL 0x43
#define VECTOR_SPURIOUS 0xff

#define LAPIC_EOI 0xfee000b0
#define MSR_TSC_DEADLINE 0x6e0

/* Calls into ring 0: UD2 with RAX = RING0_MAGIC. INT n and SYSCALL do not work on every KVM. */
#define RING0_MAGIC 0x30676e69
#define RING0_WRMSR 0
#define RING0_RDMSR 1
#define RING0_SET_CR3 2
#define RING0_HLT 3
#define RING0_CPUID 4

#define REPORT_BASE 0x200000
#define REPORT_SLOTS (REPORT_BASE + 4096)
#define SLOT_SIZE 640
#define SLOT_TIMER 192
#define SLOT_PERIOD (SLOT_TIMER + 16)
#define SLOT_DEADLINE (SLOT_TIMER + 24)
#define SLOT_INTERRUPTS (SLOT_TIMER + 32)
#define SLOT_EARLY (SLOT_TIMER + 40)
#define SLOT_EARLY_MAX (SLOT_TIMER + 48)
#define SLOT_LATE_MAX (SLOT_TIMER + 56)
#define SLOT_PIT_INTERRUPTS (SLOT_TIMER + 64)
#define SLOT_SPURIOUS (SLOT_TIMER + 96)
#define SLOT_IPI_FROM (SLOT_TIMER + 128)
#define SLOT_IPI_RECEIVED (SLOT_TIMER + 136)
#define SLOT_IPI_SENT (SLOT_TIMER + 192)
#define SLOT_IPI_ACKED (SLOT_TIMER + 200)
#define SLOT_SERIAL_INTERRUPTS (576 + 32)

#endif
