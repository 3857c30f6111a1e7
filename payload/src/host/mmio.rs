//! A device's memory: volatile access within bounds.
// Unsafe because a device is reached through raw pointers.
#![allow(unsafe_code)]

use super::memory::Range;
use core::arch::asm;

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

    /// The address of an access of `len` bytes at `offset`.
    fn at(&self, offset: u64, len: u64) -> u64 {
        self.span(offset, len, len)
    }

    /// The address of `len` bytes from `offset` on, aligned. A driver that leaves its device is a mistake of
    /// ours.
    fn span(&self, offset: u64, len: u64, align: u64) -> u64 {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.range.len());
        let at = self.range.start.wrapping_add(offset);
        assert!(
            inside && at.is_multiple_of(align),
            "{len} bytes at {offset:#x} of the device at {}",
            self.range
        );
        at
    }

    /// Writes words one after the other from `offset` on, a multiple of 8.
    pub fn write_words(&self, offset: u64, words: &[u64]) {
        let at = self.span(offset, size_of_val(words) as u64, 8);
        for (index, word) in words.iter().enumerate() {
            // SAFETY: inside the device, as `span` checked, and aligned.
            unsafe { (at as *mut u64).add(index).write_volatile(*word) }
        }
    }

    /// Writes zeros everywhere.
    pub fn zero(&self) {
        // SAFETY: the whole device and no more; the direction flag is clear as the ABI demands.
        unsafe {
            asm!("rep stosq", "mov rcx, {rest}", "rep stosb", rest = in(reg) self.range.len() % 8,
                inout("rcx") self.range.len() / 8 => _, inout("rdi") self.range.start => _, in("rax") 0,
                options(nostack, preserves_flags));
        }
    }

    /// Reads `N` bytes, one by one.
    pub fn read_bytes<const N: usize>(&self, offset: u64) -> [u8; N] {
        core::array::from_fn(|index| self.read_u8(offset + index as u64))
    }

    access!(read_u8, write_u8, u8);
    access!(read_u32, write_u32, u32);
}

#[cfg(feature = "pci")]
impl Mmio {
    access!(read_u16, write_u16, u16);
    access!(read_u64, write_u64, u64);
}
