//! Takes an exception through an interrupt table where no memory is. No instruction can be blamed: the monitor
//! stops the guest.
#![no_std]
#![no_main]
// Unsafe because the instruction that faults is the point.
#![allow(unsafe_code)]

use core::arch::asm;
use runtime::interrupts;

runtime::guest!(main);

/// Between memory and the PCI window.
const NOWHERE: u64 = 0xa000_0000;

fn main(_: &runtime::Machine) {
    interrupts::load(NOWHERE, 0xfff);
    // SAFETY: nothing behind it runs.
    unsafe { asm!("ud2", options(noreturn)) }
}
