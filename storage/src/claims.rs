//! Ranges that requests under way have claimed, so that none is moved or given away below another.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::ops::Range;
use core::task::{Context, Poll, Waker};
use spin::Mutex;

/// Who has or wants which range, in the order in which they came.
#[derive(Debug, Default)]
pub struct Claims(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    range: Range<u64>,
    alone: bool,
    waiting: Option<Waker>,
}

impl Entry {
    /// Whether both cannot be had at once.
    fn excludes(&self, other: &Self) -> bool {
        let overlap = self.range.start < other.range.end && other.range.start < self.range.end;
        overlap && (self.alone || other.alone)
    }
}

/// A range is claimed, or is waited for, for as long as this lives.
#[derive(Debug)]
pub struct Claim<'a> {
    claims: &'a Claims,
    ticket: u64,
}

impl Claims {
    /// Waits for `range` together with others that share it.
    pub async fn share(&self, range: Range<u64>) -> Claim<'_> {
        self.claim(range, false).await
    }

    /// Waits for `range` alone.
    pub async fn take(&self, range: Range<u64>) -> Claim<'_> {
        self.claim(range, true).await
    }

    async fn claim(&self, range: Range<u64>, alone: bool) -> Claim<'_> {
        let claim = {
            let mut queue = self.0.lock();
            let ticket = queue.next;
            queue.next = ticket.wrapping_add(1);
            queue.entries.push(Entry { ticket, range, alone, waiting: None });
            Claim { claims: self, ticket }
        };
        poll_fn(|context| claim.poll(context)).await;
        claim
    }
}

impl Claim<'_> {
    /// Ready once none that came before stands in the way, so that nobody waits for ever.
    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let mut queue = self.claims.0.lock();
        let Some(own) = queue.entries.iter().position(|entry| entry.ticket == self.ticket) else {
            return Poll::Ready(());
        };
        let (before, from_own) = queue.entries.split_at_mut(own);
        let Some(entry) = from_own.first_mut() else { return Poll::Ready(()) };
        if !before.iter().any(|other| other.excludes(entry)) {
            entry.waiting = None;
            return Poll::Ready(());
        }
        entry.waiting = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let woken: Vec<Waker> = {
            let mut queue = self.claims.0.lock();
            let Some(own) = queue.entries.iter().position(|entry| entry.ticket == self.ticket) else {
                return;
            };
            let gone = queue.entries.remove(own);
            let others = queue.entries.iter_mut().skip(own).filter(|other| gone.excludes(other));
            others.filter_map(|other| other.waiting.take()).collect()
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::future::Future;
    use std::pin::pin;

    fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_range_is_shared_or_had_alone() {
        let claims = Claims::default();
        let one = ready(claims.share(0..4)).unwrap();
        let two = ready(claims.share(2..6)).unwrap();
        assert!(ready(claims.take(3..5)).is_none());
        assert!(ready(claims.take(6..7)).is_some());
        drop(one);
        assert!(ready(claims.take(3..5)).is_none());
        drop(two);
        let alone = ready(claims.take(3..5)).unwrap();
        assert!(ready(claims.share(4..9)).is_none());
        assert!(ready(claims.share(5..9)).is_some());
        drop(alone);
        assert!(ready(claims.share(4..9)).is_some());
        assert!(claims.0.lock().entries.is_empty(), "those that gave up are gone");
    }

    #[test]
    fn who_came_first_goes_first() {
        let claims = Claims::default();
        let mut context = Context::from_waker(Waker::noop());
        let shared = ready(claims.share(0..1)).unwrap();
        let mut alone = pin!(claims.take(0..1));
        assert!(alone.as_mut().poll(&mut context).is_pending());
        // One more that shares waits behind the one that wants it alone, or that one would wait for ever.
        let mut later = pin!(claims.share(0..1));
        assert!(later.as_mut().poll(&mut context).is_pending());
        drop(shared);
        let Poll::Ready(held) = alone.as_mut().poll(&mut context) else { panic!() };
        assert!(later.as_mut().poll(&mut context).is_pending());
        drop(held);
        assert!(later.as_mut().poll(&mut context).is_ready());
    }
}
