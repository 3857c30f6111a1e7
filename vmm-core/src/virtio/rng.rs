//! The entropy device (virtio 1.2, 5.4).

use super::device::{Device, Identity, Queues};
use crate::chipset::Context;
use alloc::boxed::Box;

/// A source of random bytes that nobody can foretell.
pub trait Entropy: Send {
    /// Fills `bytes`.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// The most bytes that a buffer gets: an exit is not to take long, and drivers ask again (5.4.6.2).
const MOST_BYTES: usize = 256;
const QUEUE_SIZES: [u16; 1] = [8];

/// A virtio entropy device.
pub struct Rng {
    source: Box<dyn Entropy>,
}

impl Rng {
    /// A device that gives what `source` gives.
    pub fn new(source: Box<dyn Entropy>) -> Self {
        Self { source }
    }
}

impl Device for Rng {
    fn identity(&self) -> Identity {
        Identity { name: "virtio entropy device", id: 4, class: 0x10_00_00 }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn serve(&mut self, _notified: Option<u16>, queues: &mut Queues, _ctx: &mut Context) {
        loop {
            let Some(chain) = queues.pop(0) else {
                if queues.ask_for_notification(0) {
                    continue;
                }
                return;
            };
            let mut bytes = [0; MOST_BYTES];
            let len = (chain.writable.len() as usize).min(MOST_BYTES);
            let written = bytes.get_mut(..len).map_or(0, |bytes| {
                self.source.fill(bytes);
                chain.writable.write(queues.memory(), bytes)
            });
            queues.push(0, chain.token, written as u32);
        }
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::queue::RingFeatures;
    use crate::virtio::testing::{Driver, Function, VERSION_1, at, memory};
    use alloc::sync::Arc;
    use spin::Mutex;

    /// Whose driver wants more at once.
    struct Eager(Arc<Mutex<Driver>>);

    impl Entropy for Eager {
        fn fill(&mut self, bytes: &mut [u8]) {
            bytes.fill(7);
            let mut driver = self.0.lock();
            driver.take();
            driver.offer(&[], &[(0x1000, 4)], false).unwrap();
        }
    }

    #[test]
    fn no_buffer_is_forgotten_that_comes_while_others_are_filled() {
        for packed in [false, true] {
            let ring = RingFeatures { packed, event_index: true, ..RingFeatures::default() };
            let memory = memory(1 << 20);
            let driver = Arc::new(Mutex::new(Driver::new(&memory, 0x4_0000, 8, ring)));
            let mut function = Function::with_memory(Rng::new(Box::new(Eager(Arc::clone(&driver)))), memory);
            function.negotiate(VERSION_1 | 1 << 29 | if packed { 1 << 34 } else { 0 });
            function.enable_queue(0, 0x4_0000, 8, ring);
            function.set_status(0xf);
            driver.lock().offer(&[], &[(0x1000, 4)], false).unwrap();
            function.notify(0);
            for _ in 0..5 {
                let rings = function.bell.rings();
                assert!(rings > 0, "it goes on by itself, for nobody tells it of what it was not to be told");
                function.poll();
                assert!(function.bell.rings() > rings);
            }
        }
    }

    struct Count(u8);

    impl Entropy for Count {
        fn fill(&mut self, bytes: &mut [u8]) {
            for byte in bytes {
                self.0 = self.0.wrapping_add(1);
                *byte = self.0;
            }
        }
    }

    #[test]
    fn buffers_come_back_filled() {
        let mut function = Function::new(Rng::new(Box::new(Count(0))));
        assert!(
            !function.has_capability(9, |bytes| bytes[3] == 4),
            "without a configuration there is no structure"
        );
        function.negotiate(VERSION_1);
        let mut driver = function.enable_queue(0, 0x4_0000, 8, RingFeatures::default());
        function.set_status(0xf);
        let [small, large] =
            [3, 1000].map(|len| driver.offer(&[], &[(0x1000, 2), (0x2000, len)], false).unwrap());
        let empty = driver.offer(&[(0x3000, 8)], &[], false).unwrap();
        function.notify(0);
        assert_eq!(driver.take(), Some((small, 5)));
        assert_eq!(driver.take(), Some((large, 256)));
        assert_eq!(driver.take(), Some((empty, 0)));
        assert_eq!(function.vectors(), [0x41]);
        assert_eq!(function.memory.read_u16(at(0x1000)), Ok(0x0706));
        assert_eq!(function.memory.read_u64(at(0x20fd)), Ok(5));
        driver.offer(&[], &[(0x1000, 1)], false).unwrap();
        assert!(driver.is_to_notify());
    }
}
