//! The power management registers, which the southbridges of both chipsets have in one layout (PIIX4 and ICH9
//! datasheets).

use crate::port;

/// Where the registers are put: QEMU's FADT says so.
pub const PORTS: u16 = 0x600;
const STATUS: u16 = PORTS;
const CONTROL: u16 = PORTS + 0x04;
const TIMER: u16 = PORTS + 0x08;
const SCI_ENABLED: u16 = 1;

/// Forgets past events.
pub fn forget_events() {
    // Status bits are cleared by writing ones.
    port::write_u16(STATUS, 0xFFFF);
}

/// Has events raise the SCI from the start, for tables that name no way to switch it on.
pub fn enable_sci() {
    port::write_u16(CONTROL, SCI_ENABLED);
}

/// Reads ACPI's PM timer: 24 bits at 3.579545 MHz.
pub fn timer() -> u32 {
    port::read_u32(TIMER) & 0x00FF_FFFF
}
