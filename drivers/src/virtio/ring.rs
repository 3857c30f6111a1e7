//! A split queue from its driver's side (virtio 1.2, 2.7).
//!
//! A ring has slots, one for each request that can be under way. A slot has a table of descriptors of its own,
//! outside of the ring where the device can do that and a part of the ring where not; and a few bytes for what a
//! request says beside its data. So no descriptor is ever looked for, and what the device says of one is easily checked.

use crate::dma::{Dma, barrier};
use crate::driver::Error;
use crate::platform::Platform;
use alloc::vec::Vec;
use storage::Piece;

/// Which way a piece of memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads it.
    ToDevice,
    /// The device writes it.
    FromDevice,
}

/// What the device has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot.
    pub slot: usize,
    /// How many bytes it says that it wrote.
    pub written: u32,
}

/// The device has broken the ring's rules, and cannot be used until it was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// In a descriptor (2.7.5): another follows; the device writes it; it is a table of descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// The device asks for no notifications (2.7.10).
const NO_NOTIFY: u16 = 1;
/// The size of a descriptor.
const DESCRIPTOR: usize = 16;
/// How many bytes of its own a slot has.
pub const SCRATCH: usize = 64;
/// Descriptors in a table outside of the ring, which may have no more than the ring; and how many slots have one.
const INDIRECT_TABLE: usize = 130;
const MOST_SLOTS: usize = 64;
/// Descriptors that a slot has of the ring where there are no such tables.
const DIRECT_TABLE: usize = 16;
/// The largest ring (2.7).
const MOST_DESCRIPTORS: usize = 256;

/// A ring.
pub struct Ring {
    ring: Dma,
    slots: Dma,
    /// Descriptors in the ring, a power of two.
    size: usize,
    /// Descriptors in a slot's table.
    table: usize,
    indirect: bool,
    /// Whether a slot is under way, by its number; and how many are.
    busy: Vec<bool>,
    under_way: usize,
    /// The next of the indices that count up for ever, modulo 65536.
    available: u16,
    used: u16,
}

impl Ring {
    /// A ring for a device that takes `largest` descriptors; `indirect` says that it knows tables of them.
    ///
    /// # Errors
    /// No memory, or a request does not fit into the device's ring.
    pub fn new(platform: &dyn Platform, largest: u16, indirect: bool) -> Result<Self, Error> {
        let largest = usize::from(largest).min(MOST_DESCRIPTORS);
        if largest < 4 {
            return Err(Error::Unusable("its queue is too small"));
        }
        // The largest power of two that is no larger.
        let size = 1_usize.checked_shl(largest.ilog2()).unwrap_or(1);
        let table = if indirect { INDIRECT_TABLE } else { DIRECT_TABLE }.min(size);
        let count = if indirect { size.min(MOST_SLOTS) } else { size.checked_div(table).unwrap_or(1) };
        let (_, _, len) = layout(size);
        let ring = Dma::allocate(platform, len)?;
        let slots = Dma::allocate(platform, count.saturating_mul(stride(table)))?;
        Ok(Self {
            ring,
            slots,
            size,
            table,
            indirect,
            busy: alloc::vec![false; count],
            under_way: 0,
            available: 0,
            used: 0,
        })
    }

    /// Forgets everything, as the device has on its reset.
    pub fn clear(&mut self) {
        self.busy.fill(false);
        self.under_way = 0;
        (self.available, self.used) = (0, 0);
        for at in (0..self.ring.size()).step_by(2) {
            self.ring.write_u16(at, 0);
        }
    }

    /// How many descriptors the ring has.
    pub fn size(&self) -> u16 {
        self.size as u16
    }

    /// Where its three parts lie for the device: descriptors, what is available, what was used.
    pub fn parts(&self) -> [u64; 3] {
        let (available, used, _) = layout(self.size);
        [0, available, used].map(|at| self.ring.address().saturating_add(at as u64))
    }

    /// How many pieces of memory a request may have, beside two in its own bytes.
    pub fn most_pieces(&self) -> usize {
        self.table.saturating_sub(2)
    }

    /// How many requests can be under way.
    pub fn slots(&self) -> usize {
        self.busy.len()
    }

    /// A slot's own bytes, [`SCRATCH`] of them: their place in [`Ring::scratch_memory`], and their address.
    pub fn scratch(&self, slot: usize) -> (usize, u64) {
        let at =
            slot.saturating_mul(stride(self.table)).saturating_add(self.table.saturating_mul(DESCRIPTOR));
        (at, self.slots.address().saturating_add(at as u64))
    }

    /// What slots' own bytes are in.
    pub const fn scratch_memory(&self) -> &Dma {
        &self.slots
    }

    /// Makes the request of a slot that is not under way available to the device: these pieces, what it reads before
    /// what it writes, no more than its table has room for.
    pub fn submit(&mut self, slot: usize, pieces: impl Iterator<Item = (Piece, Direction)>) {
        // Descriptors of the ring name one another by their place in it.
        let (memory, base, first) = if self.indirect {
            (&self.slots, slot.saturating_mul(stride(self.table)), 0)
        } else {
            let first = slot.saturating_mul(self.table);
            (&self.ring, first.saturating_mul(DESCRIPTOR), first)
        };
        let place = |index: usize| base.saturating_add(index.saturating_mul(DESCRIPTOR));
        let mut count = 0_usize;
        let mut pieces = pieces.take(self.table).peekable();
        while let Some((piece, direction)) = pieces.next() {
            let write = if direction == Direction::FromDevice { WRITE } else { 0 };
            let next = if pieces.peek().is_some() { NEXT } else { 0 };
            let following = first.saturating_add(count).saturating_add(1) as u16;
            describe(memory, place(count), piece, write | next, if next == 0 { 0 } else { following });
            count = count.saturating_add(1);
        }
        let head = if self.indirect {
            let table = Piece {
                address: self.slots.address().saturating_add(base as u64),
                len: count.saturating_mul(DESCRIPTOR),
            };
            describe(&self.ring, slot.saturating_mul(DESCRIPTOR), table, INDIRECT, 0);
            slot
        } else {
            first
        };
        if let Some(busy) = self.busy.get_mut(slot) {
            *busy = true;
            self.under_way = self.under_way.saturating_add(1);
        }
        let (available, _, _) = layout(self.size);
        let index = usize::from(self.available) & self.size.saturating_sub(1);
        let entry = available.saturating_add(4).saturating_add(index.saturating_mul(2));
        self.ring.write_u16(entry, head as u16);
        self.available = self.available.wrapping_add(1);
        // Stores are seen in order, so what the index counts is in place.
        self.ring.write_u16(available.saturating_add(2), self.available);
    }

    /// Whether the device wants to be told of what was submitted.
    pub fn wants_notification(&self) -> bool {
        // It may go to sleep just now: it then looks once more, or has said that it wants to be told.
        barrier();
        let (_, used, _) = layout(self.size);
        self.ring.read_u16(used) & NO_NOTIFY == 0
    }

    /// The next request that the device has completed. Its slot is under way no more.
    ///
    /// # Errors
    /// What the device says is none of what it was given.
    pub fn complete(&mut self) -> Result<Option<Completion>, Broken> {
        let (_, used, _) = layout(self.size);
        let waiting = self.ring.read_u16(used.saturating_add(2)).wrapping_sub(self.used);
        if waiting == 0 {
            return Ok(None);
        }
        if usize::from(waiting) > self.under_way {
            return Err(Broken);
        }
        let index = usize::from(self.used) & self.size.saturating_sub(1);
        let entry = used.saturating_add(4).saturating_add(index.saturating_mul(8));
        let id = self.ring.read_u32(entry) as usize;
        let written = self.ring.read_u32(entry.saturating_add(4));
        let unit = if self.indirect { 1 } else { self.table };
        let slot = id.checked_div(unit).filter(|slot| slot.saturating_mul(unit) == id).ok_or(Broken)?;
        let busy = self.busy.get_mut(slot).filter(|busy| **busy).ok_or(Broken)?;
        *busy = false;
        self.under_way = self.under_way.saturating_sub(1);
        self.used = self.used.wrapping_add(1);
        Ok(Some(Completion { slot, written }))
    }
}

/// How many bytes a slot has.
const fn stride(table: usize) -> usize {
    table.saturating_mul(DESCRIPTOR).saturating_add(SCRATCH)
}

/// Where a ring's parts begin behind its descriptors: what is available, what was used; and its length.
const fn layout(size: usize) -> (usize, usize, usize) {
    let available = size.saturating_mul(DESCRIPTOR);
    // Flags, index, entries of two bytes, and a field that is not used; then a multiple of 4.
    let used = available.saturating_add(size.saturating_mul(2)).saturating_add(6).next_multiple_of(4);
    (available, used, used.saturating_add(size.saturating_mul(8)).saturating_add(6))
}

/// Writes a descriptor.
fn describe(memory: &Dma, at: usize, piece: Piece, flags: u16, next: u16) {
    memory.write_u64(at, piece.address);
    memory.write_u32(at.saturating_add(8), piece.len as u32);
    memory.write_u16(at.saturating_add(12), flags);
    memory.write_u16(at.saturating_add(14), next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakePlatform;

    fn piece(address: u64, len: usize) -> Piece {
        Piece { address, len }
    }

    /// What the device finds: address, length, flags and next of each descriptor from `index` on.
    fn chain(platform: &FakePlatform, table: u64, index: u16) -> Vec<(u64, u32, u16)> {
        let mut found = Vec::new();
        let mut index = index;
        loop {
            let bytes = platform.read(table + u64::from(index) * 16, 16);
            let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
            let address = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            found.push((address, u32::from_le_bytes(bytes[8..12].try_into().unwrap()), flags & !NEXT));
            if flags & NEXT == 0 {
                return found;
            }
            index = u16::from_le_bytes([bytes[14], bytes[15]]);
        }
    }

    fn use_up(platform: &FakePlatform, ring: &Ring, at: u16, id: u32, written: u32) {
        let used = ring.parts()[2];
        let entry = used + 4 + u64::from(at % ring.size()) * 8;
        platform.write(entry, &id.to_le_bytes());
        platform.write(entry + 4, &written.to_le_bytes());
        platform.write(used + 2, &(at.wrapping_add(1)).to_le_bytes());
    }

    fn two_pieces() -> impl Iterator<Item = (Piece, Direction)> {
        [(piece(0x1000, 16), Direction::ToDevice), (piece(0x2000, 512), Direction::FromDevice)].into_iter()
    }

    #[test]
    fn a_request_is_a_chain_of_descriptors() {
        for indirect in [true, false] {
            let platform = FakePlatform::new();
            let mut ring = Ring::new(&*platform, 128, indirect).unwrap();
            assert_eq!(ring.slots(), if indirect { 64 } else { 8 });
            assert_eq!(
                ring.most_pieces(),
                if indirect { 126 } else { 14 },
                "no chain is longer than the ring"
            );
            let slot = 3;
            ring.submit(slot, two_pieces());
            let [table, available, _] = ring.parts();
            let list = platform.read(available, 6);
            assert_eq!(list[2..4], [1, 0], "one is available");
            let head = u16::from_le_bytes([list[4], list[5]]);
            let mut found = chain(&platform, table, head);
            if indirect {
                let [(address, len, flags)] = *found else { panic!("one descriptor") };
                assert_eq!((len, flags), (32, INDIRECT));
                found = chain(&platform, address, 0);
            }
            assert_eq!(found, [(0x1000, 16, 0), (0x2000, 512, WRITE)]);
            assert_eq!(ring.complete(), Ok(None));
            use_up(&platform, &ring, 0, u32::from(head), 513);
            assert_eq!(ring.complete(), Ok(Some(Completion { slot, written: 513 })));
            assert_eq!(ring.complete(), Ok(None));
        }
    }

    #[test]
    fn indices_wrap() {
        let platform = FakePlatform::new();
        let mut ring = Ring::new(&*platform, 4, true).unwrap();
        for round in 0..70_000_u32 {
            let slot = round as usize % 4;
            ring.submit(slot, two_pieces());
            use_up(&platform, &ring, round as u16, slot as u32, 0);
            assert_eq!(ring.complete().unwrap().unwrap().slot, slot);
        }
    }

    #[test]
    fn what_was_never_given_is_refused() {
        for (indirect, id) in [(true, 64), (true, 1), (false, 5), (false, u32::MAX), (false, 16)] {
            let platform = FakePlatform::new();
            let mut ring = Ring::new(&*platform, 64, indirect).unwrap();
            ring.submit(0, two_pieces());
            use_up(&platform, &ring, 0, id, 0);
            assert_eq!(ring.complete(), Err(Broken), "{id}");
        }
    }

    #[test]
    fn more_than_was_given_cannot_be_completed() {
        let platform = FakePlatform::new();
        let mut ring = Ring::new(&*platform, 64, true).unwrap();
        use_up(&platform, &ring, 0, 0, 0);
        assert_eq!(ring.complete(), Err(Broken));
        ring.clear();
        assert_eq!(ring.complete(), Ok(None));
    }

    #[test]
    fn a_ring_without_room_for_a_request_is_refused() {
        let platform = FakePlatform::new();
        assert!(Ring::new(&*platform, 0, true).is_err());
        assert!(Ring::new(&*platform, 3, true).is_err());
        assert_eq!(Ring::new(&*platform, 5, false).unwrap().size(), 4);
    }
}
