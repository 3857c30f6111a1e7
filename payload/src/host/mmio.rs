//! A device's memory: volatile access within bounds.
// Unsafe because a device is reached through raw pointers.
#![allow(unsafe_code)]

use super::memory::Range;

/// A mapped device.
#[derive(Debug)]
pub struct Mmio {
    range: Range,
}

macro_rules! access {
    ($read:ident, $write:ident, $int:ty) => {
        #[doc = concat!("Reads the `", stringify!($int), "` that lies `offset` bytes behind the start, in one access.")]
        pub fn $read(&self, offset: u64) -> $int {
            let at = self.at(offset, size_of::<$int>() as u64);
            // SAFETY: inside the device, as `at` checked, and aligned.
            unsafe { (at as *const $int).read_volatile() }
        }

        #[doc = concat!("Writes the `", stringify!($int), "` that lies `offset` bytes behind the start, in one access.")]
        pub fn $write(&self, offset: u64, value: $int) {
            let at = self.at(offset, size_of::<$int>() as u64);
            // SAFETY: as for reading; no Rust object lives in a device.
            unsafe { (at as *mut $int).write_volatile(value) }
        }
    };
}

impl Mmio {
    /// The device at `range`.
    ///
    /// # Safety
    ///
    /// `range` is mapped for ever, and holds no Rust object.
    pub unsafe fn new(range: Range) -> Self {
        Self { range }
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.range.len()
    }

    /// The address of `len` bytes from `offset` on. A driver that leaves its device is a mistake of ours.
    fn at(&self, offset: u64, len: u64) -> u64 {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.range.len());
        let at = self.range.start.wrapping_add(offset);
        assert!(
            inside && at.is_multiple_of(len),
            "{len} bytes at {offset:#x} of the device at {}",
            self.range
        );
        at
    }

    /// Reads `N` bytes, one by one.
    pub fn read_bytes<const N: usize>(&self, offset: u64) -> [u8; N] {
        core::array::from_fn(|index| self.read_u8(offset + index as u64))
    }

    access!(read_u8, write_u8, u8);
    access!(read_u16, write_u16, u16);
    access!(read_u32, write_u32, u32);
    access!(read_u64, write_u64, u64);
}
