//! A second CPU begins where it is told to, and nowhere else, however soon the start-up message follows INIT.
#![no_std]
#![no_main]

use runtime::{apic, smp};

runtime::guest!(main);

const ROUNDS: usize = 3000;

fn main(_: &runtime::Machine) {
    apic::enable();
    smp::start(1, smp::idle);
    for _ in 0..ROUNDS {
        smp::start_over(1);
    }
}
