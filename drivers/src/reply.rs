//! Requests' answers, from the driver who has them to the future that waits for them.

use alloc::sync::Arc;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use spin::Mutex;
use storage::BlockError;

/// What the two sides share.
enum State {
    Waiting(Option<Waker>),
    Answered(Result<(), BlockError>),
}

/// The side of who answers. Dropping it unanswered says that the device is gone.
pub struct Answer(Option<Arc<Mutex<State>>>);

/// The side of who waits.
pub struct Pending(Arc<Mutex<State>>);

/// A question's two sides.
pub fn pair() -> (Answer, Pending) {
    let state = Arc::new(Mutex::new(State::Waiting(None)));
    (Answer(Some(Arc::clone(&state))), Pending(state))
}

impl Answer {
    /// Answers, and wakes who waits. To be called without any lock that the woken might want.
    pub fn give(mut self, result: Result<(), BlockError>) {
        self.settle(result);
    }

    fn settle(&mut self, result: Result<(), BlockError>) {
        let Some(state) = self.0.take() else { return };
        let before = core::mem::replace(&mut *state.lock(), State::Answered(result));
        if let State::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.settle(Err(BlockError::Gone));
    }
}

impl Future for Pending {
    type Output = Result<(), BlockError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        if let State::Answered(result) = &*state {
            return Poll::Ready(*result);
        }
        *state = State::Waiting(Some(context.waker().clone()));
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::pin::pin;
    use storage::testing::Bell;

    #[test]
    fn who_waits_is_woken_once_answered() {
        let (answer, pending) = pair();
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let mut context = Context::from_waker(&waker);
        let mut pending = pin!(pending);
        assert_eq!(pending.as_mut().poll(&mut context), Poll::Pending);
        assert_eq!(pending.as_mut().poll(&mut context), Poll::Pending);
        answer.give(Err(BlockError::Failed));
        assert_eq!(bell.rings(), 1);
        assert_eq!(pending.as_mut().poll(&mut context), Poll::Ready(Err(BlockError::Failed)));
    }

    #[test]
    fn an_answer_that_nobody_gives_is_that_the_device_is_gone() {
        let (answer, pending) = pair();
        drop(answer);
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(pin!(pending).poll(&mut context), Poll::Ready(Err(BlockError::Gone)));
    }
}
