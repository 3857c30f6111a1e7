//! The instruction after STI, MOV SS and POP SS runs before any interrupt, whether the CPU runs it or the
//! monitor.
#![no_std]
#![no_main]
// Unsafe because the order of single instructions is the point.
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::interrupts::{count, handle};
use runtime::{apic, cpu, println};

runtime::guest!(main);

const VECTOR: u8 = 0x50;
/// Where the interrupt came: the instruction that would have been next.
static RIP: AtomicU64 = AtomicU64::new(0);

/// Runs an instruction with an interrupt pending, right after one with a shadow; gives where it ended, and
/// where the interrupt came.
macro_rules! in_shadow {
    ($shadow:literal, $instruction:literal $(, $operand:ident($register:tt) $value:expr)*) => {{
        let end: u64;
        cpu::disable_interrupts();
        apic::send_self(VECTOR);
        let before = count(VECTOR);
        // SAFETY: the handler keeps every register, and the instructions touch what they name.
        unsafe {
            asm!(
                "lea r8, [rip + 2f]",
                "mov r9d, ss",
                $shadow,
                $instruction,
                "2: nop",
                "nop",
                "cli",
                out("r8") end, out("r9") _, $($operand($register) $value,)*
                out("r10") _, lateout("rax") _, lateout("rcx") _, lateout("rdx") _,
            );
        }
        assert_eq!(count(VECTOR), before + 1, "interrupts after {} and {}", $shadow, $instruction);
        let rip = RIP.load(Relaxed);
        assert_eq!(rip, end, "the interrupt after {} and {}", $shadow, $instruction);
    }};
}

fn main(_: &runtime::Machine) {
    apic::enable();
    handle(VECTOR, |frame| {
        RIP.store(frame.rip, Relaxed);
        apic::end_of_interrupt();
    });
    no_window_between_sti_and_cli();
    behind_sti();
    if cpu::is_tcg() {
        println!("interrupt-shadow: QEMU's CPUs do not always keep interrupts from behind MOV SS");
    } else {
        behind_stack_switch();
    }
    without_shadow();
}

fn no_window_between_sti_and_cli() {
    apic::send_self(VECTOR);
    // SAFETY: no interrupt can come.
    unsafe { asm!("sti", "cli", "sti", "cli") }
    assert_eq!(count(VECTOR), 0, "interrupts between STI and CLI");
    cpu::take_interrupts();
    assert_eq!(count(VECTOR), 1, "interrupts after STI");
}

fn behind_sti() {
    in_shadow!("sti", "nop");
    in_shadow!("sti", "mov r10, [rsp]");
    // These are the monitor's to do.
    in_shadow!("sti", "out 0x80, al");
    in_shadow!("sti", "in al, 0x21");
    in_shadow!("sti", "mov r10d, [rdx]", in("rdx") apic::BASE + 0x30);
    in_shadow!("sti", "rdmsr", in("rcx") u64::from(apic::APIC_BASE_MSR));
    in_shadow!("sti", "hlt");
}

/// Interrupts that come at moments of their own never come between MOV SS and the next instruction.
fn behind_stack_switch() {
    const ROUNDS: u64 = 20;
    apic::set_timer(VECTOR, apic::PERIODIC);
    // An odd number, and long enough for a slow CPU to get on in between.
    apic::start_timer(999_983);
    let first = count(VECTOR);
    while count(VECTOR) < first + ROUNDS {
        let behind: u64;
        RIP.store(0, Relaxed);
        // SAFETY: SS gets the value that it has.
        unsafe {
            asm!(
                "mov r9d, ss",
                "lea r8, [rip + 3f]",
                "mov ecx, 1000",
                "sti",
                "2: mov ss, r9d",
                "3: nop",
                "test cl, 63",
                "jnz 4f",
                "mov ss, r9d",
                "out 0x80, al",
                "4: dec ecx",
                "jnz 2b",
                "cli",
                out("r8") behind, out("r9") _, out("rcx") _,
            );
        }
        assert_ne!(RIP.load(Relaxed), behind, "an interrupt between MOV SS and the next instruction");
    }
    apic::start_timer(0);
    cpu::take_interrupts();
}

/// Without a shadow it comes at once: POPF brings none.
fn without_shadow() {
    let end: u64;
    apic::send_self(VECTOR);
    // SAFETY: the flags are those from before, with interrupts on.
    unsafe {
        asm!(
            "pushfq",
            "pop {flags}",
            "or {flags}, 0x200",
            "lea {end}, [rip + 2f]",
            "push {flags}",
            "popfq",
            "2: nop",
            "nop",
            "cli",
            end = out(reg) end,
            flags = out(reg) _,
        );
    }
    assert_eq!(RIP.load(Relaxed), end, "the interrupt after POPF");
}
