//! The GUID partition table (UEFI 2.10, 5.3): one at the disk's beginning, its copy at the end.

use super::{Damage, Identifier, Kind, Partition, PartitionTable, Scheme, TableError, TableProblem};
use crate::block::{BlockDevice, read_bytes};
use crate::fields::{array, u16, u32, u64};
use alloc::string::String;
use alloc::vec::Vec;
use crc::{CRC_32_ISO_HDLC, Crc};
use uuid::Uuid;

const SIGNATURE: &[u8] = b"EFI PART";
/// Revision 1.0, the only one there is.
const REVISION: u32 = 0x0001_0000;
/// The least length of a header and of an entry, in bytes.
const HEADER: usize = 92;
const ENTRY: usize = 128;
/// The most that we take entries for, in bytes: eight times what everybody makes.
const ENTRIES_MAX: u64 = 128 * 1024;
/// Where a partition's name stands in its entry, and how many UTF-16 units it has.
const NAME: usize = 56;
const NAME_UNITS: usize = 36;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// One copy of the table, whole.
struct Copy {
    disk: Uuid,
    entry_size: usize,
    entries: Vec<u8>,
}

/// Reads the table from the copy at the beginning, or else from the one at the end.
pub async fn read(disk: &dyn BlockDevice) -> Result<PartitionTable, TableError> {
    let last = disk.geometry().blocks.saturating_sub(1);
    let (first, second) = (read_copy(disk, 1).await, read_copy(disk, last).await);
    let (copy, problem) = match (first, second) {
        (Ok(copy), Ok(_)) => (copy, None),
        (Ok(copy), Err(damage)) => (copy, Some(TableProblem::SecondCopy(damage))),
        (Err(damage), Ok(copy)) => (copy, Some(TableProblem::FirstCopy(damage))),
        (Err(first), Err(second)) => return Err(TableError::BothDamaged(first, second)),
    };
    let mut table = PartitionTable {
        scheme: Scheme::Gpt,
        disk: Some(Identifier::Guid(copy.disk)),
        partitions: Vec::new(),
        problems: problem.into_iter().collect(),
    };
    let block = u64::from(disk.geometry().block_size);
    for (number, entry) in (1..).zip(copy.entries.chunks_exact(copy.entry_size)) {
        let kind = guid(entry, 0);
        if kind.is_nil() {
            continue;
        }
        let (first, last) = (u64(entry, 32), u64(entry, 40));
        let extent = extent(first, last, disk.geometry().blocks, block);
        let Some((start, len)) = extent else {
            table.problems.push(TableProblem::Entry(number));
            continue;
        };
        let id = Identifier::Guid(guid(entry, 16));
        table.partitions.push(Partition {
            number,
            start,
            len,
            kind: Kind::Guid(kind),
            id,
            label: Some(name(entry)),
        });
    }
    Ok(table)
}

/// Start and length in bytes of the blocks from `first` to `last`, if the disk has these.
fn extent(first: u64, last: u64, blocks: u64, block: u64) -> Option<(u64, u64)> {
    let count = last.checked_sub(first)?.checked_add(1)?;
    (last < blocks).then_some(())?;
    Some((first.checked_mul(block)?, count.checked_mul(block)?))
}

/// Reads the copy whose header is the block `at`.
async fn read_copy(disk: &dyn BlockDevice, at: u64) -> Result<Copy, Damage> {
    let geometry = disk.geometry();
    let block = u64::from(geometry.block_size);
    let header = read_bytes(disk, at.saturating_mul(block), geometry.block_size as usize).await?;
    if !header.starts_with(SIGNATURE) {
        return Err(Damage::Signature);
    }
    let size = u32(&header, 12) as usize;
    let Some(summed) = header.get(..size).filter(|_| size >= HEADER) else {
        return Err(Damage::Field("header size", size as u64));
    };
    if checksum_without_itself(summed) != u32(&header, 16) {
        return Err(Damage::HeaderChecksum);
    }
    if u32(&header, 8) != REVISION {
        return Err(Damage::Field("revision", u64::from(u32(&header, 8))));
    }
    if u64(&header, 24) != at {
        return Err(Damage::Field("own place", u64(&header, 24)));
    }
    let (count, entry_size) = (u64::from(u32(&header, 80)), u32(&header, 84) as usize);
    if entry_size < ENTRY || !entry_size.is_power_of_two() {
        return Err(Damage::Field("size of an entry", entry_size as u64));
    }
    let len = count.checked_mul(entry_size as u64).filter(|len| *len <= ENTRIES_MAX);
    let len = len.ok_or(Damage::Field("number of entries", count))?;
    let place = u64(&header, 72);
    let start = place.checked_mul(block).ok_or(Damage::Field("place of the entries", place))?;
    let entries = read_bytes(disk, start, len as usize).await?;
    if CRC.checksum(&entries) != u32(&header, 88) {
        return Err(Damage::EntriesChecksum);
    }
    Ok(Copy { disk: guid(&header, 56), entry_size, entries })
}

/// The header's checksum, which counts as zero in itself.
fn checksum_without_itself(header: &[u8]) -> u32 {
    let (before, rest) = header.split_at_checked(16).unwrap_or((header, &[]));
    let (_, after) = rest.split_at_checked(4).unwrap_or((&[], &[]));
    let mut digest = CRC.digest();
    digest.update(before);
    digest.update(&[0; 4]);
    digest.update(after);
    digest.finalize()
}

/// A GUID as GPT writes it: its first three fields little-endian.
fn guid(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes_le(array(bytes, at))
}

fn name(entry: &[u8]) -> String {
    let units = (0..NAME_UNITS).map(|unit| u16(entry, NAME.saturating_add(unit.saturating_mul(2))));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}
