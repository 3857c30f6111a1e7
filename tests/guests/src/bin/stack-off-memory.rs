//! Takes an exception on a stack where no memory is. No instruction can be blamed: the monitor stops the guest.
#![no_std]
#![no_main]
// Unsafe because the instruction that faults is the point.
#![allow(unsafe_code)]

use core::arch::asm;

runtime::guest!(main);

/// Between memory and the PCI window.
const NOWHERE: u64 = 0xa000_0000;

fn main(_: &runtime::Machine) {
    // SAFETY: nothing behind it runs.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) NOWHERE, options(noreturn)) }
}
