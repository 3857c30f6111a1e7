//! Pieces of a guest's memory as one buffer, so that devices move bytes straight into and out of it.

use super::{GuestMemory, GuestPhys, HostPhys, OutOfRange};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use storage::{Buffer, Memory, Piece};

/// The guest-physical `ranges`, each with its length in bytes, one behind the other as a buffer. It keeps the memory
/// for as long as anybody has it.
///
/// # Errors
/// One of them is not all memory.
pub fn scattered(
    memory: &Arc<GuestMemory>,
    ranges: impl IntoIterator<Item = (GuestPhys, u64)>,
) -> Result<Buffer, OutOfRange> {
    let mut scatter = Scatter { memory: Arc::clone(memory), parts: Vec::new(), size: 0 };
    ranges.into_iter().try_for_each(|(at, len)| scatter.add(at, len))?;
    Ok(Buffer::new(Arc::new(scatter)))
}

/// A range of guest memory that lies in one piece on the host.
struct Part {
    /// How many bytes are before it.
    before: usize,
    guest: GuestPhys,
    host: HostPhys,
    len: usize,
}

impl Part {
    /// Whether a range that begins there goes on where this one ends.
    fn ends_at(&self, guest: GuestPhys, host: HostPhys) -> bool {
        let len = self.len as u64;
        self.guest.checked_add(len) == Some(guest) && self.host.checked_add(len) == Some(host)
    }
}

struct Scatter {
    memory: Arc<GuestMemory>,
    parts: Vec<Part>,
    size: usize,
}

impl Scatter {
    fn add(&mut self, at: GuestPhys, len: u64) -> Result<(), OutOfRange> {
        let error = OutOfRange { address: at, len };
        let end = at.checked_add(len).ok_or(error)?;
        let mut guest = at;
        while let Some(left) = end.offset_from(guest).filter(|left| *left > 0) {
            let (host, room) = self.memory.piece(guest).ok_or(error)?;
            let (before, here) = (self.size, room.min(left));
            let len = usize::try_from(here).map_err(|_| error)?;
            self.size = before.checked_add(len).ok_or(error)?;
            match self.parts.last_mut().filter(|last| last.ends_at(guest, host)) {
                // A guest's pages often follow each other, and fewer pieces cost everyone less.
                Some(last) => last.len = last.len.saturating_add(len),
                None => self.parts.push(Part { before, guest, host, len }),
            }
            guest = guest.checked_add(here).ok_or(error)?;
        }
        Ok(())
    }

    /// The part that has byte `at`, and how far into it that is.
    fn part(&self, at: usize) -> Option<(&Part, usize)> {
        let behind = self.parts.partition_point(|part| part.before <= at);
        let part = self.parts.get(behind.checked_sub(1)?)?;
        let offset = at.checked_sub(part.before)?;
        (offset < part.len).then_some((part, offset))
    }

    /// Calls `each` with every piece of the `len` bytes from `at` on: where it lies in the guest, and which of
    /// these bytes it has.
    fn for_each(&self, at: usize, len: usize, mut each: impl FnMut(GuestPhys, Range<usize>)) {
        let mut done = 0_usize;
        while done < len {
            let Some((part, offset)) = at.checked_add(done).and_then(|at| self.part(at)) else { return };
            let here = part.len.saturating_sub(offset).min(len.saturating_sub(done));
            let end = done.saturating_add(here);
            if let Some(guest) = part.guest.checked_add(offset as u64) {
                each(guest, done..end);
            }
            done = end;
        }
    }
}

impl Memory for Scatter {
    fn size(&self) -> usize {
        self.size
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        self.for_each(at, bytes.len(), |guest, range| {
            if let Some(bytes) = bytes.get_mut(range) {
                // All of it was memory when this was made, and still is.
                let _ = self.memory.read(guest, bytes);
            }
        });
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.for_each(at, bytes.len(), |guest, range| {
            if let Some(bytes) = bytes.get(range) {
                let _ = self.memory.write(guest, bytes);
            }
        });
    }

    fn piece(&self, at: usize) -> Option<Piece> {
        let (part, offset) = self.part(at)?;
        let address = part.host.checked_add(offset as u64)?.get();
        Some(Piece { address, len: part.len.saturating_sub(offset) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HeapBlock, Region};
    use alloc::boxed::Box;
    use alloc::vec;

    /// Memory from 0 to 0x3000 in two blocks, and at 0x8000 a page.
    fn memory() -> Arc<GuestMemory> {
        let block = |base, len| {
            Region::new(GuestPhys::new(base), Box::new(HeapBlock::zeroed(len, 4096).unwrap()) as _)
        };
        let regions = vec![block(0, 0x2000), block(0x2000, 0x1000), block(0x8000, 0x1000)];
        Arc::new(GuestMemory::new(regions).unwrap())
    }

    fn at(address: u64) -> GuestPhys {
        GuestPhys::new(address)
    }

    #[test]
    fn ranges_follow_each_other_in_the_buffer() {
        let memory = memory();
        let ranges = [(at(0x8ffe), 2), (at(0x1ffc), 8), (at(0x10), 4), (at(0x14), 2)];
        let buffer = scattered(&memory, ranges).unwrap();
        assert_eq!(buffer.len(), 16);
        buffer.write(0, b"0123456789abcdefgh");
        let mut bytes = [0; 8];
        memory.read(at(0x1ffc), &mut bytes).unwrap();
        assert_eq!(&bytes, b"23456789");
        memory.read(at(0x8ffe), &mut bytes[..2]).unwrap();
        assert_eq!(&bytes[..2], b"01");
        memory.write(at(0x15), b"-").unwrap();
        assert_eq!(buffer.to_vec(), b"0123456789abcde-");
        let host = |guest| memory.host_address(at(guest), 1).unwrap().get();
        let expected = [(host(0x8ffe), 2), (host(0x1ffc), 4), (host(0x2000), 4), (host(0x10), 6)];
        let pieces: Vec<_> =
            buffer.pieces().map(|piece| piece.map(|piece| (piece.address, piece.len))).collect();
        let expected: Vec<_> = expected.into_iter().map(Some).collect();
        assert_eq!(pieces, expected, "what lies together is one piece");
        let middle = buffer.slice(4, 4).unwrap();
        assert_eq!(middle.to_vec(), b"4567");
        assert_eq!(middle.pieces().flatten().count(), 2);
    }

    #[test]
    fn what_is_not_all_memory_is_refused() {
        let memory = memory();
        for range in [(0x2fff, 2), (0x3000, 1), (0x8000, 0x1001), (u64::MAX, 2), (0, u64::MAX)] {
            let error = scattered(&memory, [(at(0), 16), (at(range.0), range.1)]).unwrap_err();
            assert_eq!(error, OutOfRange { address: at(range.0), len: range.1 });
        }
        assert!(scattered(&memory, [(at(0x3000), 0)]).unwrap().is_empty());
        assert_eq!(Arc::strong_count(&memory), 1);
        let buffer = scattered(&memory, [(at(0), 1)]).unwrap();
        assert_eq!(Arc::strong_count(&memory), 2, "it keeps the memory");
        drop(buffer);
        assert_eq!(Arc::strong_count(&memory), 1);
    }
}
