//! One at a time: for what several requests under way must not do at once.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use spin::Mutex;

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
                state.waiting.push(context.waker().clone());
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
