/* First code of a vCPU started by SIPI: copied to LAYOUT_TRAMPOLINE, runs there in real mode with
 * CS = LAYOUT_TRAMPOLINE >> 4, and jumps straight into the image. */
#include "tests/guests/runtime/layout.h"

    .section .rodata
    .code16
    .global trampoline_begin, trampoline_end
trampoline_begin:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl trampoline_gdt - trampoline_begin
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $SELECTOR_CODE32, $ap_entry32
    .balign 4
trampoline_gdt:
    .word SELECTOR_TSS + 16 * LAYOUT_MAX_VCPUS - 1
    .long gdt
trampoline_end:

    .section .note.GNU-stack, "", @progbits
