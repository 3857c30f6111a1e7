//! The device side of virtio 1.2.
//!
//! A driver's rings and requests lie in guest memory, which the guest may change at any time: every descriptor is
//! read once, and what it says is checked before it counts. A ring or request that makes no sense breaks its device
//! alone, until the driver resets it.

mod block;
mod console;
mod device;
pub mod pci;
pub mod queue;
mod rng;
#[cfg(test)]
mod testing;

pub use block::Block;
pub use console::Console;
pub use device::{Device, Fault, Identity, Queues};
pub use rng::{Entropy, Rng};
