//! A lock for what failures are reported through.
// Unsafe because it gives access to what is behind the lock.
#![allow(unsafe_code)]

use super::{cpu, exceptions};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicUsize, Ordering};

/// The holder of a free lock.
const NOBODY: usize = 0;

/// A spinning lock that knows which CPU holds it, so that none waits for what it itself was interrupted in.
pub struct Lock<T> {
    /// The [`cpu::identity`] of the CPU that has it.
    holder: AtomicUsize,
    value: UnsafeCell<T>,
}

// SAFETY: one CPU at a time is given the value, as with any lock.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { holder: AtomicUsize::new(NOBODY), value: UnsafeCell::new(value) }
    }

    /// Waits for the value. `None` where this CPU holds it already, in what an NMI interrupted.
    pub fn lock(&self) -> Option<Guard<'_, T>> {
        let me = cpu::identity();
        loop {
            match self.holder.compare_exchange_weak(NOBODY, me, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(Guard { lock: self }),
                // Whoever holds it has stopped for good, or is what failed here, and neither goes on.
                Err(holder) if holder != NOBODY && exceptions::alone() => {
                    self.holder.store(me, Ordering::Relaxed);
                    return Some(Guard { lock: self });
                }
                Err(holder) if holder == me => return None,
                Err(_) => core::hint::spin_loop(),
            }
        }
    }
}

/// The value behind a lock, until dropped.
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: who has the guard has the value alone.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.lock.holder.store(NOBODY, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_not_kept_waiting_for_itself() {
        let lock = Lock::new(1);
        let held = lock.lock().unwrap();
        assert!(lock.lock().is_none());
        drop(held);
        assert_eq!(*lock.lock().unwrap(), 1);
    }

    #[test]
    fn others_wait_until_the_value_is_free() {
        let lock = Lock::new(0_u32);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| *lock.lock().unwrap() += 1));
            }
        });
        assert_eq!(*lock.lock().unwrap(), 4000);
    }
}
