//! Slices of tables that are kept in memory: so many at most, the least lately used go first.

use crate::fields::put;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

/// Slices by their places in the image's file.
pub struct Cache {
    slice_size: u64,
    most: usize,
    clock: u64,
    slices: BTreeMap<u64, Slice>,
}

struct Slice {
    bytes: Vec<u8>,
    used: u64,
    /// It differs from what the file has.
    dirty: bool,
}

impl Cache {
    /// At most `most` slices of `slice_size` bytes, a power of two.
    pub fn new(slice_size: u64, most: usize) -> Self {
        Self { slice_size, most, clock: 0, slices: BTreeMap::new() }
    }

    /// Where the slice begins that has this byte.
    pub const fn start(&self, at: u64) -> u64 {
        at & !self.slice_size.wrapping_sub(1)
    }

    /// The length of a slice.
    pub const fn slice_size(&self) -> usize {
        self.slice_size as usize
    }

    const fn offset(&self, at: u64) -> usize {
        (at & self.slice_size.wrapping_sub(1)) as usize
    }

    /// The slice that has the byte at `at`, and where in it that is.
    pub fn get(&mut self, at: u64) -> Option<(&[u8], usize)> {
        let (start, offset) = (self.start(at), self.offset(at));
        self.clock = self.clock.wrapping_add(1);
        let slice = self.slices.get_mut(&start)?;
        slice.used = self.clock;
        Some((&slice.bytes, offset))
    }

    /// Puts `value` at `at`; false where that slice is not here.
    pub fn put(&mut self, at: u64, value: &[u8]) -> bool {
        let (start, offset) = (self.start(at), self.offset(at));
        let Some(slice) = self.slices.get_mut(&start) else { return false };
        put(&mut slice.bytes, offset, value);
        slice.dirty = true;
        true
    }

    /// Makes room for one more slice; false where all that are here would first have to be written.
    pub fn make_room(&mut self) -> bool {
        if self.slices.len() < self.most {
            return true;
        }
        let clean = self.slices.iter().filter(|(_, slice)| !slice.dirty);
        let oldest = clean.min_by_key(|(_, slice)| slice.used).map(|(at, _)| *at);
        oldest.is_some_and(|at| self.slices.remove(&at).is_some())
    }

    /// Takes in what the file has at `at`.
    pub fn insert(&mut self, at: u64, bytes: Vec<u8>) {
        self.clock = self.clock.wrapping_add(1);
        self.slices.insert(at, Slice { bytes, used: self.clock, dirty: false });
    }

    /// Drops what lies in this range of the file, which is another table now.
    pub fn forget(&mut self, range: Range<u64>) {
        self.slices.retain(|at, _| !range.contains(at));
    }

    /// Whether something here is to be written.
    pub fn is_dirty(&self) -> bool {
        self.slices.values().any(|slice| slice.dirty)
    }

    /// Where what is to be written lies.
    pub fn dirty(&self) -> impl Iterator<Item = u64> + '_ {
        self.slices.iter().filter(|(_, slice)| slice.dirty).map(|(at, _)| *at)
    }

    /// All of it has been written.
    pub fn clean(&mut self) {
        self.slices.values_mut().for_each(|slice| slice.dirty = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_lately_used_goes_first_and_nothing_unwritten() {
        let mut cache = Cache::new(512, 2);
        for at in [0, 512] {
            assert!(cache.make_room());
            cache.insert(at, vec![at as u8; 512]);
        }
        assert_eq!(cache.get(100).map(|(_, offset)| offset), Some(100));
        assert!(cache.make_room());
        assert!(cache.get(512).is_none() && cache.get(0).is_some());
        cache.insert(1024, vec![1; 512]);
        assert!(cache.put(1030, &[7]) && !cache.put(513, &[7]));
        assert!(cache.make_room());
        assert!(cache.get(0).is_none());
        cache.insert(0, vec![0; 512]);
        cache.put(0, &[1]);
        assert!(!cache.make_room() && cache.is_dirty());
        assert_eq!(cache.dirty().collect::<Vec<_>>(), [0, 1024]);
        assert_eq!(cache.get(1030).map(|(bytes, offset)| bytes[offset]), Some(7));
        cache.clean();
        assert!(cache.make_room() && !cache.is_dirty());
        cache.forget(0..4096);
        assert!(cache.get(0).is_none() && cache.get(1024).is_none());
    }
}
