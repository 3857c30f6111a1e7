//! A disk that begins as another one each time: what is written is kept in memory, and forgotten.
//!
//! An overlay that lasts is an image with a backing: `qcow2::create` makes one, and `qcow2::roll_back`
//! empties it.

use crate::block::{BlockDevice, BlockError, Geometry, Reply, read_or_zeros};
use crate::buffer::Buffer;
use crate::join;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::ready;
use core::ops::Range;
use spin::Mutex;

/// Changes are kept in pieces of so many bytes: what most file systems write at once.
pub const PIECE: u64 = 4096;
/// What a piece costs beside its bytes.
const COST: u64 = 64;

/// Where changes are kept.
pub trait Room: Send + Sync {
    /// [`PIECE`] bytes of memory for the caller alone, for as long as it has them; `None` where there are none left.
    fn take(&self) -> Option<Buffer>;
}

/// The heap.
struct Heap;

impl Room for Heap {
    fn take(&self) -> Option<Buffer> {
        Buffer::try_zeroed(PIECE as usize)
    }
}

/// A disk whose changes are in memory. The disk below stays as it is.
pub struct Overlay {
    base: Arc<dyn BlockDevice>,
    room: Arc<dyn Room>,
    /// The most memory that changes may take, in bytes.
    budget: u64,
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Changes {
    pieces: BTreeMap<u64, Piece>,
    /// How many bytes they take.
    used: u64,
}

enum Piece {
    Zero,
    Bytes(Buffer),
}

impl Piece {
    const fn cost(&self) -> u64 {
        match self {
            Self::Zero => COST,
            Self::Bytes(_) => COST.saturating_add(PIECE),
        }
    }

    /// The same piece as bytes that can be changed; `None` where memory is used up.
    fn bytes(&mut self, room: &dyn Room) -> Option<&Buffer> {
        if let Self::Zero = self {
            let bytes = room.take().filter(|bytes| bytes.len() as u64 == PIECE)?;
            bytes.fill(0, 0);
            *self = Self::Bytes(bytes);
        }
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Zero => None,
        }
    }
}

/// What of a request lies in one piece.
struct Part {
    /// The piece's number.
    number: u64,
    /// In the piece.
    within: usize,
    /// In the request.
    offset: usize,
    len: usize,
}

impl Part {
    const fn is_whole(&self) -> bool {
        self.len as u64 == PIECE
    }
}

fn parts(at: u64, len: u64) -> impl Iterator<Item = Part> {
    let end = at.saturating_add(len);
    let numbers = at / PIECE..end.div_ceil(PIECE);
    numbers.map(move |number| {
        let start = number.saturating_mul(PIECE);
        let Range { start: first, end: last } = start.max(at)..start.saturating_add(PIECE).min(end);
        Part {
            number,
            within: first.saturating_sub(start) as usize,
            offset: usize::try_from(first.saturating_sub(at)).unwrap_or(usize::MAX),
            len: last.saturating_sub(first) as usize,
        }
    })
}

impl Overlay {
    /// An overlay of `base` whose changes take at most `budget` bytes of the heap.
    pub fn new(base: Arc<dyn BlockDevice>, budget: u64) -> Self {
        Self::in_room(base, budget, Arc::new(Heap))
    }

    /// An overlay of `base` whose changes take at most `budget` bytes: the heap has what tells where they are, and
    /// `room` the changes themselves.
    pub fn in_room(base: Arc<dyn BlockDevice>, budget: u64, room: Arc<dyn Room>) -> Self {
        Self { base, room, budget, changes: Mutex::default() }
    }

    /// Forgets all changes. Requests under way may leave some.
    pub fn reset(&self) {
        *self.changes.lock() = Changes::default();
    }

    /// How much memory the changes take, in bytes.
    pub fn used(&self) -> u64 {
        self.changes.lock().used
    }

    fn check(&self, at: u64, len: u64) -> Result<(), BlockError> {
        self.geometry().check(at, len)
    }

    async fn read_at(&self, at: u64, into: &Buffer) -> Result<(), BlockError> {
        let mut reads: Vec<Reply<'_>> = Vec::new();
        {
            let changes = self.changes.lock();
            // Where what is not here begins, and where it ends so far.
            let mut missing: Option<Range<usize>> = None;
            for part in parts(at, into.len() as u64) {
                let end = part.offset.saturating_add(part.len);
                let Some(piece) = changes.pieces.get(&part.number) else {
                    missing = Some(missing.map_or(part.offset, |missing| missing.start)..end);
                    continue;
                };
                if let Some(missing) = missing.take() {
                    reads.push(self.read_base(at, missing, into));
                }
                match piece {
                    Piece::Zero => {
                        into.slice(part.offset, part.len).unwrap_or_else(|| into.clone()).fill(0, 0)
                    }
                    Piece::Bytes(bytes) => {
                        let bytes = bytes.slice(part.within, part.len);
                        into.write(part.offset, &bytes.map(|bytes| bytes.to_vec()).unwrap_or_default());
                    }
                }
            }
            if let Some(missing) = missing {
                reads.push(self.read_base(at, missing, into));
            }
        }
        join::all(reads).await
    }

    fn read_base(&self, at: u64, range: Range<usize>, into: &Buffer) -> Reply<'_> {
        match into.slice(range.start, range.len()) {
            Some(part) => self.base.read(at.saturating_add(range.start as u64), part),
            None => Box::pin(ready(Err(BlockError::Failed))),
        }
    }

    /// Puts `from`, or zeros.
    async fn put(&self, at: u64, len: u64, from: Option<&Buffer>) -> Result<(), BlockError> {
        self.check(at, len)?;
        // What is changed in part and not here yet: at most the first piece and the last.
        let mut edges: Vec<(u64, Buffer)> = Vec::new();
        {
            let changes = self.changes.lock();
            for part in parts(at, len).filter(|part| !part.is_whole()) {
                if !changes.pieces.contains_key(&part.number) {
                    edges.push((part.number, Buffer::zeroed(PIECE as usize)));
                }
            }
        }
        for (number, buffer) in &edges {
            read_or_zeros(&*self.base, number.saturating_mul(PIECE), buffer).await?;
        }
        self.changes.lock().put((self.budget, &*self.room), at, len, from, &edges)
    }
}

impl Changes {
    /// All of it or, where memory is used up, nothing.
    fn put(
        &mut self,
        (budget, room): (u64, &dyn Room),
        at: u64,
        len: u64,
        from: Option<&Buffer>,
        edges: &[(u64, Buffer)],
    ) -> Result<(), BlockError> {
        let no_room = BlockError::NoRoom { size: budget };
        let cost = |part: &Part| match (from, part.is_whole()) {
            (None, true) => COST,
            _ => COST.saturating_add(PIECE),
        };
        let mut used = self.used;
        for part in parts(at, len) {
            let had = self.pieces.get(&part.number).map_or(0, Piece::cost);
            used = used.saturating_sub(had).saturating_add(cost(&part));
        }
        if used > budget && used > self.used {
            return Err(no_room);
        }
        for part in parts(at, len) {
            let had = self.pieces.get(&part.number).map_or(0, Piece::cost);
            if from.is_none() && part.is_whole() {
                self.pieces.insert(part.number, Piece::Zero);
            } else {
                let piece = self.pieces.entry(part.number).or_insert(Piece::Zero);
                let bytes = piece.bytes(room).ok_or(no_room)?;
                if had == 0
                    && let Some((_, edge)) = edges.iter().find(|(number, _)| *number == part.number)
                {
                    bytes.write(0, &edge.to_vec());
                }
                let new = match from.map(|from| from.slice(part.offset, part.len)) {
                    Some(Some(slice)) => slice.to_vec(),
                    _ => alloc::vec![0; part.len],
                };
                bytes.write(part.within, &new);
            }
            let has = self.pieces.get(&part.number).map_or(0, Piece::cost);
            self.used = self.used.saturating_sub(had).saturating_add(has);
        }
        Ok(())
    }

    /// Makes pieces that are here and lie wholly in a range zero.
    fn discard(&mut self, at: u64, len: u64) {
        let numbers = at.div_ceil(PIECE)..at.saturating_add(len) / PIECE;
        if numbers.start >= numbers.end {
            return;
        }
        for (_, piece) in self.pieces.range_mut(numbers) {
            self.used = self.used.saturating_sub(piece.cost()).saturating_add(COST);
            *piece = Piece::Zero;
        }
    }
}

impl BlockDevice for Overlay {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: false, discards: true, ..self.base.geometry() }
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        Box::pin(async move {
            self.check(at, into.len() as u64)?;
            self.read_at(at, &into).await
        })
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        Box::pin(async move { self.put(at, from.len() as u64, Some(&from)).await })
    }

    fn flush(&self) -> Reply<'_> {
        // Nothing is to outlast the power.
        Box::pin(ready(Ok(())))
    }

    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        let answer = self.check(at, len).map(|()| self.changes.lock().discard(at, len));
        Box::pin(ready(answer))
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        Box::pin(async move { self.put(at, len, None).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{RamDisk, Random, Slow, pattern, wait};

    fn read(disk: &dyn BlockDevice, at: u64, len: usize) -> Vec<u8> {
        let buffer = Buffer::holding(&vec![0xee; len]);
        wait(disk.read(at, buffer.clone())).unwrap();
        buffer.to_vec()
    }

    #[test]
    fn changes_are_seen_until_they_are_forgotten() {
        const SIZE: usize = (256 << 10) + 1536;
        let content = pattern(SIZE, 1);
        let base = Arc::new(RamDisk::new(512, content.clone()).sealed());
        let overlay = Overlay::new(Arc::new(Slow::new(base, 1)), 1 << 20);
        assert!(!overlay.geometry().read_only);
        let mut expected = content.clone();
        let mut random = Random(9);
        for _ in 0..200 {
            let start = random.below(SIZE as u64 / 512);
            let len = (1 + random.below(40)).min(SIZE as u64 / 512 - start);
            let range = (start * 512) as usize..((start + len) * 512) as usize;
            match random.below(4) {
                0 => {
                    wait(overlay.write_zeroes(start * 512, len * 512)).unwrap();
                    expected[range].fill(0);
                }
                1 => {
                    wait(overlay.discard(start * 512, len * 512)).unwrap();
                    expected[range.clone()].copy_from_slice(&read(&overlay, start * 512, range.len()));
                }
                _ => {
                    expected[range.clone()]
                        .copy_from_slice(&pattern(range.len(), random.below(500) as usize));
                    wait(overlay.write(start * 512, Buffer::holding(&expected[range]))).unwrap();
                }
            }
            assert!(read(&overlay, 0, SIZE) == expected);
        }
        assert!(overlay.used() > 0);
        overlay.reset();
        assert_eq!(overlay.used(), 0);
        assert!(read(&overlay, 0, SIZE) == content);
        assert!(wait(overlay.write(SIZE as u64, Buffer::zeroed(512))).is_err());
    }

    #[test]
    fn a_used_up_budget_refuses_what_needs_more() {
        let base = Arc::new(RamDisk::new(512, pattern(64 << 10, 1)));
        let overlay = Overlay::new(base, 3 * (PIECE + COST));
        wait(overlay.write(512, Buffer::holding(&[1; 8192]))).unwrap();
        let full = wait(overlay.write(16384, Buffer::holding(&[2; 512])));
        assert_eq!(full, Err(BlockError::NoRoom { size: 3 * (PIECE + COST) }));
        assert_eq!(read(&overlay, 16384, 512), pattern(64 << 10, 1)[16384..16896]);
        wait(overlay.write(1024, Buffer::holding(&[3; 2048]))).unwrap();
        assert_eq!(read(&overlay, 1024, 2048), [3; 2048]);
        // What is discarded makes room, and nothing of it comes back.
        wait(overlay.discard(0, 4096)).unwrap();
        assert_eq!(read(&overlay, 0, 512), [0; 512]);
        assert!(overlay.used() <= 2 * PIECE + 3 * COST);
    }

    #[test]
    fn neighbours_in_one_piece_are_written_at_once() {
        for seed in 0..20 {
            let base = Arc::new(RamDisk::new(512, pattern(8192, 1)));
            let overlay = Overlay::new(Arc::new(Slow::new(base, seed)), 1 << 20);
            let writes = (0..16).map(|n| overlay.write(n * 512, Buffer::holding(&[n as u8; 512]))).collect();
            wait(join::all(writes)).unwrap();
            let expected: Vec<u8> = (0..16).flat_map(|n| [n; 512]).collect();
            assert!(read(&overlay, 0, 8192) == expected);
        }
    }
}
