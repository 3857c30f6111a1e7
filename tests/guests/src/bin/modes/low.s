    # Code that runs below 64 KiB, copied to 0x8000, with its results at 0x7000: see modes.rs.
    .set CODE, 0x8000
    .set STACK, 0x6f00
    .set VENDOR, 0x7000
    .set PORT, 0x7004
    .set REGISTER, 0x7008
    .set DEVICE, 0x700c
    .set PORT_AFTER_STRING, 0x7010
    .set SOFTWARE_INTERRUPTS, 0x7020
    .set INTERRUPTS, 0x7024
    .set WAKE_UPS, 0x7028
    .set INVALID_OPCODES, 0x702c
    .set PROTECTION_FAULTS, 0x7030
    .set ERROR_CODE, 0x7034
    .set SKIP, 0x7038
    .set WINDOW, 0x703c
    .set STRING, 0x7100
    .set BYTES, 0x7120
    .set TWO_LEVELS, 0x1000
    .set PAE_POINTERS, 0x3000
    .set TASK, 0x5800
    .set FIVE_LEVELS, 0xe000
    # Selectors of the table below; the first ones, and the two of 32 and 16 bits, are the runtime's too.
    .set CODE64, 0x08
    .set DATA, 0x10
    .set TASK_SELECTOR, 0x18
    .set CODE32, 0x40
    .set CODE16, 0x48
    .set DATA16, 0x50
    # The local APIC's registers.
    .set END_OF_INTERRUPT, 0xfee000b0

    # The work. FS reaches all 4 GiB.
    .macro work
    xorl %eax, %eax
    cpuid
    movl %ebx, VENDOR
    movb $0x5a, %al
    outb %al, $0x21
    xorl %eax, %eax
    inb $0x21, %al
    movl %eax, PORT
    movl $0x1b, %ecx
    rdmsr
    movl %eax, REGISTER
    movl $0xfee00030, %esi
    movl %fs:(%esi), %eax
    movl %eax, DEVICE
    int $0x60
    movl $0xfee00300, %esi      # to itself: vector 0x61
    movl $0x40061, %fs:(%esi)
    sti
    nop
    nop
    cli
    movl $0xfee00380, %esi      # the timer: vector 0x62
    movl $200000, %fs:(%esi)
    sti
    hlt
    cli
    movl $0x80000000, %eax
    movw $0xcf8, %dx
    outl %eax, %dx
    movl $2, %ecx
    movl $STRING, %edi
    movw $0xcfc, %dx
    cld
    rep insl
    movw $0x3412, BYTES
    movl $2, %ecx
    movl $BYTES, %esi
    movw $0x21, %dx
    rep outsb
    xorl %eax, %eax
    inb $0x21, %al
    movl %eax, PORT_AFTER_STRING
    movb $0xff, %al
    outb %al, $0x21
    ud2
    .endm

    # #GP where segments have descriptors: two bytes, and the selector as error code.
    .macro load_bad_selector
    movl $0x4320, %eax
    movw %ax, %gs
    .endm

    .section .text
    .code64
    # run_low(mode, root)
    .global run_low
run_low:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, CODE + kept_stack - low_code
    movl %edi, CODE + mode - low_code
    movl %esi, CODE + kept_root - low_code
    movq %cr0, %rax
    movl %eax, CODE + kept_cr0 - low_code
    movq %cr4, %rax
    movl %eax, CODE + kept_cr4 - low_code
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, CODE + kept_efer - low_code
    sidt CODE + kept_gates - low_code
    cmpl $6, %edi
    jne 1f
    # 64-bit mode as it is.
    movl $DATA, %eax
    movl %eax, %fs
    work
    load_bad_selector
    jmp run_low_end
1:  lgdt CODE + table_pointer - low_code
    movl $STACK, %esp
    pushq $CODE32
    pushq $(CODE + compatibility - low_code)
    lretq
run_low_end:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movq CODE + kept_stack - low_code, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    .section .rodata
    .balign 16
    .global low_code
low_code:
    .code32
compatibility:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    cmpl $5, CODE + mode - low_code
    jne 1f
    work
    load_bad_selector
    jmp to_long_mode
1:  movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    andl $~0x100, %eax
    wrmsr
    movl CODE + kept_cr4 - low_code, %eax
    andl $~0x20, %eax
    movl %eax, %cr4
    lidt CODE + gates32_pointer - low_code
    movl CODE + mode - low_code, %ecx
    cmpl $0, %ecx
    je to_real
    cmpl $1, %ecx
    je to_protected16
    cmpl $3, %ecx
    je two_levels
    cmpl $4, %ecx
    je physical_address_extension
    cmpl $7, %ecx
    je five_levels
    cmpl $8, %ecx
    je to_virtual_8086
    work
    load_bad_selector
    jmp leave32

two_levels:
    movl %cr4, %eax
    orl $0x10, %eax             # 4 MiB pages
    movl %eax, %cr4
    movl $TWO_LEVELS, %eax
    jmp paged
physical_address_extension:
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $PAE_POINTERS, %eax
paged:
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    jmp 1f
1:  movl 0x40000000, %eax
    movl %eax, WINDOW
    work
    load_bad_selector
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    jmp leave32

five_levels:
    movl %cr4, %eax
    orl $0x1020, %eax           # LA57 and PAE
    movl %eax, %cr4
    movl $FIVE_LEVELS, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmpl $CODE64, $(CODE + in_five_levels - low_code)
    .code64
in_five_levels:
    lidt CODE + kept_gates - low_code
    work
    load_bad_selector
    pushq $CODE32
    pushq $(CODE + out_of_five_levels - low_code)
    lretq
    .code32
out_of_five_levels:
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0

    # From 32-bit mode without paging back to where run_low came from.
leave32:
    movl CODE + kept_cr4 - low_code, %eax
    movl %eax, %cr4
    movl CODE + kept_root - low_code, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    movl CODE + kept_efer - low_code, %eax
    wrmsr
    movl CODE + kept_cr0 - low_code, %eax
    movl %eax, %cr0
to_long_mode:
    ljmpl $CODE64, $(CODE + back_in_long_mode - low_code)
    .code64
back_in_long_mode:
    movl $run_low_end, %eax
    jmpq *%rax

    .code32
to_protected16:
    movl $DATA16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $STACK, %esp
    ljmpl $CODE16, $(CODE + protected16 - low_code)
    .code16
protected16:
    work
    load_bad_selector
    ljmpl $CODE32, $(CODE + from16 - low_code)
    .code32
from16:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $STACK, %esp
    jmp leave32

to_real:
    movl $DATA16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %gs
    movl $(CODE + software16 - low_code), 0x60 * 4
    movl $(CODE + hardware16 - low_code), 0x61 * 4
    movl $(CODE + timer16 - low_code), 0x62 * 4
    movl $(CODE + invalid_opcode16 - low_code), 6 * 4
    movl $(CODE + protection16 - low_code), 13 * 4
    lidt CODE + gates16_pointer - low_code
    ljmpl $CODE16, $(CODE + leaving_protection - low_code)
    .code16
leaving_protection:
    movl %cr0, %eax
    andl $~1, %eax
    movl %eax, %cr0
    ljmpw $0, $(CODE + real - low_code)
real:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $STACK, %sp
    work
    int $0x70                   # #GP: past the table's end
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $CODE32, $(CODE + from16 - low_code)

software16:
    incl SOFTWARE_INTERRUPTS
    iretw
hardware16:
    incl INTERRUPTS
    jmp end_of_interrupt16
timer16:
    incl WAKE_UPS
end_of_interrupt16:
    pushl %esi
    movl $END_OF_INTERRUPT, %esi
    movl $0, %fs:(%esi)
    popl %esi
    iretw
invalid_opcode16:
    incl INVALID_OPCODES
    pushw %bp
    movw %sp, %bp
    addw $2, 2(%bp)
    popw %bp
    iretw
protection16:
    incl PROTECTION_FAULTS
    pushw %bp
    movw %sp, %bp
    pushw %ax
    movw SKIP, %ax
    addw %ax, 2(%bp)
    popw %ax
    popw %bp
    iretw

    .code32
to_virtual_8086:
    movl $TASK_SELECTOR, %eax
    ltr %ax
    movl $0xfee00380, %esi
    movl $300000, (%esi)
    movl %esp, CODE + kept_stack32 - low_code
    pushl $0                    # GS, FS, DS, ES
    pushl $0
    pushl $0
    pushl $0
    pushl $0                    # SS:ESP
    pushl $0x6000
    pushl $0x23202              # VM, IOPL 3, IF
    pushl $0                    # CS:EIP
    pushl $(CODE + virtual_8086 - low_code)
    iretl
    .code16
virtual_8086:
    movb $0x5a, %al
    outb %al, $0x21
    xorl %eax, %eax
    inb $0x21, %al
    movl %eax, PORT
    movw $STRING, %di
    movw $3, %cx
    movw $0x21, %dx
    cld
    rep insb
    xorl %eax, %eax
    cpuid
    movl %ebx, VENDOR
    int $0x60
    ud2
    movl $2, SKIP
    inb $0x61, %al
    rdmsr
    movl $1, SKIP
    hlt
    movl $3, SKIP
    movl %eax, %cr0
1:  cmpl $0, WAKE_UPS
    je 1b
    int $0x63
    .code32
end_virtual_8086:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl CODE + kept_stack32 - low_code, %esp
    movb $0xff, %al
    outb %al, $0x21
    jmp leave32

    # What 32-bit gates lead to. DS may be anybody's, and is empty where virtual-8086 mode was interrupted.
    .macro counting counter
    pushl %eax
    pushl %ds
    movl $DATA, %eax
    movl %eax, %ds
    incl \counter
    .endm
    .macro counted
    popl %ds
    popl %eax
    .endm
software32:
    counting SOFTWARE_INTERRUPTS
    counted
    iretl
hardware32:
    counting INTERRUPTS
    movl $0, END_OF_INTERRUPT
    counted
    iretl
timer32:
    counting WAKE_UPS
    movl $0, END_OF_INTERRUPT
    counted
    iretl
invalid_opcode32:
    counting INVALID_OPCODES
    counted
    addl $2, (%esp)
    iretl
protection32:
    counting PROTECTION_FAULTS
    movl 8(%esp), %eax
    movl %eax, ERROR_CODE
    movl SKIP, %eax
    addl %eax, 12(%esp)
    counted
    addl $4, %esp
    iretl

    .balign 8
table:
    .quad 0
    .quad 0x00af9b000000ffff    # CODE64
    .quad 0x00cf93000000ffff    # DATA
    .quad 0x0000890058000089    # TASK_SELECTOR: 32 bits, 138 bytes at 0x5800
    .quad 0, 0, 0, 0
    .quad 0x00cf9b000000ffff    # CODE32
    .quad 0x00009b000000ffff    # CODE16
    .quad 0x000093000000ffff    # DATA16
table_pointer:
    .word table_pointer - table - 1
    .quad CODE + table - low_code
    .macro gate handler
    .word CODE + \handler - low_code, CODE32, 0xee00, 0
    .endm
    .balign 8
gates32:
    .rept 6
    .quad 0
    .endr
    gate invalid_opcode32
    .rept 6
    .quad 0
    .endr
    gate protection32
    .rept 0x60 - 14
    .quad 0
    .endr
    gate software32
    gate hardware32
    gate timer32
    gate end_virtual_8086
gates32_pointer:
    .word gates32_pointer - gates32 - 1
    .long CODE + gates32 - low_code
gates16_pointer:
    .word 0x63 * 4 - 1
    .long 0
    .balign 8
kept_gates:
    .skip 16
kept_stack:
    .quad 0
mode:
    .long 0
kept_root:
    .long 0
kept_cr0:
    .long 0
kept_cr4:
    .long 0
kept_efer:
    .long 0
kept_stack32:
    .long 0
    .global low_code_end
low_code_end:
    .section .text
