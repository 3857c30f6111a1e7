//! Long work that nothing keeps waiting, in pieces between which others get their turn.

use core::future::poll_fn;
use core::task::Poll;

/// Waits until it is asked again, which it asks for at once: whoever polls does other things first.
pub async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        if core::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bell;
    use core::future::Future;
    use core::pin::pin;
    use core::task::{Context, Waker};
    use std::sync::Arc;

    #[test]
    fn a_pause_lasts_until_the_next_time() {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let mut context = Context::from_waker(&waker);
        let mut pause = pin!(pause());
        assert!(pause.as_mut().poll(&mut context).is_pending());
        assert_eq!(bell.rings(), 1);
        assert!(pause.as_mut().poll(&mut context).is_ready());
    }
}
