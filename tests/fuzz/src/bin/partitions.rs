//! Partition tables on an arbitrary disk.
#![no_main]

use crc::{CRC_32_ISO_HDLC, Crc};
use storage::partitions::PartitionTable;
use storage::testing::{RamDisk, wait};

/// The size of a block in bytes.
const BLOCK: usize = 512;

/// Makes the checksums of the GPT at `header` fit, or what lies behind them would never be looked at.
fn sign(disk: &mut [u8], header: usize) -> Option<()> {
    let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let field = |disk: &[u8], at: usize| disk.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let (place, count, size) =
        (field(disk, header + 72)? as usize, field(disk, header + 80)?, field(disk, header + 84)?);
    let len = (count as usize).checked_mul(size as usize)?;
    let entries = crc.checksum(disk.get(place.checked_mul(BLOCK)?..)?.get(..len)?);
    disk.get_mut(header + 88..header + 92)?.copy_from_slice(&entries.to_le_bytes());
    disk.get_mut(header + 16..header + 20)?.fill(0);
    let len = field(disk, header + 12)? as usize;
    let own = crc.checksum(disk.get(header..)?.get(..len)?);
    disk.get_mut(header + 16..header + 20)?.copy_from_slice(&own.to_le_bytes());
    Some(())
}

libfuzzer_sys::fuzz_target!(|data: (bool, Vec<u8>)| {
    let (signed, mut disk) = data;
    if signed {
        sign(&mut disk, BLOCK);
    }
    let size = (disk.len() / BLOCK * BLOCK) as u64;
    let table = wait(PartitionTable::read(&RamDisk::new(BLOCK as u32, disk)));
    if let Ok(table) = table {
        assert!(table.partitions.iter().all(|partition| partition.start + partition.len <= size));
        table.problems.iter().for_each(|problem| drop(problem.to_string()));
    }
});
