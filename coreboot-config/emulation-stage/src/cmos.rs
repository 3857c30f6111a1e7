//! What emulators note in CMOS, as a board's firmware would for itself.

use core::ops::Range;

use emulation_stage::memory_map;

use crate::port;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
/// NMI stays off, as at reset.
const NMI_OFF: u8 = 1 << 7;

/// Memory between 16 MiB and 4 GiB, two bytes, and above 4 GiB, three bytes, both in units of 64 KiB.
const LOW_MEMORY: u8 = 0x34;
const HIGH_MEMORY: u8 = 0x5B;

/// All RAM, in ascending order.
pub fn ram() -> impl Iterator<Item = Range<u64>> {
    memory_map::ram_of_cmos(number(LOW_MEMORY, 2), number(HIGH_MEMORY, 3))
}

/// `bytes` bytes from `index` on, the lowest first.
fn number(index: u8, bytes: u8) -> u32 {
    (index..index + bytes).rev().fold(0, |number, index| {
        port::write_u8(INDEX, NMI_OFF | index);
        number << 8 | u32::from(port::read_u8(DATA))
    })
}
