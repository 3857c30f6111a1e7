//! Contiguous pieces of RAM, lent out and taken back.
// Unsafe because handing out raw memory is what `HostBlock` promises about.
#![allow(unsafe_code)]

use super::map::PAGE;
use super::range::{Range, RangeSet};
use super::zero;
use spin::Mutex;
use vmm_core::memory::{HostBlock, HostPhys};

/// All RAM that nobody uses.
pub struct FrameAllocator {
    free: Mutex<RangeSet>,
}

impl FrameAllocator {
    /// An allocator of `free`.
    ///
    /// # Safety
    ///
    /// `free` is RAM that is mapped writable at its own address for as long as the allocator or anything it
    /// gave lives, and that nothing else uses.
    pub const unsafe fn new(free: RangeSet) -> Self {
        Self { free: Mutex::new(free) }
    }

    /// `len` bytes, rounded up to whole pages, starting on a multiple of `align` (a power of two), all below
    /// `below`; the bytes are whatever was left there. `None` where there is no such piece.
    pub fn allocate(&'static self, len: u64, align: u64, below: u64) -> Option<Frames> {
        let len = len.checked_next_multiple_of(PAGE)?;
        let range = self.free.lock().take(len, align.max(PAGE), below)?;
        Some(Frames { allocator: self, range })
    }

    /// Takes exactly these pages out, for good; whether they were all free. If not, none is taken.
    pub fn claim(&self, pages: &RangeSet) -> bool {
        let mut free = self.free.lock();
        let all = pages.iter().all(|range| free.covers(range));
        if all {
            pages.iter().for_each(|range| free.remove(range));
        }
        all
    }

    /// How many bytes are free.
    pub fn free(&self) -> u64 {
        self.free.lock().len()
    }

    /// The longest piece that is free, in bytes.
    pub fn longest(&self) -> u64 {
        self.free.lock().iter().map(Range::len).max().unwrap_or(0)
    }

    /// All pieces that are free, rising.
    pub fn pieces(&self) -> RangeSet {
        self.free.lock().clone()
    }
}

/// A contiguous piece of RAM that is its holder's alone; it goes back when dropped.
pub struct Frames {
    allocator: &'static FrameAllocator,
    range: Range,
}

impl Frames {
    /// Where it lies.
    pub fn range(&self) -> Range {
        self.range
    }

    /// The bytes, as Rust memory for good: they are never given back.
    pub fn into_bytes(mut self) -> &'static mut [u8] {
        self.zero();
        let range = self.range;
        core::mem::forget(self);
        // SAFETY: the range is this value's alone, mapped writable, initialized just now, and stays so, since
        // the value that would give it back is gone.
        unsafe { core::slice::from_raw_parts_mut(range.start as *mut u8, range.len() as usize) }
    }

    /// Sets every byte to zero.
    pub fn zero(&mut self) {
        // SAFETY: the range is this value's alone, whole pages, and mapped writable.
        unsafe { zero::pages(self.range) }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.allocator.free.lock().insert(self.range);
    }
}

// SAFETY: `FrameAllocator::new`'s caller promised that the range is mapped writable at its own address and
// used by nobody else; the allocator gives every byte to one `Frames` at a time; no reference is ever made.
unsafe impl HostBlock for Frames {
    fn host(&self) -> HostPhys {
        HostPhys::new(self.range.start)
    }
    fn len(&self) -> u64 {
        self.range.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses without memory behind them: only where nothing is zeroed.
    fn allocator(ranges: &[Range]) -> &'static FrameAllocator {
        let mut free = RangeSet::new();
        ranges.iter().for_each(|range| free.insert(*range));
        // SAFETY: the tests never touch the bytes.
        Box::leak(Box::new(unsafe { FrameAllocator::new(free) }))
    }

    #[test]
    fn dropped_frames_can_be_had_again() {
        let frames = allocator(&[Range::new(PAGE, 9 * PAGE)]);
        let first = frames.allocate(3 * PAGE, PAGE, u64::MAX).unwrap();
        let second = frames.allocate(4 * PAGE + 1, PAGE, u64::MAX).unwrap();
        assert!(!first.range().overlaps(second.range()));
        assert!(frames.allocate(PAGE, PAGE, u64::MAX).is_none());
        drop(first);
        assert_eq!((frames.free(), frames.longest()), (3 * PAGE, 3 * PAGE));
        drop(second);
        assert_eq!(frames.longest(), 8 * PAGE);
    }

    #[test]
    fn zeroed_frames_are_zero_and_aligned_for_large_pages() {
        let bytes = 6 << 20;
        let memory = vmm_core::memory::HeapBlock::zeroed(bytes, 2 << 20).unwrap();
        let range = Range::with_len(memory.host().get(), bytes as u64);
        // SAFETY: `range` is inside `memory`, which outlives its use below.
        unsafe { core::ptr::write_bytes(range.start as *mut u8, 0xa5, bytes) };
        let frames = allocator(&[Range::new(range.start + PAGE, range.end - PAGE)]);
        let mut given = frames.allocate((2 << 20) + PAGE, 2 << 20, u64::MAX).unwrap();
        given.zero();
        assert_eq!(given.range().start % (2 << 20), 0);
        // SAFETY: the piece lies inside `memory`.
        let seen =
            unsafe { core::slice::from_raw_parts(given.range().start as *const u8, given.len() as usize) };
        assert!(seen.iter().all(|byte| *byte == 0));
        // SAFETY: as above.
        let behind = unsafe { *((given.range().end) as *const u8) };
        assert_eq!(behind, 0xa5, "nothing behind the piece is touched");
    }
}
