//! COM1, a 16550 UART.

use crate::port;

/// First port of COM1.
pub const BASE: u16 = 0x3F8;
/// Bits per second.
pub const BAUD: u32 = 115_200;
/// The UART's clock in Hz; a divisor of 1 gives a sixteenth of it.
pub const CLOCK: u32 = 1_843_200;

const INTERRUPT_ENABLE: u16 = BASE + 1;
const FIFO_CONTROL: u16 = BASE + 2;
const LINE_CONTROL: u16 = BASE + 3;
const MODEM_CONTROL: u16 = BASE + 4;
const LINE_STATUS: u16 = BASE + 5;

const DIVISOR_LATCH: u8 = 0x80;
const EIGHT_BITS_NO_PARITY: u8 = 0x03;
const TRANSMITTER_EMPTY: u8 = 0x20;

/// Sets the line up: 115200 baud, 8 bits, no parity, FIFO on, no interrupts.
pub fn start() {
    let divisor = CLOCK / 16 / BAUD;
    port::write_u8(INTERRUPT_ENABLE, 0);
    port::write_u8(FIFO_CONTROL, 0x01);
    port::write_u8(LINE_CONTROL, DIVISOR_LATCH | EIGHT_BITS_NO_PARITY);
    port::write_u8(BASE, divisor as u8);
    port::write_u8(BASE + 1, (divisor >> 8) as u8);
    port::write_u8(LINE_CONTROL, EIGHT_BITS_NO_PARITY);
    port::write_u8(MODEM_CONTROL, 0x03);
}

/// Sends `text`, with a carriage return before each line feed.
pub fn write(text: &str) {
    for byte in text.bytes() {
        if byte == b'\n' {
            send(b'\r');
        }
        send(byte);
    }
}

fn send(byte: u8) {
    // A machine without the UART reads all ones, and so does not hang here.
    while port::read_u8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
        core::hint::spin_loop();
    }
    port::write_u8(BASE, byte);
}
