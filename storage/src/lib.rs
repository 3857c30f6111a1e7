//! What disks hold, whatever drives them.
//!
//! A [`BlockDevice`] takes requests and answers them later; drivers are ones, and so is everything here that
//! stands on another: a partition is a window on its disk, and a disk image a disk in whatever it lies in.
//!
//! Nothing here touches hardware. What a disk holds is not trusted.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]
#![forbid(unsafe_code)]
// A disk can hold anything: no value of its may make this code panic.
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

mod block;
#[cfg(any(feature = "ext4", feature = "fat"))]
pub mod boot_entries;
mod buffer;
mod claims;
#[cfg_attr(
    not(all(feature = "qcow2", feature = "vhd")),
    allow(dead_code, reason = "each format uses some of it")
)]
mod fields;
#[cfg(any(feature = "ext4", feature = "fat"))]
pub mod files;
pub mod image;
mod join;
#[cfg_attr(
    not(all(feature = "qcow2", feature = "vhd")),
    allow(dead_code, reason = "each format uses some of it")
)]
mod lock;
pub mod overlay;
pub mod partitions;
#[cfg(feature = "qcow2")]
pub mod qcow2;
mod runs;
mod sectors;
pub mod share;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod turn;
#[cfg(feature = "vhd")]
pub mod vhd;

pub use block::{
    BlockDevice, BlockError, Geometry, Reply, read_bytes, read_bytes_or_zeros, read_or_zeros, zero,
};
pub use buffer::{Buffer, Memory, Piece};
pub use overlay::Overlay;
pub use sectors::Sectors;
pub use turn::pause;
