//! A disk that begins as another one each time: what is written is kept in memory, and forgotten.
//!
//! An overlay that lasts is an image with a backing: `qcow2::create` makes one, and `qcow2::roll_back`
//! empties it.

use crate::block::{BlockDevice, BlockError, Geometry, Reply, read_or_zeros};
use crate::buffer::Buffer;
use crate::join;
use crate::runs::Runs;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::ready;
use core::ops::Range;
use spin::Mutex;

/// Changes are kept in pieces of so many bytes: what most file systems write at once.
pub const PIECE: u64 = 4096;
/// What a piece costs beside its bytes, and what a run of pieces costs that are zero.
const COST: u64 = 64;

/// Where changes are kept.
pub trait Room: Send + Sync {
    /// [`PIECE`] bytes of memory for the caller alone, for as long as it has them; `None` where there are none left.
    fn take(&self) -> Option<Buffer>;
    /// Takes such memory back, of which nobody has anything any more.
    fn give(&self, piece: Buffer);
}

/// The heap.
struct Heap;

impl Room for Heap {
    fn take(&self) -> Option<Buffer> {
        Buffer::try_zeroed(PIECE as usize)
    }

    fn give(&self, _piece: Buffer) {}
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
    /// What was written, by the pieces' numbers.
    pieces: BTreeMap<u64, Buffer>,
    /// The pieces that are zero.
    zeros: Runs,
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

    /// An overlay of `base` whose changes take at most `budget` bytes: the heap has what tells where they are, of at
    /// most as many pieces and runs of zeros as that many bytes are pieces, and `room` the changes themselves.
    pub fn in_room(base: Arc<dyn BlockDevice>, budget: u64, room: Arc<dyn Room>) -> Self {
        Self { base, room, budget, changes: Mutex::default() }
    }

    /// Forgets all changes. Requests under way may leave some.
    pub fn reset(&self) {
        *self.changes.lock() = Changes::default();
    }

    /// How much memory the changes take, in bytes.
    pub fn used(&self) -> u64 {
        let changes = self.changes.lock();
        used(changes.pieces.len(), changes.zeros.len())
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
                let piece = changes.pieces.get(&part.number);
                if piece.is_none() && !changes.zeros.contains(part.number) {
                    missing = Some(missing.map_or(part.offset, |missing| missing.start)..end);
                    continue;
                }
                if let Some(missing) = missing.take() {
                    reads.push(self.read_base(at, missing, into));
                }
                let into = into.slice(part.offset, part.len).ok_or(BlockError::Failed)?;
                match piece {
                    Some(bytes) => {
                        let bytes = bytes.slice(part.within, part.len);
                        into.write(0, &bytes.map(|bytes| bytes.to_vec()).unwrap_or_default());
                    }
                    None => into.fill(0, 0),
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
                if !changes.has(part.number) {
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

/// What so many pieces, and so many runs of zeros, take in bytes.
const fn used(pieces: usize, runs: usize) -> u64 {
    let pieces = (pieces as u64).saturating_mul(PIECE.saturating_add(COST));
    pieces.saturating_add((runs as u64).saturating_mul(COST))
}

impl Changes {
    /// Whether this piece is here.
    fn has(&self, number: u64) -> bool {
        self.pieces.contains_key(&number) || self.zeros.contains(number)
    }

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
        let end = at.saturating_add(len);
        let zeroed = if from.is_none() { at.div_ceil(PIECE)..end / PIECE } else { 0..0 };
        // What is zero as a whole, or was before a part of it is made so, has no bytes.
        let written: Vec<Part> = parts(at, len)
            .filter(|part| !zeroed.contains(&part.number))
            .filter(|part| from.is_some() || !self.zeros.contains(part.number))
            .collect();

        let new = written.iter().filter(|part| !self.pieces.contains_key(&part.number)).count();
        let gone = self.within(&zeroed);
        let pieces = self.pieces.len().saturating_add(new).saturating_sub(gone.len());
        let runs = match from {
            Some(_) => self.zeros.len_without(&(at / PIECE..end.div_ceil(PIECE))),
            None => self.zeros.len_with(&zeroed),
        };
        let grows = used(pieces, runs) > used(self.pieces.len(), self.zeros.len());
        let too_many = pieces.saturating_add(runs) as u64 > budget / PIECE;
        if grows && (too_many || used(pieces, runs) > budget) {
            return Err(no_room);
        }

        for part in written {
            let bytes = self.bytes(part.number, room, edges).ok_or(no_room)?;
            let new = match from.map(|from| from.slice(part.offset, part.len)) {
                Some(Some(slice)) => slice.to_vec(),
                _ => alloc::vec![0; part.len],
            };
            bytes.write(part.within, &new);
        }
        self.drop_all(gone, room);
        self.zeros.add(zeroed);
        Ok(())
    }

    /// The numbers of the pieces with bytes in this range.
    fn within(&self, numbers: &Range<u64>) -> Vec<u64> {
        let Range { start, end } = *numbers;
        self.pieces.range(start..end.max(start)).map(|(number, _)| *number).collect()
    }

    /// Gives pieces' bytes back.
    fn drop_all(&mut self, numbers: impl IntoIterator<Item = u64>, room: &dyn Room) {
        for number in numbers {
            self.pieces.remove(&number).into_iter().for_each(|bytes| room.give(bytes));
        }
    }

    /// A piece's bytes, to be changed, which are those of `edges` where it was not here; `None` where memory is used up.
    fn bytes(&mut self, number: u64, room: &dyn Room, edges: &[(u64, Buffer)]) -> Option<&Buffer> {
        let entry = match self.pieces.entry(number) {
            Entry::Occupied(entry) => return Some(entry.into_mut()),
            Entry::Vacant(entry) => entry,
        };
        let bytes = room.take().filter(|bytes| bytes.len() as u64 == PIECE)?;
        match edges.iter().find(|(edge, _)| *edge == number) {
            Some((_, edge)) if !self.zeros.contains(number) => bytes.write(0, &edge.to_vec()),
            _ => bytes.fill(0, 0),
        }
        self.zeros.remove(&(number..number.saturating_add(1)));
        Some(entry.insert(bytes))
    }

    /// Makes pieces that are here and lie wholly in a range zero.
    fn discard(&mut self, room: &dyn Room, at: u64, len: u64) {
        let here = self.within(&(at.div_ceil(PIECE)..at.saturating_add(len) / PIECE));
        for number in &here {
            self.zeros.add(*number..number.saturating_add(1));
        }
        self.drop_all(here, room);
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
        let answer = self.check(at, len).map(|()| self.changes.lock().discard(&*self.room, at, len));
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

    /// Room that knows what of it is taken.
    #[derive(Default)]
    struct Counted(Mutex<usize>);

    impl Room for Counted {
        fn take(&self) -> Option<Buffer> {
            *self.0.lock() += 1;
            // What was somebody's before is not empty.
            Some(Buffer::holding(&[0xdd; PIECE as usize]))
        }
        fn give(&self, _piece: Buffer) {
            *self.0.lock() -= 1;
        }
    }

    #[test]
    fn what_is_not_needed_is_given_back() {
        let (base, room) = (Arc::new(RamDisk::new(512, vec![1; 1 << 20])), Arc::new(Counted::default()));
        let overlay = Overlay::in_room(base, 1 << 20, Arc::clone(&room) as Arc<dyn Room>);
        for _ in 0..3 {
            wait(overlay.write(0, Buffer::holding(&[2; 512 << 10]))).unwrap();
            assert_eq!(*room.0.lock(), 128);
            wait(overlay.discard(0, 256 << 10)).unwrap();
            wait(overlay.write_zeroes(256 << 10, (256 << 10) - 512)).unwrap();
            assert_eq!(*room.0.lock(), 1);
            wait(overlay.write(512, Buffer::holding(&[3; 512]))).unwrap();
            let expected =
                [vec![0; 512], vec![3; 512], vec![0; (511 << 10) - 512], vec![2; 512], vec![1; 512]];
            assert!(read(&overlay, 0, (512 << 10) + 512) == expected.concat());
        }
    }

    #[test]
    fn zeros_in_a_row_cost_nothing_and_many_apart_are_counted() {
        let base = Arc::new(RamDisk::new(512, pattern(4 << 20, 1)));
        let overlay = Overlay::new(base, 64 * (PIECE + COST));
        wait(overlay.write_zeroes(0, 4 << 20)).unwrap();
        assert!(overlay.used() <= COST && read(&overlay, 0, 4 << 20) == vec![0; 4 << 20]);
        wait(overlay.write(8192, Buffer::holding(&[7; 512]))).unwrap();
        assert_eq!(read(&overlay, 4096, 12288), [vec![0; 4096], vec![7; 512], vec![0; 7680]].concat());
        overlay.reset();
        // A driver that makes every other piece zero is not to fill the heap with what tells where they are.
        let made = (0..512).take_while(|n| wait(overlay.write_zeroes(n * 8192, 4096)).is_ok()).count();
        assert!((50..=65).contains(&made), "{made}");
        assert_eq!(read(&overlay, 4096, 512), pattern(4 << 20, 1)[4096..4608]);
        wait(overlay.write_zeroes(0, 1 << 20)).unwrap();
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
