//! From the 32-bit entry of PVH, Multiboot or Multiboot2 to 64-bit Rust: a stack, the first 4 GiB mapped onto themselves, a GDT.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18              // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad start

    .section .multiboot, "a"
    .balign 8
multiboot2:
    .long 0xe85250d6, 0, multiboot2_end - multiboot2
    .long -(0xe85250d6 + multiboot2_end - multiboot2)
    .short 1, 0                 // information that must be known: the command line,
    .long 24, 1, 3, 6, 15       // modules, the memory map, the RSDP
    .short 6, 0                 // modules at pages
    .long 8
    .short 0, 0
    .long 8
multiboot2_end:
    .long 0x1badb002, 3, -(0x1badb002 + 3)

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
    mov esi, ebx                // what the loader tells,
    mov ebp, eax                // and which one it is

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
    mov esi, ebp
    xor ebp, ebp
    call run_guest
    ud2
    "#
);
