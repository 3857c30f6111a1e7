//! Into the payload: flat 32-bit protected mode, paging off, interrupts off, the table's address on the stack.
#![allow(unsafe_code)] // Leaving long mode exists in assembly only.

use core::arch::global_asm;

use crate::{physical, reset};

unsafe extern "C" {
    static handoff_gdt: u8;
    static handoff_gdt_end: u8;
    fn handoff_jump(entry: u64, table: u64, physical_base: u64) -> !;
}

// The GDT and the stack lie in the stage's own memory, which the table tells the payload to keep.
global_asm!(
    r#"
    .text
    .balign 16
    .globl handoff_gdt, handoff_gdt_end, handoff_jump
handoff_gdt:
    .quad 0
    .quad 0x00CF9B000000FFFF    // 0x08: flat 32-bit code
    .quad 0x00CF93000000FFFF    // 0x10: flat data
handoff_gdt_end:

    .code64
handoff_jump:
    cli
    movq $__stage_virtual, %rax
    subq %rdx, %rax                     // RAX: virtual minus physical
    movl $__stage_reserved, %ecx
    leaq (%rdx, %rcx), %rsp             // the stage's stack, by its physical address
    subq $16, %rsp
    leaq handoff_gdt(%rip), %rcx
    subq %rax, %rcx
    movw $(handoff_gdt_end - handoff_gdt - 1), (%rsp)
    movq %rcx, 2(%rsp)
    lgdtq (%rsp)
    leaq handoff32(%rip), %rcx
    subq %rax, %rcx
    pushq $0x08
    pushq %rcx
    lretq

    .code32
handoff32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    movl %cr0, %eax
    andl $0x7FFFFFFF, %eax              // PG
    movl %eax, %cr0
    movl $0xC0000080, %ecx              // EFER
    rdmsr
    andl $0xFFFFFEFF, %eax              // LME
    wrmsr
    xorl %eax, %eax
    movl %eax, %cr4
    movl %eax, %cr3
    andl $0xFFFFFFF0, %esp
    subl $12, %esp
    pushl %esi
    calll *%edi
1:  cli
    hlt
    jmp 1b
    .code64
    "#,
    options(att_syntax)
);

/// The physical address and limit of the GDT that the payload and the halted processors use.
pub fn gdt() -> (u64, u16) {
    let size = &raw const handoff_gdt_end as usize - &raw const handoff_gdt as usize;
    (physical::address_of(&raw const handoff_gdt), size as u16 - 1)
}

/// Enters the payload at physical `entry` with the coreboot table at physical `table`.
pub fn enter(entry: u32, table: u64) -> ! {
    // SAFETY: nothing of the stage is needed after; the payload was loaded where the entry point is.
    unsafe { handoff_jump(u64::from(entry), table, reset::physical_base()) }
}
