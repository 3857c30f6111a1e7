//! What the emulation stage decides without touching hardware: which bus addresses PCI devices get, what QEMU's
//! ACPI table loader asks for, how memory is described to the payload.
//!
//! The hardware half is the binary of the same name, which only builds for `x86_64-unknown-none`; this half is
//! safe and tested on the host.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod cbmem;
pub mod memory_map;
pub mod minimal_acpi;
pub mod mtrr;
pub mod pci;
pub mod table_loader;
