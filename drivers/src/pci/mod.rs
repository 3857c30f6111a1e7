//! PCI: the devices that firmware found and gave addresses.
//!
//! [`enumerate`] lists all functions and leaves each quiet: it neither reads or writes memory nor interrupts, until a
//! driver enables it. Buses are numbered and addresses given as firmware left them; nothing is moved.

mod access;
mod class;
mod enumeration;
#[cfg(test)]
mod fake;
mod function;
mod interrupts;

pub use access::{Address, ConfigAccess, Ecam, Ports};
pub use class::Class;
pub use enumeration::enumerate;
pub use function::{Capability, Function, Identity};
pub use interrupts::{Interrupts, Kind};
