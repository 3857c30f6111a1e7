//! HLT: waits for an interrupt and no longer, with one pending not at all, and not with a single-step trap due.
#![no_std]
#![no_main]
// Unsafe because the order of single instructions is the point.
#![allow(unsafe_code)]

use core::arch::asm;
use runtime::interrupts::{count, flag, handle};
use runtime::pm_timer::Stopwatch;
use runtime::{apic, cpu, println};

runtime::guest!(main);

const VECTOR: u8 = 0x60;
const DEBUG: u8 = 1;

fn main(_: &runtime::Machine) {
    apic::enable();
    pending_interrupt();
    waits_for_the_timer();
    masked_by_priority();
    if cpu::is_bare_tcg() {
        println!("halt: bare TCG waits on, trap or not");
    } else {
        stepped_over();
    }
}

fn pending_interrupt() {
    apic::send_self(VECTOR);
    cpu::wait_for_interrupt();
    assert_eq!(count(VECTOR), 1, "interrupts at STI; HLT with one pending");
}

fn waits_for_the_timer() {
    apic::set_timer(VECTOR, 0);
    for round in 0..10 {
        let (stopwatch, before) = (Stopwatch::start(), count(VECTOR));
        apic::start_timer(2_000_000);
        cpu::wait_for_interrupt();
        let took = stopwatch.micros();
        assert_eq!(count(VECTOR), before + 1, "interrupts after HLT, round {round}");
        assert!(took >= 1_000, "HLT took {took} us, and the timer 2000");
    }
}

/// What the task priority holds back does not wake.
fn masked_by_priority() {
    cpu::set_cr8(0xf);
    let before = count(VECTOR);
    apic::send_self(VECTOR);
    const WAKER: u8 = 0xf8;
    handle(WAKER, |_| ());
    cpu::set_cr8(0xe);
    apic::set_timer(WAKER, 0);
    let stopwatch = Stopwatch::start();
    apic::start_timer(2_000_000);
    cpu::wait_for_interrupt();
    let took = stopwatch.micros();
    assert_eq!((count(WAKER), count(VECTOR)), (1, before), "interrupts after HLT at priority 14");
    assert!(took >= 1_000, "HLT took {took} us: woken by what the task priority holds back");
    apic::end_of_interrupt();
    cpu::set_cr8(0);
    cpu::take_interrupts();
    assert_eq!(count(VECTOR), before + 1, "interrupts after the task priority fell");
}

/// A debug trap ends HLT (SDM volume 2, HLT), so a debugger can step over it.
fn stepped_over() {
    handle(DEBUG, |frame| frame.rflags &= !flag::TF);
    // SAFETY: interrupts are off: only the trap goes on behind HLT.
    unsafe {
        asm!("pushfq", "or dword ptr [rsp], {trap}", "popfq", "hlt", trap = const flag::TF);
    }
    assert_eq!(count(DEBUG), 1, "traps at HLT");
}
