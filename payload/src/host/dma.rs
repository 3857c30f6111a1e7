//! Memory that we and devices use at once.
// Unsafe because devices change it behind Rust's back, so it is reached by raw pointers only.
#![allow(unsafe_code)]

use super::memory::{FrameAllocator, Frames, PAGE};
use core::arch::asm;
use storage::{Memory, Piece};

/// Devices that know addresses of 32 bits reach what lies below.
const REACHED_BY_ALL: u64 = 1 << 32;

/// A piece of RAM for a driver and its device.
pub struct SharedFrames {
    frames: Frames,
    len: usize,
}

impl SharedFrames {
    /// So many zeroed bytes below 4 GiB; `None` where there are none in one piece.
    pub fn allocate(frames: &'static FrameAllocator, len: usize) -> Option<Self> {
        Self::below(frames, len, REACHED_BY_ALL)
    }

    /// So many zeroed bytes anywhere; `None` where there are none in one piece.
    pub fn anywhere(frames: &'static FrameAllocator, len: usize) -> Option<Self> {
        Self::below(frames, len, u64::MAX)
    }

    fn below(frames: &'static FrameAllocator, len: usize, limit: u64) -> Option<Self> {
        let mut frames = frames.allocate(len.max(1) as u64, PAGE, limit)?;
        frames.zero();
        Some(Self { frames, len })
    }

    /// The address of what lies `at` behind the start, and how many of `len` bytes are inside.
    fn span(&self, at: usize, len: usize) -> (u64, usize) {
        let at = at.min(self.len);
        (self.frames.range().start + at as u64, len.min(self.len - at))
    }
}

/// RAM that nobody writes to any more: no device was ever told of it, as only its owner could have.
pub struct FrozenFrames(SharedFrames);

impl From<SharedFrames> for FrozenFrames {
    fn from(frames: SharedFrames) -> Self {
        Self(frames)
    }
}

impl AsRef<[u8]> for FrozenFrames {
    fn as_ref(&self) -> &[u8] {
        let (address, len) = self.0.span(0, self.0.len);
        // SAFETY: inside the frames, which are this value's alone, were zeroed, and are given back only when it is
        // dropped; what could write to them is inside it, and nothing here does.
        unsafe { core::slice::from_raw_parts(address as *const u8, len) }
    }
}

/// Copies `len` bytes between memory of ours and memory that a device may be at.
///
/// # Safety
///
/// Both are mapped for `len` bytes, `to` for writing, and do not overlap.
unsafe fn copy(from: u64, to: u64, len: usize) {
    // SAFETY: the caller's promise; the direction flag is clear as the ABI demands.
    unsafe {
        asm!("rep movsb", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") len => _,
            options(nostack, preserves_flags));
    }
}

macro_rules! single_access {
    ($self:ident, $at:ident, $bytes:ident, $access:ident, $($int:ty),*) => {
        let (address, inside) = $self.span($at, $bytes.len());
        match inside {
            $(len if len == size_of::<$int>() && len == $bytes.len() && address.is_multiple_of(len as u64) => {
                // SAFETY: inside the frames, which are this value's alone and mapped writable, and aligned; no
                // reference to them is ever made.
                return unsafe { $access!($int, address, $bytes) };
            })*
            _ => {}
        }
    };
}

macro_rules! read {
    ($int:ty, $address:ident, $bytes:ident) => {
        $bytes.copy_from_slice(&($address as *const $int).read_volatile().to_le_bytes())
    };
}

macro_rules! write {
    ($int:ty, $address:ident, $bytes:ident) => {{
        let mut value = [0; size_of::<$int>()];
        value.copy_from_slice($bytes);
        ($address as *mut $int).write_volatile(<$int>::from_le_bytes(value))
    }};
}

impl Memory for SharedFrames {
    fn size(&self) -> usize {
        self.len
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        single_access!(self, at, bytes, read, u8, u16, u32, u64);
        let (address, len) = self.span(at, bytes.len());
        // SAFETY: inside the frames and inside `bytes`, which are Rust's and so elsewhere.
        unsafe { copy(address, bytes.as_mut_ptr() as u64, len) }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        single_access!(self, at, bytes, write, u8, u16, u32, u64);
        let (address, len) = self.span(at, bytes.len());
        // SAFETY: as for `read`.
        unsafe { copy(bytes.as_ptr() as u64, address, len) }
    }

    fn piece(&self, at: usize) -> Option<Piece> {
        let (address, len) = self.span(at, usize::MAX);
        (len > 0).then_some(Piece { address, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::memory::{Range, RangeSet};
    use vmm_core::memory::{HeapBlock, HostBlock};

    #[test]
    fn bytes_are_read_as_written_and_stay_inside() {
        let block = HeapBlock::zeroed(0x4000, 0x1000).unwrap();
        let mut free = RangeSet::new();
        free.insert(Range::with_len(block.host().get(), 0x4000));
        // SAFETY: the block outlives what is allocated here.
        let frames = Box::leak(Box::new(unsafe { FrameAllocator::new(free) }));
        // A test's heap lies above 4 GiB.
        let mut frames = frames.allocate(0x1000, PAGE, u64::MAX).unwrap();
        frames.zero();
        let memory = SharedFrames { frames, len: 0x800 };
        for len in [1, 2, 3, 4, 7, 8, 100] {
            for at in [0, 1, 6, 8, 0x7ff, 0x800, usize::MAX] {
                let written: Vec<u8> = (1..=len as u8).collect();
                memory.write(at, &written);
                let mut read = vec![0; len];
                memory.read(at, &mut read);
                let inside = 0x800_usize.saturating_sub(at).min(len);
                assert_eq!(read[..inside], written[..inside], "{len} at {at}");
                assert!(read[inside..].iter().all(|byte| *byte == 0), "{len} at {at}");
            }
        }
        let mut behind = [0; 8];
        memory.read(0x7f8, &mut behind);
        assert_eq!(memory.piece(0x7f8).map(|piece| piece.len), Some(8));
        assert_eq!(memory.piece(0x800), None);
    }
}
