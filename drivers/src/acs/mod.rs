//! The command set that disks on AHCI and IDE controllers share (ATA Command Set 4).

mod identify;
mod task_file;

pub use identify::Identity;
#[cfg(test)]
pub use identify::tests;
pub use task_file::{IDENTIFY, TaskFile, ranges};

use crate::requests::{Overlap, Unit};
use storage::Geometry;

/// The most bytes that a command moves.
const MOST_BYTES: u64 = 512 << 10;

/// Bits of the status register.
pub mod status {
    /// The command has failed; the error register says why.
    pub const ERROR: u8 = 1 << 0;
    /// The device wants to move data.
    pub const DATA_REQUEST: u8 = 1 << 3;
    /// The device has failed.
    pub const FAULT: u8 = 1 << 5;
    /// The device is at work, and other bits mean nothing.
    pub const BUSY: u8 = 1 << 7;
}

/// Bits of the error register.
pub mod error {
    /// The command was aborted.
    pub const ABORTED: u8 = 1 << 2;
    /// Data was damaged on its way.
    pub const CRC: u8 = 1 << 7;
}

/// What requests to a disk are cut into.
pub fn unit(number: u32, identity: &Identity, overlap: Overlap) -> Unit {
    let block_size = u64::from(identity.block_size);
    let most_blocks: u64 = if identity.lba48 { 0x1_0000 } else { 0x100 };
    let ranges = block_size.saturating_mul(task_file::RANGED_BLOCKS);
    Unit {
        number,
        model: identity.model.clone(),
        serial: identity.serial.clone(),
        geometry: Geometry {
            block_size: identity.block_size,
            blocks: identity.blocks,
            read_only: false,
            discards: identity.trims,
        },
        transfer: MOST_BYTES.min(most_blocks.saturating_mul(block_size)),
        discard: if identity.trims { ranges } else { 0 },
        zeroes: 0,
        volatile_cache: identity.volatile_cache,
        overlap,
    }
}
