# A guest that tells whether KVM does what real guests need. It says to the first serial port how far it got:
#   R  real mode      L  long mode     M  a large copy backwards     C  a long loop
# Some hosts offer KVM and interpret, instruction by instruction, whatever runs in a kernel's place. A guest
# under them gets to M after minutes, as a Linux kernel does, whose first act is that copy.
# The bytes beside this file come from it; a test assembles it again and compares:
#   as --64 trial_guest.s -o t.o && ld -Ttext=0x7c00 --oformat=binary -o trial_guest.bin t.o
        .code16
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        movw    $0x3f8, %dx
        movb    $'R', %al
        outb    %al, %dx
# One page of each level at 0x10000; the first 128 MiB as pages of 2 MiB.
        movw    $0x1000, %ax
        movw    %ax, %es
        xorw    %di, %di
        xorl    %eax, %eax
        movw    $0x0c00, %cx
        cld
        rep stosl
        movl    $0x11003, %es:0x0000
        movl    $0x12003, %es:0x1000
        movw    $0x2000, %di
        movl    $0x83, %eax
        movw    $64, %cx
pages:  movl    %eax, %es:(%di)
        addl    $0x200000, %eax
        addw    $8, %di
        loop    pages
        movl    $0x10000, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $0x20, %eax
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx
        rdmsr
        orl     $0x100, %eax
        wrmsr
        lgdtl   table_register
        movl    %cr0, %eax
        orl     $0x80000001, %eax
        movl    %eax, %cr0
        ljmpw   $8, $long
        .code64
long:   movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movw    $0x3f8, %dx
        movb    $'L', %al
        outb    %al, %dx
        movl    $0x2fffff8, %edi
        movl    $0x1fffff8, %esi
        movl    $0x200000, %ecx
        std
        rep movsq
        cld
        movb    $'M', %al
        outb    %al, %dx
        movl    $100000000, %ecx
count:  decl    %ecx
        jnz     count
        movb    $'C', %al
        outb    %al, %dx
stop:   hlt
        jmp     stop
        .balign 8
table:  .quad   0, 0x00209a0000000000, 0x0000920000000000
table_register:
        .word   23
        .long   table
        .org    510
        .word   0xaa55
