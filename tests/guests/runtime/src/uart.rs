//! The first serial port: sent to by polling, received from by polling or interrupt.

use crate::cpu::{read_port_u8, write_port_u8};

/// Its first port.
pub const PORT: u16 = 0x3f8;
/// Its interrupt: of the 8259 pair, and the IOAPIC's pin.
pub const IRQ: u8 = 4;
const INTERRUPT_ENABLE: u16 = PORT + 1;
const INTERRUPT_IDENTITY: u16 = PORT + 2;
const MODEM_CONTROL: u16 = PORT + 4;
const FIFO_CONTROL: u16 = PORT + 2;
/// FIFO control: on, both emptied, and an interrupt for each byte.
const FIFOS: u8 = 0b111;
const WHEN_RECEIVED: u8 = 1 << 0;
const WHEN_EMPTY: u8 = 1 << 1;
/// DTR, RTS, and OUT2, which lets the interrupt out.
const INTERRUPTS_OUT: u8 = 0b1011;
const LINE_STATUS: u16 = PORT + 5;
const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// A transmitter that is not empty after so many reads is not there.
const PATIENCE: u32 = 1_000_000;

/// Sends `text`; panics when the transmitter never empties.
pub fn write(text: &str) {
    text.bytes().for_each(send);
}

/// Sends one byte; panics when the transmitter never empties.
pub fn send(byte: u8) {
    let ready = (0..PATIENCE).any(|_| read_port_u8(LINE_STATUS) & TRANSMITTER_EMPTY != 0);
    assert!(ready, "the UART's transmitter does not empty");
    write_port_u8(PORT, byte);
}

/// Has an interrupt tell of each byte that comes in.
pub fn listen() {
    write_port_u8(FIFO_CONTROL, FIFOS);
    write_port_u8(MODEM_CONTROL, INTERRUPTS_OUT);
    write_port_u8(INTERRUPT_ENABLE, WHEN_RECEIVED);
}

/// The next byte that has come in.
pub fn receive() -> Option<u8> {
    (read_port_u8(LINE_STATUS) & DATA_READY != 0).then(|| read_port_u8(PORT))
}

/// Asserts the interrupt: the transmitter is empty, and that is what to tell.
pub fn assert_interrupt() {
    write_port_u8(MODEM_CONTROL, INTERRUPTS_OUT);
    write_port_u8(INTERRUPT_ENABLE, 0);
    write_port_u8(INTERRUPT_ENABLE, WHEN_EMPTY);
}

/// Reads why it interrupts, which takes that interrupt back.
pub fn identify_interrupt() -> u8 {
    read_port_u8(INTERRUPT_IDENTITY)
}

/// No interrupts, and the wire is low.
pub fn release_interrupt() {
    write_port_u8(INTERRUPT_ENABLE, 0);
}
