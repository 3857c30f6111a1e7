// INT 1Ah, AH = B1h: PCI configuration space (PCI BIOS specification 2.1), through the ports CF8h and CFCh.

bios_pci:
    cmpb $0x01, %al
    je bios_pci_present
    cmpb $0x08, %al
    jb bios_pci_unknown
    cmpb $0x0d, %al
    jbe bios_pci_access
bios_pci_unknown:
    movb $0x81, %ah
    jmp bios_return_carry

    // 01h: version 2.1, configuration mechanism 1, no bus but bus 0.
bios_pci_present:
    movl $0x20494350, %edx                  // "PCI "
    movw $0x0001, %ax
    movw $0x0210, %bx
    xorb %cl, %cl
    jmp bios_return_clear

    // 08h to 0Ah read, 0Bh to 0Dh write a byte, word or doubleword of bus BH, device and function BL, at
    // register DI; the value is in CL, CX or ECX.
bios_pci_access:
    pushl %eax
    pushw %dx
    cmpw $0x100, %di
    jae 9f
    movzwl %bx, %eax
    shll $8, %eax
    orl $0x80000000, %eax
    movw %di, %dx
    movb %dl, %al
    andb $0xfc, %al
    andw $3, %dx                            // the byte within the doubleword
    pushw %dx
    movw $0xcf8, %dx
    outl %eax, %dx
    popw %dx
    movw %sp, %ax
    xchgw %ax, %bx
    movb %ss:2(%bx), %bl                    // the function
    xchgw %ax, %bx
    cmpb $0x08, %al
    je 1f
    cmpb $0x0b, %al
    je 4f
    testb $1, %dl
    jnz 9f
    cmpb $0x09, %al
    je 2f
    cmpb $0x0c, %al
    je 5f
    testb %dl, %dl
    jnz 9f
    addw $0xcfc, %dx
    cmpb $0x0a, %al
    jne 6f
    inl %dx, %eax
    movl %eax, %ecx
    jmp 8f
1:  addw $0xcfc, %dx
    inb %dx, %al
    movb %al, %cl
    jmp 8f
2:  addw $0xcfc, %dx
    inw %dx, %ax
    movw %ax, %cx
    jmp 8f
4:  addw $0xcfc, %dx
    movb %cl, %al
    outb %al, %dx
    jmp 8f
5:  addw $0xcfc, %dx
    movw %cx, %ax
    outw %ax, %dx
    jmp 8f
6:  movl %ecx, %eax
    outl %eax, %dx
8:  popw %dx
    popl %eax
    xorb %ah, %ah
    jmp bios_return_clear
9:  popw %dx
    popl %eax
    movb $0x87, %ah                         // a register that is none, or across two
    jmp bios_return_carry
