//! The IOAPIC.

use crate::memory;

/// Where its registers lie.
pub const BASE: u64 = 0xfec0_0000;
const SELECT: u64 = BASE;
const WINDOW: u64 = BASE + 0x10;
const FIRST_REDIRECTION: u32 = 0x10;

/// Reads the register with this index.
pub fn read(index: u32) -> u32 {
    memory::write(SELECT, index);
    memory::read(WINDOW)
}

/// Writes the register with this index.
pub fn write(index: u32, value: u32) {
    memory::write(SELECT, index);
    memory::write(WINDOW, value);
}

/// Has an edge on `pin` deliver `vector` to the CPU with APIC ID 0.
pub fn route(pin: u8, vector: u8) {
    redirect(pin, vector.into());
}

/// Has `pin` do what the low half of a redirection entry says, for the CPU with APIC ID 0.
pub fn redirect(pin: u8, low: u32) {
    let entry = FIRST_REDIRECTION + u32::from(pin) * 2;
    write(entry + 1, 0);
    write(entry, low);
}

/// The low half of the redirection entry of `pin`.
pub fn redirection(pin: u8) -> u32 {
    read(FIRST_REDIRECTION + u32::from(pin) * 2)
}

/// Redirection entry: a level, not an edge.
pub const LEVEL: u32 = 1 << 15;
/// Redirection entry: the local APIC has taken a level, and not ended it yet.
pub const REMOTE_REQUEST: u32 = 1 << 14;
/// Redirection entry: nothing is delivered.
pub const MASKED: u32 = 1 << 16;

/// Has `pin` deliver nothing.
pub fn mask(pin: u8) {
    write(FIRST_REDIRECTION + u32::from(pin) * 2, MASKED);
}
