//! The CBMEM console: coreboot's log in memory, which a payload goes on writing.
//!
//! It is a ring of bytes behind a header of two little-endian words, size and cursor. Only what to write
//! where is computed here; who owns the memory writes it.

use alloc::vec::Vec;

use crate::bytes::{le_u32, slice};

/// Length of the header, in bytes; the ring follows.
pub const HEADER_LEN: usize = 8;
/// Where the header's cursor word lies, in bytes from the console's beginning.
pub const CURSOR_OFFSET: u64 = 4;
/// The largest ring, in bytes.
pub const MAX_SIZE: u32 = 1 << 28;

const CURSOR_MASK: u32 = MAX_SIZE - 1;
const OVERFLOW: u32 = 1 << 31;

/// The header of a CBMEM console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    size: u32,
    cursor: u32,
}

/// Bytes to write at an offset from the console's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Bytes from the beginning of the header.
    pub offset: u64,
    /// What to write there; may be empty.
    pub bytes: &'a [u8],
}

impl Header {
    /// An empty console whose ring has `size` bytes; `None` unless that is 1 to [`MAX_SIZE`].
    pub fn new(size: u32) -> Option<Self> {
        (1..=MAX_SIZE).contains(&size).then_some(Self { size, cursor: 0 })
    }

    /// The header that `bytes` begin with, when it can be one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = Self { size: le_u32(bytes, 0)?, cursor: le_u32(bytes, 4)? };
        (header.size <= MAX_SIZE && header.position() < header.size).then_some(header)
    }

    /// The header's bytes.
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = self.size.to_le_bytes();
        let [e, f, g, h] = self.cursor.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// Length of the ring, in bytes: 1 to [`MAX_SIZE`].
    pub const fn size(self) -> u32 {
        self.size
    }

    /// The cursor word, position and flags, to be written at [`CURSOR_OFFSET`] after every append.
    pub const fn cursor(self) -> u32 {
        self.cursor
    }

    /// Whether the ring has wrapped, so that its oldest byte is the one at the cursor.
    pub const fn overflowed(self) -> bool {
        self.cursor & OVERFLOW != 0
    }

    /// Appends `text`: advances the cursor and says what to write, in this order, before writing the cursor.
    /// Of a text longer than the ring only the end remains.
    pub fn append<'a>(&mut self, text: &'a [u8]) -> [Piece<'a>; 2] {
        let size = self.size as usize;
        let skipped = text.len().saturating_sub(size);
        let (_, text) = text.split_at_checked(skipped).unwrap_or((&[], text));
        let wrap = |position: usize| position.checked_rem(size).unwrap_or(0);

        let start = wrap((self.position() as usize).saturating_add(skipped));
        let (first, second) = text.split_at_checked(size.saturating_sub(start)).unwrap_or((text, &[]));
        let end = start.saturating_add(text.len());
        let wrapped = skipped > 0 || end >= size;

        let flags = self.cursor & !CURSOR_MASK | if wrapped { OVERFLOW } else { 0 };
        // A position is below the ring's size, which fits 28 bits.
        self.cursor = flags | u32::try_from(wrap(end)).unwrap_or(0);
        let offset = |position: usize| (HEADER_LEN as u64).saturating_add(position as u64);
        [Piece { offset: offset(start), bytes: first }, Piece { offset: offset(0), bytes: second }]
    }

    /// What the console holds, oldest byte first; `ring` is the bytes after the header.
    pub fn contents(self, ring: &[u8]) -> Vec<u8> {
        let position = self.position() as usize;
        let newest = slice(ring, 0, position).unwrap_or(&[]);
        let oldest = match self.overflowed() {
            true => ring.get(position..self.size as usize).unwrap_or(&[]),
            false => &[],
        };
        [oldest, newest].concat()
    }

    const fn position(self) -> u32 {
        self.cursor & CURSOR_MASK
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apply(console: &mut [u8], text: &[u8]) {
        let mut header = Header::decode(console).unwrap();
        for piece in header.append(text) {
            let at = piece.offset as usize;
            console[at..at + piece.bytes.len()].copy_from_slice(piece.bytes);
        }
        console[..HEADER_LEN].copy_from_slice(&header.encode());
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        let bytes = |size: u32, cursor: u32| [size.to_le_bytes(), cursor.to_le_bytes()].concat();
        assert!(Header::decode(&bytes(16, 15 | OVERFLOW)).is_some());
        assert!(Header::decode(&bytes(16, 16)).is_none());
        assert!(Header::decode(&bytes(0, 0)).is_none());
        assert!(Header::decode(&bytes(MAX_SIZE + 1, 0)).is_none());
        assert!(Header::decode(&bytes(16, 0)[..7]).is_none());
        assert!(Header::new(0).is_none());
    }

    proptest! {
        /// coreboot writes byte by byte and wraps at the end; appending whole texts must come to the same.
        #[test]
        fn appends_equal_bytewise_writes(
            size in 1_u32..40,
            texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..8),
        ) {
            let mut console = Header::new(size).unwrap().encode().to_vec();
            console.resize(HEADER_LEN + size as usize, 0);
            let mut model = console.clone();
            let (mut position, mut overflow) = (0, 0);
            let mut everything = Vec::new();
            for text in &texts {
                apply(&mut console, text);
                everything.extend_from_slice(text);
                for byte in text {
                    model[HEADER_LEN + position] = *byte;
                    position += 1;
                    if position >= size as usize {
                        position = 0;
                        overflow = OVERFLOW;
                    }
                }
            }
            model[4..8].copy_from_slice(&(position as u32 | overflow).to_le_bytes());
            prop_assert_eq!(&console, &model);
            let contents = Header::decode(&console).unwrap().contents(&console[HEADER_LEN..]);
            let kept = everything.len().saturating_sub(size as usize);
            prop_assert_eq!(contents, &everything[kept..]);
        }
    }
}
