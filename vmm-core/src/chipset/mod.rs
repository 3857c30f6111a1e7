//! The guest's board: a q35-like set of devices, each a pure model of what its ports and registers say.
//!
//! No device waits, calls the host or knows a CPU backend: time comes in with each access, bytes and
//! interrupts go out through traits.

mod apic_message;
pub mod layout;

pub use apic_message::{ApicBus, ApicMessage, DeliveryMode, Destination, Trigger};
