//! Partition tables on an arbitrary disk.
#![no_main]

use std::future::{Future, ready};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crc::{CRC_32_ISO_HDLC, Crc};
use storage::partitions::PartitionTable;
use storage::{BlockDevice, BlockError, Buffer, Geometry, Reply};

const BLOCK: usize = 512;

/// A disk that can be read.
struct Disk(Vec<u8>);

impl BlockDevice for Disk {
    fn geometry(&self) -> Geometry {
        let blocks = (self.0.len() / BLOCK) as u64;
        Geometry { block_size: BLOCK as u32, blocks, read_only: true, discards: false }
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        let checked = self.geometry().check(at, into.len() as u64);
        Box::pin(ready(checked.map(|()| into.write(0, &self.0[at as usize..][..into.len()]))))
    }
    fn write(&self, _at: u64, _from: Buffer) -> Reply<'_> {
        Box::pin(ready(Err(BlockError::ReadOnly)))
    }
    fn flush(&self) -> Reply<'_> {
        Box::pin(ready(Ok(())))
    }
    fn discard(&self, _at: u64, _len: u64) -> Reply<'_> {
        Box::pin(ready(Err(BlockError::ReadOnly)))
    }
    fn write_zeroes(&self, _at: u64, _len: u64) -> Reply<'_> {
        Box::pin(ready(Err(BlockError::ReadOnly)))
    }
}

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
    let disk = Disk(disk);
    let mut table = pin!(PartitionTable::read(&disk));
    // This disk answers at once.
    let Poll::Ready(table) = table.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("a disk that answers at once is waited for");
    };
    if let Ok(table) = table {
        assert!(table.partitions.iter().all(|partition| partition.start + partition.len <= size));
        table.problems.iter().for_each(|problem| drop(problem.to_string()));
    }
});
