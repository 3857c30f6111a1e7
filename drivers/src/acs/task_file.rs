//! Commands as the registers of a device take them.

use super::Identity;
use crate::requests::{Command, Operation};
use alloc::vec::Vec;

/// Identify device.
pub const IDENTIFY: u8 = 0xec;
const READ_DMA: u8 = 0xc8;
const READ_DMA_EXT: u8 = 0x25;
const WRITE_DMA: u8 = 0xca;
const WRITE_DMA_EXT: u8 = 0x35;
const READ_FPDMA_QUEUED: u8 = 0x60;
const WRITE_FPDMA_QUEUED: u8 = 0x61;
const FLUSH_CACHE: u8 = 0xe7;
const FLUSH_CACHE_EXT: u8 = 0xea;
const DATA_SET_MANAGEMENT: u8 = 0x06;

/// Data set management's feature: these blocks are not needed.
const TRIM: u16 = 1;
/// In the device register: blocks are numbered.
const LBA: u8 = 1 << 6;

/// The ranges of a data set management command: one block of 512 bytes, 8 bytes each.
const RANGES: u64 = 64;
/// The most blocks of a range.
const RANGE: u64 = 0xffff;
/// The most blocks of a command's ranges.
pub const RANGED_BLOCKS: u64 = RANGES * RANGE;

/// What is written to a device's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskFile {
    /// The command register.
    pub command: u8,
    /// The features.
    pub features: u16,
    /// The first block.
    pub lba: u64,
    /// How many blocks, of 512 bytes in all where they are no disk's; 0 is as many as the field has values.
    pub count: u16,
    /// The device register, but for which device.
    pub device: u8,
    /// Registers have two bytes each.
    pub wide: bool,
}

impl TaskFile {
    /// A command without parameters.
    pub const fn plain(command: u8) -> Self {
        Self { command, features: 0, lba: 0, count: 0, device: 0, wide: false }
    }

    /// The command that does this while no other is under way.
    pub fn of(command: &Command, identity: &Identity) -> Self {
        let wide = identity.lba48;
        let code = match (command.operation, wide) {
            (Operation::Read, true) => READ_DMA_EXT,
            (Operation::Read, false) => READ_DMA,
            (Operation::Write | Operation::WriteZeroes, true) => WRITE_DMA_EXT,
            (Operation::Write | Operation::WriteZeroes, false) => WRITE_DMA,
            (Operation::Flush, true) => FLUSH_CACHE_EXT,
            (Operation::Flush, false) => FLUSH_CACHE,
            (Operation::Discard, _) => {
                let plain = Self::plain(DATA_SET_MANAGEMENT);
                return Self { features: TRIM, count: 1, device: LBA, wide: true, ..plain };
            }
        };
        let plain = Self::plain(code);
        if command.operation == Operation::Flush {
            return Self { wide, ..plain };
        }
        let (lba, count) = (command.block, command.blocks as u16);
        // Without the second bytes, the device register has four bits of the number.
        let upper = if wide { 0 } else { (lba >> 24) as u8 & 0xf };
        Self { lba, count, device: LBA | upper, wide, ..plain }
    }

    /// The command that reads or writes among others, each with a tag of its own, at most 31.
    pub fn queued(command: &Command, tag: usize) -> Self {
        let code = if command.operation == Operation::Read { READ_FPDMA_QUEUED } else { WRITE_FPDMA_QUEUED };
        Self {
            features: command.blocks as u16,
            lba: command.block,
            count: (tag as u16 & 0x1f) << 3,
            device: LBA,
            wide: true,
            ..Self::plain(code)
        }
    }
}

/// The ranges of a data set management command (ATA Command Set 4, 7.5).
pub fn ranges(first: u64, blocks: u64) -> Vec<u8> {
    let (mut first, mut left) = (first, blocks);
    let mut bytes = Vec::with_capacity(512);
    for _ in 0..RANGES {
        let len = left.min(RANGE);
        bytes.extend((if len == 0 { 0 } else { first & 0xffff_ffff_ffff | len << 48 }).to_le_bytes());
        first = first.saturating_add(len);
        left = left.saturating_sub(len);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_one_another() {
        let bytes = ranges(5, 0x1_0001);
        assert_eq!(bytes.len(), 512);
        assert_eq!(bytes[..8], [5, 0, 0, 0, 0, 0, 0xff, 0xff]);
        assert_eq!(bytes[8..16], [4, 0, 1, 0, 0, 0, 2, 0]);
        assert!(bytes[16..].iter().all(|byte| *byte == 0));
        let all = ranges(0, RANGED_BLOCKS);
        assert_eq!(all[504..], [0xc1, 0xff, 0x3e, 0, 0, 0, 0xff, 0xff]);
    }
}
