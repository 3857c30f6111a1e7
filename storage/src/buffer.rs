//! The memory that a request moves bytes into or out of.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use spin::Mutex;

/// Memory that outlives the requests about it: a device may still be at work when nobody waits for it any more.
///
/// Guests' memory is one, which they may change meanwhile: what was read twice may differ.
pub trait Memory: Send + Sync {
    /// How many bytes it has.
    fn size(&self) -> usize;
    /// Copies bytes from `at` on into `bytes`. What lies outside is left alone.
    fn read(&self, at: usize, bytes: &mut [u8]);
    /// Copies `bytes` to `at` and on. What lies outside is dropped.
    fn write(&self, at: usize, bytes: &[u8]);
    /// Where the byte at `at` lies for devices, and how many from there on lie in one piece; `None` where no
    /// device can reach it, and bytes must be copied.
    fn piece(&self, at: usize) -> Option<Piece>;
}

/// Bytes that lie in one piece for devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The address on the bus.
    pub address: u64,
    /// How many bytes.
    pub len: usize,
}

/// A part of some memory.
#[derive(Clone)]
pub struct Buffer {
    memory: Arc<dyn Memory>,
    range: Range<usize>,
}

impl Buffer {
    /// All of `memory`.
    pub fn new(memory: Arc<dyn Memory>) -> Self {
        let range = 0..memory.size();
        Self { memory, range }
    }

    /// So many zeroes of its own, which devices do not reach.
    pub fn zeroed(len: usize) -> Self {
        Self::new(Arc::new(Copied(Mutex::new(vec![0; len].into_boxed_slice()))))
    }

    /// The same where there is memory for them, else `None`.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).ok()?;
        bytes.resize(len, 0);
        Some(Self::new(Arc::new(Copied(Mutex::new(bytes.into())))))
    }

    /// So many zeroes to be written, which take no memory and are not changed.
    pub fn zeros(len: usize) -> Self {
        Self::new(Arc::new(Zeros(len)))
    }

    /// A copy of these bytes, which devices do not reach.
    pub fn holding(bytes: &[u8]) -> Self {
        Self::new(Arc::new(Copied(Mutex::new(bytes.into()))))
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The part of it that has `len` bytes from `at` on, if it has these.
    pub fn slice(&self, at: usize, len: usize) -> Option<Self> {
        let start = self.range.start.checked_add(at)?;
        let end = start.checked_add(len)?;
        (end <= self.range.end).then(|| Self { memory: Arc::clone(&self.memory), range: start..end })
    }

    /// Copies `bytes` to `at` and on; what does not fit is dropped.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let fits = self.len().saturating_sub(at).min(bytes.len());
        if let Some(bytes) = bytes.get(..fits) {
            self.memory.write(self.range.start.saturating_add(at), bytes);
        }
    }

    /// Copies from `at` on into `bytes`, as far as there is something.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        let there = self.len().saturating_sub(at).min(bytes.len());
        if let Some(bytes) = bytes.get_mut(..there) {
            self.memory.read(self.range.start.saturating_add(at), bytes);
        }
    }

    /// Makes all bytes from `at` on this value.
    pub fn fill(&self, at: usize, value: u8) {
        let piece = [value; 512];
        for at in (at..self.len()).step_by(piece.len()) {
            self.write(at, &piece);
        }
    }

    /// A copy of all of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.read(0, &mut bytes);
        bytes
    }

    /// Its pieces in order, as devices see them; `None` for what they cannot reach.
    pub fn pieces(&self) -> impl Iterator<Item = Option<Piece>> + '_ {
        let mut at = self.range.start;
        core::iter::from_fn(move || {
            let left = self.range.end.checked_sub(at).filter(|left| *left > 0)?;
            let piece = self.memory.piece(at).filter(|piece| piece.len > 0);
            let piece = piece.map(|piece| Piece { len: piece.len.min(left), ..piece });
            // Nothing can be said of what follows something out of reach.
            at = at.saturating_add(piece.map_or(left, |piece| piece.len));
            Some(piece)
        })
    }
}

impl core::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Buffer({:?} of {} bytes)", self.range, self.memory.size())
    }
}

/// Bytes on the heap.
struct Copied(Mutex<Box<[u8]>>);

impl Memory for Copied {
    fn size(&self) -> usize {
        self.0.lock().len()
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        let own = self.0.lock();
        let own = own.get(at..).unwrap_or_default();
        let there = own.len().min(bytes.len());
        if let Some((to, from)) = bytes.get_mut(..there).zip(own.get(..there)) {
            to.copy_from_slice(from);
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let mut own = self.0.lock();
        let own = own.get_mut(at..).unwrap_or_default();
        let there = own.len().min(bytes.len());
        if let Some((to, from)) = own.get_mut(..there).zip(bytes.get(..there)) {
            to.copy_from_slice(from);
        }
    }

    fn piece(&self, _at: usize) -> Option<Piece> {
        None
    }
}

/// Nothing but zeroes.
struct Zeros(usize);

impl Memory for Zeros {
    fn size(&self) -> usize {
        self.0
    }

    fn read(&self, _at: usize, bytes: &mut [u8]) {
        bytes.fill(0);
    }

    fn write(&self, _at: usize, _bytes: &[u8]) {}

    fn piece(&self, _at: usize) -> Option<Piece> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory whose odd pages lie elsewhere.
    struct Scattered;

    impl Memory for Scattered {
        fn size(&self) -> usize {
            0x3000
        }
        fn read(&self, _at: usize, _bytes: &mut [u8]) {}
        fn write(&self, _at: usize, _bytes: &[u8]) {}
        fn piece(&self, at: usize) -> Option<Piece> {
            let (page, offset) = (at / 0x1000, at % 0x1000);
            let base = if page % 2 == 0 { 0x10_0000 } else { 0x90_0000 };
            Some(Piece { address: (base + page * 0x1000 + offset) as u64, len: 0x1000 - offset })
        }
    }

    #[test]
    fn a_slice_is_a_part_of_the_same_bytes() {
        let whole = Buffer::holding(b"0123456789");
        let part = whole.slice(2, 6).unwrap().slice(1, 3).unwrap();
        assert_eq!(part.to_vec(), b"345");
        part.write(1, b"xyz");
        assert_eq!(whole.to_vec(), b"0123xy6789", "what does not fit is dropped");
        assert!(part.slice(1, 3).is_none() && part.slice(usize::MAX, 2).is_none());
        let mut bytes = [b'-'; 4];
        part.read(2, &mut bytes);
        assert_eq!(&bytes, b"y---");
    }

    #[test]
    fn zeros_are_what_they_are() {
        let zeros = Buffer::zeros(usize::MAX).slice(7, 600).unwrap();
        zeros.write(0, b"not zero");
        assert_eq!(zeros.to_vec(), [0; 600]);
    }

    #[test]
    fn pieces_end_where_memory_breaks_or_the_buffer_does() {
        let buffer = Buffer::new(Arc::new(Scattered)).slice(0xf00, 0x1200).unwrap();
        let pieces: Vec<_> = buffer.pieces().flatten().map(|piece| (piece.address, piece.len)).collect();
        assert_eq!(pieces, [(0x10_0f00, 0x100), (0x90_1000, 0x1000), (0x10_2000, 0x100)]);
        assert_eq!(Buffer::zeroed(8).pieces().collect::<Vec<_>>(), [None], "a copy is out of reach");
    }
}
