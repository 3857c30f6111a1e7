//! News from outside for guests' devices: a request ended, something arrived.
//!
//! Whoever wakes a device runs on some core, in an interrupt handler or in the monitor. That core looks here after each
//! interrupt and each exit and before it sleeps; so nobody has to be called, and what an interrupt brought is brought
//! on by the core that took it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::task::Wake;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;
use spin::Mutex;

/// Which guests' devices have news.
#[derive(Default)]
pub struct News {
    /// Whether any has: looked at after each exit, so without a lock.
    waits: AtomicBool,
    guests: Mutex<VecDeque<usize>>,
}

impl News {
    /// Whether there are any.
    #[inline]
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// How many guests have some.
    pub fn count(&self) -> usize {
        if self.waits() { self.guests.lock().len() } else { 0 }
    }

    /// The next guest that has some, which are now the caller's to bring.
    pub fn take(&self) -> Option<usize> {
        if !self.waits() {
            return None;
        }
        let mut guests = self.guests.lock();
        let guest = guests.pop_front();
        self.waits.store(!guests.is_empty(), Ordering::Relaxed);
        guest
    }

    /// Says that the devices of the guest of this number have some.
    fn add(&self, guest: usize) {
        let mut guests = self.guests.lock();
        guests.push_back(guest);
        self.waits.store(true, Ordering::Relaxed);
    }

    /// What wakes the devices of the guest of this number.
    pub fn waker(self: &Arc<Self>, guest: usize) -> Waker {
        Waker::from(Arc::new(GuestNews { guest, news: Arc::clone(self) }))
    }
}

struct GuestNews {
    guest: usize,
    news: Arc<News>,
}

impl Wake for GuestNews {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.news.add(self.guest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_told_in_the_order_of_their_news() {
        let news = Arc::new(News::default());
        assert!(!news.waits());
        let [first, second] = [3, 1].map(|guest| news.waker(guest));
        first.wake_by_ref();
        second.wake();
        assert_eq!((news.waits(), news.count()), (true, 2));
        assert_eq!(core::array::from_fn(|_| news.take()), [Some(3), Some(1), None]);
        assert_eq!((news.waits(), news.count()), (false, 0));
    }
}
