//! A fault on the way to a fault's handler is a double fault; a fault on the way to another kind's is not.
#![no_std]
#![no_main]
// Unsafe because the instructions that fault are the point.
#![allow(unsafe_code)]

use core::arch::asm;
use runtime::interrupts::{Fault, GateKind, catch, gate_error, set_gate};
use runtime::{memory, println};

runtime::guest!(main);

const BREAKPOINT: u8 = 3;
const INVALID_OPCODE: u8 = 6;
const DOUBLE_FAULT: u8 = 8;
const NOT_PRESENT: u8 = 11;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
/// A page of memory that nothing else uses.
const PAGE: u64 = 0x80_0000;

fn main(_: &runtime::Machine) {
    set_gate(DOUBLE_FAULT, GateKind::OwnStack);
    set_gate(GENERAL_PROTECTION, GateKind::Absent);
    expect("#NP on the way to #GP", catch(load_bad_selector), DOUBLE_FAULT, 0);
    set_gate(GENERAL_PROTECTION, GateKind::Interrupt);

    set_gate(PAGE_FAULT, GateKind::Absent);
    memory::unmap(PAGE);
    let fault = expect("#NP on the way to #PF", catch(touch), DOUBLE_FAULT, 0);
    assert_eq!(fault.cr2, PAGE, "CR2");
    set_gate(PAGE_FAULT, GateKind::Interrupt);

    let fault = expect("#PF on the way to #PF", catch(touch_on_absent_stack), DOUBLE_FAULT, 0);
    assert_eq!(fault.cr2 & !0xfff, PAGE + 0xf000, "CR2");

    // The first is benign, so the second is its own: of #UD, #BP and INT n alike.
    for (what, vector) in [("#UD", INVALID_OPCODE), ("#BP", BREAKPOINT)] {
        set_gate(vector, GateKind::Absent);
        let fault = catch(|| {
            // SAFETY: the fault is caught.
            unsafe { if vector == BREAKPOINT { asm!("int3") } else { asm!("ud2") } }
        });
        let fault = fault.unwrap_or_else(|| panic!("{what}: no fault"));
        println!("double-fault: {what}: vector {}, error code {:#x}", fault.vector, fault.error_code);
        assert_eq!(fault.vector, NOT_PRESENT, "{what}");
        // Bit 0 tells of an event from outside the program, and not all agree on what that is.
        assert!(gate_error(vector).contains(&(fault.error_code & !1)), "{what}: {:#x}", fault.error_code);
        set_gate(vector, GateKind::Interrupt);
    }
    memory::map(PAGE);
}

fn expect(what: &str, fault: Option<Fault>, vector: u8, error_code: u64) -> Fault {
    let Some(fault) = fault else { panic!("{what}: no fault") };
    println!("double-fault: {what}: vector {}, error code {:#x}", fault.vector, fault.error_code);
    assert_eq!((fault.vector, fault.error_code), (vector, error_code), "{what}");
    fault
}

fn load_bad_selector() {
    // SAFETY: it faults.
    unsafe { asm!("mov ds, {0:e}", in(reg) 0x4320) }
}

fn touch() {
    memory::read::<u8>(PAGE);
}

fn touch_on_absent_stack() {
    // SAFETY: it faults, and is caught on another stack.
    unsafe { asm!("mov rsp, {}", "mov rax, [{}]", in(reg) PAGE + 0xf800, in(reg) PAGE, options(noreturn)) }
}
