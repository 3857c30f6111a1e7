//! The heap: the longest piece of memory that the loader left free.

use crate::machine::{Machine, MemoryKind};
use crate::{cpu, memory};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::{NonNull, null_mut};
use linked_list_allocator::Heap;

/// Below lies what firmware and loaders write.
const LOWEST: u64 = 1 << 20;
/// What is mapped ends here.
const HIGHEST: u64 = 1 << 32;

struct GuestHeap(UnsafeCell<Heap>);

// SAFETY: one CPU, and `with` keeps interrupts off, so that only one is ever inside.
unsafe impl Sync for GuestHeap {}

#[global_allocator]
static HEAP: GuestHeap = GuestHeap(UnsafeCell::new(Heap::empty()));

impl GuestHeap {
    fn with<T>(&self, work: impl FnOnce(&mut Heap) -> T) -> T {
        // SAFETY: see `Sync`.
        cpu::without_interrupts(|| work(unsafe { &mut *self.0.get() }))
    }
}

// SAFETY: the heap gives out what it was given, each byte once.
unsafe impl GlobalAlloc for GuestHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.with(|heap| heap.allocate_first_fit(layout)).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if let Some(start) = NonNull::new(start) {
            // SAFETY: the caller gives back what `alloc` gave.
            self.with(|heap| unsafe { heap.deallocate(start, layout) });
        }
    }
}

/// Gives the heap its memory; panics when there is none.
pub(crate) fn install(machine: &Machine) {
    let free = longest_free(machine);
    assert!(free.start < free.end, "no memory for a heap");
    let size = (free.end - free.start) as usize;
    // SAFETY: memory that nothing else is in, mapped onto itself, and given once.
    HEAP.with(|heap| unsafe { heap.init(free.start as *mut u8, size) });
}

/// How many bytes are free.
pub fn free() -> usize {
    HEAP.with(|heap| heap.free())
}

/// The longest range of memory with neither the guest's image nor a module nor what the loader tells in it.
fn longest_free(machine: &Machine) -> Range<u64> {
    let taken = || {
        let modules = machine.modules().map(|module| module.start..module.start + module.len);
        [memory::image(), machine.told()].into_iter().chain(modules)
    };
    let memory = machine.memory().filter(|range| range.kind == MemoryKind::Memory);
    let pieces = memory.flat_map(|range| {
        let (base, end) = (range.base.max(LOWEST), range.end.min(HIGHEST));
        // A piece begins where memory does, or behind something.
        let starts = [base].into_iter().chain(taken().map(move |taken| taken.end.max(base)));
        let free = starts.filter(move |start| *start < end && !taken().any(|taken| taken.contains(start)));
        free.map(move |start| {
            let next = taken().map(|taken| taken.start).filter(|taken| *taken >= start).min();
            start..next.unwrap_or(end).min(end)
        })
    });
    pieces.max_by_key(|piece| piece.end - piece.start).unwrap_or(0..0)
}
