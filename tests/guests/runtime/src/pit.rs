//! The PIT's channel 0.

use crate::cpu::{read_port_u8, write_port_u8};

/// Its frequency in Hz.
pub const HERTZ: u32 = 1_193_182;
/// The IOAPIC pin that its interrupt reaches.
pub const PIN: u8 = 2;
/// Channel 0's port.
pub const PORT: u16 = 0x40;
const CONTROL: u16 = 0x43;
/// Channel 0, both bytes of the count, mode 2: one pulse each period.
const RATE_GENERATOR: u8 = 0x34;
/// Channel 0, both bytes of the count, mode 0: one edge at the end.
const ONE_SHOT: u8 = 0x30;

fn start(mode: u8, count: u16) {
    write_port_u8(CONTROL, mode);
    count.to_le_bytes().into_iter().for_each(|byte| write_port_u8(PORT, byte));
}

/// An interrupt every `count` ticks.
pub fn start_periodic(count: u16) {
    start(RATE_GENERATOR, count);
}

/// One interrupt after `count` ticks.
pub fn start_once(count: u16) {
    start(ONE_SHOT, count);
}

/// What channel 0 counts at this moment.
pub fn read() -> u16 {
    write_port_u8(CONTROL, 0);
    u16::from_le_bytes([read_port_u8(PORT), read_port_u8(PORT)])
}

/// Whether channel 0's output is high.
pub fn output() -> bool {
    /// Read-back: the status of channel 0.
    const STATUS: u8 = 0xe2;
    write_port_u8(CONTROL, STATUS);
    read_port_u8(PORT) & 1 << 7 != 0
}
