//! A queue of bytes with a bound.

/// At most `N` bytes, first in, first out.
pub struct Ring<const N: usize> {
    bytes: [u8; N],
    first: usize,
    len: usize,
}

impl<const N: usize> Ring<N> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { bytes: [0; N], first: 0, len: 0 }
    }

    /// Appends `byte`, if there is room; whether there was.
    pub fn push(&mut self, byte: u8) -> bool {
        if self.len == N {
            return false;
        }
        self.bytes[(self.first + self.len) % N] = byte;
        self.len += 1;
        true
    }

    /// Takes the oldest byte.
    pub fn pop(&mut self) -> Option<u8> {
        if self.len == 0 {
            return None;
        }
        let byte = self.bytes[self.first];
        self.first = (self.first + 1) % N;
        self.len -= 1;
        Some(byte)
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For how many bytes there is room.
    pub fn room(&self) -> usize {
        N - self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn a_ring_is_a_bounded_queue(steps in prop::collection::vec(prop::option::of(any::<u8>()), 0..100)) {
            let mut ring = Ring::<7>::new();
            let mut model = VecDeque::new();
            for step in steps {
                match step {
                    Some(byte) => {
                        prop_assert_eq!(ring.push(byte), model.len() < 7);
                        if model.len() < 7 {
                            model.push_back(byte);
                        }
                    }
                    None => prop_assert_eq!(ring.pop(), model.pop_front()),
                }
                prop_assert_eq!((ring.is_empty(), ring.room()), (model.is_empty(), 7 - model.len()));
            }
        }
    }
}
