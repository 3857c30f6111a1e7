// IRQ 0 and INT 1Ah: time.

    // IRQ 0, INT 08h: one of 18.2 ticks a second has passed.
bios_timer_interrupt:
    pushw %ds
    pushl %eax
    pushw $BDA
    popw %ds
    movl BDA_TICKS, %eax
    incl %eax
    cmpl $0x1800b0, %eax                    // ticks of a day
    jb 1f
    xorl %eax, %eax
    movb $1, BDA_MIDNIGHT
1:  movl %eax, BDA_TICKS
    int $0x1c
    movb $0x20, %al
    outb %al, $0x20
    popl %eax
    popw %ds
    iretw

bios_clock:
    pushw %ds
    pushw $BDA
    popw %ds
    testb %ah, %ah
    je bios_clock_ticks
    cmpb $0x01, %ah
    je bios_clock_set_ticks
    cmpb $0x02, %ah
    je bios_clock_time
    cmpb $0x04, %ah
    je bios_clock_date
    popw %ds
    cmpb $0xb1, %ah
    je bios_pci
    jmp bios_return_carry

    // 00h: ticks since midnight, CX:DX; AL tells whether midnight has passed since this was last asked.
bios_clock_ticks:
    movw BDA_TICKS, %dx
    movw BDA_TICKS + 2, %cx
    xorb %al, %al
    xchgb BDA_MIDNIGHT, %al
    jmp bios_clock_done

    // 01h: sets the ticks to CX:DX.
bios_clock_set_ticks:
    movw %dx, BDA_TICKS
    movw %cx, BDA_TICKS + 2
    movb $0, BDA_MIDNIGHT
bios_clock_done:
    xorb %ah, %ah
    popw %ds
    jmp bios_return_clear

    // 02h: the time, CH:CL:DH in BCD; DL tells of daylight saving.
bios_clock_time:
    pushw %ax
    call bios_wait_for_clock
    movb $0x04, %al
    call bios_read_cmos
    movb %al, %ch
    movb $0x02, %al
    call bios_read_cmos
    movb %al, %cl
    movb $0x00, %al
    call bios_read_cmos
    movb %al, %dh
    movb $0x0b, %al
    call bios_read_cmos
    andb $1, %al
    movb %al, %dl
    popw %ax
    jmp bios_clock_done

    // 04h: the date, CH and CL the year, DH the month, DL the day, in BCD.
bios_clock_date:
    pushw %ax
    call bios_wait_for_clock
    movb $0x32, %al
    call bios_read_cmos
    movb %al, %ch
    movb $0x09, %al
    call bios_read_cmos
    movb %al, %cl
    movb $0x08, %al
    call bios_read_cmos
    movb %al, %dh
    movb $0x07, %al
    call bios_read_cmos
    movb %al, %dl
    popw %ax
    jmp bios_clock_done

    // Waits until the clock's registers stay the same for a while.
bios_wait_for_clock:
    movb $0x0a, %al
    call bios_read_cmos
    testb $0x80, %al
    jnz bios_wait_for_clock
    ret

    // Byte AL of the CMOS memory: AL.
bios_read_cmos:
    outb %al, $0x70
    inb $0x71, %al
    ret

    // Byte AL of the CMOS memory in BCD: EAX.
bios_read_cmos_number:
    call bios_read_cmos
    pushw %bx
    movb %al, %bl
    andb $0x0f, %bl
    shrb $4, %al
    movb $10, %bh
    mulb %bh
    addb %bl, %al
    popw %bx
    movzbl %al, %eax
    ret

    // How many ticks midnight is ago: EAX.
bios_read_midnight_ticks:
    call bios_wait_for_clock
    movb $0x04, %al
    call bios_read_cmos_number
    imull $3600, %eax, %ebx
    movb $0x02, %al
    call bios_read_cmos_number
    imull $60, %eax, %eax
    addl %eax, %ebx
    movb $0x00, %al
    call bios_read_cmos_number
    addl %ebx, %eax
    movl $1193182, %ebx                     // the timer's counts a second, 65536 of them a tick
    mull %ebx
    shrdl $16, %edx, %eax
    ret
