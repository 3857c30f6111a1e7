//! The ACPI power-management timer: the clock by which guests judge others.

use crate::{acpi, cpu};

/// Its frequency in Hz.
pub const HERTZ: u64 = 3_579_545;
/// It counts at least these bits on every machine.
const MASK: u32 = 0xff_ffff;

/// What it counts, 24 bits.
pub fn read() -> u32 {
    cpu::read_port_u32(acpi::pm_timer_port()) & MASK
}

/// A moment, to measure from. Good for four seconds.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(u32);

impl Stopwatch {
    /// From now on.
    pub fn start() -> Self {
        Self(read())
    }

    /// Microseconds since the start.
    pub fn micros(self) -> u64 {
        u64::from(read().wrapping_sub(self.0) & MASK) * 1_000_000 / HERTZ
    }
}
