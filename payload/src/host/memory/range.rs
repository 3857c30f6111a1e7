//! Ranges of physical addresses, and sets of them.

use alloc::vec::Vec;
use core::fmt;

/// The addresses from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// The first address behind.
    pub end: u64,
}

impl Range {
    /// The range from `start` up to `end`; empty where `end` lies before `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end: if end < start { start } else { end } }
    }

    /// The `len` bytes from `start` on, cut off at the end of the address space.
    pub const fn with_len(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// How many bytes it holds.
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether `address` lies inside.
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Whether all of `other` lies inside.
    pub const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether a byte lies in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The whole multiples of `alignment` (a power of two) inside.
    pub fn shrink_to(self, alignment: u64) -> Self {
        match self.start.checked_next_multiple_of(alignment) {
            Some(start) => Self::new(start, self.end & !(alignment - 1)),
            None => Self::new(self.end, self.end),
        }
    }

    /// The whole multiples of `alignment` (a power of two) that touch it.
    pub fn grow_to(self, alignment: u64) -> Self {
        let end = self.end.checked_next_multiple_of(alignment).unwrap_or(!(alignment - 1));
        Self::new(self.start & !(alignment - 1), end)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

/// A set of addresses as rising ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// The ranges, by rising address.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range> + Clone + '_ {
        self.ranges.iter().copied()
    }

    /// How many bytes it holds.
    pub fn len(&self) -> u64 {
        self.iter().map(Range::len).sum()
    }

    /// Whether a byte of `range` is in the set.
    pub fn overlaps(&self, range: Range) -> bool {
        self.iter().any(|ours| ours.overlaps(range))
    }

    /// Whether all of `range` is in the set.
    pub fn covers(&self, range: Range) -> bool {
        range.is_empty() || self.iter().any(|ours| ours.covers(range))
    }

    /// Adds `range`, whatever of it is already there.
    pub fn insert(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|ours| ours.end < range.start);
        let last = self.ranges.partition_point(|ours| ours.start <= range.end);
        let mut merged = range;
        for ours in self.ranges.drain(first..last) {
            merged = Range::new(merged.start.min(ours.start), merged.end.max(ours.end));
        }
        self.ranges.insert(first, merged);
    }

    /// Takes `range` out, whatever of it is there.
    pub fn remove(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|ours| ours.end <= range.start);
        let last = self.ranges.partition_point(|ours| ours.start < range.end);
        let edges =
            match (self.ranges.get(first), last.checked_sub(1).and_then(|index| self.ranges.get(index))) {
                (Some(low), Some(high)) if first < last => [
                    Range::new(low.start, range.start.max(low.start)),
                    Range::new(range.end.min(high.end), high.end),
                ],
                _ => return,
            };
        self.ranges.splice(first..last, edges.into_iter().filter(|edge| !edge.is_empty()));
    }

    /// Takes out the highest `len` bytes that start on a multiple of `align` (a power of two) and end at or
    /// below `below`.
    pub fn take(&mut self, len: u64, align: u64, below: u64) -> Option<Range> {
        if len == 0 {
            return None;
        }
        let found = self.iter().rev().find_map(|range| {
            let start = range.end.min(below).checked_sub(len)? & !(align - 1);
            (start >= range.start).then(|| Range::with_len(start, len))
        })?;
        self.remove(found);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn shrinking_and_growing_keep_to_the_address_space() {
        assert_eq!(Range::new(1, 0x2fff).shrink_to(0x1000), Range::new(0x1000, 0x2000));
        assert_eq!(Range::new(1, 0x2fff).grow_to(0x1000), Range::new(0, 0x3000));
        assert!(Range::new(u64::MAX - 5, u64::MAX).shrink_to(0x1000).is_empty());
        assert_eq!(Range::new(u64::MAX - 5, u64::MAX).grow_to(0x1000).start, !0xfff);
        assert!(Range::new(0x1001, 0x1fff).shrink_to(0x1000).is_empty());
    }

    #[test]
    fn taking_prefers_high_addresses_and_keeps_to_the_limit() {
        let mut set = RangeSet::new();
        set.insert(Range::new(0x1000, 0x9000));
        set.insert(Range::new(0x10_0000, 0x20_1000));
        assert_eq!(set.take(0x2000, 0x1000, u64::MAX), Some(Range::new(0x1f_f000, 0x20_1000)));
        assert_eq!(set.take(0x1000, 0x4000, 0x10_0000), Some(Range::new(0x8000, 0x9000)));
        assert_eq!(set.take(0x20_0000, 0x1000, u64::MAX), None);
        assert_eq!(set.take(0, 0x1000, u64::MAX), None);
    }

    proptest! {
        /// Against a set of single addresses.
        #[test]
        fn a_range_set_is_a_set(steps in prop::collection::vec((any::<bool>(), 0_u64..200, 0_u64..60), 1..60)) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (add, start, len) in steps {
                let range = Range::with_len(start, len);
                if add {
                    set.insert(range);
                    model.extend(start..start + len);
                } else {
                    set.remove(range);
                    model.retain(|address| !range.contains(*address));
                }
                let flat: Vec<u64> = set.iter().flat_map(|range| range.start..range.end).collect();
                prop_assert_eq!(&flat, &model.iter().copied().collect::<Vec<_>>());
                prop_assert!(set.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }

        #[test]
        fn what_is_taken_was_there_and_is_aligned(
            start in 0_u64..500, len in 1_u64..500, want in 1_u64..100, shift in 0_u32..6, below in 0_u64..1200,
        ) {
            let mut set = RangeSet::new();
            set.insert(Range::with_len(start, len));
            set.insert(Range::with_len(start + len + 7, 40));
            let before = set.clone();
            match set.take(want, 1 << shift, below) {
                Some(taken) => {
                    prop_assert!(before.covers(taken) && taken.len() == want && taken.end <= below);
                    prop_assert_eq!(taken.start % (1 << shift), 0);
                    prop_assert!(!set.overlaps(taken));
                    set.insert(taken);
                    prop_assert_eq!(set, before);
                }
                None => prop_assert_eq!(set, before),
            }
        }
    }
}
