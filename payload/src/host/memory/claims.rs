//! RAM that holds something already: taken out of what is free, with its bytes as they are.
// Unsafe because bytes that nobody here wrote become a slice.
#![allow(unsafe_code)]

use super::frames::FrameAllocator;
use super::map::PAGE;
use super::range::{Range, RangeSet};

/// Pages that are kept for ever for what was in them before us.
pub struct Claims {
    frames: &'static FrameAllocator,
    held: RangeSet,
}

impl Claims {
    /// No page yet; they will come out of `frames`.
    pub const fn new(frames: &'static FrameAllocator) -> Self {
        Self { frames, held: RangeSet::new() }
    }

    /// The bytes of `range`, whose pages nobody is given from now on. They may have been claimed before. `None`
    /// where one of them is anybody's, or no RAM.
    pub fn bytes(&mut self, range: Range) -> Option<&'static [u8]> {
        let pages = range.grow_to(PAGE);
        let mut missing = RangeSet::new();
        missing.insert(pages);
        self.held.iter().for_each(|held| missing.remove(held));
        if !self.frames.claim(&missing) {
            return None;
        }
        self.held.insert(pages);
        // SAFETY: the pages were free RAM, mapped at their own address, and are nobody's from now on: the
        // allocator never gets them back, and all that is ever made of them are slices for reading.
        Some(unsafe { core::slice::from_raw_parts(range.start as *const u8, range.len() as usize) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_core::memory::{HeapBlock, HostBlock};

    #[test]
    fn claimed_pages_keep_their_bytes_and_are_given_to_nobody() {
        let memory = HeapBlock::zeroed(8 * PAGE as usize, PAGE as usize).unwrap();
        let start = memory.host().get();
        // SAFETY: inside `memory`, which outlives the test's use of it.
        unsafe { (start as *mut u8).add(5000).write(0xA5) };
        let mut free = RangeSet::new();
        free.insert(Range::with_len(start, 4 * PAGE));
        // SAFETY: the RAM is `memory`'s, which nothing else uses.
        let frames = Box::leak(Box::new(unsafe { FrameAllocator::new(free) }));

        let mut claims = Claims::new(frames);
        let first = claims.bytes(Range::with_len(start + 5000, 100)).unwrap();
        assert_eq!((first[0], first[1], first.len()), (0xA5, 0, 100));
        assert_eq!(frames.free(), 3 * PAGE);
        // Shares a page with the first, and takes one more.
        assert!(claims.bytes(Range::with_len(start + 6000, PAGE)).is_some());
        assert_eq!(frames.free(), 2 * PAGE);
        // Goes beyond what is free: nothing is taken.
        assert!(claims.bytes(Range::with_len(start + 3 * PAGE, 2 * PAGE)).is_none());
        assert_eq!(frames.free(), 2 * PAGE);
        let rest = frames.allocate(PAGE, PAGE, u64::MAX).unwrap();
        assert_eq!(rest.range().start, start + 3 * PAGE);
    }
}
