//! Sectors of 512 bytes on a device whose blocks are larger, for images, which know no others.

use crate::block::{BlockDevice, BlockError, Geometry, Reply, read_bytes};
use crate::buffer::Buffer;
use crate::claims::Claims;
use crate::fields::put;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::Range;

/// The size of a sector in bytes.
const SECTOR: u32 = 512;

/// A device in sectors of 512 bytes. What is written in part of a block is read and written with the rest of it.
pub struct Sectors {
    device: Arc<dyn BlockDevice>,
    /// The device's blocks that are being written, those in part by one at a time.
    claims: Claims,
}

/// What of a request is in part of its first block, in whole blocks, and in part of its last.
struct Split {
    before: Range<u64>,
    whole: Range<u64>,
    behind: Range<u64>,
}

impl Sectors {
    /// The device itself where its blocks are sectors already.
    pub fn of(device: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        if device.geometry().block_size == SECTOR {
            return device;
        }
        Arc::new(Self { device, claims: Claims::default() })
    }

    fn block(&self) -> u64 {
        u64::from(self.device.geometry().block_size).max(1)
    }

    fn split(&self, at: u64, len: u64) -> Split {
        let block = self.block();
        let end = at.saturating_add(len);
        let first = at.checked_next_multiple_of(block).unwrap_or(u64::MAX).min(end);
        let last = end.saturating_sub(end.checked_rem(block).unwrap_or(0));
        if last < first {
            return Split { before: at..end, whole: end..end, behind: end..end };
        }
        Split { before: at..first, whole: first..last, behind: last..end }
    }

    /// The numbers of the blocks that bytes touch.
    fn blocks(&self, at: u64, len: u64) -> Range<u64> {
        let block = self.block();
        at.checked_div(block).unwrap_or(0)..at.saturating_add(len).div_ceil(block)
    }

    /// Reads part of one block.
    async fn read_part(&self, range: Range<u64>, into: &Buffer) -> Result<(), BlockError> {
        if !range.is_empty() {
            into.write(0, &read_bytes(&*self.device, range.start, into.len()).await?);
        }
        Ok(())
    }

    /// Changes part of one block.
    async fn write_part(&self, range: Range<u64>, bytes: &[u8]) -> Result<(), BlockError> {
        if range.is_empty() {
            return Ok(());
        }
        let within = range.start.checked_rem(self.block()).unwrap_or(0);
        let start = range.start.saturating_sub(within);
        let mut block = read_bytes(&*self.device, start, usize::try_from(self.block()).unwrap_or(0)).await?;
        put(&mut block, usize::try_from(within).unwrap_or(usize::MAX), bytes);
        self.device.write(start, Buffer::holding(&block)).await
    }

    /// Writes `from`, or zeros.
    async fn put(&self, at: u64, len: u64, from: Option<&Buffer>) -> Result<(), BlockError> {
        let geometry = self.geometry();
        geometry.check(at, len)?;
        if geometry.read_only {
            return Err(BlockError::ReadOnly);
        }
        let split = self.split(at, len);
        let whole_blocks = split.before.is_empty() && split.behind.is_empty();
        let blocks = self.blocks(at, len);
        let _claim =
            if whole_blocks { self.claims.share(blocks).await } else { self.claims.take(blocks).await };
        let bytes = |range: &Range<u64>| match from {
            Some(from) => Ok(part(from, at, range)?.to_vec()),
            None => Ok(alloc::vec![0; length(range)]),
        };
        self.write_part(split.before.clone(), &bytes(&split.before)?).await?;
        match from {
            _ if split.whole.is_empty() => {}
            Some(from) => self.device.write(split.whole.start, part(from, at, &split.whole)?).await?,
            None => self.device.write_zeroes(split.whole.start, length(&split.whole) as u64).await?,
        }
        self.write_part(split.behind.clone(), &bytes(&split.behind)?).await
    }
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX)
}

/// What of a request's buffer, the first byte of which lies at `at`, is about a range.
fn part(buffer: &Buffer, at: u64, range: &Range<u64>) -> Result<Buffer, BlockError> {
    let offset = usize::try_from(range.start.saturating_sub(at)).unwrap_or(usize::MAX);
    buffer.slice(offset, length(range)).ok_or(BlockError::Failed)
}

impl BlockDevice for Sectors {
    fn geometry(&self) -> Geometry {
        let geometry = self.device.geometry();
        Geometry { block_size: SECTOR, blocks: geometry.size() / 512, ..geometry }
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        Box::pin(async move {
            self.geometry().check(at, into.len() as u64)?;
            let split = self.split(at, into.len() as u64);
            self.read_part(split.before.clone(), &part(&into, at, &split.before)?).await?;
            if !split.whole.is_empty() {
                self.device.read(split.whole.start, part(&into, at, &split.whole)?).await?;
            }
            self.read_part(split.behind.clone(), &part(&into, at, &split.behind)?).await
        })
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        Box::pin(async move { self.put(at, from.len() as u64, Some(&from)).await })
    }

    fn flush(&self) -> Reply<'_> {
        self.device.flush()
    }

    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        Box::pin(async move {
            self.geometry().check(at, len)?;
            // What is left of a block is still needed, perhaps.
            let Range { start, end } = self.split(at, len).whole;
            let _claim = self.claims.share(self.blocks(start, end.saturating_sub(start))).await;
            if start == end { Ok(()) } else { self.device.discard(start, end.saturating_sub(start)).await }
        })
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        Box::pin(async move { self.put(at, len, None).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{RamDisk, Random, Reachable, Slow, Watch, pattern, wait};

    #[test]
    fn what_is_long_is_copied_in_its_first_and_last_block_only() {
        let content = pattern(256 << 10, 1);
        let watch = Watch::new(Arc::new(RamDisk::new(4096, content.clone())));
        let sectors = Sectors::of(Arc::clone(&watch) as Arc<dyn BlockDevice>);
        for (at, len) in [(512, 200 << 10), (4096, 100 << 10), (1024, 512), (3584, 1024), (0, 0)] {
            let into = Reachable::holding(&vec![0; len]);
            wait(sectors.read(at, into.clone())).unwrap();
            assert!(into.to_vec() == content[at as usize..][..len], "{len} at {at}");
            wait(sectors.write(at, into)).unwrap();
            assert!(watch.take().copied <= 4096, "{len} at {at}");
        }
    }

    #[test]
    fn sectors_are_read_and_written_alone() {
        let mut expected = pattern(64 << 10, 1);
        let disk = Arc::new(RamDisk::new(4096, expected.clone()));
        let slow = Arc::new(Slow::new(Arc::clone(&disk) as Arc<dyn BlockDevice>, 1));
        let sectors = Sectors::of(slow);
        assert_eq!((sectors.geometry().block_size, sectors.geometry().blocks), (512, 128));
        let mut random = Random(5);
        for _ in 0..100 {
            // Neighbours at once: two may be in one block.
            let middle = 1 + random.below(126);
            let (first, last) = (random.below(middle), middle + 1 + random.below(128 - middle));
            let (one, two) = (
                (first * 512) as usize..(middle * 512) as usize,
                (middle * 512) as usize..(last * 512) as usize,
            );
            expected[one.clone()].copy_from_slice(&pattern(one.len(), random.below(99) as usize));
            let mut requests = vec![sectors.write(one.start as u64, Buffer::holding(&expected[one]))];
            if random.below(2) == 0 {
                expected[two.clone()].fill(0);
                requests.push(sectors.write_zeroes(two.start as u64, two.len() as u64));
            } else {
                expected[two.clone()].copy_from_slice(&pattern(two.len(), random.below(99) as usize));
                requests.push(sectors.write(two.start as u64, Buffer::holding(&expected[two.clone()])));
            }
            wait(crate::join::all(requests)).unwrap();
            assert!(disk.bytes() == expected);
            let buffer = Buffer::zeroed(two.len());
            wait(sectors.read(two.start as u64, buffer.clone())).unwrap();
            assert!(buffer.to_vec() == expected[two]);
        }
        assert!(wait(sectors.read(65024, Buffer::zeroed(1024))).is_err());
        assert!(matches!(wait(sectors.discard(512, 3072)), Ok(())), "no whole block");
    }
}
