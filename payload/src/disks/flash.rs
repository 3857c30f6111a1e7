//! A file that came with the machine, as a disk.

use alloc::boxed::Box;
use core::future::ready;
use storage::{BlockDevice, BlockError, Buffer, Geometry, Reply};

/// The size of a block in bytes.
const BLOCK: u32 = 512;

/// Bytes in flash, or in RAM in its stead, which are only read. The last block is filled up with zeroes.
pub struct FlashDisk(pub &'static [u8]);

impl FlashDisk {
    fn fill(&self, at: u64, into: &Buffer) -> Result<(), BlockError> {
        self.geometry().check(at, into.len() as u64)?;
        let there = self.0.get(at as usize..).unwrap_or(&[]);
        let there = &there[..there.len().min(into.len())];
        into.write(0, there);
        // Less than a block.
        into.write(there.len(), &[0; BLOCK as usize][..into.len() - there.len()]);
        Ok(())
    }
}

impl BlockDevice for FlashDisk {
    fn geometry(&self) -> Geometry {
        let blocks = (self.0.len() as u64).div_ceil(BLOCK.into());
        Geometry { block_size: BLOCK, blocks, read_only: true, discards: false }
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        Box::pin(ready(self.fill(at, &into)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};

    #[test]
    fn the_last_block_is_filled_up() {
        let disk = FlashDisk(Box::leak((0..700_u32).map(|n| n as u8 | 1).collect::<Box<[u8]>>()));
        assert_eq!(disk.geometry().size(), 1024);
        let into = Buffer::holding(&[0xEE; 1024]);
        let mut reply = pin!(disk.read(0, into.clone()));
        assert_eq!(reply.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())));
        let bytes = into.to_vec();
        assert!(bytes[..700].iter().enumerate().all(|(n, byte)| *byte == n as u8 | 1));
        assert!(bytes[700..].iter().all(|byte| *byte == 0));
        let mut behind = pin!(disk.read(1024, Buffer::zeroed(512)));
        let answer = behind.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(answer, Poll::Ready(Err(BlockError::OutOfRange { .. }))));
    }
}
