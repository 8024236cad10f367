/* Firmware image: 64 KiB that end at 4 GiB. The reset vector, F000:FFF0 with CS base 0xFFFF0000,
 * prints "firmware ok" on COM1 and ends the VM by debug-exit 0. Real mode throughout, no stack,
 * no RAM.
 */
    .code16
    .text
    .global _start
_start:
    .org 0xff00
start:
    cld
    movw $(message - _start), %si /* no relocation: the object is not linked */
print:
    movw $0x3fd, %dx
wait:
    inb %dx, %al
    testb $0x20, %al
    jz wait
    movb %cs:(%si), %al
    testb %al, %al
    jz done
    movw $0x3f8, %dx
    outb %al, %dx
    incw %si
    jmp print
done:
    movw $0xf4, %dx
    xorl %eax, %eax
    outl %eax, %dx
halt:
    cli
    hlt
    jmp halt
message:
    .asciz "firmware ok\n"

    .org 0xfff0
reset_vector:
    jmp start
    .org 0x10000

    .section .note.GNU-stack, "", @progbits
