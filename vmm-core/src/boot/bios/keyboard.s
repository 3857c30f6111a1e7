// INT 16h, the keyboard: what comes through the serial port, as if somebody had typed it on a US keyboard. The
// control sequences that terminals send for other keys come as they are, character by character.

    // IRQ 4: the serial port received something.
bios_serial_interrupt:
    pushaw
    pushw %ds
    pushw $BDA
    popw %ds
    call bios_take_keys
    movb $0x20, %al
    outb %al, $0x20
    popw %ds
    popaw
    iretw

    // Moves what the serial port received to the key buffer. What does not fit stays there, so that nothing
    // that is typed ahead is lost; no interrupt tells of it again.
bios_take_keys:
    pushaw
    movb $0, BDA_KEYS_LEFT
1:  movw $UART_LINE_STATUS, %dx
    inb %dx, %al
    testb $0x01, %al
    jz 2f
    call bios_key_room
    je 3f
    movw $UART, %dx
    inb %dx, %al
    call bios_key_of
    call bios_put_key
    jmp 1b
3:  movb $1, BDA_KEYS_LEFT
2:  popaw
    ret

    // The key whose character is AL: scan code in AH, character in AL.
bios_key_of:
    cmpb $0x7f, %al
    jne 1f
    movb $0x08, %al                         // what terminals send for Backspace
1:  xorb %ah, %ah
    testb $0x80, %al
    jnz 2f
    movw %ax, %bx
    movb %cs:(bios_scan_codes - bios_segment_start)(%bx), %ah
2:  ret

    // Where the next key goes, BX, and the one after it, SI; the zero flag when the buffer is full.
bios_key_room:
    movw BDA_KEY_TAIL, %bx
    movw %bx, %si
    incw %si
    incw %si
    cmpw $BDA_KEYS_END, %si
    jb 1f
    movw $BDA_KEYS, %si
1:  cmpw BDA_KEY_HEAD, %si
    ret

    // Puts the key AX into the buffer; the zero flag when it is full.
bios_put_key:
    call bios_key_room
    je 1f
    movw %ax, (%bx)
    movw %si, BDA_KEY_TAIL
1:  ret

bios_keyboard:
    pushw %bx
    pushw %si
    pushw %ds
    pushw $BDA
    popw %ds
    cld
    sti
    // What was typed ahead.
    cmpb $0, BDA_KEYS_LEFT
    je 1f
    cli
    call bios_take_keys
    sti
1:  // 10h to 12h are 00h to 02h for keyboards with more keys.
    movb %ah, %bl
    andb $0xef, %bl
    jz bios_keyboard_read
    cmpb $0x01, %bl
    je bios_keyboard_peek
    cmpb $0x02, %bl
    je bios_keyboard_flags
    cmpb $0x05, %ah
    je bios_keyboard_put
bios_keyboard_done:
    popw %ds
    popw %si
    popw %bx
    iretw

    // 00h: waits for a key: AX.
bios_keyboard_read:
    cli
    movw BDA_KEY_HEAD, %si
    cmpw BDA_KEY_TAIL, %si
    jne 1f
    sti
    hlt
    jmp bios_keyboard_read
1:  lodsw
    cmpw $BDA_KEYS_END, %si
    jb 2f
    movw $BDA_KEYS, %si
2:  movw %si, BDA_KEY_HEAD
    jmp bios_keyboard_done

    // 01h: the next key, AX, which stays; the zero flag when there is none.
bios_keyboard_peek:
    cli
    movw %sp, %bx
    movw BDA_KEY_HEAD, %si
    cmpw BDA_KEY_TAIL, %si
    je 1f
    movw (%si), %ax
    andb $~0x40, %ss:10(%bx)
    jmp bios_keyboard_done
1:  orb $0x40, %ss:10(%bx)
    jmp bios_keyboard_done

    // 02h: which shift keys are down: AL.
bios_keyboard_flags:
    movb BDA_SHIFT_FLAGS, %al
    jmp bios_keyboard_done

    // 05h: puts the key CX into the buffer; AL is 1 when it is full.
bios_keyboard_put:
    cli
    pushw %ax
    movw %cx, %ax
    call bios_put_key
    popw %ax
    sete %al
    jmp bios_keyboard_done

    // Scan codes (set 1) of the keys that type the ASCII characters.
bios_scan_codes:
    .byte 0x03, 0x1e, 0x30, 0x2e, 0x20, 0x12, 0x21, 0x22    // Ctrl-@, Ctrl-A to Ctrl-G
    .byte 0x0e, 0x0f, 0x24, 0x25, 0x26, 0x1c, 0x31, 0x18    // Backspace, Tab, Ctrl-J to Ctrl-L, Enter, Ctrl-N, O
    .byte 0x19, 0x10, 0x13, 0x1f, 0x14, 0x16, 0x2f, 0x11    // Ctrl-P to Ctrl-W
    .byte 0x2d, 0x15, 0x2c, 0x01, 0x2b, 0x1b, 0x07, 0x0c    // Ctrl-X to Ctrl-Z, Esc, Ctrl-\, ], 6, -
    .byte 0x39, 0x02, 0x28, 0x04, 0x05, 0x06, 0x08, 0x28    // space ! " # $ % & '
    .byte 0x0a, 0x0b, 0x09, 0x0d, 0x33, 0x0c, 0x34, 0x35    // ( ) * + , - . /
    .byte 0x0b, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08    // 0 to 7
    .byte 0x09, 0x0a, 0x27, 0x27, 0x33, 0x0d, 0x34, 0x35    // 8 9 : ; < = > ?
    .byte 0x03, 0x1e, 0x30, 0x2e, 0x20, 0x12, 0x21, 0x22    // @ A to G
    .byte 0x23, 0x17, 0x24, 0x25, 0x26, 0x32, 0x31, 0x18    // H to O
    .byte 0x19, 0x10, 0x13, 0x1f, 0x14, 0x16, 0x2f, 0x11    // P to W
    .byte 0x2d, 0x15, 0x2c, 0x1a, 0x2b, 0x1b, 0x07, 0x0c    // X Y Z [ \ ] ^ _
    .byte 0x29, 0x1e, 0x30, 0x2e, 0x20, 0x12, 0x21, 0x22    // ` a to g
    .byte 0x23, 0x17, 0x24, 0x25, 0x26, 0x32, 0x31, 0x18    // h to o
    .byte 0x19, 0x10, 0x13, 0x1f, 0x14, 0x16, 0x2f, 0x11    // p to w
    .byte 0x2d, 0x15, 0x2c, 0x1a, 0x2b, 0x1b, 0x29, 0x0e    // x y z { | } ~
