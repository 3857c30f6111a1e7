//! From PVH's 32-bit entry to 64-bit Rust: a stack, the first 4 GiB mapped onto themselves, a GDT.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18              // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad start

    .section .bss
    .balign 4096
    .global root_table
root_table:         .skip 4096
pointer_table:      .skip 4096
directories:        .skip 4 * 4096
stack:              .skip 64 * 1024
stack_top:

    .section .rodata
    .balign 8
descriptors:
    .quad 0
    .quad 0x00af9b000000ffff    // 8: code, 64 bits
    .quad 0x00cf93000000ffff    // 16: data
descriptors_end:
descriptor_pointer:
    .word descriptors_end - descriptors - 1
    .quad descriptors

    .section .text
    .code32
    .global start
start:
    cli
    cld
    mov esp, offset stack_top
    mov esi, ebx                // the start info

    mov eax, offset pointer_table
    or eax, 3
    mov [root_table], eax
    mov eax, offset directories
    or eax, 3
    mov edi, offset pointer_table
    mov ecx, 4
map_directory:
    mov [edi], eax
    add eax, 4096
    add edi, 8
    loop map_directory
    mov eax, 0x83               // 2 MiB, present, writable
    mov edi, offset directories
    mov ecx, 2048
map_page:
    mov [edi], eax
    add eax, 0x200000
    add edi, 8
    loop map_page

    mov eax, offset root_table
    mov cr3, eax
    mov eax, cr4
    or eax, 0x620               // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080         // EFER: LME and NXE
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, cr0
    or eax, 0x80010001          // PG, WP, PE
    mov cr0, eax
    lgdt [descriptor_pointer]
    push 8
    mov eax, offset long_mode
    push eax
    retf

    .code64
long_mode:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset stack_top
    mov edi, esi
    xor ebp, ebp
    call run_guest
    ud2
    "#
);
