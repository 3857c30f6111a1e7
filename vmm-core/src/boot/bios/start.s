// Start: what firmware leaves behind before it boots something. Entered once, in real mode, at bios_start.

    .section .rodata.bios_services, "a"
    .balign 16
    .globl bios_services
bios_services:
    // The image ends where its segment does, so that the reset vector is where a PC has it. A label's offset
    // in segment F000 is its distance from here.
    .set bios_segment_start, bios_services - 0xf000

    // Filled in by the loader: see Parameters in mod.rs.
bios_entry:             .word 0, 0      // offset, segment
bios_entry_data:        .word 0
bios_entry_stack:       .word 0
bios_memory_88:         .word 0
bios_memory_e801:       .word 0, 0
bios_e820_count:        .word 0
bios_e820:              .skip 16 * 20

    // The BIOS data area (segment 40h), as programs know it, and a few bytes of our own where it has room.
    .set BDA, 0x40
    .set BDA_SERIAL_PORT, 0x00
    .set BDA_EQUIPMENT, 0x10
    .set BDA_MEMORY_SIZE, 0x13
    .set BDA_SHIFT_FLAGS, 0x17
    .set BDA_KEY_HEAD, 0x1a
    .set BDA_KEY_TAIL, 0x1c
    .set BDA_KEYS, 0x1e
    .set BDA_KEYS_END, 0x3e
    .set BDA_VIDEO_MODE, 0x49
    .set BDA_COLUMNS, 0x4a
    .set BDA_PAGE_BYTES, 0x4c
    .set BDA_CURSOR, 0x50
    .set BDA_CURSOR_SHAPE, 0x60
    .set BDA_CRTC_PORT, 0x63
    .set BDA_TICKS, 0x6c
    .set BDA_MIDNIGHT, 0x70
    .set BDA_KEYS_START_POINTER, 0x80
    .set BDA_KEYS_END_POINTER, 0x82
    .set BDA_LAST_ROW, 0x84
    .set BDA_CHARACTER_HEIGHT, 0x85
    .set BDA_SHOWN_ATTRIBUTE, 0xac      // ours: what the terminal shows characters in
    .set BDA_UNSENT, 0xad               // ours: the character under the cursor was written but not sent
    .set BDA_KEYS_LEFT, 0xae            // ours: the serial port may hold keys that the buffer had no room for

    .set UART, 0x3f8
    .set UART_LINE_STATUS, UART + 5

    .code16
    .globl bios_start
bios_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ss
    movw $0x7000, %sp
    movw %ax, %es

    // Interrupt vectors: one that returns for all, those of the 8259 pair, then those with a service.
    xorw %di, %di
    movw $256, %cx
    movw $(bios_return - bios_segment_start), %ax
    call bios_fill_vectors
    movw $0x08 * 4, %di
    movw $8, %cx
    movw $(bios_irq_master - bios_segment_start), %ax
    call bios_fill_vectors
    movw $0x70 * 4, %di
    movw $8, %cx
    movw $(bios_irq_slave - bios_segment_start), %ax
    call bios_fill_vectors
    movw $(bios_services_table - bios_segment_start), %si
1:  lodsw %cs:(%si), %ax
    testw %ax, %ax
    jz 2f
    movw %ax, %di
    lodsw %cs:(%si), %ax
    stosw
    jmp 1b
2:

    movw $BDA, %ax
    movw %ax, %ds
    movw %ax, %es
    xorw %di, %di
    movw $0x80, %cx
    xorw %ax, %ax
    rep stosw
    movw $UART, BDA_SERIAL_PORT
    movw $0x0222, BDA_EQUIPMENT             // coprocessor, 80x25 in colour, one serial port
    movw $640, BDA_MEMORY_SIZE
    movw $BDA_KEYS, BDA_KEY_HEAD
    movw $BDA_KEYS, BDA_KEY_TAIL
    movw $BDA_KEYS, BDA_KEYS_START_POINTER
    movw $BDA_KEYS_END, BDA_KEYS_END_POINTER
    movb $3, BDA_VIDEO_MODE
    movw $80, BDA_COLUMNS
    movw $0x1000, BDA_PAGE_BYTES
    movw $0x0607, BDA_CURSOR_SHAPE
    movw $0x3d4, BDA_CRTC_PORT
    movb $24, BDA_LAST_ROW
    movw $16, BDA_CHARACTER_HEIGHT
    movb $0x07, BDA_SHOWN_ATTRIBUTE
    movw $0xb800, %ax
    movw %ax, %es
    xorw %di, %di
    movw $80 * 25, %cx
    movw $0x0720, %ax
    rep stosw

    // The 8259 pair at vectors 08h and 70h; timer, cascade and serial port are heard.
    movb $0x11, %al
    outb %al, $0x20
    outb %al, $0xa0
    movb $0x08, %al
    outb %al, $0x21
    movb $0x70, %al
    outb %al, $0xa1
    movb $0x04, %al
    outb %al, $0x21
    movb $0x02, %al
    outb %al, $0xa1
    movb $0x01, %al
    outb %al, $0x21
    outb %al, $0xa1
    movb $0xea, %al
    outb %al, $0x21
    movb $0xff, %al
    outb %al, $0xa1

    // The timer: 65536 counts a tick, 18.2 ticks a second.
    movb $0x36, %al
    outb %al, $0x43
    xorb %al, %al
    outb %al, $0x40
    outb %al, $0x40
    call bios_read_midnight_ticks
    movl %eax, BDA_TICKS

    // The serial port: 115200 baud, 8N1, FIFOs, an interrupt for every byte that comes.
    movw $UART + 3, %dx
    movb $0x80, %al
    outb %al, %dx
    movw $UART, %dx
    movb $1, %al
    outb %al, %dx
    incw %dx
    xorb %al, %al
    outb %al, %dx
    movw $UART + 3, %dx
    movb $0x03, %al
    outb %al, %dx
    decw %dx
    movb $0x07, %al
    outb %al, %dx
    movw $UART + 4, %dx
    movb $0x0b, %al
    outb %al, %dx
    movw $UART + 1, %dx
    movb $0x01, %al
    outb %al, %dx

    // The local APIC lets the 8259 pair through (virtual wire mode). Its page is within reach of a segment
    // that was loaded in protected mode.
    lgdtl %cs:(bios_gdt_pointer - bios_segment_start)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    movw $8, %cx
    movw %cx, %fs
    andb $0xfe, %al
    movl %eax, %cr0
    movl $0xfee00000, %ebx
    movl $0x0000010f, %fs:0xf0(%ebx)        // spurious vector 0Fh, software-enabled
    movl $0x00000700, %fs:0x350(%ebx)       // LINT0: ExtINT
    movl $0x00000400, %fs:0x360(%ebx)       // LINT1: NMI
    xorw %cx, %cx
    movw %cx, %fs

    // What is booted is entered as Linux's protocol says, with interrupts off.
    xorl %eax, %eax
    xorl %ebx, %ebx
    xorl %ecx, %ecx
    xorl %edx, %edx
    xorl %esi, %esi
    xorl %edi, %edi
    xorl %ebp, %ebp
    movw %cs:(bios_entry_data - bios_segment_start), %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movw %ax, %ss
    movzwl %cs:(bios_entry_stack - bios_segment_start), %esp
    xorw %ax, %ax
    ljmpw *%cs:(bios_entry - bios_segment_start)

    // Sets CX vectors from ES:DI on to CS:AX.
bios_fill_vectors:
    stosw
    pushw %ax
    movw %cs, %ax
    stosw
    popw %ax
    loop bios_fill_vectors
    ret

    // Where a service's vector lies, and its offset.
bios_services_table:
    .word 0x08 * 4, bios_timer_interrupt - bios_segment_start
    .word 0x0c * 4, bios_serial_interrupt - bios_segment_start
    .word 0x10 * 4, bios_video - bios_segment_start
    .word 0x11 * 4, bios_equipment - bios_segment_start
    .word 0x12 * 4, bios_memory_size - bios_segment_start
    .word 0x13 * 4, bios_disk - bios_segment_start
    .word 0x14 * 4, bios_serial - bios_segment_start
    .word 0x15 * 4, bios_system - bios_segment_start
    .word 0x16 * 4, bios_keyboard - bios_segment_start
    .word 0x17 * 4, bios_printer - bios_segment_start
    .word 0x18 * 4, bios_reset - bios_segment_start
    .word 0x19 * 4, bios_reset - bios_segment_start
    .word 0x1a * 4, bios_clock - bios_segment_start
    .word 0

    .balign 8
bios_gdt:
    .quad 0
    .quad 0x00cf93000000ffff                // 8: flat data
bios_gdt_pointer:
    .word 15
    .long 0xf0000 + (bios_gdt - bios_segment_start)

    // Nothing boots after what was booted: INT 18h, INT 19h and the reset vector start the machine anew.
bios_reset:
    movw $0xcf9, %dx
    movb $0x06, %al
    outb %al, %dx
1:  hlt
    jmp 1b

bios_irq_slave:
    pushw %ax
    movb $0x20, %al
    outb %al, $0xa0
    jmp 1f
bios_irq_master:
    pushw %ax
1:  movb $0x20, %al
    outb %al, $0x20
    popw %ax
bios_return:
    iretw

    // Ends a service whose caller looks at the carry flag: clear or set in the flags that IRET takes back.
bios_return_clear:
    pushw %bp
    movw %sp, %bp
    andb $0xfe, 6(%bp)
    popw %bp
    iretw
bios_return_carry:
    pushw %bp
    movw %sp, %bp
    orb $0x01, 6(%bp)
    popw %bp
    iretw
