//! What a device has under way outside, and waits for.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};

/// The most requests that one device can have under way.
pub const MOST: usize = 64;

/// A device's requests that are under way, each with what the device has to remember about it.
///
/// Only those that were woken are looked at again. Nothing is ever dropped before it has ended: what moves bytes into
/// a guest's memory may not outlive what the guest takes for its end.
pub struct Requests<T, R> {
    slots: Vec<Slot<T, R>>,
    under_way: usize,
    limit: usize,
    woken: Arc<Woken>,
    /// Those of the woken that are still to be looked at.
    looking_at: u64,
}

struct Slot<T, R> {
    request: Option<Request<T, R>>,
    waker: Waker,
}

struct Request<T, R> {
    /// Taken when nobody wants to know how it ends any more.
    about: Option<T>,
    work: Pin<Box<dyn Future<Output = R> + Send>>,
}

/// Which requests were woken, and whom to tell.
struct Woken {
    slots: AtomicU64,
    device: Waker,
}

impl<T, R> Requests<T, R> {
    /// None yet. At most `limit` ([`MOST`] at the most) will be under way at once; `device` is woken when one may have
    /// ended.
    pub fn new(limit: usize, device: Waker) -> Self {
        let woken = Arc::new(Woken { slots: AtomicU64::new(0), device });
        Self { slots: Vec::new(), under_way: 0, limit: limit.min(MOST), woken, looking_at: 0 }
    }

    /// Whether as many are under way as there may be.
    pub fn is_full(&self) -> bool {
        self.under_way >= self.limit
    }

    /// Whether none is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way == 0
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.under_way
    }

    /// Begins `work`. What ends at once gives its result at once; of the others [`Self::take_ended`] tells. The caller
    /// saw that there is room: without, `work` is dropped unbegun, which gives nothing.
    pub fn start(&mut self, about: T, work: impl Future<Output = R> + Send + 'static) -> Option<(T, R)> {
        if self.is_full() {
            return None;
        }
        let mut work: Pin<Box<dyn Future<Output = R> + Send>> = Box::pin(work);
        let number = self.slots.iter().position(|slot| slot.request.is_none()).unwrap_or(self.slots.len());
        if number == self.slots.len() {
            let waker =
                Waker::from(Arc::new(RequestWaker { bit: bit(number), woken: Arc::clone(&self.woken) }));
            self.slots.push(Slot { request: None, waker });
        }
        let slot = self.slots.get_mut(number)?;
        match work.as_mut().poll(&mut Context::from_waker(&slot.waker)) {
            Poll::Ready(result) => Some((about, result)),
            Poll::Pending => {
                slot.request = Some(Request { about: Some(about), work });
                self.under_way = self.under_way.saturating_add(1);
                None
            }
        }
    }

    /// One that has ended since, with its result. Ask until there is none: of what is left nobody tells again. What is
    /// woken while it is looked at, as long work is that lets others go on, has the device woken anew.
    pub fn take_ended(&mut self) -> Option<(T, R)> {
        if self.looking_at == 0 {
            self.looking_at = self.woken.slots.swap(0, Ordering::AcqRel);
        }
        while self.looking_at != 0 {
            let number = self.looking_at.trailing_zeros() as usize;
            self.looking_at &= !bit(number);
            let Some(slot) = self.slots.get_mut(number) else { continue };
            let Some(request) = &mut slot.request else { continue };
            let Poll::Ready(result) = request.work.as_mut().poll(&mut Context::from_waker(&slot.waker))
            else {
                continue;
            };
            let about = slot.request.take().and_then(|request| request.about);
            self.under_way = self.under_way.saturating_sub(1);
            if let Some(about) = about {
                return Some((about, result));
            }
        }
        None
    }

    /// Forgets what all that are under way are about; they end all the same, unheard. Until then they are
    /// [under way](Self::is_empty).
    pub fn forget(&mut self) {
        self.forget_where(|_| true);
    }

    /// Forgets what those are about for which `which` says so.
    pub fn forget_where(&mut self, mut which: impl FnMut(&T) -> bool) {
        for request in self.slots.iter_mut().filter_map(|slot| slot.request.as_mut()) {
            request.about.take_if(|about| which(about));
        }
    }

    /// What those are about that are under way and not forgotten.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.request.as_ref()?.about.as_ref())
    }
}

/// The bit of slot `number`, of which there are [`MOST`].
fn bit(number: usize) -> u64 {
    1_u64.wrapping_shl(number as u32)
}

struct RequestWaker {
    bit: u64,
    woken: Arc<Woken>,
}

impl Wake for RequestWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Where it is woken already, the device has been told and has not looked yet.
        if self.woken.slots.fetch_or(self.bit, Ordering::AcqRel) & self.bit == 0 {
            self.woken.device.wake_by_ref();
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::sync::Mutex;

    /// Something that ends when a test says so, from whatever thread.
    pub(crate) struct Promise<R>(Arc<Mutex<(Option<R>, Option<Waker>)>>);

    impl<R> Clone for Promise<R> {
        fn clone(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }

    impl<R: Send + 'static> Promise<R> {
        pub(crate) fn new() -> Self {
            Self(Arc::new(Mutex::new((None, None))))
        }

        /// What waits for it; it drops `keeps` when it has ended.
        pub(crate) fn kept<K: Send + 'static>(&self, keeps: K) -> impl Future<Output = R> + Send + 'static {
            let state = Arc::clone(&self.0);
            async move {
                let result = core::future::poll_fn(move |context| {
                    let mut state = state.lock().unwrap();
                    if let Some(result) = state.0.take() {
                        return Poll::Ready(result);
                    }
                    state.1 = Some(context.waker().clone());
                    Poll::Pending
                });
                let result = result.await;
                drop(keeps);
                result
            }
        }

        pub(crate) fn end(&self, result: R) {
            let mut state = self.0.lock().unwrap();
            state.0 = Some(result);
            let waker = state.1.take();
            drop(state);
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Promise;
    use super::*;
    use storage::testing::Bell;

    fn bell() -> (Arc<Bell>, Waker) {
        let bell = Arc::new(Bell::default());
        (Arc::clone(&bell), Waker::from(bell))
    }

    #[test]
    fn they_end_in_any_order() {
        let (bell, waker) = bell();
        let mut requests = Requests::new(4, waker);
        let promises: Vec<Promise<u32>> = (0..4).map(|_| Promise::new()).collect();
        for (n, promise) in promises.iter().enumerate() {
            assert!(!requests.is_full());
            assert_eq!(requests.start(n, promise.kept(())), None);
        }
        assert!(requests.is_full() && requests.take_ended().is_none());
        assert_eq!((requests.len(), bell.rings()), (4, 0));
        promises[2].end(20);
        promises[0].end(0);
        assert_eq!(bell.rings(), 2);
        let mut ended = [requests.take_ended().unwrap(), requests.take_ended().unwrap()];
        ended.sort_unstable();
        assert_eq!(ended, [(0, 0), (2, 20)]);
        assert_eq!(requests.take_ended(), None);
        assert_eq!(requests.iter().collect::<Vec<_>>(), [&1, &3]);
        assert_eq!(requests.start(7, async { 70 }), Some((7, 70)), "what ends at once is never under way");
        assert_eq!(requests.len(), 2);
        let again = Promise::new();
        requests.start(8, again.kept(()));
        again.end(80);
        promises[1].end(10);
        promises[3].end(30);
        let mut ended: Vec<_> = core::iter::from_fn(|| requests.take_ended()).collect();
        ended.sort_unstable();
        assert_eq!(ended, [(1, 10), (3, 30), (8, 80)]);
        assert!(requests.is_empty());
    }

    #[test]
    fn what_is_full_takes_no_more() {
        let mut requests = Requests::new(1000, Waker::noop().clone());
        let promises: Vec<Promise<()>> = (0..=MOST).map(|_| Promise::new()).collect();
        for (n, promise) in promises.iter().enumerate() {
            requests.start(n, promise.kept(()));
        }
        assert_eq!(requests.len(), MOST);
        promises.iter().for_each(|promise| promise.end(()));
        let ended: Vec<_> = core::iter::from_fn(|| requests.take_ended()).map(|(n, ())| n).collect();
        assert_eq!(ended.len(), MOST);
        assert!(!ended.contains(&MOST), "the last was never begun");
    }

    #[test]
    fn the_forgotten_end_unheard_and_keep_what_they_need_until_then() {
        let (bell, waker) = bell();
        let mut requests = Requests::new(4, waker);
        let (kept, promises) = (Arc::new(()), core::array::from_fn::<_, 2, _>(|_| Promise::new()));
        for promise in &promises {
            assert_eq!(requests.start("old", promise.kept(Arc::clone(&kept))), None);
        }
        requests.forget();
        assert!(!requests.is_empty() && requests.iter().next().is_none());
        assert_eq!(Arc::strong_count(&kept), 3);
        promises[1].end(Ok::<(), ()>(()));
        assert_eq!((bell.rings(), requests.take_ended(), requests.len()), (1, None, 1));
        assert_eq!(Arc::strong_count(&kept), 2, "it ended");
        promises[0].end(Err(()));
        assert_eq!((requests.take_ended(), requests.is_empty()), (None, true));
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[test]
    fn long_work_that_asks_to_go_on_keeps_nobody_meanwhile() {
        let (bell, waker) = bell();
        let mut requests = Requests::new(4, waker);
        let mut polls = 0;
        let work = core::future::poll_fn(move |context| {
            polls += 1;
            context.waker().wake_by_ref();
            if polls == 3 { Poll::Ready(polls) } else { Poll::Pending }
        });
        assert_eq!(requests.start((), work), None);
        assert_eq!((requests.take_ended(), bell.rings()), (None, 2), "it asked for another turn");
        assert_eq!((requests.take_ended(), requests.is_empty()), (Some(((), 3)), true));
    }
}
