//! Interrupt controllers: the CPU's own, the board's, and the old one kept quiet.

pub mod io;
pub mod local;

use super::port::Ports;

/// The data ports of the two 8259s, where their masks are.
const PIC_MASKS: [u16; 2] = [0x21, 0xa1];

/// Masks every input of the 8259 pair: interrupts come through the APICs.
pub fn silence_pic() {
    for port in PIC_MASKS.into_iter().filter_map(|port| Ports::new(port, 1)) {
        port.write_u8(0, 0xff);
    }
}
