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
mod fields;
#[cfg(any(feature = "ext4", feature = "fat"))]
pub mod files;
pub mod image;
mod join;
mod lock;
pub mod overlay;
pub mod partitions;
pub mod qcow2;
mod sectors;
pub mod share;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vhd;

pub use block::{BlockDevice, BlockError, Geometry, Reply, read_bytes};
pub use buffer::{Buffer, Memory, Piece};
pub use overlay::Overlay;
pub use sectors::Sectors;
