//! Guests that never do anything again, at every privilege level and in every mode.

use core::arch::{asm, global_asm};
use runtime::interrupts::{self, GateKind, flag};
use runtime::{Machine, cpu, memory};

/// HLT with interrupts off.
pub fn halt_forever(_: &Machine, _: &str) {
    cpu::halt_forever()
}

/// A loop in the kernel.
pub fn ring_0(_: &Machine, _: &str) {
    // SAFETY: nothing is left to come back to.
    unsafe { asm!("2: jmp 2b", options(noreturn)) }
}

/// The same at privilege level 1.
pub fn ring_1(_: &Machine, _: &str) {
    ring(1)
}

/// And at level 2.
pub fn ring_2(_: &Machine, _: &str) {
    ring(2)
}

/// And at level 3.
pub fn ring_3(_: &Machine, _: &str) {
    for page in [0, memory::LARGE_PAGE] {
        memory::allow_user(page);
    }
    ring(3)
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Code and data for each privilege level.
static SEGMENTS: [u64; 9] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00af_bb00_0000_ffff,
    0x00cf_b300_0000_ffff,
    0x00af_db00_0000_ffff,
    0x00cf_d300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
];

/// Spins at this level.
fn ring(level: u64) -> ! {
    let pointer = Pointer { limit: size_of_val(&SEGMENTS) as u16 - 1, base: &raw const SEGMENTS as u64 };
    let (code, data) = (8 + level * 16 + level, 16 + level * 16 + level);
    // SAFETY: nothing is left to come back to.
    unsafe {
        asm!("lgdt [{pointer}]", "mov {stack}, rsp", "push {data}", "push {stack}", "pushfq", "push {code}",
            "lea {stack}, [rip + 2f]", "push {stack}", "iretq", "2: jmp 2b",
            pointer = in(reg) &raw const pointer, stack = in(reg) 0_u64, data = in(reg) data, code = in(reg) code,
            options(noreturn))
    }
}

/// Where code for the modes without paging goes: below 1 MiB.
const LOW: u64 = 0x8000;

global_asm!(
    r#"
    .set low_16_at, 0x8000 + (low_16 - low_code)
    .set low_spin_at, 0x8000 + (low_spin - low_code)
    .section .rodata
    // Runs at 0x8000, from a 32-bit segment of the runtime's: leaves long mode.
low_code:
    .code32
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    mov esp, 0x7000
    test ebx, ebx
    jnz enter_virtual_8086
    .byte 0xea                          // to a 16-bit segment
    .long low_16_at
    .word 0x48
enter_virtual_8086:
    push 0                              // GS, FS, DS, ES
    push 0
    push 0
    push 0
    push 0                              // SS:SP
    push 0x7000
    push ebx                            // EFLAGS
    push 0
    .byte 0x68                          // push
    .long low_spin_at
    iretd
low_16:
    .code16
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea                          // to real mode
    .word low_spin_at
    .word 0
low_spin:
    jmp low_spin
low_code_end:
    .code64
    "#
);

unsafe extern "C" {
    static low_code: u8;
    static low_code_end: u8;
}

/// Spins in real mode.
pub fn real_mode(_: &Machine, _: &str) {
    leave_long_mode(0)
}

/// Spins in virtual-8086 mode.
pub fn virtual_8086(_: &Machine, _: &str) {
    /// VM, and IOPL 3.
    const VIRTUAL: u64 = 1 << 17 | flag::IOPL | 2;
    leave_long_mode(VIRTUAL)
}

/// Runs the low code, to real mode, or to virtual-8086 mode with these flags.
fn leave_long_mode(flags: u64) -> ! {
    let (start, end) = (&raw const low_code as u64, &raw const low_code_end as u64);
    for offset in 0..end - start {
        memory::write::<u8>(LOW + offset, memory::read(start + offset));
    }
    // SAFETY: nothing is left to come back to. RBX is LLVM's own, so it is set by hand.
    unsafe {
        asm!("mov rbx, {flags}", "push 0x40", "push {low}", "retfq",
            flags = in(reg) flags, low = in(reg) LOW, options(noreturn))
    }
}

/// An exception after each instruction, and one whose delivery raises it again: a breakpoint on the stack of its
/// own handler. QEMU 7.2 ends with an assertion there, so it has the first alone.
pub fn exceptions(_: &Machine, _: &str) {
    const STACK: u64 = 0x60_0000;
    /// Breakpoint 0: on, for reads and writes of 8 bytes.
    const WATCH: u64 = 1 << 0 | 0b11 << 16 | 0b10 << 18 | 0x400;
    interrupts::set_gate(1, GateKind::OwnStack);
    runtime::descriptors::set_interrupt_stack(STACK);
    if !cpu::is_tcg() {
        cpu::set_dr0(STACK - 8);
        cpu::set_dr7(WATCH);
    }
    interrupts::handle(1, |_| {});
    // SAFETY: steps through a loop for ever, if the CPU ever comes that far.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "2: jmp 2b", options(noreturn)) }
}
