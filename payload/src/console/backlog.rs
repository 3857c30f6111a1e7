//! The latest output of a guest.

use alloc::collections::VecDeque;

/// How much is kept, in bytes.
pub const CAPACITY: usize = 0x1_0000;

/// The last [`CAPACITY`] bytes of a stream. Positions count from the stream's first byte.
#[derive(Default)]
pub struct Backlog {
    /// Grows with what comes: a silent guest costs nothing.
    bytes: VecDeque<u8>,
    /// How many bytes came before those kept.
    dropped: usize,
}

impl Backlog {
    /// Nothing has come yet.
    pub const fn new() -> Self {
        Self { bytes: VecDeque::new(), dropped: 0 }
    }

    /// Appends a byte; the oldest gives way.
    pub fn push(&mut self, byte: u8) {
        if self.bytes.len() == CAPACITY {
            self.bytes.pop_front();
            self.dropped += 1;
        }
        self.bytes.push_back(byte);
    }

    /// The position of the oldest byte kept.
    pub fn start(&self) -> usize {
        self.dropped
    }

    /// The position that the next byte will have.
    pub fn end(&self) -> usize {
        self.dropped + self.bytes.len()
    }

    /// The bytes from `position` on, or from the oldest kept.
    pub fn since(&self, position: usize) -> impl Iterator<Item = u8> {
        self.bytes.iter().skip(position.saturating_sub(self.dropped)).copied()
    }

    /// Some of the bytes from `position` on, in one piece; empty only where there are none.
    pub fn piece(&self, position: usize) -> &[u8] {
        let skip = position.saturating_sub(self.dropped);
        let (first, second) = self.bytes.as_slices();
        match first.get(skip..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => second.get(skip.saturating_sub(first.len())..).unwrap_or_default(),
        }
    }

    /// Where the first line begins of which nothing lies before `position`; `position` where there is none.
    pub fn next_line(&self, position: usize) -> usize {
        if position <= self.dropped {
            return self.dropped;
        }
        let before = position - 1;
        self.since(before).position(|byte| byte == b'\n').map_or(position, |at| before + at + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_bytes_give_way() {
        let mut backlog = Backlog::new();
        (0..CAPACITY + 100).for_each(|number| backlog.push(number as u8));
        assert_eq!((backlog.start(), backlog.end()), (100, CAPACITY + 100));
        let kept: Vec<u8> = backlog.since(0).collect();
        assert_eq!((kept.len(), kept[0], backlog.since(200).next()), (CAPACITY, 100, Some(200)));
        let (mut position, mut pieces) = (150, Vec::new());
        while !backlog.piece(position).is_empty() {
            pieces.extend_from_slice(backlog.piece(position));
            position = 150 + pieces.len();
        }
        assert_eq!(pieces, kept[50..]);
    }

    #[test]
    fn lines_are_found() {
        let mut backlog = Backlog::new();
        b"one\ntwo\nthree".iter().for_each(|byte| backlog.push(*byte));
        let starts: Vec<usize> = (0..10).map(|position| backlog.next_line(position)).collect();
        assert_eq!(starts, [0, 4, 4, 4, 4, 8, 8, 8, 8, 9]);
    }
}
