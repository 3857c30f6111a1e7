//! The machine's memory, as whoever runs there can read it.

use core::fmt;

/// Reads physical memory. The payload implements it over its mapping, tests over dumps.
pub trait PhysicalMemory {
    /// Fills `buffer` with the bytes from physical `address` on; an error when any of them is not memory.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable>;
}

/// Bytes at these physical addresses cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Where the read began.
    pub address: u64,
    /// How many bytes it wanted.
    pub len: usize,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at physical {:#x} cannot be read", self.len, self.address)
    }
}

impl core::error::Error for Unreadable {}
