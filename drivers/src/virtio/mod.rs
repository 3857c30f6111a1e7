//! virtio devices on PCI, as their driver sees them (Virtual I/O Device 1.2).

mod ring;
mod transport;

pub use ring::{Broken, Completion, Direction, Ring};
pub use transport::{Feature, Status, Transport};
