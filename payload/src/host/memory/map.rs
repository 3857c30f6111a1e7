//! What the machine's physical memory is used for.

use super::range::{Range, RangeSet};

/// A page: the unit of all bookkeeping.
pub const PAGE: u64 = 0x1000;
/// The first MiB is firmware's and the starting CPUs'.
const LOW_MEMORY: Range = Range::new(0, 0x10_0000);
/// Where the legacy devices' memory begins: no CPU can be started from there on (SDM 3, 11.6.1).
const LEGACY_DEVICES: u64 = 0xa_0000;

/// What a firmware memory record says of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Ours to use.
    Ram,
    /// Memory that firmware's tables live in: readable, and never ours.
    Tables,
    /// Anything else.
    Reserved,
}

/// A firmware memory record.
pub type Record = (Range, Use);

/// The sorted-out memory map.
pub struct MemoryMap {
    /// All of RAM in whole pages, the payload and the heap included.
    pub ram: RangeSet,
    /// Memory that firmware's tables live in.
    pub tables: RangeSet,
    /// What of `ram` nobody uses.
    pub free: RangeSet,
}

impl MemoryMap {
    /// Sorts out the records; `used` are the ranges that already hold something of ours.
    pub fn new(records: impl Iterator<Item = Record> + Clone, used: &[Range]) -> Self {
        let mut map = Self { ram: RangeSet::new(), tables: RangeSet::new(), free: RangeSet::new() };
        for (range, usage) in records.clone() {
            match usage {
                Use::Ram => map.ram.insert(range),
                Use::Tables => map.tables.insert(range.grow_to(PAGE)),
                Use::Reserved => {}
            }
        }
        // Where records disagree, the one that takes memory away is believed.
        for (range, usage) in records {
            if usage != Use::Ram {
                map.ram.remove(range);
            }
        }
        let partial = core::mem::take(&mut map.ram);
        partial.iter().for_each(|range| map.ram.insert(range.shrink_to(PAGE)));
        map.free = map.ram.clone();
        map.free.remove(LOW_MEMORY);
        used.iter().for_each(|range| map.free.remove(range.grow_to(PAGE)));
        map
    }

    /// The highest page of RAM that a CPU can be started at.
    pub fn start_up_page(&self) -> Option<u64> {
        let page = self.ram.clone().take(PAGE, PAGE, LEGACY_DEVICES)?;
        // The page tables leave page zero out.
        (page.start != 0).then_some(page.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn records() -> Vec<Record> {
        vec![
            (Range::new(0, 0x1000), Use::Tables),
            (Range::new(0x1000, 0xa_0000), Use::Ram),
            (Range::new(MIB, 0x7fe5_9000), Use::Ram),
            (Range::new(0x7fe5_9000, 0x8000_0000), Use::Tables),
            (Range::new(0xb000_0000, 0xc000_0000), Use::Reserved),
            (Range::new(0x1_0000_0000, 0x1_8000_0000), Use::Ram),
        ]
    }

    #[test]
    fn free_memory_is_ram_less_low_memory_and_ours() {
        let image = Range::new(16 * MIB, 16 * MIB + 0x1234);
        let map = MemoryMap::new(records().into_iter(), &[image]);
        assert!(!map.free.overlaps(image.grow_to(PAGE)));
        assert!(!map.free.overlaps(Range::new(0, MIB)));
        assert!(map.ram.covers(Range::new(0x1000, 0xa_0000)));
        assert_eq!(map.start_up_page(), Some(0x9_f000));
        assert_eq!(map.free.len(), map.ram.len() - 0x9_f000 - 0x2000);
    }

    #[test]
    fn a_record_that_takes_memory_away_wins() {
        let records =
            [(Range::new(MIB, 8 * MIB), Use::Ram), (Range::new(2 * MIB + 1, 3 * MIB), Use::Reserved)];
        let map = MemoryMap::new(records.into_iter(), &[]);
        assert!(!map.ram.overlaps(Range::new(2 * MIB, 3 * MIB)), "half a page is no page");
        assert!(map.ram.covers(Range::new(3 * MIB, 8 * MIB)));
    }
}
