//! What the user sees and types: the serial port, the framebuffer, and coreboot's log in CBMEM.

mod backlog;
pub mod cbmem;
pub mod framebuffer;
pub mod multiplexer;
mod plain;
mod ring;
pub mod serial;

use crate::host::lock::Lock;
use crate::host::paging::DeviceError;
use crate::host::{apic, cpu, interrupts};
use crate::log::{self, Sink};
use coreboot_config::tables::Serial;
use multiplexer::{Line, Multiplexer};

/// Who shares the serial console.
static MULTIPLEXER: Lock<Multiplexer> = Lock::new(Multiplexer::new());

/// The serial port as the multiplexer's line.
pub struct SerialLine;

impl Line for SerialLine {
    fn send(&mut self, bytes: &[u8]) -> usize {
        serial::write(bytes)
    }

    fn room(&self) -> usize {
        serial::room()
    }

    fn send_all(&mut self, bytes: &[u8]) {
        serial::write_all(bytes);
    }
}

/// Log lines on the serial console.
struct LogLines;

impl Sink for LogLines {
    fn write(&self, text: &str) {
        let Some(mut multiplexer) = MULTIPLEXER.lock() else {
            // An NMI came while the multiplexer worked.
            return serial::write_all(text.as_bytes());
        };
        multiplexer.log(text, &mut SerialLine);
        let boot_core = cpu::running().first().filter(|_| multiplexer.holds_lines());
        if let Some(cpu) = boot_core {
            // It shows what waits in time.
            apic::local::interrupt(cpu.apic_id(), interrupts::vector::WAKE);
        }
    }

    fn flush(&self) {
        if let Some(mut multiplexer) = MULTIPLEXER.lock() {
            multiplexer.release_held(&mut SerialLine);
        }
        serial::flush();
    }
}

/// Opens the serial console that the table's record describes, and has log lines go there.
pub fn start_serial(record: &Serial) -> Result<(), DeviceError> {
    serial::start(record)?;
    log::attach(&LogLines);
    Ok(())
}

/// Does `work` with what shares the serial console. It must not write to the log.
///
/// # Panics
///
/// In an NMI's handler, where that interrupted such work.
pub fn with<R>(work: impl FnOnce(&mut Multiplexer, &mut SerialLine) -> R) -> R {
    let mut multiplexer = MULTIPLEXER.lock().expect("no NMI's handler looks at guests");
    work(&mut multiplexer, &mut SerialLine)
}
