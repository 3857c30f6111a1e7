//! Which functions on the bus have news from outside.

use alloc::sync::Arc;
use alloc::task::Wake;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::Waker;

/// A bit for each function; those past the sixty-fourth share.
pub(super) struct FunctionNews {
    woken: AtomicU64,
    /// Woken with the first of them.
    guest: Waker,
}

impl FunctionNews {
    /// `guest` is woken when there is something to [`take`](Self::take).
    pub(super) fn new(guest: Waker) -> Arc<Self> {
        Arc::new(Self { woken: AtomicU64::new(0), guest })
    }

    /// What wakes the function of this number.
    pub(super) fn waker(self: &Arc<Self>, function: usize) -> Waker {
        Waker::from(Arc::new(FunctionWaker { bit: bit(function), news: Arc::clone(self) }))
    }

    /// Those that were woken since this was last asked.
    pub(super) fn take(&self) -> Woken {
        Woken(self.woken.swap(0, Ordering::AcqRel))
    }
}

/// Some functions.
#[derive(Clone, Copy)]
pub(super) struct Woken(u64);

impl Woken {
    /// Whether the function of this number may be among them.
    pub(super) fn has(self, function: usize) -> bool {
        self.0 & bit(function) != 0
    }
}

fn bit(function: usize) -> u64 {
    1_u64.wrapping_shl(function as u32)
}

struct FunctionWaker {
    bit: u64,
    news: Arc<FunctionNews>,
}

impl Wake for FunctionWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.news.woken.fetch_or(self.bit, Ordering::AcqRel) == 0 {
            self.news.guest.wake_by_ref();
        }
    }
}
