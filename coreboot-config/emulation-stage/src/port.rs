//! I/O ports.
#![allow(unsafe_code)] // Port instructions are how devices are reached.

use x86_64::instructions::port::Port;

/// Reads a byte from `port`.
pub fn read_u8(port: u16) -> u8 {
    // SAFETY: the stage is alone on the machine and no device here answers a read by touching Rust's memory.
    unsafe { Port::new(port).read() }
}

/// Reads 32 bits from `port`.
pub fn read_u32(port: u16) -> u32 {
    // SAFETY: as in `read_u8`.
    unsafe { Port::new(port).read() }
}

/// Writes a byte to `port`.
pub fn write_u8(port: u16, value: u8) {
    // SAFETY: the stage is alone on the machine; the one port write that makes a device write to memory is
    // fw_cfg's, whose module gives it memory of its own.
    unsafe { Port::new(port).write(value) }
}

/// Writes 16 bits to `port`.
pub fn write_u16(port: u16, value: u16) {
    // SAFETY: as in `write_u8`.
    unsafe { Port::new(port).write(value) }
}

/// Writes 32 bits to `port`.
pub fn write_u32(port: u16, value: u32) {
    // SAFETY: as in `write_u8`.
    unsafe { Port::new(port).write(value) }
}
