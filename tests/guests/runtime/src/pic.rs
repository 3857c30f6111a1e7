//! The 8259 pair.

use crate::cpu::{read_port_u8, write_port_u8};

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
/// Edge or level, a bit an interrupt, 0 to 7; the port for 8 to 15 follows.
const EDGE_LEVEL: u16 = 0x4d0;
/// ICW1: edge-triggered, cascaded, ICW4 follows.
const INITIALIZE: u8 = 0x11;
/// ICW4: 8086 mode.
const MODE_8086: u8 = 0x01;
/// The master's input that the slave is at.
pub const CASCADE: u8 = 2;

/// Programs both: interrupts 0 to 15 get vectors from `vector` on, a multiple of 16. All are masked.
pub fn initialize(vector: u8) {
    for (base, offset, wiring) in [(MASTER, 0, 1 << CASCADE), (SLAVE, 8, CASCADE)] {
        write_port_u8(base, INITIALIZE);
        write_port_u8(base + 1, vector + offset);
        write_port_u8(base + 1, wiring);
        write_port_u8(base + 1, MODE_8086);
        write_port_u8(base + 1, 0xff);
    }
}

/// Masks all but these, a bit an interrupt; the cascade opens by itself.
pub fn listen(interrupts: u16) {
    let [low, high] = interrupts.to_le_bytes();
    let cascade = if high == 0 { 0 } else { 1 << CASCADE };
    write_port_u8(MASTER + 1, !(low | cascade));
    write_port_u8(SLAVE + 1, !high);
}

/// The non-specific end of interrupt.
pub fn end_of_interrupt(irq: u8) {
    const NON_SPECIFIC: u8 = 0x20;
    if irq >= 8 {
        write_port_u8(SLAVE, NON_SPECIFIC);
    }
    write_port_u8(MASTER, NON_SPECIFIC);
}

fn read(command: u8) -> u16 {
    let of = |base| {
        write_port_u8(base, command);
        read_port_u8(base)
    };
    u16::from_le_bytes([of(MASTER), of(SLAVE)])
}

/// What is requested (IRR).
pub fn requested() -> u16 {
    read(0x0a)
}

/// What is in service (ISR).
pub fn in_service() -> u16 {
    read(0x0b)
}

/// Has these interrupts, a bit each, be levels, and all others edges.
pub fn set_levels(interrupts: u16) {
    let [low, high] = interrupts.to_le_bytes();
    write_port_u8(EDGE_LEVEL, low);
    write_port_u8(EDGE_LEVEL + 1, high);
}
