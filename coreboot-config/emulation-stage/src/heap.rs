//! The stage's heap: handed out upwards, never taken back, gone when the payload starts.
#![allow(unsafe_code)] // An allocator makes memory out of addresses.

use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

struct Heap {
    next: AtomicUsize,
    end: AtomicUsize,
}

#[global_allocator]
static HEAP: Heap = Heap { next: AtomicUsize::new(0), end: AtomicUsize::new(0) };

/// Lets the heap use the RAM at physical `range`.
///
/// # Safety
/// Called once; nothing else uses that RAM while the stage runs.
pub unsafe fn start(range: Range<u64>) {
    HEAP.next.store(range.start as usize, Ordering::Relaxed);
    HEAP.end.store(range.end as usize, Ordering::Relaxed);
}

// SAFETY: every call returns a range of its own: `next` only grows, and one processor allocates.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.next.load(Ordering::Relaxed).next_multiple_of(layout.align());
        match start.checked_add(layout.size()) {
            Some(end) if end <= self.end.load(Ordering::Relaxed) => {
                self.next.store(end, Ordering::Relaxed);
                start as *mut u8
            }
            _ => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The last block grows where it is: buffers that are filled piece by piece stay in place.
        let start = old as usize;
        let last = start + layout.size() == self.next.load(Ordering::Relaxed);
        if last && start.checked_add(size).is_some_and(|end| end <= self.end.load(Ordering::Relaxed)) {
            self.next.store(start + size, Ordering::Relaxed);
            return old;
        }
        // SAFETY: the caller's layout is valid, and `size` is for the same alignment.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: two blocks of this heap do not overlap, and both have this many bytes.
            unsafe { ptr::copy_nonoverlapping(old, new, layout.size().min(size)) };
        }
        new
    }
}
