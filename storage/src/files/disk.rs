//! A file as a disk.

use super::extents::Extents;
use crate::block::{BlockDevice, BlockError, Geometry, Reply, read_bytes};
use crate::buffer::Buffer;
use crate::fields::put;
use crate::sectors::Sectors;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::future::ready;
use core::ops::Range;

/// The size of a block in bytes, whatever the device has below: image formats ask for it.
const BLOCK: u32 = 512;

/// A file of a file system as a disk, written in place: nothing that the file system keeps is ever changed. So what
/// the file has no blocks for reads as zeroes and cannot be written.
///
/// Nobody else may write to the file system meanwhile, nor move or shorten the file. The last block's bytes behind
/// the file's end read as zeroes.
pub struct FileDisk {
    /// In sectors, whatever its blocks are.
    device: Arc<dyn BlockDevice>,
    extents: Extents,
    writable: bool,
}

/// A run of the disk that is in one piece on the device.
#[derive(Clone, Copy)]
struct Run {
    /// Where it begins in the request.
    offset: u64,
    len: u64,
    /// Where it is on the device.
    at: Option<u64>,
}

impl FileDisk {
    pub(super) fn new(device: Arc<dyn BlockDevice>, extents: Extents, writable: bool) -> Self {
        Self { device: Sectors::of(device), extents, writable }
    }

    /// Where its bytes are on the device, in their order; what has no blocks is nowhere.
    pub fn places(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs(0, self.extents.size()).filter_map(|run| Some(run.at?..run.at?.saturating_add(run.len)))
    }

    /// The runs of a request, without what is behind the file's end.
    fn runs(&self, at: u64, len: u64) -> impl Iterator<Item = Run> + '_ {
        let mut offset = 0;
        core::iter::from_fn(move || {
            let left = len.checked_sub(offset).filter(|left| *left > 0)?;
            let (place, there) = self.extents.piece(at.checked_add(offset)?, left)?;
            let run = Run { offset, len: there, at: place };
            offset = offset.saturating_add(there);
            Some(run)
        })
    }

    async fn read_all(&self, at: u64, into: Buffer) -> Result<(), BlockError> {
        self.geometry().check(at, into.len() as u64)?;
        let mut done = 0;
        for Run { offset, len, at } in self.runs(at, into.len() as u64) {
            let part = |at: u64, len: u64| into.slice(at as usize, len as usize).ok_or(BlockError::Failed);
            let (whole, tail) = split(len);
            match at {
                None => part(offset, len)?.fill(0, 0),
                Some(at) => {
                    self.device.read(at, part(offset, whole)?).await?;
                    let (at, offset) = (at.saturating_add(whole), offset.saturating_add(whole));
                    part(offset, tail)?.write(0, &read_bytes(&*self.device, at, tail as usize).await?);
                }
            }
            done = offset.saturating_add(len) as usize;
        }
        into.fill(done, 0);
        Ok(())
    }

    /// Whether a request may be written at all: before any of it is.
    fn check_write(&self, at: u64, len: u64) -> Result<(), BlockError> {
        if self.geometry().read_only {
            return Err(BlockError::ReadOnly);
        }
        self.geometry().check(at, len)
    }

    async fn write_all(&self, at: u64, from: Buffer) -> Result<(), BlockError> {
        self.check_write(at, from.len() as u64)?;
        if self.runs(at, from.len() as u64).any(|run| run.at.is_none()) {
            return Err(BlockError::NotAllocated);
        }
        for Run { offset, len, at } in self.runs(at, from.len() as u64) {
            let part = |at: u64, len: u64| from.slice(at as usize, len as usize).ok_or(BlockError::Failed);
            let at = at.ok_or(BlockError::NotAllocated)?;
            let (whole, tail) = split(len);
            self.device.write(at, part(offset, whole)?).await?;
            let tail = part(offset.saturating_add(whole), tail)?.to_vec();
            self.write_tail(at.saturating_add(whole), &tail).await?;
        }
        Ok(())
    }

    /// Writes what the file has of its last sector. What is behind that is nobody's, and left as it is.
    async fn write_tail(&self, at: u64, bytes: &[u8]) -> Result<(), BlockError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut sector = read_bytes(&*self.device, at, BLOCK as usize).await?;
        put(&mut sector, 0, bytes);
        self.device.write(at, Buffer::holding(&sector)).await
    }

    async fn zero_all(&self, at: u64, len: u64) -> Result<(), BlockError> {
        self.check_write(at, len)?;
        for Run { offset: _, len, at } in self.runs(at, len) {
            // What has no block is zero already.
            let Some(at) = at else { continue };
            let (whole, tail) = split(len);
            self.device.write_zeroes(at, whole).await?;
            self.write_tail(at.saturating_add(whole), &vec![0; tail as usize]).await?;
        }
        Ok(())
    }
}

/// What of a run is whole sectors, and what is less than one: at the file's end alone.
const fn split(len: u64) -> (u64, u64) {
    const SECTOR: u64 = BLOCK as u64;
    let tail = len % SECTOR;
    (len.saturating_sub(tail), tail)
}

impl BlockDevice for FileDisk {
    fn geometry(&self) -> Geometry {
        let read_only = !self.writable || self.device.geometry().read_only;
        let blocks = self.extents.size().div_ceil(u64::from(BLOCK));
        Geometry { block_size: BLOCK, blocks, read_only, discards: false }
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        Box::pin(self.read_all(at, into))
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        Box::pin(self.write_all(at, from))
    }

    fn flush(&self) -> Reply<'_> {
        self.device.flush()
    }

    fn discard(&self, _at: u64, _len: u64) -> Reply<'_> {
        Box::pin(ready(Err(BlockError::Unsupported)))
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        Box::pin(self.zero_all(at, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{RamDisk, Reachable, Watch, pattern, wait};

    #[test]
    fn what_is_long_is_copied_in_part_of_a_block_only() {
        let ram = Arc::new(RamDisk::new(4096, pattern(256 << 10, 1)));
        let watch = Watch::new(Arc::clone(&ram) as Arc<dyn BlockDevice>);
        // 100 KiB at 16 KiB, a hole of 64 KiB, and a last run that ends within a sector.
        let size = (180 << 10) - 100;
        let mut extents = Extents::new(size);
        extents.push(0, 100 << 10, Some(16 << 10)).unwrap();
        extents.push(164 << 10, 16 << 10, Some(200 << 10)).unwrap();
        let disk = FileDisk::new(Arc::clone(&watch) as Arc<dyn BlockDevice>, extents, true);
        let device = ram.bytes();
        let mut expected = vec![0; 180 << 10];
        expected[..100 << 10].copy_from_slice(&device[16 << 10..116 << 10]);
        expected[164 << 10..size as usize].copy_from_slice(&device[200 << 10..(216 << 10) - 100]);
        for (at, len) in [(512, 179 << 10), (0, 180 << 10), (1024, 90 << 10), (165 << 10, 15 << 10)] {
            let into = Reachable::holding(&vec![0xee; len]);
            wait(disk.read(at, into.clone())).unwrap();
            assert!(into.to_vec() == expected[at as usize..][..len], "{len} at {at}");
            assert!(watch.take().copied <= 4096, "{len} at {at}");
        }
        for (at, len) in [(512, 99 << 10), (165 << 10, 15 << 10)] {
            wait(disk.write(at, Reachable::holding(&vec![9; len]))).unwrap();
            assert!(watch.take().copied <= 4096, "{len} at {at}");
        }
        let refused = wait(disk.write(99 << 10, Reachable::holding(&[9; 2048])));
        assert_eq!(refused, Err(BlockError::NotAllocated));
        let mut after = device;
        after[(16 << 10) + 512..(115 << 10) + 512].fill(9);
        after[201 << 10..(216 << 10) - 100].fill(9);
        assert!(ram.bytes() == after, "what is behind the file's end is left alone");
        wait(disk.write_zeroes(512, (180 << 10) - 512)).unwrap();
        after[(16 << 10) + 512..116 << 10].fill(0);
        after[200 << 10..(216 << 10) - 100].fill(0);
        assert!(ram.bytes() == after);
    }
}
