//! The journal, as far as it was not replayed (Linux's documentation, "Journal (jbd2)"; its fields are big-endian).
//!
//! Nothing is written: what is found is where the newest version of each block lies in the journal, so that a file
//! system whose machine lost its power can be read before somebody repairs it.

use super::checksum::crc32c;
use super::{Content, Ext4};
use crate::fields;
use crate::files::error::FileError;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

const MAGIC: u32 = 0xc03b_3998;
/// Kinds of blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCKS: [u32; 2] = [3, 4];
const REVOKE: u32 = 5;

/// Features: revoked blocks, numbers of 64 bits, two kinds of checksums.
const REVOKED: u32 = 0x1;
const WIDE: u32 = 0x2;
const CHECKSUMS_2: u32 = 0x8;
const CHECKSUMS_3: u32 = 0x10;
const KNOWN: u32 = REVOKED | WIDE | CHECKSUMS_2 | CHECKSUMS_3;

/// Flags of a block that a descriptor names: its first bytes are missing, it has the identifier of the one before,
/// it is the last one.
const ESCAPED: u32 = 1;
const SAME_ID: u32 = 2;
const LAST: u32 = 8;

/// The length of what each block of the journal's own begins with.
const HEADER: usize = 12;

/// How many blocks may be written or revoked by one transaction, and by all: they are in the firmware's memory.
const MOST: usize = 1 << 14;
/// How many of its own blocks are read: they may say nothing, and be the same one again and again.
const MOST_READ: u32 = 1 << 14;
/// A block that is found here lacks its first bytes.
const IS_ESCAPED: u64 = 1 << 63;

fn be16(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16::from_be_bytes(fields::array(bytes, offset)))
}

fn be32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(fields::array(bytes, offset))
}

/// How this journal is written.
struct Format {
    features: u32,
    /// What checksums begin with.
    seed: u32,
}

impl Format {
    const fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    /// Whether the checksum at `at` fits the block; it counts as zero in it.
    fn fits(&self, block: &[u8], at: usize) -> bool {
        if !self.has(CHECKSUMS_2 | CHECKSUMS_3) {
            return true;
        }
        let (before, after) = (block.get(..at), block.get(at.saturating_add(4)..));
        let parts = [before.unwrap_or_default(), &[0; 4], after.unwrap_or_default()];
        parts.iter().fold(self.seed, |sum, part| crc32c(sum, part)) == be32(block, at)
    }

    /// The blocks that a descriptor names, and whether their first bytes are missing.
    fn tags(&self, block: &[u8]) -> Vec<(u64, bool)> {
        let mut tags = Vec::new();
        let tail = if self.has(CHECKSUMS_2 | CHECKSUMS_3) { 4 } else { 0 };
        let mut rest = block.get(HEADER..block.len().saturating_sub(tail)).unwrap_or_default();
        let len = match (self.has(CHECKSUMS_3), self.has(CHECKSUMS_2), self.has(WIDE)) {
            (true, ..) => 16,
            (false, true, true) => 14,
            (false, false, true) => 12,
            (false, true, false) => 10,
            (false, false, false) => 8,
        };
        while let Some((tag, after)) = rest.split_at_checked(len) {
            let flags = if self.has(CHECKSUMS_3) { be32(tag, 4) } else { be16(tag, 6) };
            let high = if self.has(WIDE) { be32(tag, 8) } else { 0 };
            tags.push((u64::from(high) << 32 | u64::from(be32(tag, 0)), flags & ESCAPED != 0));
            if flags & LAST != 0 {
                break;
            }
            rest = if flags & SAME_ID != 0 { after } else { after.get(16..).unwrap_or_default() };
        }
        tags
    }

    /// The blocks that are revoked.
    fn revoked(&self, block: &[u8]) -> Vec<u64> {
        let used = block.get(..be32(block, HEADER) as usize).unwrap_or_default();
        let numbers = used.get(HEADER + 4..).unwrap_or_default();
        if self.has(WIDE) {
            numbers.chunks_exact(8).map(|bytes| u64::from_be_bytes(fields::array(bytes, 0))).collect()
        } else {
            numbers.chunks_exact(4).map(|bytes| u64::from(be32(bytes, 0))).collect()
        }
    }
}

/// Where the journal has newer versions of blocks.
pub async fn read(ext4: &Ext4) -> Result<BTreeMap<u64, u64>, FileError> {
    let sb = &ext4.superblock;
    if sb.journal_elsewhere || sb.journal == 0 {
        return Err(FileError::Unsupported("a journal to be replayed that is on another disk"));
    }
    let inode = ext4.inode(sb.journal).await?;
    let Content::Extents(extents) = ext4.content(&inode).await? else {
        return Err(FileError::Damaged { what: "inode of the journal", found: u64::from(sb.journal) });
    };
    // The number of the block of the file system that this one of the journal is.
    let place = |number: u32| {
        let piece = extents.piece(u64::from(number).saturating_mul(sb.block_size), 1);
        let at = piece.and_then(|(at, _)| at).and_then(|at| at.checked_div(sb.block_size));
        at.ok_or(FileError::Damaged { what: "block of the journal", found: u64::from(number) })
    };
    let own = ext4.block_on_disk(place(0)?).await?;
    if be32(&own, 0) != MAGIC
        || !SUPERBLOCKS.contains(&be32(&own, 4))
        || u64::from(be32(&own, 12)) != sb.block_size
    {
        return Err(FileError::Damaged {
            what: "superblock of the journal",
            found: u64::from(be32(&own, 4)),
        });
    }
    let features = if be32(&own, 4) == SUPERBLOCKS[0] { 0 } else { be32(&own, 0x28) };
    if features & !KNOWN != 0 {
        return Err(FileError::Features("journal", features & !KNOWN));
    }
    let format = Format { features, seed: crc32c(!0, &fields::array::<16>(&own, 0x30)) };
    let (end, first, start) = (be32(&own, 0x10), be32(&own, 0x14), be32(&own, 0x1c));
    let mut transaction = be32(&own, 0x18);
    if start == 0 {
        return Ok(BTreeMap::new());
    }

    let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut written, mut revoked): (Vec<(u64, u64)>, Vec<u64>) = (Vec::new(), Vec::new());
    let next = |number: u32| match number.saturating_add(1) {
        number if number >= end => first,
        number => number,
    };
    let mut number = start;
    let too_long = FileError::Unsupported("a journal to be replayed that is so long");
    // A journal whose transactions follow each other all around has no end of its own.
    for read in 0..end {
        if read == MOST_READ {
            return Err(too_long);
        }
        let block = ext4.block_on_disk(place(number)?).await?;
        if be32(&block, 0) != MAGIC || be32(&block, 8) != transaction {
            break;
        }
        let tail = block.len().saturating_sub(4);
        match be32(&block, 4) {
            DESCRIPTOR if format.fits(&block, tail) => {
                for (block, is_escaped) in format.tags(&block) {
                    number = next(number);
                    written.push((block, place(number)? | if is_escaped { IS_ESCAPED } else { 0 }));
                }
            }
            REVOKE if format.fits(&block, tail) => revoked.extend(format.revoked(&block)),
            COMMIT if format.fits(&block, 0x10) => {
                newest.extend(written.drain(..));
                // What is revoked may have become part of a file since it was written.
                for block in revoked.drain(..) {
                    newest.remove(&block);
                }
                transaction = transaction.wrapping_add(1);
            }
            // What was not written to its end did not happen.
            _ => break,
        }
        if written.len() > MOST || revoked.len() > MOST || newest.len() > MOST {
            return Err(too_long);
        }
        number = next(number);
    }
    if newest.values().any(|place| place & IS_ESCAPED != 0) {
        return Err(FileError::Unsupported("a journal to be replayed that has escaped blocks"));
    }
    Ok(newest)
}
