//! What the user asked for that has to wait for disks, while guests and the prompt go on.

use crate::host::{apic, cpu, interrupts};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

/// What the user is told once it is known, in whole lines.
pub type Answer = Pin<Box<dyn Future<Output = String> + Send>>;

/// Answers that are waited for. The boot core goes on with them.
#[derive(Default)]
pub struct Errands {
    under_way: Vec<Answer>,
    bell: Arc<Bell>,
}

/// Whether one of them may go on.
#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
        // The boot core as well: it may be past its look, and about to sleep.
        if let Some(boot) = cpu::running().first() {
            apic::local::interrupt(boot.apic_id(), interrupts::vector::WAKE);
        }
    }
}

impl Errands {
    /// Whether none is waited for.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Begins with one; what it says, if that is known at once.
    pub fn begin(&mut self, mut answer: Answer) -> Option<String> {
        match self.poll(&mut answer) {
            Poll::Ready(text) => Some(text),
            Poll::Pending => {
                self.under_way.push(answer);
                None
            }
        }
    }

    /// Goes on with those that can; what one of them says. Ask until there is nothing.
    pub fn go_on(&mut self) -> Option<String> {
        if !self.bell.0.swap(false, Ordering::Acquire) {
            return None;
        }
        let mut under_way = core::mem::take(&mut self.under_way);
        let mut said = None;
        under_way.retain_mut(|answer| match said {
            Some(_) => true,
            None => match self.poll(answer) {
                Poll::Ready(text) => {
                    said = Some(text);
                    false
                }
                Poll::Pending => true,
            },
        });
        self.under_way = under_way;
        if said.is_some() {
            // The others were not all looked at.
            self.bell.0.store(true, Ordering::Release);
        }
        said
    }

    fn poll(&self, answer: &mut Answer) -> Poll<String> {
        let waker = Waker::from(Arc::clone(&self.bell));
        answer.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::future::{poll_fn, ready};
    use spin::Mutex;

    type Promise = Arc<Mutex<(Option<String>, Option<Waker>)>>;

    fn answer(promise: &Promise) -> Answer {
        let promise = Arc::clone(promise);
        Box::pin(poll_fn(move |context| {
            let mut promise = promise.lock();
            promise.1 = Some(context.waker().clone());
            promise.0.take().map_or(Poll::Pending, Poll::Ready)
        }))
    }

    fn end(promise: &Promise, text: &str) {
        let waker = {
            let mut promise = promise.lock();
            promise.0 = Some(text.into());
            promise.1.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    #[test]
    fn answers_come_when_they_are_known_and_keep_nobody() {
        let mut errands = Errands::default();
        assert_eq!(errands.begin(Box::pin(ready("known".into()))).as_deref(), Some("known"));
        assert!(errands.is_empty());
        let promises: [Promise; 3] = Default::default();
        assert!(promises.iter().all(|promise| errands.begin(answer(promise)).is_none()));
        assert_eq!((errands.go_on(), errands.is_empty()), (None, false));
        end(&promises[2], "third");
        end(&promises[0], "first");
        let mut said: Vec<_> = core::iter::from_fn(|| errands.go_on()).collect();
        said.sort_unstable();
        assert_eq!(said, ["first", "third"]);
        assert!(errands.go_on().is_none() && !errands.is_empty());
        end(&promises[1], "second");
        assert_eq!(errands.go_on().as_deref(), Some("second"));
        assert!(errands.go_on().is_none() && errands.is_empty());
    }
}
