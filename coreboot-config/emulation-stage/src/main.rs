//! A minimal stand-in for coreboot on emulators: from the reset vector to a payload that cannot tell.
//!
//! It is no coreboot and for no real board: emulated memory works from reset, so there is nothing to train, and
//! the emulator brings its own ACPI tables. What a payload sees is what coreboot shows it: CPU state, memory map,
//! coreboot table, configured devices, halted processors.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod acpi_tables;
#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod chipset;
#[cfg(target_os = "none")]
mod cmos;
#[cfg(target_os = "none")]
mod config_space;
#[cfg(target_os = "none")]
mod coreboot_table;
#[cfg(target_os = "none")]
mod display;
#[cfg(target_os = "none")]
mod error;
#[cfg(target_os = "none")]
mod flash;
#[cfg(target_os = "none")]
mod fw_cfg;
#[cfg(target_os = "none")]
mod handoff;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
mod i440fx;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod load;
#[cfg(target_os = "none")]
mod log;
#[cfg(target_os = "none")]
mod physical;
#[cfg(target_os = "none")]
mod pm;
#[cfg(target_os = "none")]
mod port;
#[cfg(target_os = "none")]
mod processors;
#[cfg(target_os = "none")]
mod q35;
#[cfg(target_os = "none")]
mod reset;
#[cfg(target_os = "none")]
mod serial;
#[cfg(target_os = "none")]
mod timestamps;

#[cfg(target_os = "none")]
use boot::start;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("The emulation stage runs from the reset vector: build it for x86_64-unknown-none.");
}
