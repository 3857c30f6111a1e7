//! Halts for ever with interrupts off, and with a UART that interrupts for each byte that comes in.
#![no_std]
#![no_main]

use runtime::{apic, cpu, println, uart};

runtime::guest!(main);

const VECTOR: u8 = 0x40;

fn main(_: &runtime::Machine) {
    apic::enable();
    runtime::io_apic::route(uart::IRQ, VECTOR);
    uart::listen();
    println!("deaf from now on");
    cpu::disable_interrupts();
    cpu::halt_forever()
}
