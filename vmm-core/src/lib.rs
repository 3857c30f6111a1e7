//! The monitor: everything about guests, nothing about the board.
//!
//! A guest's exit takes one straight path: the CPU backend ([`cpu`]) decodes the hardware's exit into one
//! [`cpu::Exit`], the guest's bus finds the device by port, address or MSR, the device answers, and the
//! guest goes on.
#![cfg_attr(not(test), no_std)]
// A guest can reach this code with any value: it must not be able to make it panic.
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

pub mod boot;
pub mod chipset;
pub mod cpu;
pub mod cpuid;
pub mod disk;
pub mod emulate;
pub mod eoi_word;
pub mod guest;
pub mod host;
pub mod kvm_clock;
mod lifecycle;
pub mod memory;
pub mod monitor;
mod mtrr;
mod news;
#[cfg(feature = "nvme-device")]
pub mod nvme;
pub mod own_memory;
pub mod provision;
pub mod requests;
pub mod schedule;
pub mod time;
pub mod vcpu;
#[cfg(feature = "virtio")]
pub mod virtio;
