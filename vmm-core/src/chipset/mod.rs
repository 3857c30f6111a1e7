//! The guest's board: a q35-like set of devices, each a pure model of what its ports and registers say.
//!
//! No device waits, calls the host or knows a CPU backend: time comes in with each access, bytes and
//! interrupts go out through traits.

mod apic_message;
mod apic_timer;
pub mod layout;
mod local_apic;
mod local_apics;
mod vector_set;

pub use apic_message::{ApicBus, ApicMessage, DeliveryMode, Destination, Trigger};
pub use local_apic::{
    ApicEffect, BUS_HZ, GeneralProtection, LocalApic, MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC,
};
pub use local_apics::LocalApics;
