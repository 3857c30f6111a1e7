//! Ends in a triple fault: an exception without an interrupt table. The monitor says so and stops the guest.
#![no_std]
#![no_main]
// Unsafe because the instruction that faults is the point.
#![allow(unsafe_code)]

use core::arch::asm;
use runtime::interrupts;

runtime::guest!(main);

fn main(_: &runtime::Machine) {
    interrupts::load(0, 0);
    // SAFETY: nothing behind it runs.
    unsafe { asm!("int3") }
    panic!("an exception without an interrupt table went unnoticed");
}
