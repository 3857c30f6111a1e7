//! Interrupts of devices, by the IOAPIC pin that they come in on.

use crate::interrupts::{self, Frame};
use crate::{apic, io_apic};

/// How many pins there are at least.
const PINS: usize = 24;
/// The vector of pin 0.
const FIRST_VECTOR: u8 = 0x30;

static mut HANDLERS: [Option<fn()>; PINS] = [None; PINS];

/// Has `handler` called, with interrupts off, at each edge on `pin`. It must not allocate.
///
/// # Panics
/// `pin` is above 23.
pub fn serve(pin: u8, handler: fn()) {
    // SAFETY: one CPU, and no reference to the table is ever held.
    unsafe { HANDLERS[usize::from(pin)] = Some(handler) }
    interrupts::handle(FIRST_VECTOR + pin, dispatch);
    io_apic::route(pin, FIRST_VECTOR + pin);
}

fn dispatch(frame: &mut Frame) {
    let pin = frame.vector as usize - usize::from(FIRST_VECTOR);
    // SAFETY: one CPU; the entry is copied.
    if let Some(handler) = unsafe { HANDLERS[pin] } {
        handler();
    }
    apic::end_of_interrupt();
}
