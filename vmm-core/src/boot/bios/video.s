// INT 10h: a text screen of 80 by 25 characters in memory at B8000h, and the same on the terminal behind the
// serial port, by the control sequences of ECMA-48.

bios_video:
    cld
    pushw %ds
    pushw %es
    pushw $BDA
    popw %ds
    pushw $0xb800
    popw %es
    cmpb $0x0e, %ah
    je bios_video_teletype
    cmpb $0x08, %ah
    je bios_video_read
    cmpb $0x03, %ah
    je bios_video_cursor
    cmpb $0x0f, %ah
    je bios_video_mode
    call bios_send_unsent
    cmpb $0x09, %ah
    je bios_video_write
    cmpb $0x0a, %ah
    je bios_video_write
    cmpb $0x02, %ah
    je bios_video_move
    cmpb $0x06, %ah
    je bios_video_scroll
    cmpb $0x07, %ah
    je bios_video_scroll
    cmpb $0x01, %ah
    je bios_video_shape
    testb %ah, %ah
    je bios_video_set_mode
bios_video_done:
    popw %es
    popw %ds
    iretw

    // 00h: set the mode AL, of which there is one; bit 7 keeps the screen.
bios_video_set_mode:
    pushaw
    testb $0x80, %al
    jnz 1f
    xorw %di, %di
    movw $80 * 25, %cx
    movw $0x0720, %ax
    rep stosw
    movw $0, BDA_CURSOR
    movb $0x07, %bl
    call bios_send_attribute
    movw $(bios_text_erase - bios_segment_start), %si
    call bios_send_text
    call bios_send_cursor
1:  popaw
    jmp bios_video_done

    // 01h: the cursor's shape is CX; bit 13 hides it.
bios_video_shape:
    pushaw
    movw %cx, BDA_CURSOR_SHAPE
    movw $(bios_text_show_cursor - bios_segment_start), %si
    testb $0x20, %ch
    jz 1f
    movw $(bios_text_hide_cursor - bios_segment_start), %si
1:  call bios_send_text
    popaw
    jmp bios_video_done

    // 02h: the cursor goes to row DH, column DL.
bios_video_move:
    movw %dx, BDA_CURSOR
    call bios_send_cursor
    jmp bios_video_done

    // 03h: where the cursor is, and its shape.
bios_video_cursor:
    movw BDA_CURSOR, %dx
    movw BDA_CURSOR_SHAPE, %cx
    jmp bios_video_done

    // 06h, 07h: scroll the window from row CH, column CL to row DH, column DL up or down by AL lines, 0 for
    // all; BH is the attribute of new lines.
bios_video_scroll:
    pushaw
    cmpb $24, %dh
    jbe 1f
    movb $24, %dh
1:  cmpb $79, %dl
    jbe 1f
    movb $79, %dl
1:  cmpb %dh, %ch
    ja 9f
    cmpb %dl, %cl
    ja 9f
    movb %dh, %bl
    subb %ch, %bl
    incb %bl                                // the window's lines
    testb %al, %al
    jz 1f
    cmpb %bl, %al
    jb 2f
1:  movb %bl, %al
2:  movb %al, %bl
3:  cmpb $0x06, %ah
    je 4f
    call bios_line_down
    jmp 5f
4:  call bios_line_up
5:  decb %al
    jnz 3b
    // One control sequence erases the whole screen.
    cmpb $25, %bl
    jne 6f
    testb %cl, %cl
    jnz 6f
    cmpb $79, %dl
    jne 6f
    movb %bh, %bl
    call bios_send_attribute
    movw $(bios_text_erase - bios_segment_start), %si
    call bios_send_text
    jmp 8f
6:  call bios_send_window
8:  call bios_send_cursor
9:  popaw
    jmp bios_video_done

    // 08h: the character and the attribute under the cursor.
bios_video_read:
    pushw %di
    movw BDA_CURSOR, %di
    call bios_cell
    movw %es:(%di), %ax
    popw %di
    jmp bios_video_done

    // 09h, 0Ah: writes the character AL, CX times from the cursor on, with attribute BL or those that are
    // there; the cursor stays.
bios_video_write:
    pushaw
    jcxz 9f
    movw BDA_CURSOR, %di
    call bios_cell
    movw %di, %si
    movw %cx, %bp
1:  cmpw $80 * 25 * 2, %di
    jae 2f
    movb %al, %es:(%di)
    cmpb $0x0a, %ah
    je 3f
    movb %bl, %es:1(%di)
3:  incw %di
    incw %di
    loop 1b
2:  // What writes one character mostly teletypes it next, to move the cursor on: that sends it.
    decw %bp
    jnz 4f
    movb $1, BDA_UNSENT
    jmp 9f
4:  cmpw %di, %si
    jae 5f
    movw %es:(%si), %ax
    call bios_send_cell
    incw %si
    incw %si
    jmp 4b
5:  call bios_send_cursor
9:  popaw
    jmp bios_video_done

    // 0Eh: writes the character AL as a teletype does.
bios_video_teletype:
    pushaw
    cmpb $0x20, %al
    jb 1f
    call bios_type
    jmp 9f
1:  call bios_send_unsent
    movw BDA_CURSOR, %dx
    cmpb $0x07, %al
    je 8f
    cmpb $0x08, %al
    je 2f
    cmpb $0x09, %al
    je 3f
    cmpb $0x0a, %al
    je 4f
    cmpb $0x0d, %al
    je 5f
    call bios_type
    jmp 9f
2:  // Backspace
    testb %dl, %dl
    jz 9f
    decw BDA_CURSOR
    jmp 8f
3:  // Tabulator
    movb $0x20, %al
    call bios_type
    testb $7, BDA_CURSOR
    jnz 3b
    jmp 9f
4:  // Line feed
    call bios_next_line
    jmp 8f
5:  // Carriage return
    movb $0, BDA_CURSOR
8:  call bios_send
9:  popaw
    jmp bios_video_done

    // 0Fh: mode AL with AH columns, page BH.
bios_video_mode:
    movb BDA_VIDEO_MODE, %al
    movb BDA_COLUMNS, %ah
    xorb %bh, %bh
    jmp bios_video_done

    // Puts the character AL under the cursor with the attribute that is there, and moves on.
bios_type:
    pushaw
    movw BDA_CURSOR, %di
    call bios_cell
    movb $0, BDA_UNSENT
    movb %al, %es:(%di)
    movb %es:1(%di), %ah
    call bios_send_cell
    incb BDA_CURSOR
    cmpb $80, BDA_CURSOR
    jb 1f
    movb $0, BDA_CURSOR
    call bios_next_line
    // Terminals wait at the end of a line for the next character.
    movb $0x0d, %al
    call bios_send
    movb $0x0a, %al
    call bios_send
1:  popaw
    ret

    // Moves the cursor a line down, or else the screen up; the terminal does so by itself.
bios_next_line:
    pushaw
    incb BDA_CURSOR + 1
    cmpb $25, BDA_CURSOR + 1
    jb 1f
    movb $24, BDA_CURSOR + 1
    xorw %cx, %cx
    movw $0x184f, %dx
    movb $0x07, %bh
    call bios_line_up
1:  popaw
    ret

    // Where the cell in row DI / 256, column DI % 256 lies: DI.
bios_cell:
    pushw %ax
    pushw %dx
    movw %di, %dx
    movb $80, %al
    mulb %dh
    xorb %dh, %dh
    addw %dx, %ax
    shlw $1, %ax
    movw %ax, %di
    popw %dx
    popw %ax
    ret

    // Moves the window from CX to DX up by a line; the new one at the bottom has attribute BH.
bios_line_up:
    pushaw
    movw %cx, %ax
1:  cmpb %dh, %ah
    je bios_new_line
    movw %ax, %di
    addw $0x0100, %ax
    movw %ax, %si
    call bios_copy_line
    jmp 1b

    // Moves it down by a line; the new one is at the top.
bios_line_down:
    pushaw
    movb %dh, %ah
    movb %cl, %al
1:  cmpb %ch, %ah
    je bios_new_line
    movw %ax, %di
    subw $0x0100, %ax
    movw %ax, %si
    call bios_copy_line
    jmp 1b

    // The last of either: fills the line at AX.
bios_new_line:
    movw %ax, %di
    call bios_cell
    call bios_width
    movb $0x20, %al
    movb %bh, %ah
    rep stosw
    popaw
    ret

    // Copies the window's part of a line from position SI to position DI.
bios_copy_line:
    pushaw
    call bios_cell
    xchgw %di, %si
    call bios_cell
    xchgw %di, %si
    call bios_width
1:  movw %es:(%si), %ax
    stosw
    incw %si
    incw %si
    loop 1b
    popaw
    ret

    // How many columns the window from CX to DX has: CX.
bios_width:
    movb %dl, %ch
    subb %cl, %ch
    movb %ch, %cl
    xorb %ch, %ch
    incw %cx
    ret

    // Sends the window from CX to DX.
bios_send_window:
    pushaw
    movw %cx, %bp
1:  movw %bp, %ax
    movb %al, %cl
    call bios_send_position
    movw %ax, %di
    call bios_cell
    pushw %ax
2:  movw %es:(%di), %ax
    call bios_send_cell
    incw %di
    incw %di
    incb %cl
    cmpb %dl, %cl
    jbe 2b
    popw %ax
    addw $0x0100, %bp
    incb %ah
    cmpb %dh, %ah
    jbe 1b
    popaw
    ret

    // Sends what was written under the cursor, if that was not sent.
bios_send_unsent:
    cmpb $0, BDA_UNSENT
    je 1f
    pushaw
    movb $0, BDA_UNSENT
    movw BDA_CURSOR, %di
    call bios_cell
    movw %es:(%di), %ax
    call bios_send_cell
    call bios_send_cursor
    popaw
1:  ret

    // Sends the character AL in attribute AH. The terminal has ASCII.
bios_send_cell:
    pushw %ax
    pushw %bx
    movb %ah, %bl
    call bios_send_attribute
    cmpb $0x20, %al
    jb 1f
    cmpb $0x7f, %al
    jb 2f
1:  movb $'?', %al
2:  call bios_send
    popw %bx
    popw %ax
    ret

    // Sends where the cursor is.
bios_send_cursor:
    pushw %ax
    movw BDA_CURSOR, %ax
    call bios_send_position
    popw %ax
    ret

    // Sends the cursor to row AH, column AL.
bios_send_position:
    pushaw
    movw %ax, %bx
    movw $(bios_text_sequence - bios_segment_start), %si
    call bios_send_text
    movb %bh, %al
    incb %al
    call bios_send_decimal
    movb $';', %al
    call bios_send
    movb %bl, %al
    incb %al
    call bios_send_decimal
    movb $'H', %al
    call bios_send
    popaw
    ret

    // Has the terminal show what follows in attribute BL.
bios_send_attribute:
    cmpb BDA_SHOWN_ATTRIBUTE, %bl
    je 9f
    pushaw
    movb %bl, BDA_SHOWN_ATTRIBUTE
    movw $(bios_text_plain - bios_segment_start), %si
    call bios_send_text
    testb $0x08, %bl
    jz 1f
    movw $(bios_text_bold - bios_segment_start), %si
    call bios_send_text
1:  movb $'3', %ah
    call bios_send_colour
    movb %bl, %bh
    shrb $4, %bl
    movb $'4', %ah
    call bios_send_colour
    movb $'m', %al
    call bios_send
    popaw
9:  ret

    // Sends the digit AH and the colour in BL, whose red and blue bits are the other way round in ECMA-48;
    // nothing for grey on black, the terminal's own colours.
bios_send_colour:
    pushw %bx
    andb $7, %bl
    movb $';', %al
    cmpw $('3' << 8 | ';'), %ax
    jne 1f
    cmpb $7, %bl
    je 9f
1:  cmpw $('4' << 8 | ';'), %ax
    jne 2f
    testb %bl, %bl
    je 9f
2:  call bios_send
    movb %ah, %al
    call bios_send
    movb %bl, %al
    andb $2, %al
    testb $1, %bl
    jz 3f
    orb $4, %al
3:  testb $4, %bl
    jz 4f
    orb $1, %al
4:  addb $'0', %al
    call bios_send
9:  popw %bx
    ret

    // Sends AL, at most 99, in decimal.
bios_send_decimal:
    pushw %ax
    aam
    addw $0x3030, %ax
    xchgb %al, %ah
    cmpb $'0', %al
    je 1f
    call bios_send
1:  movb %ah, %al
    call bios_send
    popw %ax
    ret

    // Sends the text at CS:SI up to its NUL.
bios_send_text:
    pushw %ax
1:  lodsb %cs:(%si), %al
    testb %al, %al
    jz 2f
    call bios_send
    jmp 1b
2:  popw %ax
    ret

    // Sends the byte AL as soon as the serial port takes it.
bios_send:
    pushw %ax
    pushw %cx
    pushw %dx
    movb %al, %ah
    movw $UART_LINE_STATUS, %dx
    xorw %cx, %cx
1:  inb %dx, %al
    testb $0x20, %al
    loopz 1b
    movb %ah, %al
    movw $UART, %dx
    outb %al, %dx
    popw %dx
    popw %cx
    popw %ax
    ret

bios_text_erase:        .asciz "\033[2J"
bios_text_show_cursor:  .asciz "\033[?25h"
bios_text_hide_cursor:  .asciz "\033[?25l"
bios_text_sequence:     .asciz "\033["
bios_text_plain:        .asciz "\033[0"
bios_text_bold:         .asciz ";1"
