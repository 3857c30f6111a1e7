//! A file as a disk.

use super::extents::Extents;
use crate::block::{BlockDevice, BlockError, Geometry, Reply, read_bytes};
use crate::buffer::Buffer;
use crate::lock::Lock;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::ready;
use core::ops::Range;

/// The size of a block in bytes, whatever the device has below: image formats ask for it.
const BLOCK: u32 = 512;
/// Zeroes are written in pieces of at most so many bytes.
const ZEROES: u64 = 64 << 10;

/// A file of a file system as a disk, written in place: nothing that the file system keeps is ever changed. So what
/// the file has no blocks for reads as zeroes and cannot be written.
///
/// Nobody else may write to the file system meanwhile, nor move or shorten the file. The last block's bytes behind
/// the file's end read as zeroes.
pub struct FileDisk {
    device: Arc<dyn BlockDevice>,
    extents: Extents,
    writable: bool,
    /// One at a time changes a part of a device's block.
    parts: Lock,
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
        Self { device, extents, writable, parts: Lock::default() }
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

    /// Whether a run is whole blocks of the device.
    fn is_whole(&self, at: u64, len: u64) -> bool {
        let block = u64::from(self.device.geometry().block_size);
        at.is_multiple_of(block) && len.is_multiple_of(block)
    }

    async fn read_all(&self, at: u64, into: Buffer) -> Result<(), BlockError> {
        self.geometry().check(at, into.len() as u64)?;
        let mut done = 0;
        for Run { offset, len, at } in self.runs(at, into.len() as u64) {
            let part = into.slice(offset as usize, len as usize).ok_or(BlockError::Failed)?;
            match at {
                None => part.write(0, &alloc::vec![0; len as usize]),
                Some(at) if self.is_whole(at, len) => self.device.read(at, part).await?,
                Some(at) => part.write(0, &read_bytes(&*self.device, at, len as usize).await?),
            }
            done = offset.saturating_add(len) as usize;
        }
        into.write(done, &alloc::vec![0; into.len().saturating_sub(done)]);
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
            let part = from.slice(offset as usize, len as usize).ok_or(BlockError::Failed)?;
            let at = at.ok_or(BlockError::NotAllocated)?;
            if self.is_whole(at, len) {
                self.device.write(at, part).await?;
            } else {
                self.write_part(at, part).await?;
            }
        }
        Ok(())
    }

    /// Writes what is less than the blocks of the device that it is in.
    async fn write_part(&self, at: u64, from: Buffer) -> Result<(), BlockError> {
        let block = u64::from(self.device.geometry().block_size);
        let before = at.checked_rem(block).unwrap_or(0);
        let first = at.saturating_sub(before);
        let end = at.saturating_add(from.len() as u64).next_multiple_of(block);
        let whole = Buffer::zeroed(end.saturating_sub(first) as usize);
        let _held = self.parts.hold().await;
        self.device.read(first, whole.clone()).await?;
        whole.write(before as usize, &from.to_vec());
        self.device.write(first, whole).await
    }

    async fn zero_all(&self, at: u64, len: u64) -> Result<(), BlockError> {
        self.check_write(at, len)?;
        for Run { offset: _, len, at } in self.runs(at, len) {
            // What has no block is zero already.
            let Some(at) = at else { continue };
            if self.is_whole(at, len) {
                self.device.write_zeroes(at, len).await?;
                continue;
            }
            let mut done = 0;
            while done < len {
                let step = len.saturating_sub(done).min(ZEROES);
                self.write_part(at.saturating_add(done), Buffer::zeroed(step as usize)).await?;
                done = done.saturating_add(step);
            }
        }
        Ok(())
    }
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
