//! Memory that devices reach.

use crate::driver::Error;
use crate::platform::Platform;
use alloc::sync::Arc;
use core::sync::atomic::{Ordering, fence};
use storage::{Buffer, Memory};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakePlatform;

    #[test]
    fn no_memory_is_an_error() {
        let platform = FakePlatform::new();
        platform.run_out_of_memory();
        assert_eq!(Dma::allocate(&*platform, 1).err(), Some(Error::NoMemory));
    }
}
