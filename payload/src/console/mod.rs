//! What the user sees and types: the serial port, the framebuffer, and coreboot's log in CBMEM.

pub mod cbmem;
pub mod framebuffer;
mod ring;
pub mod serial;
