//! The heap: a bounded piece of RAM for everything of ours that is not guest memory.
//!
//! It has two arenas: a small one inside the image, for reading the coreboot table that says where RAM is, and
//! the large one in RAM from then on.
// Unsafe because it is where raw memory becomes Rust objects.
#![allow(unsafe_code)]

use super::memory::Range;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use linked_list_allocator::Heap;
use spin::Mutex;

/// How large the heap is, in bytes. What does not fit fails; the heap never grows.
pub const SIZE: u64 = 16 << 20;
/// How large the arena inside the image is, in bytes: room for a coreboot table many times the usual.
const EARLY_SIZE: usize = 0x1_0000;

#[cfg_attr(target_os = "none", global_allocator)]
static HEAP: Arenas = Arenas { early: Mutex::new(Heap::empty()), main: Mutex::new(Heap::empty()) };

/// The early arena's bytes.
#[repr(align(16))]
struct EarlyBytes(UnsafeCell<[u8; EARLY_SIZE]>);

// SAFETY: only the early arena touches the bytes, behind its lock.
unsafe impl Sync for EarlyBytes {}

static EARLY_BYTES: EarlyBytes = EarlyBytes(UnsafeCell::new([0; EARLY_SIZE]));

/// Both arenas behind locks. Interrupt handlers do not allocate, so nobody waits for himself.
struct Arenas {
    early: Mutex<Heap>,
    main: Mutex<Heap>,
}

// SAFETY: a `Heap` gives each byte to one allocation at a time, the lock keeps its list whole, and a piece goes
// back to the arena it lies in.
unsafe impl GlobalAlloc for Arenas {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut main = self.main.lock();
        let given = if main.size() == 0 {
            self.early.lock().allocate_first_fit(layout)
        } else {
            main.allocate_first_fit(layout)
        };
        given.map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, bytes: *mut u8, layout: Layout) {
        let early = EARLY_BYTES.0.get().cast::<u8>();
        let arena =
            if (early..early.wrapping_add(EARLY_SIZE)).contains(&bytes) { &self.early } else { &self.main };
        if let Some(bytes) = NonNull::new(bytes) {
            // SAFETY: the caller gives back what `alloc` gave, with its layout; its address says from which
            // arena.
            unsafe { arena.lock().deallocate(bytes, layout) }
        }
    }
}

/// Opens the arena inside the image.
pub fn start_early() {
    let mut early = HEAP.early.lock();
    if early.size() == 0 {
        // SAFETY: the bytes are the arena's alone, and it is given them once.
        unsafe { early.init(EARLY_BYTES.0.get().cast(), EARLY_SIZE) }
    }
}

/// Makes `range` the heap.
///
/// # Safety
///
/// Called once; `range` is RAM, mapped writable at its own address for ever, and used by nothing else.
pub unsafe fn start(range: Range) {
    // SAFETY: the caller's promise.
    unsafe { HEAP.main.lock().init(range.start as *mut u8, range.len() as usize) }
}

/// Bytes in use and bytes in all.
pub fn usage() -> (u64, u64) {
    let heap = HEAP.main.lock();
    (heap.used() as u64, heap.size() as u64)
}
