//! Several requests at once.

use crate::block::{BlockError, Reply};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;

/// Waits until all have ended; fails as the first in order that failed did.
pub async fn all(replies: Vec<Reply<'_>>) -> Result<(), BlockError> {
    let mut replies: Vec<(Option<Reply<'_>>, Result<(), BlockError>)> =
        replies.into_iter().map(|reply| (Some(reply), Ok(()))).collect();
    poll_fn(|context| {
        let mut ended = true;
        for (pending, result) in &mut replies {
            let Some(reply) = pending else { continue };
            match reply.as_mut().poll(context) {
                Poll::Ready(answer) => {
                    *result = answer;
                    *pending = None;
                }
                Poll::Pending => ended = false,
            }
        }
        if ended { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    replies.into_iter().try_for_each(|(_, result)| result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::wait;
    use core::future::{pending, ready};
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn all_are_waited_for_and_the_first_failure_is_told() {
        let reply = |answer| -> Reply<'static> { Box::pin(ready(answer)) };
        assert_eq!(wait(all(vec![])), Ok(()));
        assert_eq!(wait(all(vec![reply(Ok(())), reply(Ok(()))])), Ok(()));
        let failing = vec![reply(Ok(())), reply(Err(BlockError::Gone)), reply(Err(BlockError::Failed))];
        assert_eq!(wait(all(failing)), Err(BlockError::Gone));
        let never: Reply<'_> = Box::pin(pending());
        let mut both = pin!(all(vec![reply(Err(BlockError::Gone)), never]));
        assert!(both.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
}
