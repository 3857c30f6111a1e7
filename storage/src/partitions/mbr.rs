//! The master boot record's table of four partitions, and the logical ones that an extended one holds.

use super::{Identifier, Kind, Partition, PartitionTable, Scheme, TableError, TableProblem};
use crate::block::{BlockDevice, read_bytes};
use crate::fields::{u16, u32};
use alloc::vec::Vec;

/// A boot record's length in bytes, whatever the block size.
pub const SECTOR: usize = 512;
const SIGNATURE: u16 = 0xaa55;
const SIGNATURE_AT: usize = 510;
const DISK_SIGNATURE_AT: usize = 440;
const ENTRIES_AT: usize = 446;
const ENTRY: usize = 16;
const ENTRIES: u32 = 4;
/// Partition types: what only protects a GPT, and what holds logical partitions.
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// Logical partitions are counted from here.
const FIRST_LOGICAL: u32 = 5;
/// The most logical partitions that we take.
const LOGICAL_MAX: u32 = 256;

/// What a disk's first sector is.
#[derive(Debug, PartialEq, Eq)]
pub enum Contents {
    /// An MBR that protects a GPT.
    Protective,
    /// An MBR with partitions of its own, or none.
    Partitions,
}

/// What the disk's first sector is; `None` when it is no MBR.
pub fn contents(sector: &[u8]) -> Option<Contents> {
    if u16(sector, SIGNATURE_AT) != SIGNATURE {
        return None;
    }
    let mut entries = (0..ENTRIES).map(|index| Entry::at(sector, index));
    // The first sector of a file system ends with the same signature; an MBR's entries are told by their first byte.
    if !entries.clone().all(|entry| entry.status & 0x7f == 0) {
        return None;
    }
    let protects = entries.any(|entry| entry.kind == PROTECTIVE);
    Some(if protects { Contents::Protective } else { Contents::Partitions })
}

/// An entry; places and lengths in blocks.
#[derive(Clone, Copy, Debug)]
struct Entry {
    status: u8,
    kind: u8,
    start: u32,
    len: u32,
}

impl Entry {
    fn at(sector: &[u8], index: u32) -> Self {
        let at = ENTRIES_AT.saturating_add((index as usize).saturating_mul(ENTRY));
        let bytes = sector.get(at..).unwrap_or_default();
        let byte = |offset: usize| bytes.get(offset).copied().unwrap_or(0);
        Self { status: byte(0), kind: byte(4), start: u32(bytes, 8), len: u32(bytes, 12) }
    }

    fn is_used(self) -> bool {
        self.kind != 0 && self.len != 0
    }

    fn is_extended(self) -> bool {
        self.is_used() && EXTENDED.contains(&self.kind)
    }
}

/// Reads the table that is in the disk's first `sector`, and what hangs on it.
pub async fn read(disk: &dyn BlockDevice, sector: &[u8]) -> Result<PartitionTable, TableError> {
    let signature = u32(sector, DISK_SIGNATURE_AT);
    let mut table = PartitionTable {
        scheme: Scheme::Mbr,
        disk: Some(Identifier::Signature(signature)),
        partitions: Vec::new(),
        problems: Vec::new(),
    };
    let entries = (0..ENTRIES).map(|index| Entry::at(sector, index));
    let mut extended = None;
    for (number, entry) in (1..).zip(entries).filter(|(_, entry)| entry.is_used()) {
        if entry.is_extended() && extended.is_none() {
            extended = Some(u64::from(entry.start));
        }
        add(&mut table, disk, signature, number, u64::from(entry.start), entry);
    }
    if let Some(base) = extended {
        read_logical(&mut table, disk, signature, base).await?;
    }
    Ok(table)
}

/// Follows the chain of boot records in the extended partition that begins at the block `base`.
async fn read_logical(
    table: &mut PartitionTable,
    disk: &dyn BlockDevice,
    signature: u32,
    base: u64,
) -> Result<(), TableError> {
    let block = u64::from(disk.geometry().block_size);
    let mut record = base;
    for number in (FIRST_LOGICAL..).take(LOGICAL_MAX as usize) {
        let sector = read_bytes(disk, record.saturating_mul(block), SECTOR).await?;
        if u16(&sector, SIGNATURE_AT) != SIGNATURE {
            return Ok(());
        }
        // The first entry is the partition, behind this record; the second the next record, behind the first one.
        let (entry, next) = (Entry::at(&sector, 0), Entry::at(&sector, 1));
        if entry.is_used() {
            add(table, disk, signature, number, record.saturating_add(u64::from(entry.start)), entry);
        }
        if !next.is_extended() {
            return Ok(());
        }
        record = base.saturating_add(u64::from(next.start));
    }
    table.problems.push(TableProblem::EndlessChain);
    Ok(())
}

/// Takes a partition that begins at the block `start`, if it is on the disk.
fn add(
    table: &mut PartitionTable,
    disk: &dyn BlockDevice,
    signature: u32,
    number: u32,
    start: u64,
    entry: Entry,
) {
    let geometry = disk.geometry();
    let block = u64::from(geometry.block_size);
    if start.saturating_add(u64::from(entry.len)) > geometry.blocks {
        return table.problems.push(TableProblem::Entry(number));
    }
    table.partitions.push(Partition {
        number,
        start: start.saturating_mul(block),
        len: u64::from(entry.len).saturating_mul(block),
        kind: Kind::Byte(entry.kind),
        id: Identifier::Numbered(signature, number),
        label: None,
    });
}
