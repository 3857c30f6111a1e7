//! Ends that no guest comes back from, and states that no CPU should be asked to be in.

use core::arch::asm;
use runtime::interrupts::{self, GateKind, catch};
use runtime::{Machine, cpu, memory};

/// An exception with an interrupt table of no entries.
pub fn triple_fault(_: &Machine, _: &str) {
    interrupts::load(0, 0);
    // SAFETY: nothing is left to come back to.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// A reset, by a guest that is started again after each.
pub fn reset(_: &Machine, _: &str) {
    const RESET_CONTROL: u16 = 0xcf9;
    cpu::write_port_u8(RESET_CONTROL, 6);
}

/// Jumps to thousands of addresses where there is no memory, and in the end to one without a way back.
pub fn jump_nowhere(_: &Machine, _: &str) {
    for address in (0x1000_0000..0xf000_0000_u64).step_by(0x10_1000) {
        assert!(catch(|| jump(address)).is_some(), "a jump to {address:#x} came back");
    }
    interrupts::load(0xd000_0000, 0xfff);
    jump(0xd000_0000);
}

fn jump(address: u64) {
    // SAFETY: `catch` takes up the pieces, or nothing does.
    unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) }
}

/// Ways to a state that a CPU must refuse to enter, and a monitor must never ask it to: each is one fault.
pub fn bad_states(_: &Machine, _: &str) {
    const NOT_CANONICAL: u64 = 0x8000_0000_0000;
    /// Where an IRET that is not refused goes: INT 0x80, by which the runtime takes its code back.
    const BACK: u64 = 0x9000;
    (BACK..).zip([0xcd_u8, 0x80]).for_each(|(address, byte)| memory::write(address, byte));
    (0..32).for_each(|vector| interrupts::set_gate(vector, GateKind::OwnStack));
    let attempts: [fn(); 9] = [
        || jump(NOT_CANONICAL),
        || return_to(NOT_CANONICAL, 0x08, 2),
        // Compatibility mode with virtual-8086 mode asked for, and with every flag set.
        || return_to(BACK, 0x40, 1 << 17 | 2),
        || return_to(BACK, 0x08, !(1 << 8)),
        // Nested task: IRET must not switch tasks in long mode.
        || return_to(BACK, 0x08, 1 << 14 | 2),
        // SYSRET to where SYSCALL cannot have come from.
        // SAFETY: `catch` takes up the pieces.
        || unsafe { asm!("sysretq", in("rcx") 0x8000_0000_0000_u64, in("r11") 2) },
        // SAFETY: the stack pointer is none when the fault comes; the gates bring their own.
        || unsafe { asm!("mov rsp, {}", "push rax", "ud2", in(reg) NOT_CANONICAL, options(noreturn)) },
        // General detect: the next access to a debug register traps.
        || {
            cpu::set_dr7(1 << 13 | 0x400);
            cpu::dr0();
        },
        // SAFETY: single steps, with a trap pending behind a segment load.
        || unsafe {
            asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "mov {0:x}, ss", "mov ss, {0:x}", "in al, 0x80", out(reg) _, out("al") _)
        },
    ];
    for attempt in attempts {
        catch(attempt);
        cpu::set_dr7(0x400);
    }
}

/// IRET with these in its frame.
fn return_to(rip: u64, selector: u64, flags: u64) {
    // SAFETY: `catch` takes up the pieces.
    unsafe {
        asm!("mov {old}, rsp", "push 16", "push {old}", "push {flags}", "push {selector}", "push {rip}", "iretq",
            old = out(reg) _, flags = in(reg) flags, selector = in(reg) selector, rip = in(reg) rip)
    }
}
