//! Output through the debug port.

use crate::cpu::write_port_u8;
use core::fmt::{Arguments, Result, Write};

/// A byte written here is printed: QEMU's isa-debugcon, Bochs's port E9 hack, and our monitor.
pub const DEBUG_PORT: u16 = 0xe9;

struct DebugPort;

impl Write for DebugPort {
    fn write_str(&mut self, text: &str) -> Result {
        text.bytes().for_each(|byte| write_port_u8(DEBUG_PORT, byte));
        Ok(())
    }
}

/// Prints; use [`println!`](crate::println).
pub fn write(arguments: Arguments) {
    // The debug port takes everything.
    let _ = DebugPort.write_fmt(arguments);
}
