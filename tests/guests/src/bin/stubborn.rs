//! Keeps its core as long as it is let, with interrupts off and without an exit.
#![no_std]
#![no_main]

use core::hint::black_box;

runtime::guest!(main);

fn main(_: &runtime::Machine) {
    runtime::println!("stubborn: spinning");
    loop {
        black_box(());
    }
}
