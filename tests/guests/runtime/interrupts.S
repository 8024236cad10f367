/* Ring 0 after the boot: interrupt handlers, exceptions, calls from ring 3. As few instructions
 * as possible, since ring 0 may be interpreted. GS base is the vCPU's slot of the report, in
 * ring 3 as in ring 0.
 */
#include "tests/guests/runtime/layout.h"

    .text
    .code64

.macro end_of_interrupt
    movl $LAPIC_EOI, %eax
    movl $0, (%rax)
.endm

/* LAPIC timer, TSC-deadline mode: the next deadline is the former one plus the period, however
 * late we are, so that no tick is lost by lateness. An early interrupt re-arms the same one. */
    .global timer_deadline_entry
timer_deadline_entry:
    pushq %rax
    pushq %rcx
    pushq %rdx
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    movq %gs:SLOT_DEADLINE, %rcx
    subq %rcx, %rax
    js timer_early
    cmpq %gs:SLOT_LATE_MAX, %rax
    jbe 1f
    movq %rax, %gs:SLOT_LATE_MAX
1:
    addq %gs:SLOT_PERIOD, %rcx
    movq %rcx, %gs:SLOT_DEADLINE
    incq %gs:SLOT_INTERRUPTS
timer_arm: /* RCX = deadline */
    movq %rcx, %rdx
    movl %ecx, %eax
    shrq $32, %rdx
    movl $MSR_TSC_DEADLINE, %ecx
    wrmsr
    end_of_interrupt
    popq %rdx
    popq %rcx
    popq %rax
    iretq
timer_early: /* RAX = - ticks too early */
    negq %rax
    incq %gs:SLOT_EARLY
    cmpq %gs:SLOT_EARLY_MAX, %rax
    jbe timer_arm
    movq %rax, %gs:SLOT_EARLY_MAX
    jmp timer_arm

.macro counting_entry name, counter
    .global \name
\name:
    pushq %rax
    incq %gs:\counter
    end_of_interrupt
    popq %rax
    iretq
.endm
    counting_entry timer_periodic_entry, SLOT_INTERRUPTS
    counting_entry pit_entry, SLOT_PIT_INTERRUPTS
    counting_entry serial_entry, SLOT_SERIAL_INTERRUPTS

/* Acknowledge the sender's sequence number. */
    .global ipi_entry
ipi_entry:
    pushq %rax
    pushq %rcx
    incq %gs:SLOT_IPI_RECEIVED
    movq %gs:SLOT_IPI_FROM, %rax
    movq SLOT_IPI_SENT(%rax), %rcx
    movq %rcx, SLOT_IPI_ACKED(%rax)
    end_of_interrupt
    popq %rcx
    popq %rax
    iretq

    .global spurious_entry
spurious_entry: /* no end of interrupt, see Intel SDM volume 3, 11.9 */
    incq %gs:SLOT_SPURIOUS
    iretq

/* Call from ring 3: RAX = magic, RDI = operation, RSI = MSR or CR3, RDX = value; result in RAX. */
    .global undefined_entry
undefined_entry:
    cmpq $RING0_MAGIC, %rax
    jne exception_6
    addq $2, (%rsp)
    cmpl $RING0_HLT, %edi
    je call_hlt
    cmpl $RING0_SET_CR3, %edi
    je call_set_cr3
    cmpl $RING0_CPUID, %edi
    je call_cpuid
    movl %esi, %ecx
    cmpl $RING0_RDMSR, %edi
    je call_rdmsr
    movl %edx, %eax
    shrq $32, %rdx
    wrmsr
    iretq
call_rdmsr:
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
    iretq
call_set_cr3:
    movq %rsi, %cr3
    iretq
call_cpuid: /* leaf ESI into the four words at RDX */
    pushq %rbx
    pushq %rdi
    pushq %rdx
    movl %esi, %eax
    xorl %ecx, %ecx
    cpuid
    popq %rdi
    movl %eax, (%rdi)
    movl %ebx, 4(%rdi)
    movl %ecx, 8(%rdi)
    movl %edx, 12(%rdi)
    popq %rdi
    popq %rbx
    iretq
call_hlt:
    sti
    hlt
    iretq

/* Exceptions end the guest, so they may be slow: C++ on the kernel stack. */
    .balign 16
exceptions_begin:
    .set vector, 0
    .rept 32
    .balign 16
    .if vector == 6
exception_6:
    .endif
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
    pushq $0
    .endif
    pushq $vector
    jmp exception_common
    .set vector, vector + 1
    .endr
exception_common:
    popq %rdi /* vector */
    popq %rsi /* error code */
    movq (%rsp), %rdx /* RIP */
    movq %cr2, %rcx
    andq $-16, %rsp
    call runtime_exception
1:
    hlt
    jmp 1b

    .section .rodata
    .balign 8
    .global exception_stubs
exception_stubs:
    .quad exceptions_begin

    .section .note.GNU-stack, "", @progbits
