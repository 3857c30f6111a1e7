//! The console: the first serial port. Output is sent at once; input comes by interrupt and waits in a queue.

use crate::{cpu, irq, uart};
use alloc::string::String;
use core::fmt::{Result, Write};
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

const QUEUE_SIZE: usize = 1024;

/// What was typed and not yet read: the handler puts in, the reader takes out.
static QUEUE: [AtomicU8; QUEUE_SIZE] = [const { AtomicU8::new(0) }; QUEUE_SIZE];
static PUT: AtomicUsize = AtomicUsize::new(0);
static TAKEN: AtomicUsize = AtomicUsize::new(0);

const BACKSPACE: u8 = 8;
const DELETE: u8 = 0x7f;

/// Waits for one byte of input, the CPU halted.
pub fn read_byte() -> u8 {
    cpu::wait_until(|| TAKEN.load(Relaxed) != PUT.load(Relaxed));
    let place = TAKEN.load(Relaxed);
    let byte = QUEUE[place % QUEUE_SIZE].load(Relaxed);
    TAKEN.store(place.wrapping_add(1), Relaxed);
    byte
}

/// Waits for a line, which is shown as it is typed and can be corrected by backspace. Gives it without its end;
/// what is not ASCII text is left out.
pub fn read_line() -> String {
    let mut line = String::new();
    loop {
        match read_byte() {
            b'\r' | b'\n' => {
                uart::write("\r\n");
                return line;
            }
            BACKSPACE | DELETE if line.pop().is_some() => uart::write("\x08 \x08"),
            byte @ b' '..=b'~' => {
                line.push(char::from(byte));
                uart::send(byte);
            }
            _ => {}
        }
    }
}

/// Lets input come in; the local APIC is on.
pub(crate) fn install() {
    // What was typed before now: switching the FIFOs on empties them.
    receive();
    uart::listen();
    irq::serve(uart::IRQ, receive);
}

/// Takes all that the serial port holds, so that its wire goes low. What finds no room is lost.
fn receive() {
    while let Some(byte) = uart::receive() {
        let place = PUT.load(Relaxed);
        if place.wrapping_sub(TAKEN.load(Relaxed)) < QUEUE_SIZE {
            QUEUE[place % QUEUE_SIZE].store(byte, Relaxed);
            PUT.store(place.wrapping_add(1), Relaxed);
        }
    }
}

/// Output; a line's end becomes what terminals take for one.
pub(crate) struct Output;

impl Write for Output {
    fn write_str(&mut self, text: &str) -> Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                uart::send(b'\r');
            }
            uart::send(byte);
        }
        Ok(())
    }
}
