//! The real-time clock.

use crate::cpu::{read_port_u8, write_port_u8};

/// The IOAPIC pin that its interrupt reaches.
pub const PIN: u8 = 8;
const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const STATUS_A: u8 = 10;
const STATUS_B: u8 = 11;
const STATUS_C: u8 = 12;
const PERIODIC_INTERRUPT: u8 = 1 << 6;
/// Status A: the usual divider, and 1024 periods a second.
const RATE_1024: u8 = 0x26;

/// Reads a register.
pub fn read(index: u8) -> u8 {
    write_port_u8(INDEX, index);
    read_port_u8(DATA)
}

/// Writes a register.
pub fn write(index: u8, value: u8) {
    write_port_u8(INDEX, index);
    write_port_u8(DATA, value);
}

/// An interrupt 1024 times a second; each must be acknowledged.
pub fn start_periodic() {
    write(STATUS_A, RATE_1024);
    write(STATUS_B, read(STATUS_B) | PERIODIC_INTERRUPT);
    acknowledge();
}

/// Lets the next interrupt come, and gives the reasons of the last.
pub fn acknowledge() -> u8 {
    read(STATUS_C)
}

/// No more interrupts.
pub fn stop() {
    write(STATUS_B, read(STATUS_B) & !PERIODIC_INTERRUPT);
    acknowledge();
}
