//! Memory that devices reach.

use crate::driver::Error;
use crate::platform::Platform;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use storage::{Buffer, Memory, Piece};

/// Memory of a driver's own that its device reaches too: rings, tables, bounce buffers.
///
/// What lies outside reads as zeroes and is not written.
#[derive(Clone)]
pub struct Dma {
    memory: Arc<dyn Memory>,
    address: u64,
}

impl Dma {
    /// So many zeroed bytes, page-aligned.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn allocate(platform: &dyn Platform, len: usize) -> Result<Self, Error> {
        let memory = platform.allocate(len).ok_or(Error::NoMemory)?;
        let piece = memory.piece(0).filter(|piece| piece.len >= len).ok_or(Error::NoMemory)?;
        Ok(Self { memory, address: piece.address })
    }

    /// Where its first byte lies for the device.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        self.memory.size()
    }

    /// All of it as a request's buffer.
    pub fn buffer(&self) -> Buffer {
        Buffer::new(Arc::clone(&self.memory))
    }

    /// Copies from `at` on into `bytes`.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        self.memory.read(at, bytes);
    }

    /// Copies `bytes` to `at` and on.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        self.memory.write(at, bytes);
    }

    /// Reads the byte at `at`.
    pub fn read_u8(&self, at: usize) -> u8 {
        let mut bytes = [0; 1];
        self.memory.read(at, &mut bytes);
        u8::from_le_bytes(bytes)
    }

    /// Reads the 16 bits at `at`, little-endian as all here.
    pub fn read_u16(&self, at: usize) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(at, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Reads the 32 bits at `at`.
    pub fn read_u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Reads the 64 bits at `at`.
    pub fn read_u64(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Writes the byte at `at`.
    pub fn write_u8(&self, at: usize, value: u8) {
        self.memory.write(at, &[value]);
    }

    /// Writes the 16 bits at `at`.
    pub fn write_u16(&self, at: usize, value: u16) {
        self.memory.write(at, &value.to_le_bytes());
    }

    /// Writes the 32 bits at `at`.
    pub fn write_u32(&self, at: usize, value: u32) {
        self.memory.write(at, &value.to_le_bytes());
    }

    /// Writes the 64 bits at `at`.
    pub fn write_u64(&self, at: usize, value: u64) {
        self.memory.write(at, &value.to_le_bytes());
    }
}

/// Nothing after it is done before what stands ahead of it, for devices too: between telling a device that there is
/// something and asking whether it wants to be told.
pub fn barrier() {
    fence(Ordering::SeqCst);
}

/// Which way a transfer's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device into memory.
    FromDevice,
    /// From memory to the device.
    ToDevice,
}

/// A request's bytes where its device can reach them: in place, or in a copy where it cannot.
///
/// It must live for as long as the device may be at work on it.
pub struct Transfer {
    buffer: Buffer,
    pieces: Vec<Piece>,
    direction: Direction,
    copy: Option<Dma>,
}

impl Transfer {
    /// Makes `buffer` ready for the device. Its pieces are used in place if they all can be reached and `usable` says
    /// so, which knows about the device's addresses and alignments; else a copy, in one piece, page-aligned.
    ///
    /// # Errors
    /// [`Error::NoMemory`]: it needs a copy, for which there is no memory.
    pub fn new(
        platform: &dyn Platform,
        buffer: Buffer,
        direction: Direction,
        usable: impl FnOnce(&[Piece]) -> bool,
    ) -> Result<Self, Error> {
        let in_place: Option<Vec<Piece>> = buffer.pieces().collect();
        if let Some(pieces) = in_place.map(joined).filter(|pieces| usable(pieces)) {
            return Ok(Self { buffer, pieces, direction, copy: None });
        }
        let copy = Dma::allocate(platform, buffer.len())?;
        if direction == Direction::ToDevice {
            copy.write(0, &buffer.to_vec());
        }
        let pieces = alloc::vec![Piece { address: copy.address(), len: buffer.len() }];
        Ok(Self { buffer, pieces, direction, copy: Some(copy) })
    }

    /// Where its bytes are, in order; together as many as the buffer has.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether the device works on a copy.
    pub const fn is_copy(&self) -> bool {
        self.copy.is_some()
    }

    /// The device has done it: what it gave is brought to the buffer.
    pub fn finish(self) {
        if let (Some(copy), Direction::FromDevice) = (self.copy, self.direction) {
            let mut bytes = alloc::vec![0; self.buffer.len()];
            copy.read(0, &mut bytes);
            self.buffer.write(0, &bytes);
        }
    }
}

/// The same pieces, with those that follow one another made one.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut all: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match all.last_mut() {
            Some(last) if last.address.checked_add(last.len as u64) == Some(piece.address) => {
                last.len = last.len.saturating_add(piece.len);
            }
            _ => all.push(piece),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakePlatform;

    #[test]
    fn memory_that_devices_reach_is_used_in_place() {
        let platform = FakePlatform::new();
        let memory = Dma::allocate(&*platform, 8192).unwrap();
        let part = memory.buffer().slice(512, 1024).unwrap();
        let transfer = Transfer::new(&*platform, part, Direction::FromDevice, |_| true).unwrap();
        assert_eq!(transfer.pieces(), [Piece { address: memory.address() + 512, len: 1024 }]);
        platform.write(memory.address() + 512, b"there");
        transfer.finish();
        let mut bytes = [0; 5];
        memory.read(512, &mut bytes);
        assert_eq!(&bytes, b"there");
    }

    #[test]
    fn what_devices_do_not_reach_is_copied() {
        let platform = FakePlatform::new();
        let buffer = Buffer::holding(&[7; 512]);
        let transfer = Transfer::new(&*platform, buffer, Direction::ToDevice, |_| true).unwrap();
        let [piece] = *transfer.pieces() else { panic!("one piece") };
        assert_eq!((platform.read(piece.address, 512), piece.len), (vec![7; 512], 512));

        let buffer = Buffer::zeroed(512);
        let transfer = Transfer::new(&*platform, buffer.clone(), Direction::FromDevice, |_| true).unwrap();
        platform.write(transfer.pieces()[0].address, &[9; 512]);
        transfer.finish();
        assert_eq!(buffer.to_vec(), [9; 512]);
    }

    #[test]
    fn pieces_that_the_device_does_not_take_are_copied() {
        let platform = FakePlatform::new();
        let buffer = platform.scattered(&[512, 512]);
        let transfer = Transfer::new(&*platform, buffer.clone(), Direction::ToDevice, |_| true).unwrap();
        assert_eq!(transfer.pieces().len(), 2);
        let transfer =
            Transfer::new(&*platform, buffer, Direction::ToDevice, |pieces| pieces.len() == 1).unwrap();
        assert!(transfer.is_copy());
    }

    #[test]
    fn no_memory_is_an_error() {
        let platform = FakePlatform::new();
        platform.run_out_of_memory();
        assert_eq!(Dma::allocate(&*platform, 1).err(), Some(Error::NoMemory));
    }
}
