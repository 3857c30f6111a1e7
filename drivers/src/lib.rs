//! The host's devices: PCI, and what drives the disks on it.
//!
//! A [`Driver`] is what found a controller and brought it up; its [`Disk`]s are `storage`'s block devices. What
//! drivers need of the machine is [`platform::Platform`]; they touch no register and no memory but through it, so
//! that tests put a fake device below them.
//!
//! A device is not trusted: no value that it gives may make this code panic.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
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

// Neither driver needs all of it.
#[cfg(any(feature = "ahci", feature = "ata"))]
#[cfg_attr(not(all(feature = "ahci", feature = "ata")), allow(dead_code))]
mod acs;
#[cfg(feature = "ahci")]
pub mod ahci;
#[cfg(feature = "ata")]
pub mod ata;
pub mod dma;
mod driver;
mod list;
#[cfg(feature = "nvme")]
pub mod nvme;
pub mod pci;
pub mod platform;
pub mod reply;
// Not every driver needs all of it.
#[cfg(any(feature = "virtio-blk", feature = "nvme", feature = "ahci", feature = "ata"))]
#[cfg_attr(
    not(all(feature = "virtio-blk", feature = "nvme", feature = "ahci", feature = "ata")),
    allow(dead_code)
)]
mod requests;
// Not every driver needs all of it.
#[cfg(any(feature = "virtio-blk", feature = "nvme", feature = "ahci", feature = "ata"))]
#[cfg_attr(
    not(all(feature = "virtio-blk", feature = "nvme", feature = "ahci", feature = "ata")),
    allow(dead_code)
)]
mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod trial;
#[cfg(feature = "virtio-blk")]
mod virtio;
#[cfg(feature = "virtio-blk")]
pub mod virtio_blk;

pub use driver::{Disk, Driver, Error};
pub use list::{DRIVERS, Entry, driver_of};
