/* From the loader to ring 3, for the boot processor (PVH: 32-bit protected mode, paging off,
 * EBX = hvm_start_info) and for the others (from trampoline.S).
 *
 * Ring 0 may be interpreted and slow, so everything that can be data is assembled (page tables
 * for the first 4 GiB, GDT, TSS), and everything else is done in ring 3, which may write all of
 * these: all memory is mapped for the user.
 */
#include "tests/guests/runtime/layout.h"

/* XEN_ELFNOTE_PHYS32_ENTRY, see Xen's docs/misc/pvh.pandoc. */
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry

    .section .fixed, "aw", @progbits
fixed_begin: /* at LAYOUT_TSS_BASE */
    .set cpu, 0
    .rept LAYOUT_MAX_VCPUS
    .long 0
    .quad kernel_stacks + (cpu + 1) * LAYOUT_KERNEL_STACK /* RSP0 */
    .fill LAYOUT_TSS_SIZE - 12 - 26, 1, 0
    .word (LAYOUT_MAX_VCPUS - cpu) * LAYOUT_TSS_SIZE /* I/O map, see below */
    .fill 24, 1, 0
    .set cpu, cpu + 1
    .endr

/* I/O permission map behind the TSSs, the same one for all: ring 3 may use ports up to 0xFFF.
 * IOPL 3 should be enough, but a software KVM may lose IOPL on the way to ring 3. */
    .fill LAYOUT_IO_MAP_SIZE, 1, 0
    .byte 0xff /* the processor reads two bytes */

    .balign 16
    .global gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* code, 64 bit */
    .quad 0x00cf93000000ffff /* data */
    .quad 0x00cf9b000000ffff /* code, 32 bit */
    .quad 0x00cff3000000ffff /* user data */
    .quad 0x00affb000000ffff /* user code, 64 bit */
gdt_tss:
    .set cpu, 0
    .rept LAYOUT_MAX_VCPUS
    .set base, LAYOUT_TSS_BASE + cpu * LAYOUT_TSS_SIZE
    .set limit, (LAYOUT_MAX_VCPUS - cpu) * LAYOUT_TSS_SIZE + LAYOUT_IO_MAP_SIZE
    .quad limit | ((base & 0xffffff) << 16) | (0x89 << 40) | ((base >> 24) << 56)
    .quad 0
    .set cpu, cpu + 1
    .endr
gdt_end:

    .balign 4
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 256 * 16 - 1
    .quad interrupt_table

/* Identity map of 0 to 4 GiB in 2 MiB pages, user, writable, accessed, dirty. Only the pages of
 * the interrupt controllers are uncached: 0xFEC00000 and 0xFEE00000. */
    .balign 4096
    .global boot_pml4, boot_pdpt, boot_directories
boot_pml4:
    .quad boot_pdpt + 0x27
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_directories + 0x0027, boot_directories + 0x1027
    .quad boot_directories + 0x2027, boot_directories + 0x3027
    .fill 508, 8, 0
boot_directories:
    .set page, 0
    .rept 2048
    .if page == 0xfec00000 || page == 0xfee00000
    .quad page + 0xff
    .else
    .quad page + 0xe7
    .endif
    .set page, page + 0x200000
    .endr

    .data
    .balign 8
    .global start_info_gpa, current_cr3, starting_vcpu
start_info_gpa: .quad 0
current_cr3: .quad boot_pml4
starting_vcpu: .quad 0 /* index of the vCPU that trampoline.S brings up */

    .bss
    .balign 4096
kernel_stacks: .skip LAYOUT_MAX_VCPUS * LAYOUT_KERNEL_STACK
user_stacks: .skip LAYOUT_MAX_VCPUS * LAYOUT_USER_STACK

    .text
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    movl %ebx, start_info_gpa
    xorl %esi, %esi
    lgdtl gdt_pointer
    jmp enter_long_mode

/* Other vCPUs: flat 32-bit code segment, data segments still of real mode. */
    .global ap_entry32
ap_entry32:
    movw $SELECTOR_DATA, %ax
    movw %ax, %ds
    movl starting_vcpu, %esi

enter_long_mode: /* ESI = vCPU */
    movl %cr4, %eax
    orl $0x620, %eax /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl current_cr3, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax /* EFER.LME */
    wrmsr
    movl $0x80010033, %eax /* PG, WP, NE, ET, MP, PE; caches on */
    movl %eax, %cr0
    ljmp $SELECTOR_CODE64, $long_mode

    .code64
long_mode:
    movl $SELECTOR_DATA, %eax
    movl %eax, %ss
    /* User selectors, because IRETQ to ring 3 clears those that ring 3 may not use. */
    movl $SELECTOR_USER_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    lidt idt_pointer

    movl %esi, %edi
    leal 1(%rdi), %eax
    imull $LAYOUT_KERNEL_STACK, %eax, %ecx
    leaq kernel_stacks(%rcx), %rsp
    imull $LAYOUT_USER_STACK, %eax, %ecx
    leaq user_stacks(%rcx), %rbx

    movl %edi, %ecx
    shll $4, %ecx
    movb $0x89, gdt_tss + 5(%rcx) /* not busy: this may be a second boot from the same RAM */
    addl $SELECTOR_TSS, %ecx
    ltr %cx

    imull $SLOT_SIZE, %edi, %eax
    addl $REPORT_SLOTS, %eax
    xorl %edx, %edx
    movl $0xc0000101, %ecx /* GS base */
    wrmsr

    /* The PIC may be live from the firmware, with vectors that we take for exceptions. */
    movb $0xff, %al
    outb %al, $0x21
    outb %al, $0xa1

    pushq $SELECTOR_USER_DATA
    pushq %rbx
    pushq $0x3202 /* IOPL 3, IF */
    pushq $SELECTOR_USER_CODE
    pushq $ring3_entry
    iretq

ring3_entry: /* RDI = vCPU; the stack is empty and may be cleared */
    testl %edi, %edi
    jnz vcpu_start
    movl $bss_begin, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    shrl $3, %ecx
    xorl %eax, %eax
    rep stosq
    xorl %ebp, %ebp
    call runtime_start
    ud2
vcpu_start:
    xorl %ebp, %ebp
    call runtime_start_vcpu
    ud2

    .section .note.GNU-stack, "", @progbits
