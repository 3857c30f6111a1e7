//! A partition as a device of its own.

use super::Partition;
use crate::block::{BlockDevice, BlockError, Geometry, Reply};
use crate::buffer::Buffer;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::ready;

/// A part of a device, which sees nothing of the rest.
pub struct Window {
    device: Arc<dyn BlockDevice>,
    start: u64,
    blocks: u64,
}

impl Window {
    /// The window that `partition` is on its disk.
    ///
    /// # Errors
    /// It is not on this disk, or does not begin and end with a block.
    pub fn new(device: Arc<dyn BlockDevice>, partition: &Partition) -> Result<Self, BlockError> {
        let geometry = device.geometry();
        geometry.check(partition.start, partition.len)?;
        let blocks = partition.len.checked_div(u64::from(geometry.block_size)).unwrap_or(0);
        Ok(Self { device, start: partition.start, blocks })
    }

    /// Where the device has what this has at `at`.
    fn place(&self, at: u64, len: u64) -> Result<u64, BlockError> {
        self.geometry().check(at, len)?;
        // The window is on the device, as was seen when it was made.
        Ok(self.start.saturating_add(at))
    }
}

fn refused(error: BlockError) -> Reply<'static> {
    Box::pin(ready(Err(error)))
}

impl BlockDevice for Window {
    fn geometry(&self) -> Geometry {
        Geometry { blocks: self.blocks, ..self.device.geometry() }
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        match self.place(at, into.len() as u64) {
            Ok(at) => self.device.read(at, into),
            Err(error) => refused(error),
        }
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        match self.place(at, from.len() as u64) {
            Ok(at) => self.device.write(at, from),
            Err(error) => refused(error),
        }
    }

    fn flush(&self) -> Reply<'_> {
        self.device.flush()
    }

    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        match self.place(at, len) {
            Ok(at) => self.device.discard(at, len),
            Err(error) => refused(error),
        }
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        match self.place(at, len) {
            Ok(at) => self.device.write_zeroes(at, len),
            Err(error) => refused(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partitions::{Identifier, Kind};
    use crate::testing::{RamDisk, wait};

    fn partition(start: u64, len: u64) -> Partition {
        let id = Identifier::Numbered(1, 1);
        Partition { number: 1, start, len, kind: Kind::Byte(0x83), id, label: None }
    }

    #[test]
    fn a_window_shows_its_part_alone() {
        let disk = Arc::new(RamDisk::new(512, (0..8).flat_map(|block| [block; 512]).collect()));
        let window = Window::new(Arc::clone(&disk) as Arc<dyn BlockDevice>, &partition(1024, 2048)).unwrap();
        assert_eq!(window.geometry().size(), 2048);
        let buffer = Buffer::zeroed(1024);
        wait(window.read(512, buffer.clone())).unwrap();
        assert_eq!(buffer.to_vec(), [[3; 512], [4; 512]].concat());
        wait(window.write(1536, Buffer::holding(&[9; 512]))).unwrap();
        wait(window.write_zeroes(0, 512)).unwrap();
        let bytes: Vec<u8> = disk.bytes().chunks(512).map(|block| block[0]).collect();
        assert_eq!(bytes, [0, 1, 0, 3, 4, 9, 6, 7]);
        assert!(matches!(wait(window.read(1536, Buffer::zeroed(1024))), Err(BlockError::OutOfRange { .. })));
        assert!(matches!(wait(window.write(2048, Buffer::zeroed(512))), Err(BlockError::OutOfRange { .. })));
        assert!(wait(window.write_zeroes(u64::MAX, 512)).is_err());
    }

    #[test]
    fn a_window_lies_on_its_disk() {
        let disk: Arc<dyn BlockDevice> = Arc::new(RamDisk::new(4096, vec![0; 8192]));
        assert!(Window::new(Arc::clone(&disk), &partition(4096, 4096)).is_ok());
        assert!(Window::new(Arc::clone(&disk), &partition(4096, 8192)).is_err());
        assert!(Window::new(disk, &partition(512, 4096)).is_err());
    }
}
