//! The interface of everything that stores blocks.

use crate::buffer::Buffer;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::pin::Pin;

/// The answer to a request, once it has come. Whoever drops it does not wait for it any more; what it asked for may
/// be done all the same.
pub type Reply<'a> = Pin<Box<dyn Future<Output = Result<(), BlockError>> + Send + 'a>>;

/// What stores blocks.
///
/// Places and lengths are in bytes, and multiples of the block size; other requests are refused. Any number of
/// requests may be under way at once, and end in any order; none that is under way is ordered before another.
pub trait BlockDevice: Send + Sync {
    /// What it looks like.
    fn geometry(&self) -> Geometry;
    /// Fills `into` with what lies at `at`.
    fn read(&self, at: u64, into: Buffer) -> Reply<'_>;
    /// Writes `from` to `at`. It may be lost with the power until a flush that begins later has ended.
    fn write(&self, at: u64, from: Buffer) -> Reply<'_>;
    /// Ends once all writes that had ended before are safe from the loss of power.
    fn flush(&self) -> Reply<'_>;
    /// Says that nobody needs these bytes any more; what they then read as is not said.
    fn discard(&self, at: u64, len: u64) -> Reply<'_>;
    /// Makes these bytes zero.
    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_>;
}

/// What a block device looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The size of a block in bytes: 512 or 4096.
    pub block_size: u32,
    /// How many blocks there are.
    pub blocks: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Discarding does something.
    pub discards: bool,
}

impl Geometry {
    /// The size in bytes, as far as 64 bits can say.
    pub const fn size(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size as u64)
    }

    /// Whether `len` bytes at `at` are blocks of this device.
    ///
    /// # Errors
    /// They begin or end within a block, or lie behind the last one.
    pub const fn check(&self, at: u64, len: u64) -> Result<(), BlockError> {
        let block = self.block_size as u64;
        if !at.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(BlockError::Misaligned { at, len, block_size: self.block_size });
        }
        match at.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(BlockError::OutOfRange { at, len, size: self.size() }),
        }
    }
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// It lies behind the end.
    OutOfRange {
        /// Where it begins.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// The device's size in bytes.
        size: u64,
    },
    /// It begins or ends within a block.
    Misaligned {
        /// Where it begins.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// The device's block size in bytes.
        block_size: u32,
    },
    /// The device is not to be written.
    ReadOnly,
    /// The device cannot do this.
    Unsupported,
    /// The device is a file, which has no room of its own there to be written.
    NotAllocated,
    /// The device says that it failed.
    Failed,
    /// The device did not answer in time.
    TimedOut,
    /// The device is not there any more.
    Gone,
    /// The image needs to grow, and what it lies in has no room left; or memory for changes is used up.
    NoRoom {
        /// How many bytes there are, all in use.
        size: u64,
    },
    /// What an image says of itself cannot be.
    Damaged {
        /// Which of its structures.
        what: &'static str,
        /// Where that lies, or points to, in what the image lies in.
        at: u64,
    },
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { at, len, size } => {
                write!(f, "{len} bytes at {at:#x} are not all on this disk of {size} bytes")
            }
            Self::Misaligned { at, len, block_size } => {
                write!(f, "{len} bytes at {at:#x} are no whole blocks of {block_size} bytes")
            }
            Self::ReadOnly => f.write_str("the disk is read-only"),
            Self::Unsupported => f.write_str("the disk cannot do this"),
            Self::NotAllocated => f.write_str("the file that is the disk has no blocks there to be written"),
            Self::Failed => f.write_str("the disk reports an error"),
            Self::TimedOut => f.write_str("the disk does not answer"),
            Self::Gone => f.write_str("the disk is gone"),
            Self::NoRoom { size } => write!(f, "all {size} bytes that the image can have are in use"),
            Self::Damaged { what, at } => write!(f, "the image is damaged: {what} at {at:#x}"),
        }
    }
}

impl core::error::Error for BlockError {}

/// The `len` bytes at `at`, wherever blocks begin.
///
/// # Errors
/// They are not all there, or the device cannot read them.
pub async fn read_bytes(device: &dyn BlockDevice, at: u64, len: usize) -> Result<Vec<u8>, BlockError> {
    let geometry = device.geometry();
    let block = u64::from(geometry.block_size).max(1);
    let out_of_range = BlockError::OutOfRange { at, len: len as u64, size: geometry.size() };
    let end = at.checked_add(len as u64).filter(|end| *end <= geometry.size()).ok_or(out_of_range)?;
    let before = at.checked_rem(block).unwrap_or(0);
    let first = at.saturating_sub(before);
    let whole = end.checked_next_multiple_of(block).ok_or(out_of_range)?.saturating_sub(first);
    let buffer = Buffer::zeroed(usize::try_from(whole).map_err(|_| out_of_range)?);
    device.read(first, buffer.clone()).await?;
    let mut bytes = alloc::vec![0; len];
    buffer.slice(before as usize, len).ok_or(out_of_range)?.read(0, &mut bytes);
    Ok(bytes)
}

/// The `len` bytes at `at`, wherever blocks begin; what lies behind the end is zero.
///
/// # Errors
/// The device cannot read them.
pub async fn read_bytes_or_zeros(
    device: &dyn BlockDevice,
    at: u64,
    len: usize,
) -> Result<Vec<u8>, BlockError> {
    let left = usize::try_from(device.geometry().size().saturating_sub(at)).unwrap_or(usize::MAX);
    let mut bytes = if left == 0 { Vec::new() } else { read_bytes(device, at, len.min(left)).await? };
    bytes.resize(len, 0);
    Ok(bytes)
}

/// Fills `into` with what lies at `at`, wherever blocks begin; what lies behind the end is zero.
///
/// # Errors
/// The device cannot read it.
pub async fn read_or_zeros(device: &dyn BlockDevice, at: u64, into: &Buffer) -> Result<(), BlockError> {
    let geometry = device.geometry();
    let left = usize::try_from(geometry.size().saturating_sub(at)).unwrap_or(usize::MAX);
    let there = left.min(into.len());
    into.fill(there, 0);
    let Some(part) = into.slice(0, there).filter(|part| !part.is_empty()) else { return Ok(()) };
    if geometry.check(at, there as u64).is_ok() {
        return device.read(at, part).await;
    }
    part.write(0, &read_bytes(device, at, there).await?);
    Ok(())
}

/// Makes these bytes zero, also where the device has no short way to do so.
///
/// # Errors
/// The device cannot write them.
pub async fn zero(device: &dyn BlockDevice, at: u64, len: u64) -> Result<(), BlockError> {
    /// Zeros are written in pieces of at most so many bytes.
    const PIECE: u64 = 64 << 10;
    if len == 0 {
        return Ok(());
    }
    match device.write_zeroes(at, len).await {
        Err(BlockError::Unsupported) => {}
        answer => return answer,
    }
    let end = at.saturating_add(len);
    for at in (at..end).step_by(PIECE as usize) {
        let len = end.saturating_sub(at).min(PIECE) as usize;
        device.write(at, Buffer::zeros(len)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{RamDisk, wait};

    #[test]
    fn requests_are_blocks_of_the_device() {
        let geometry = Geometry { block_size: 512, blocks: 4, read_only: false, discards: false };
        assert_eq!(geometry.check(512, 1536), Ok(()));
        assert_eq!(geometry.check(2048, 0), Ok(()));
        assert!(matches!(geometry.check(512, 2048), Err(BlockError::OutOfRange { size: 2048, .. })));
        assert!(matches!(geometry.check(u64::MAX - 511, 512), Err(BlockError::OutOfRange { .. })));
        assert!(matches!(geometry.check(1, 512), Err(BlockError::Misaligned { .. })));
        assert!(matches!(geometry.check(0, 100), Err(BlockError::Misaligned { .. })));
    }

    #[test]
    fn bytes_are_read_wherever_blocks_begin() {
        let disk = RamDisk::new(4096, (0..16384_u32).map(|n| (n / 7) as u8).collect());
        for (at, len) in [(0, 1), (4095, 2), (100, 8000), (16383, 1), (16384, 0)] {
            let expected: Vec<u8> = (at..at + len as u32).map(|n| (n / 7) as u8).collect();
            assert_eq!(wait(read_bytes(&disk, u64::from(at), len)).unwrap(), expected, "{len} at {at}");
        }
        assert!(matches!(wait(read_bytes(&disk, 16383, 2)), Err(BlockError::OutOfRange { .. })));
        assert!(matches!(wait(read_bytes(&disk, u64::MAX, 2)), Err(BlockError::OutOfRange { .. })));
    }
}
