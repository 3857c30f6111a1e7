//! From the reset vector to Rust: real mode, flat 32-bit mode, a copy of the stage at the top of low memory,
//! long mode.
#![allow(unsafe_code)] // The first instructions of the machine exist in assembly only.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::i440fx;

static PHYSICAL_BASE: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    /// Where paging shows the stage.
    static __stage_virtual: u8;
    /// Bytes that the stage owns at the top of low memory.
    static __stage_reserved: u8;
}

/// First byte that the stage is linked at.
pub fn virtual_base() -> u64 {
    &raw const __stage_virtual as u64
}

/// Bytes that the stage owns at the top of low memory.
pub fn reserved_bytes() -> u64 {
    &raw const __stage_reserved as u64
}

/// Where the stage is in physical memory.
pub fn physical_base() -> u64 {
    PHYSICAL_BASE.load(Ordering::Relaxed)
}

/// The first Rust that runs. The reset code passes where it put the stage and what the TSC read first.
extern "C" fn enter(physical_base: u64, reset_time: u64) -> ! {
    PHYSICAL_BASE.store(physical_base, Ordering::Relaxed);
    crate::start(reset_time)
}

// The stage runs at the top of low memory, wherever that is on this machine, because coreboot's ramstage does
// and because a payload may be linked anywhere below. Paging lets one static link do: page tables show the copy
// at one fixed address, and all of the first 4 GiB at their own.
global_asm!(
    r#"
    .section .reset_vector, "ax"
    .code16
    .globl reset_vector
reset_vector:
    jmp reset16
    .org reset_vector + 16          // cbfstool puts its pointer into the last four bytes

    .section .reset, "ax"
    .balign 16
reset_gdt:
    .quad 0
    .quad 0x00CF9B000000FFFF    // 0x08: flat 32-bit code
    .quad 0x00CF93000000FFFF    // 0x10: flat data
    .quad 0x00AF9B000000FFFF    // 0x18: 64-bit code
reset_gdt_end:
reset_gdtr:
    .word reset_gdt_end - reset_gdt - 1
    .long reset_gdt

    .code16
reset16:
    cli
    cld
    // CS still has its base of 0xFFFF0000 from reset.
    lgdtl %cs:(reset_gdtr - 0xFFFF0000)
    movl %cr0, %eax
    andl $0x9FFFFFFF, %eax      // caches on: CD and NW are set at reset
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $reset32

    .code32
reset32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs

    // Time starts here; EBP:ESP keep the counter until there is a stack.
    rdtsc
    movl %eax, %esp
    movl %edx, %ebp

    // CMOS 0x34 and 0x35: memory between 16 MiB and 4 GiB in units of 64 KiB.
    movb $0xB5, %al
    outb %al, $0x70
    inb $0x71, %al
    shll $8, %eax
    movb $0xB4, %al
    outb %al, $0x70
    inb $0x71, %al
    movzwl %ax, %ebx
    shll $16, %ebx
    addl $0x1000000, %ebx
    subl $__stage_reserved, %ebx

    // Bochs gives its RAM out in blocks of 128 KiB in the order in which they are first touched, and loads a
    // file as if the blocks behind its first one were next in line. So they have to be, before all others.
    movl $0x80000000, %eax
    movw $0xCF8, %dx
    outl %eax, %dx
    movw $0xCFC, %dx
    inl %dx, %eax
    cmpl ${i440fx}, %eax
    jne 2f
    movl ${files}, %edi
1:  movb (%edi), %al
    addl $0x20000, %edi
    cmpl %ebx, %edi
    jb 1b
2:
    // EBX: where the stage goes in physical memory.
    movl %ebx, %edi
    movl $__stage_flash, %esi
    movl $__stage_image_words, %ecx
    rep movsl
    xorl %eax, %eax
    movl $__stage_cleared_words, %ecx
    rep stosl

    // Tables, one page each: PML4, PDPT of low addresses, PDPT of the stage, PD of the stage, PT of the stage,
    // four PDs of the first 4 GiB.
    leal __page_tables_offset(%ebx), %edi
    leal 0x1003(%edi), %eax
    movl %eax, 0x0000(%edi)             // PML4[0]
    leal 0x2003(%edi), %eax
    movl %eax, 0x0FF8(%edi)             // PML4[511]
    leal 0x3003(%edi), %eax
    movl %eax, 0x2FF0(%edi)             // PDPT[510]: 0xFFFFFFFF80000000
    leal 0x4003(%edi), %eax
    movl %eax, 0x3000(%edi)

    leal 0x5003(%edi), %eax
    leal 0x1000(%edi), %edx
    movl $4, %ecx
1:  movl %eax, (%edx)
    addl $0x1000, %eax
    addl $8, %edx
    loop 1b

    leal 0x3(%ebx), %eax                // the stage in 4 KiB pages
    leal 0x4000(%edi), %edx
    movl $__stage_reserved_pages, %ecx
1:  movl %eax, (%edx)
    addl $0x1000, %eax
    addl $8, %edx
    loop 1b

    movl $0x83, %eax                    // the first 4 GiB in 2 MiB pages
    leal 0x5000(%edi), %edx
    movl $2048, %ecx
1:  movl %eax, (%edx)
    addl $0x200000, %eax
    addl $8, %edx
    loop 1b

    movl %edi, %cr3
    movl $0x20, %eax                    // PAE
    movl %eax, %cr4
    movl %ebp, %esi
    movl $0xC0000080, %ecx              // EFER
    rdmsr
    orl $0x100, %eax                    // LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax               // PG
    movl %eax, %cr0
    ljmpl $0x18, $reset64

    .code64
reset64:
    movl %ebx, %edi                     // first argument: physical base
    shlq $32, %rsi                      // second: time-stamp counter at reset
    movl %esp, %eax
    orq %rax, %rsi
    movq $__stage_stack_top, %rsp
    xorl %ebp, %ebp
    movabsq ${start}, %rax
    callq *%rax
2:  cli
    hlt
    jmp 2b

    .text
    "#,
    start = sym enter,
    i440fx = const i440fx::HOST_BRIDGE_IDENTITY,
    files = const i440fx::FILES,
    options(att_syntax)
);
