//! Output: tests print to the debug port, apps on their console.

use crate::console;
use crate::cpu::write_port_u8;
use core::fmt::{Arguments, Result, Write};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A byte written here is printed: QEMU's isa-debugcon, Bochs's port E9 hack, and our monitor.
pub const DEBUG_PORT: u16 = 0xe9;

static ON_CONSOLE: AtomicBool = AtomicBool::new(false);

struct DebugPort;

impl Write for DebugPort {
    fn write_str(&mut self, text: &str) -> Result {
        text.bytes().for_each(|byte| write_port_u8(DEBUG_PORT, byte));
        Ok(())
    }
}

/// From now on output goes to the console.
pub(crate) fn use_console() {
    ON_CONSOLE.store(true, Relaxed);
}

/// Prints; use [`print!`](crate::print) or [`println!`](crate::println).
pub fn write(arguments: Arguments) {
    // Both take everything.
    let _ = if ON_CONSOLE.load(Relaxed) {
        console::Output.write_fmt(arguments)
    } else {
        DebugPort.write_fmt(arguments)
    };
}
