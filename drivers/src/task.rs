//! Work on a device that takes longer than anyone may wait: a reset, step after step.
//!
//! A task waits for registers, which wake nobody: it is asked again and again, by who waits for a device to start, or
//! else whenever its driver is to look at its device.

use crate::platform::Platform;
use alloc::boxed::Box;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};
use spin::Mutex;

/// Work under way.
pub type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How long to leave a device alone before it is asked again, in nanoseconds.
const PAUSE: u64 = 1_000_000;

/// How often a device that is at work is looked at though nothing happens, in nanoseconds.
const CHECK: u64 = 1_000_000_000;

/// Milliseconds in nanoseconds.
pub const MILLISECOND: u64 = 1_000_000;

/// Waits until `ready` says yes, for at most so many nanoseconds; whether it did.
pub async fn until(platform: &dyn Platform, nanoseconds: u64, mut ready: impl FnMut() -> bool) -> bool {
    let end = platform.now().saturating_add(nanoseconds);
    poll_fn(|_| {
        // The time is taken first: who was kept away meanwhile must not take that for the device's slowness.
        let over = platform.now() >= end;
        if ready() {
            Poll::Ready(true)
        } else if over {
            Poll::Ready(false)
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Lets so many nanoseconds pass.
pub async fn pause(platform: &dyn Platform, nanoseconds: u64) {
    until(platform, nanoseconds, || false).await;
}

/// Bringing a device back, at most once at a time.
pub struct Recovery<T> {
    under_way: AtomicBool,
    /// When to look at the device next.
    next: AtomicU64,
    /// Not there while some core is at it.
    task: Mutex<Option<Task<T>>>,
}

impl<T> Recovery<T> {
    /// None under way.
    pub const fn new() -> Self {
        Self { under_way: AtomicBool::new(false), next: AtomicU64::new(0), task: Mutex::new(None) }
    }

    /// Whether one is under way.
    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire)
    }

    /// When to look at a device whose first request must be answered at `first`: soon while it is brought back, and
    /// else from time to time, as it may have vanished, or its interrupt been lost.
    pub fn deadline(&self, first: Option<u64>) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        if self.is_under_way() { Some(next) } else { first.map(|first| first.min(next)) }
    }

    /// The device was looked at.
    pub fn looked(&self, now: u64) {
        self.next.store(now.saturating_add(CHECK), Ordering::Relaxed);
    }

    /// Begins one, unless one is under way.
    pub fn begin(&self, task: impl FnOnce() -> Task<T>) {
        if !self.under_way.swap(true, Ordering::AcqRel) {
            *self.task.lock() = Some(task());
        }
    }

    /// Goes on with it as far as it comes; what came of it once it has ended. No lock is held meanwhile.
    pub fn proceed(&self, now: u64) -> Option<T> {
        let mut task = self.task.lock().take()?;
        self.next.store(now.saturating_add(PAUSE), Ordering::Relaxed);
        match task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => {
                self.under_way.store(false, Ordering::Release);
                Some(done)
            }
            Poll::Pending => {
                *self.task.lock() = Some(task);
                None
            }
        }
    }
}

/// Waits here until it is done.
pub fn finish<T>(platform: &dyn Platform, task: impl Future<Output = T>) -> T {
    /// A device that starts is to be found soon.
    const SHORT_PAUSE: u64 = 10_000;
    let mut task = pin!(task);
    loop {
        if let Poll::Ready(done) = task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
        platform.wait(SHORT_PAUSE);
    }
}
