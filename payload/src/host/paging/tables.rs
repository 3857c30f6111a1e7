//! Four-level page tables that map addresses to themselves: how they are built, changed and checked.

use crate::host::memory::Range;
use core::fmt;

/// Entries of a table.
const ENTRIES: u64 = 512;
/// The addresses that four levels can map: the lower half of 48 bits.
const HIGHEST: u64 = 1 << 47;

/// The bits of an entry (SDM 3, tables 4-15 to 4-20).
mod bit {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    /// In an upper level's entry: this is a page, not a table.
    pub const LARGE: u64 = 1 << 7;
    /// The PAT bit of a 4 KiB page.
    pub const PAT_SMALL: u64 = 1 << 7;
    /// The PAT bit of larger pages.
    pub const PAT_LARGE: u64 = 1 << 12;
    pub const NO_EXECUTE: u64 = 1 << 63;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// How accesses through a mapping are cached; the firmware's MTRRs can only make it stricter, but for write
/// combining, which holds whatever they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// As memory is.
    WriteBack,
    /// Writes are gathered: for framebuffers.
    WriteCombining,
    /// Reads are cached, writes are not: for flash.
    WriteProtected,
    /// Not at all: for device registers.
    Uncached,
}

impl Cache {
    /// Which entry of [`PAT`] it is.
    const fn pat_index(self) -> u64 {
        match self {
            Self::WriteBack => 0,
            Self::Uncached => 3,
            Self::WriteProtected => 4,
            Self::WriteCombining => 5,
        }
    }

    const fn from_pat_index(index: u64) -> Self {
        match index {
            0 => Self::WriteBack,
            4 => Self::WriteProtected,
            5 => Self::WriteCombining,
            _ => Self::Uncached,
        }
    }
}

/// IA32_PAT as these tables want it: the first four entries as after reset, then write protected (5) and write
/// combining (1), then uncached.
pub const PAT: u64 = 0x0000_0105_0007_0406;

/// What a mapping allows, and how it is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Whether it may be written.
    pub write: bool,
    /// Whether instructions may be fetched.
    pub execute: bool,
    /// How it is cached.
    pub cache: Cache,
}

impl Rights {
    /// Code.
    pub const CODE: Self = Self { write: false, execute: true, cache: Cache::WriteBack };
    /// Data that nobody changes.
    pub const CONSTANTS: Self = Self { write: false, execute: false, cache: Cache::WriteBack };
    /// Data.
    pub const DATA: Self = Self { write: true, execute: false, cache: Cache::WriteBack };
    /// Device registers or memory, cached so.
    pub const fn device(cache: Cache) -> Self {
        Self { write: !matches!(cache, Cache::WriteProtected), execute: false, cache }
    }
}

/// One page of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The addresses it maps to themselves.
    pub range: Range,
    /// What it allows.
    pub rights: Rights,
}

/// Why a range could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// There is no memory for another table.
    NoMemory,
    /// The range is not made of whole pages, or does not lie in the lower half of the address space.
    BadRange(Range),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => write!(f, "no memory is left for page tables"),
            Self::BadRange(range) => write!(f, "{range} is not whole pages below {HIGHEST:#x}"),
        }
    }
}

impl core::error::Error for MapError {}

/// Where tables live.
pub trait TableMemory {
    /// The address of a new table, all entries zero.
    fn allocate(&mut self) -> Option<u64>;
    /// Entry `index` (below 512) of the table at `table`.
    fn read(&self, table: u64, index: u64) -> u64;
    /// Sets entry `index` (below 512) of the table at `table`.
    fn write(&mut self, table: u64, index: u64, entry: u64);
}

/// A tree of page tables.
pub struct Tables<M> {
    memory: M,
    root: u64,
    gigabyte_pages: bool,
}

/// The bytes that one entry of a table at `level` (1 to 4) maps.
const fn span(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// The entry for a page at `level`.
const fn leaf_entry(address: u64, level: u32, rights: Rights) -> u64 {
    let pat = rights.cache.pat_index();
    let (large, pat_bit) = if level == 1 { (0, bit::PAT_SMALL) } else { (bit::LARGE, bit::PAT_LARGE) };
    address
        | bit::PRESENT
        | large
        | if rights.write { bit::WRITE } else { 0 }
        | if rights.execute { 0 } else { bit::NO_EXECUTE }
        | if pat & 1 != 0 { bit::PWT } else { 0 }
        | if pat & 2 != 0 { bit::PCD } else { 0 }
        | if pat & 4 != 0 { pat_bit } else { 0 }
}

/// What a page's entry at `level` allows.
const fn rights_of(entry: u64, level: u32) -> Rights {
    let pat_bit = if level == 1 { bit::PAT_SMALL } else { bit::PAT_LARGE };
    let pat = (entry & bit::PWT != 0) as u64
        | ((entry & bit::PCD != 0) as u64) << 1
        | ((entry & pat_bit != 0) as u64) << 2;
    Rights {
        write: entry & bit::WRITE != 0,
        execute: entry & bit::NO_EXECUTE == 0,
        cache: Cache::from_pat_index(pat),
    }
}

/// Whether `entry` of a table at `level` is a page.
const fn is_leaf(entry: u64, level: u32) -> bool {
    entry & bit::PRESENT != 0 && (level == 1 || (level < 4 && entry & bit::LARGE != 0))
}

impl<M: TableMemory> Tables<M> {
    /// Empty tables; `gigabyte_pages` says whether the CPU has pages of 1 GiB.
    pub fn new(mut memory: M, gigabyte_pages: bool) -> Result<Self, MapError> {
        let root = memory.allocate().ok_or(MapError::NoMemory)?;
        Ok(Self { memory, root, gigabyte_pages })
    }

    /// The root's address, for CR3.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Maps `range` to itself with `rights`, in the largest pages that fit, instead of what was there.
    pub fn map(&mut self, range: Range, rights: Rights) -> Result<(), MapError> {
        self.change(range, Some(rights))
    }

    /// Takes the mapping of `range` away.
    pub fn unmap(&mut self, range: Range) -> Result<(), MapError> {
        self.change(range, None)
    }

    fn change(&mut self, range: Range, rights: Option<Rights>) -> Result<(), MapError> {
        if range.shrink_to(span(1)) != range || range.end > HIGHEST {
            return Err(MapError::BadRange(range));
        }
        if range.is_empty() { Ok(()) } else { self.change_table(self.root, 4, 0, range, rights) }
    }

    /// Changes the part of `range` that the table at `table` is about: it maps from `base` on.
    fn change_table(
        &mut self,
        table: u64,
        level: u32,
        base: u64,
        range: Range,
        rights: Option<Rights>,
    ) -> Result<(), MapError> {
        let span = span(level);
        let first = (range.start.max(base) - base) / span;
        let last = ((range.end - 1 - base) / span).min(ENTRIES - 1);
        for index in first..=last {
            let here = Range::with_len(base + index * span, span);
            let entry = self.memory.read(table, index);
            let page = level == 1 || level == 2 || (level == 3 && self.gigabyte_pages);
            let lower = entry & bit::PRESENT != 0 && !is_leaf(entry, level);
            match rights {
                Some(rights) if page && range.covers(here) && !lower => {
                    self.memory.write(table, index, leaf_entry(here.start, level, rights));
                }
                None if is_leaf(entry, level) && range.covers(here) => self.memory.write(table, index, 0),
                None if entry & bit::PRESENT == 0 => {}
                _ => {
                    let lower = self.lower_table(table, index, level, here.start)?;
                    self.change_table(lower, level - 1, here.start, range, rights)?;
                }
            }
        }
        Ok(())
    }

    /// The table below an entry that maps from `base` on: a new one where there is none, of the same rights
    /// where a page was.
    fn lower_table(&mut self, table: u64, index: u64, level: u32, base: u64) -> Result<u64, MapError> {
        let entry = self.memory.read(table, index);
        if entry & bit::PRESENT != 0 && !is_leaf(entry, level) {
            return Ok(entry & bit::ADDRESS);
        }
        let lower = self.memory.allocate().ok_or(MapError::NoMemory)?;
        if is_leaf(entry, level) {
            let rights = rights_of(entry, level);
            for part in 0..ENTRIES {
                let entry = leaf_entry(base + part * span(level - 1), level - 1, rights);
                self.memory.write(lower, part, entry);
            }
        }
        // The pages' own entries decide; the tables above them allow everything.
        self.memory.write(table, index, lower | bit::PRESENT | bit::WRITE);
        Ok(lower)
    }

    /// The page that maps `address`.
    pub fn lookup(&self, address: u64) -> Option<Leaf> {
        let (mut table, mut base) = (self.root, 0);
        for level in (1..=4).rev() {
            let index = address.checked_sub(base)? / span(level);
            if index >= ENTRIES {
                return None;
            }
            let entry = self.memory.read(table, index);
            base += index * span(level);
            if is_leaf(entry, level) {
                let range = Range::with_len(base, span(level));
                return Some(Leaf { range, rights: rights_of(entry, level) });
            }
            if entry & bit::PRESENT == 0 {
                return None;
            }
            table = entry & bit::ADDRESS;
        }
        None
    }

    /// Calls `each` for every page, by rising address.
    pub fn for_each(&self, each: &mut dyn FnMut(Leaf)) {
        self.walk(self.root, 4, 0, each);
    }

    fn walk(&self, table: u64, level: u32, base: u64, each: &mut dyn FnMut(Leaf)) {
        for index in 0..ENTRIES {
            let entry = self.memory.read(table, index);
            let here = Range::with_len(base + index * span(level), span(level));
            if is_leaf(entry, level) {
                each(Leaf { range: here, rights: rights_of(entry, level) });
            } else if entry & bit::PRESENT != 0 {
                self.walk(entry & bit::ADDRESS, level - 1, here.start, each);
            }
        }
    }

    /// Counts the bytes by what may be done with them; fails with the first page that can be both written and
    /// executed.
    pub fn audit(&self) -> Result<Audit, Leaf> {
        let mut audit = Audit::default();
        let mut bad = None;
        self.for_each(&mut |leaf| {
            let bytes = match (leaf.rights.write, leaf.rights.execute) {
                (true, true) => {
                    bad.get_or_insert(leaf);
                    return;
                }
                (true, false) => &mut audit.writable,
                (false, true) => &mut audit.executable,
                (false, false) => &mut audit.readable,
            };
            *bytes += leaf.range.len();
        });
        bad.map_or(Ok(audit), Err)
    }
}

/// How many bytes are mapped, by right; none is counted twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Bytes that may be written.
    pub writable: u64,
    /// Bytes that may be executed.
    pub executable: u64,
    /// Bytes that may only be read.
    pub readable: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[derive(Default)]
    struct Arena(Vec<[u64; 512]>, Option<usize>);

    impl TableMemory for Arena {
        fn allocate(&mut self) -> Option<u64> {
            if self.1.is_some_and(|limit| self.0.len() >= limit) {
                return None;
            }
            self.0.push([0; 512]);
            Some(self.0.len() as u64 * 4096)
        }
        fn read(&self, table: u64, index: u64) -> u64 {
            self.0[table as usize / 4096 - 1][index as usize]
        }
        fn write(&mut self, table: u64, index: u64, entry: u64) {
            self.0[table as usize / 4096 - 1][index as usize] = entry;
        }
    }

    fn tables(gigabyte_pages: bool) -> Tables<Arena> {
        Tables::new(Arena::default(), gigabyte_pages).unwrap()
    }

    #[test]
    fn the_largest_pages_that_fit_are_used() {
        let mut tables = tables(true);
        tables.map(Range::new(2 * MIB - 4 * KIB, 3 * GIB + 4 * KIB), Rights::DATA).unwrap();
        let page = |address| tables.lookup(address).map(|leaf| leaf.range.len());
        assert_eq!(page(2 * MIB - 4 * KIB), Some(4 * KIB));
        assert_eq!(page(2 * MIB), Some(2 * MIB));
        assert_eq!(page(GIB + 5), Some(GIB));
        assert_eq!(page(3 * GIB), Some(4 * KIB));
        assert_eq!(page(3 * GIB + 4 * KIB), None);
        assert_eq!(page(0), None);
    }

    #[test]
    fn a_cpu_without_gigabyte_pages_gets_none() {
        let mut tables = tables(false);
        tables.map(Range::new(0, GIB), Rights::DATA).unwrap();
        assert_eq!(tables.lookup(0).unwrap().range.len(), 2 * MIB);
    }

    #[test]
    fn a_hole_leaves_the_rest_of_a_large_page() {
        let mut tables = tables(true);
        tables.map(Range::new(0, 2 * GIB), Rights::DATA).unwrap();
        tables.unmap(Range::new(GIB + MIB, GIB + MIB + 4 * KIB)).unwrap();
        assert_eq!(tables.lookup(GIB + MIB), None);
        for address in [0, GIB, GIB + MIB - 1, GIB + MIB + 4 * KIB, 2 * GIB - 1] {
            assert_eq!(tables.lookup(address).map(|leaf| leaf.rights), Some(Rights::DATA), "{address:#x}");
        }
        assert_eq!(tables.audit().unwrap().writable, 2 * GIB - 4 * KIB);
    }

    #[test]
    fn every_cache_mode_survives_in_every_page_size() {
        for cache in [Cache::WriteBack, Cache::WriteCombining, Cache::WriteProtected, Cache::Uncached] {
            let mut tables = tables(true);
            let rights = Rights { write: false, execute: false, cache };
            for range in [Range::new(0, 4 * KIB), Range::new(2 * MIB, 4 * MIB), Range::new(GIB, 2 * GIB)] {
                tables.map(range, rights).unwrap();
                let leaf = tables.lookup(range.start).unwrap();
                assert_eq!(leaf, Leaf { range, rights });
            }
            tables.unmap(Range::new(GIB, GIB + 4 * KIB)).unwrap();
            assert_eq!(
                tables.lookup(GIB + 4 * KIB).unwrap().rights,
                rights,
                "split pages keep their cache mode"
            );
        }
    }

    #[test]
    fn the_audit_finds_a_page_that_is_writable_and_executable() {
        let mut tables = tables(true);
        tables.map(Range::new(0, MIB), Rights::DATA).unwrap();
        tables.map(Range::new(MIB, 2 * MIB), Rights::CODE).unwrap();
        tables.map(Range::new(2 * MIB, 4 * MIB), Rights::CONSTANTS).unwrap();
        assert_eq!(tables.audit(), Ok(Audit { writable: MIB, executable: MIB, readable: 2 * MIB }));
        let both = Rights { write: true, ..Rights::CODE };
        tables.map(Range::new(MIB, MIB + 4 * KIB), both).unwrap();
        let bad = Leaf { range: Range::new(MIB, MIB + 4 * KIB), rights: both };
        assert_eq!(tables.audit(), Err(bad));
    }

    #[test]
    fn bad_ranges_and_a_lack_of_memory_are_errors() {
        let mut tables = tables(true);
        for range in [Range::new(1, 4096), Range::new(0, 4095), Range::new(0, 1 << 48)] {
            assert_eq!(tables.map(range, Rights::DATA), Err(MapError::BadRange(range)));
        }
        let mut tables = Tables::new(Arena(Vec::new(), Some(2)), true).unwrap();
        assert_eq!(tables.map(Range::new(0, 4096), Rights::DATA), Err(MapError::NoMemory));
    }

    proptest! {
        /// Against a map of single pages.
        #[test]
        fn tables_are_a_map_of_pages(
            steps in prop::collection::vec((0_u64..1100, 1_u64..1100, prop::option::of(0_u8..4)), 1..12),
            gigabyte_pages: bool,
        ) {
            // Around the border between two gigabytes, so that all three sizes meet.
            const BASE: u64 = GIB - 2 * MIB;
            let mut tables = tables(gigabyte_pages);
            tables.map(Range::new(0, 4 * GIB), Rights::DATA).unwrap();
            let mut model = BTreeMap::new();
            for (start, len, kind) in steps {
                let range = Range::with_len(BASE + start * 4096, len * 4096);
                let rights = kind.map(|kind| {
                    let device = Rights::device(Cache::Uncached);
                    [Rights::CODE, Rights::CONSTANTS, Rights::DATA, device][usize::from(kind)]
                });
                match rights {
                    Some(rights) => tables.map(range, rights).unwrap(),
                    None => tables.unmap(range).unwrap(),
                }
                (start..start + len).for_each(|page| { model.insert(page, rights); });
            }
            for page in 0..2300 {
                let wanted = model.get(&page).copied().unwrap_or(Some(Rights::DATA));
                let found = tables.lookup(BASE + page * 4096).map(|leaf| leaf.rights);
                prop_assert_eq!(found, wanted);
            }
        }
    }
}
