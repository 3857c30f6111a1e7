//! What coreboot hands over and what the ROM holds.
//!
//! [`tables`] reads what coreboot says about the machine (and writes it, for who stands in for coreboot);
//! [`fmap`] and [`cbfs`] find files in the flash; [`selfboot`] is how a payload lies in one of them;
//! `manifest` is the file that says which guests to start. [`cbmem_console`] and [`timestamps`] are the two
//! logs in coreboot's memory that a payload goes on writing.
//!
//! Nothing here touches hardware: memory is read through [`PhysicalMemory`], flash is a byte slice.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
// Flash and tables can hold anything: no value of theirs may make this code panic.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

mod bytes;
pub mod cbfs;
pub mod cbmem_console;
pub mod fmap;
#[cfg(feature = "manifest")]
pub mod manifest;

mod physical_memory;
pub mod selfboot;
pub mod tables;
pub mod timestamps;

pub use physical_memory::{PhysicalMemory, Unreadable};
