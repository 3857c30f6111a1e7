//! The stage's log, to the serial port and into the CBMEM console, in the form of coreboot's.
#![allow(unsafe_code)] // The log is one per machine.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};

use coreboot_config::cbmem_console;

use crate::serial;

struct Log(UnsafeCell<Option<&'static mut [u8]>>);

// SAFETY: one processor runs Rust in the stage, without interrupts; the others run `park` only.
unsafe impl Sync for Log {}

static CONSOLE: Log = Log(UnsafeCell::new(None));

/// From now on the log also goes to the CBMEM console in `memory`.
pub fn open(memory: &'static mut [u8]) {
    let room = memory.len().saturating_sub(cbmem_console::HEADER_LEN);
    if let Some(header) = u32::try_from(room).ok().and_then(cbmem_console::Header::new) {
        memory[..cbmem_console::HEADER_LEN].copy_from_slice(&header.encode());
        // SAFETY: nobody else refers to the cell now: see `Log`, and `append` holds it within one call only.
        unsafe { *CONSOLE.0.get() = Some(memory) };
    }
}

fn append(text: &str) {
    // SAFETY: as in `open`.
    let Some(memory) = (unsafe { &mut *CONSOLE.0.get() }) else { return };
    let Some(mut header) = cbmem_console::Header::decode(memory) else { return };
    for piece in header.append(text.as_bytes()) {
        let start = piece.offset as usize;
        if let Some(place) = memory.get_mut(start..start + piece.bytes.len()) {
            place.copy_from_slice(piece.bytes);
        }
    }
    memory[..cbmem_console::HEADER_LEN].copy_from_slice(&header.encode());
}

struct Sinks;

impl Write for Sinks {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        serial::write(text);
        append(text);
        Ok(())
    }
}

/// Writes a whole line of `level`, which is padded to coreboot's width.
pub fn line(level: &str, text: fmt::Arguments<'_>) {
    // The sinks never fail.
    let _ = writeln!(Sinks, "[{level:<5}]  {text}");
}

/// Logs what a user may want to know.
#[macro_export]
macro_rules! info {
    ($($text:tt)*) => { $crate::log::line("INFO", format_args!($($text)*)) };
}

/// Logs what ends the boot.
#[macro_export]
macro_rules! emergency {
    ($($text:tt)*) => { $crate::log::line("EMERG", format_args!($($text)*)) };
}
