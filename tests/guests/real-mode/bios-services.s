# A guest in real mode that calls each BIOS service and looks at what comes back. It has 32 MiB of memory, and
# somebody types "x" when asked. Assembled and linked to a flat file; started by Linux's 16-bit boot protocol.

    .intel_syntax noprefix
    .code16
    .text
    .org 0x1f1
    .byte 7                         # sectors of set-up code
    .word 0
    .long 1                         # paragraphs of the kernel
    .word 0, 0, 0
    .word 0xaa55
    .byte 0xeb, header_end - header # the entry
header:
    .ascii "HdrS"
    .word 0x0207
    .long 0
    .word 0, 0
    .byte 0, 1                      # loaded high
    .org 0x238
    .long 255                       # the longest command line
    .org 0x250
header_end:
    cld
    sti
    push ds                         # from here on one segment for everything
    push offset start
    retf

# Reports FAIL with this text unless the condition holds.
.macro must condition, text
    j\condition 1f
    call fail
    .asciz "\text"
1:
.endm

.macro must_carry text
    must c, "\text"
.endm

# Prints the text behind the call.
print:
    pop si
    call print_at
    jmp si

print_at:
1:  lodsb
    test al, al
    jz 2f
    out 0xe9, al
    jmp 1b
2:  ret

fail:
    call print
    .asciz "FAIL bios-services: "
    pop si
    call print_at
# The end: for lack of anything else to boot, the machine starts anew.
finish:
    call print
    .asciz "\n"
    int 0x18

ticks:  .byte 0
count_tick:
    inc byte ptr cs:[ticks]
    iret
entry:  .skip 20
usable: .long 0

start:
    int 0x12
    cmp ax, 640
    must e, "INT 12h: KiB of memory"
    int 0x11
    and ax, 0x0e00
    cmp ax, 0x0200
    must e, "INT 11h: serial ports"

    # Memory
    mov ah, 0x88
    int 0x15
    must nc, "INT 15h, 88h: carry"
    cmp ax, 31 * 1024
    must e, "INT 15h, 88h: KiB"
    mov ax, 0xe801
    int 0x15
    must nc, "INT 15h, E801h: carry"
    cmp ax, 15 * 1024
    must e, "INT 15h, E801h: KiB to 16 MiB"
    cmp bx, 256
    must e, "INT 15h, E801h: blocks from 16 MiB"
    cmp ax, cx
    must e, "INT 15h, E801h: CX"
    cmp bx, dx
    must e, "INT 15h, E801h: DX"
    xor ebx, ebx
next_range:
    mov eax, 0xe820
    mov edx, 0x534d4150
    mov ecx, 24
    mov di, offset entry
    int 0x15
    must nc, "INT 15h, E820h: carry"
    cmp eax, 0x534d4150
    must e, "INT 15h, E820h: SMAP"
    cmp ecx, 20
    must e, "INT 15h, E820h: length"
    cmp dword ptr [entry + 16], 1
    jne 2f
    mov eax, [entry + 8]
    add [usable], eax
2:  test ebx, ebx
    jnz next_range
    cmp dword ptr [usable], 0x2000000 - 0x60000
    must e, "INT 15h, E820h: usable memory"
    mov eax, 0xe820
    mov edx, 0x534d4150
    mov ecx, 20
    mov ebx, 0x10000
    int 0x15
    must_carry "INT 15h, E820h: an entry that is none"
    mov ax, 0xc000
    stc
    int 0x15
    must_carry "INT 15h, C0h: carry"
    cmp ah, 0x86
    must e, "INT 15h, C0h: AH"
    mov ax, 0x2402
    int 0x15
    must nc, "INT 15h, 2402h: carry"
    cmp al, 1
    must e, "INT 15h, 2402h: address line 20"

    # What is not there
    mov ax, 0x0201
    mov dl, 0x80
    clc
    int 0x13
    must_carry "INT 13h, 02h: carry"
    mov ah, 0x08
    mov dl, 0x80
    int 0x13
    must_carry "INT 13h, 08h: carry"
    test dl, dl
    must z, "INT 13h, 08h: disks"
    mov ah, 0x03
    xor dx, dx
    int 0x14
    test ah, 0x80
    must nz, "INT 14h: no answer"

    # Time
    mov ax, offset count_tick
    push 0
    pop fs
    cli
    mov fs:[0x1c * 4], ax
    mov fs:[0x1c * 4 + 2], cs
    sti
    xor ah, ah
    int 0x1a
    mov bx, dx
2:  hlt
    xor ah, ah
    int 0x1a
    sub dx, bx
    cmp dx, 2
    jb 2b
    cmp byte ptr cs:[ticks], 2
    must ae, "INT 1Ch: ticks"
    mov ah, 0x02
    int 0x1a
    must nc, "INT 1Ah, 02h: carry"
    cmp cl, 0x59
    must be, "INT 1Ah, 02h: minutes"
    mov ah, 0x04
    int 0x1a
    must nc, "INT 1Ah, 04h: carry"
    cmp ch, 0x20
    must e, "INT 1Ah, 04h: century"

    # PCI configuration space
    mov ax, 0xb101
    int 0x1a
    must nc, "INT 1Ah, B101h: carry"
    cmp edx, 0x20494350
    must e, "INT 1Ah, B101h: signature"
    mov ax, 0xb10a
    xor bx, bx
    xor di, di
    int 0x1a
    must nc, "INT 1Ah, B10Ah: carry"
    cmp cx, 0x8086
    must e, "INT 1Ah, B10Ah: the host bridge's vendor"
    mov esi, ecx
    mov ax, 0xb109
    mov di, 2
    int 0x1a
    shl ecx, 16
    mov cx, 0x8086
    cmp ecx, esi
    must e, "INT 1Ah, B109h: the host bridge's device"
    mov ax, 0xb108
    mov di, 1
    int 0x1a
    cmp cl, 0x80
    must e, "INT 1Ah, B108h: a byte"
    mov ax, 0xb109
    mov di, 1
    int 0x1a
    must_carry "INT 1Ah, B109h: an odd register"
    cmp ah, 0x87
    must e, "INT 1Ah, B109h: AH"

    # The screen
    mov ah, 0x0f
    int 0x10
    cmp ax, 0x5003
    must e, "INT 10h, 0Fh: mode and columns"
    mov ax, 0x0003
    int 0x10
    mov ah, 0x02
    xor bh, bh
    mov dx, 0x184f
    int 0x10
    mov ebx, 0x12340000
    mov ebp, 0x56789abc
    mov esi, 0xfedcba98
    mov edi, 0x76543210
    mov ax, 0x0e5a                  # Z in the last column of the last row: the screen scrolls
    int 0x10
    cmp ebx, 0x12340000
    must e, "INT 10h, 0Eh: EBX"
    cmp ebp, 0x56789abc
    must e, "INT 10h, 0Eh: EBP"
    cmp esi, 0xfedcba98
    must e, "INT 10h, 0Eh: ESI"
    cmp edi, 0x76543210
    must e, "INT 10h, 0Eh: EDI"
    mov ah, 0x03
    int 0x10
    cmp dx, 0x1800
    must e, "INT 10h, 03h: the cursor behind the last column"
    mov ah, 0x02
    mov dx, 0x174f
    int 0x10
    mov ah, 0x08
    int 0x10
    cmp ax, 0x075a
    must e, "INT 10h, 08h: the character that scrolled"
    mov ax, 0x0958
    mov bx, 0x001e
    mov cx, 3
    int 0x10
    mov ah, 0x08
    int 0x10
    cmp ax, 0x1e58
    must e, "INT 10h, 09h: character and attribute"
    mov ah, 0x03
    int 0x10
    cmp dx, 0x174f
    must e, "INT 10h, 09h: the cursor stays"
    mov ax, 0x0701                  # rows 22 to 24, columns 70 to 79, down by one
    mov bh, 0x70
    mov cx, 0x1646
    mov dx, 0x184f
    int 0x10
    mov ah, 0x08
    int 0x10
    cmp ax, 0x0720
    must e, "INT 10h, 07h: the line that came from above"
    mov ah, 0x02
    mov dx, 0x184f
    int 0x10
    mov ah, 0x08
    int 0x10
    cmp ax, 0x1e58
    must e, "INT 10h, 07h: the line that went down"
    mov ah, 0x02
    mov dx, 0x1646
    int 0x10
    mov ah, 0x08
    int 0x10
    cmp ax, 0x7020
    must e, "INT 10h, 07h: the new line"
    mov ax, 0x0600
    mov bh, 0x07
    xor cx, cx
    mov dx, 0x184f
    int 0x10
    mov ah, 0x08
    int 0x10
    cmp ax, 0x0720
    must e, "INT 10h, 06h: the screen is empty"

    # The keyboard
    mov ah, 0x01
    int 0x16
    must z, "INT 16h, 01h: nobody typed"
    mov ax, 0x0500
    mov cx, 0x1234
    int 0x16
    test al, al
    must z, "INT 16h, 05h: room"
    mov ah, 0x11
    int 0x16
    must nz, "INT 16h, 11h: a key"
    cmp ax, 0x1234
    must e, "INT 16h, 11h: which key"
    mov ah, 0x00
    int 0x16
    cmp ax, 0x1234
    must e, "INT 16h, 00h: which key"
    mov si, 15
2:  mov ax, 0x0500
    mov cx, si
    int 0x16
    dec si
    jnz 2b
    cmp al, 0
    must e, "INT 16h, 05h: room for fifteen"
    mov ax, 0x0500
    int 0x16
    cmp al, 1
    must e, "INT 16h, 05h: no room for sixteen"
    mov si, 15
2:  mov ah, 0x10
    int 0x16
    cmp ax, si
    must e, "INT 16h, 10h: keys in their order"
    dec si
    jnz 2b
    call print
    .asciz "bios-services: type x\n"
    mov ah, 0x00
    int 0x16
    cmp ax, 0x2d78
    must e, "INT 16h, 00h: what was typed"

    call print
    .asciz "PASS bios-services"
    jmp finish

    .org 0x1000
    .skip 16
