//! A heap that has an end, as the firmware's has: who asks for more fails there, and is found here.

use std::alloc::System;

use cap::Cap;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Does something that may take so many bytes more than are taken.
pub fn with_at_most<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let limit = |limit| HEAP.set_limit(limit).expect("there is room for what is taken");
    limit(HEAP.allocated() + bytes);
    let done = work();
    limit(usize::MAX);
    done
}
