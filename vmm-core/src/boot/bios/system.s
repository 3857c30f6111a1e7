// INT 11h to 15h and 17h: memory, and devices that are not there.

    // INT 11h: what there is: AX.
bios_equipment:
    pushw %ds
    pushw $BDA
    popw %ds
    movw BDA_EQUIPMENT, %ax
    popw %ds
    iretw

    // INT 12h: KiB of memory from zero on: AX.
bios_memory_size:
    pushw %ds
    pushw $BDA
    popw %ds
    movw BDA_MEMORY_SIZE, %ax
    popw %ds
    iretw

    // INT 13h: no disk, so that no function can be done.
bios_disk:
    cmpb $0x08, %ah
    jne 1f
    xorb %dl, %dl                           // how many there are
1:  movb $0x01, %ah
    jmp bios_return_carry

    // INT 14h: the serial port is the console's; for others it never answers.
bios_serial:
    movb $0x80, %ah
    iretw

    // INT 17h: a printer that never answers.
bios_printer:
    movb $0x01, %ah
    iretw

    // INT 15h
bios_system:
    cmpw $0xe820, %ax
    je bios_system_e820
    cmpw $0xe801, %ax
    je bios_system_e801
    cmpb $0x88, %ah
    je bios_system_88
    cmpb $0x24, %ah
    je bios_system_a20
bios_system_unknown:
    movb $0x86, %ah
    jmp bios_return_carry

    // 24h: address line 20, which is always there.
bios_system_a20:
    cmpb $0x01, %al
    je 1f
    cmpb $0x02, %al
    je 2f
    cmpb $0x03, %al
    jne bios_system_unknown
    movw $0x0002, %bx                       // port 92h has a switch for it
    jmp 1f
2:  movb $0x01, %al
1:  xorb %ah, %ah
    jmp bios_return_clear

    // 88h: KiB from 1 MiB on, at most 63 MiB: AX.
bios_system_88:
    movw %cs:(bios_memory_88 - bios_segment_start), %ax
    jmp bios_return_clear

    // E801h: KiB from 1 MiB to 16 MiB, AX and CX; 64-KiB blocks from there on, BX and DX.
bios_system_e801:
    movw %cs:(bios_memory_e801 - bios_segment_start), %ax
    movw %cs:(bios_memory_e801 - bios_segment_start + 2), %bx
    movw %ax, %cx
    movw %bx, %dx
    jmp bios_return_clear

    // E820h: entry EBX of the memory map to ES:DI; EBX is the next one's number, zero after the last.
bios_system_e820:
    cmpl $0x534d4150, %edx                  // "SMAP"
    jne bios_system_unknown
    cmpl $20, %ecx
    jb bios_system_unknown
    cmpl $16, %ebx
    jae bios_system_unknown
    cmpw %cs:(bios_e820_count - bios_segment_start), %bx
    jae bios_system_unknown
    cld
    pushw %si
    pushw %di
    movw %bx, %si
    shlw $2, %si
    addw %bx, %si
    shlw $2, %si                            // 20 bytes an entry
    addw $(bios_e820 - bios_segment_start), %si
    movw $10, %cx
1:  lodsw %cs:(%si), %ax
    stosw
    loop 1b
    popw %di
    popw %si
    incw %bx
    cmpw %cs:(bios_e820_count - bios_segment_start), %bx
    jb 2f
    xorw %bx, %bx
2:  movl $0x534d4150, %eax
    movl $20, %ecx
    jmp bios_return_clear

    // The image's last 16 bytes: where a CPU starts after a reset, the date, the model (PC/AT).
    .org bios_services + 0xff0
    .byte 0xea
    .word bios_reset - bios_segment_start, 0xf000
    .ascii "01/01/26"
    .byte 0
    .byte 0xfc
    .byte 0
    .code64
    .text
