//! One at a time: for what several requests under way must not do at once.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::ops::{Deref, DerefMut};
use core::task::{Poll, Waker};
use spin::{Mutex, MutexGuard};

/// A lock that is waited for by polling.
#[derive(Debug, Default)]
pub struct Lock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    taken: bool,
    waiting: Vec<Waker>,
}

/// The lock is held for as long as this lives.
#[derive(Debug)]
pub struct Held<'a>(&'a Lock);

impl Lock {
    /// Waits until nobody holds it.
    pub async fn hold(&self) -> Held<'_> {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if state.taken {
                // Who is polled often for other reasons waits once.
                if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                    state.waiting.push(context.waker().clone());
                }
                return Poll::Pending;
            }
            state.taken = true;
            Poll::Ready(Held(self))
        })
        .await
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.0.lock();
            state.taken = false;
            core::mem::take(&mut state.waiting)
        };
        // All are woken: one of them may be nobody's any more.
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// What only one may have at a time, across everything that one waits for meanwhile.
#[derive(Debug, Default)]
pub struct Guarded<T> {
    lock: Lock,
    // Never spun for: the lock's holder alone comes here.
    value: Mutex<T>,
}

/// The value is this one's for as long as it lives.
pub struct Guard<'a, T> {
    // Given back before the lock is.
    value: MutexGuard<'a, T>,
    _held: Held<'a>,
}

impl<T> Guarded<T> {
    /// Guards `value`.
    pub const fn new(value: T) -> Self {
        Self { lock: Lock(Mutex::new(State { taken: false, waiting: Vec::new() })), value: Mutex::new(value) }
    }

    /// Waits until nobody has it.
    pub async fn lock(&self) -> Guard<'_, T> {
        let held = self.lock.hold().await;
        Guard { value: self.value.lock(), _held: held }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::future::Future;
    use core::pin::pin;
    use core::task::Context;

    #[test]
    fn one_at_a_time_holds_it() {
        let lock = Lock::default();
        let taken = || pin!(lock.hold()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        // What was taken is given back at once.
        assert!(taken() && taken());
        let Poll::Ready(held) = pin!(lock.hold()).poll(&mut Context::from_waker(Waker::noop())) else {
            panic!()
        };
        assert!(!taken());
        drop(held);
        assert!(taken());
    }
}
