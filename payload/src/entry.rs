//! From coreboot's flat 32-bit protected mode to Rust in long mode.
//!
//! coreboot calls the entry point as a C function: paging off, interrupts off, the coreboot table's address
//! in `[esp + 4]`. Its GDT and stack lie in its own memory, so both are left behind at once. The page tables
//! made here map the first 4 GiB one to one, with every right; [`crate::host::paging`] replaces them.
// Unsafe because this is where the machine's state becomes what Rust expects.
#![allow(unsafe_code)]

use crate::host::stacks::{BOOT_STACKS, MainStack};
use core::arch::global_asm;

global_asm!(
    r#"
    .section .entry, "ax"
    .code32
    .global payload_entry
payload_entry:
    cli
    cld
    rdtsc
    mov esi, eax                    # the time stamp at entry, in EBP:ESI
    mov ebp, edx
    mov edi, [esp + 4]              # the coreboot table
    mov esp, offset {stack} + {stack_bytes}

    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb 9f
    mov eax, 0x80000001
    cpuid
    bt edx, 29                      # long mode
    jnc 9f
    mov ebx, edx

    # One PML4 entry, four page directories of 2 MiB pages.
    mov dword ptr [early_pml4], offset early_pdpt + 3
    mov eax, offset early_directories + 3
    xor ecx, ecx
2:  mov [early_pdpt + ecx * 8], eax
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jb 2b
    mov eax, 0x83                   # present, writable, large
    xor ecx, ecx
3:  mov [early_directories + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jb 3b

    mov eax, cr4
    or eax, 1 << 5                  # PAE
    mov cr4, eax
    mov eax, offset early_pml4
    mov cr3, eax
    mov ecx, 0xc0000080             # EFER
    rdmsr
    or eax, 1 << 8                  # LME
    bt ebx, 20
    jnc 4f
    or eax, 1 << 11                 # NXE
4:  wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3             # caches on; no emulated or trapped FPU
    or eax, 0x80010022              # PG, WP, NE, MP
    mov cr0, eax
    lgdt [early_gdt_pointer]
    push 8
    mov eax, offset long_mode
    push eax
    retf

    # Without long mode there is nothing to run on, and no console known to say so.
9:  hlt
    jmp 9b

    .code64
long_mode:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov esp, esp
    mov edi, edi
    mov esi, esi
    shl rbp, 32
    or rsi, rbp
    xor ebp, ebp                    # the end of every backtrace
    call {start}
    ud2

    .section .rodata.entry, "a"
    .balign 8
early_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 64-bit code
    .quad 0x00cf93000000ffff        # data
early_gdt_pointer:
    .word early_gdt_pointer - early_gdt - 1
    .long early_gdt

    .section .bss.entry, "aw", @nobits
    .balign 0x1000
early_pml4:
    .skip 0x1000
early_pdpt:
    .skip 0x1000
early_directories:
    .skip 0x4000
    .text
"#,
    stack = sym BOOT_STACKS,
    stack_bytes = const MainStack::SIZE,
    start = sym start,
);

/// The first Rust function: `table` is what coreboot passed, `entry_tsc` the time-stamp counter on entry.
extern "sysv64" fn start(table: u64, entry_tsc: u64) -> ! {
    crate::boot(table, entry_tsc)
}
