//! The first serial port, polled.

use crate::cpu::{read_port_u8, write_port_u8};

/// Its first port.
pub const PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = PORT + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// A transmitter that is not empty after so many reads is not there.
const PATIENCE: u32 = 1_000_000;

/// Sends `text`; panics when the transmitter never empties.
pub fn write(text: &str) {
    for byte in text.bytes() {
        let ready = (0..PATIENCE).any(|_| read_port_u8(LINE_STATUS) & TRANSMITTER_EMPTY != 0);
        assert!(ready, "the UART's transmitter does not empty");
        write_port_u8(PORT, byte);
    }
}
