//! Nested page tables: guest-physical to host-physical, in AMD's format (NPT) or Intel's (EPT).
//!
//! The tables are built once from the guest's regions, with the largest pages that fit, and never changed
//! while the guest lives. They keep the memory that they map.

use super::{GuestMemory, GuestPhys, HostPhys};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

const PAGE_SHIFT: u32 = 12;
const LEVEL_BITS: u32 = 9;
const LEVELS: u8 = 4;
/// What four levels can address.
const ADDRESS_BITS: u32 = 48;

/// How one entry is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// AMD's: long-mode page-table entries; every guest access counts as a user access (APM 15.25.5).
    Npt,
    /// Intel's extended page tables, write-back memory (SDM 29.3.2).
    Ept,
}

impl Format {
    const fn table(self, table: HostPhys) -> u64 {
        match self {
            // Present, writable, user.
            Self::Npt => table.get() | 0b111,
            // Read, write, execute.
            Self::Ept => table.get() | 0b111,
        }
    }

    const fn leaf(self, page: HostPhys, level: u8) -> u64 {
        let large = if level > 1 { 1 << 7 } else { 0 };
        match self {
            // Accessed and dirty are set ahead, so that the CPU need not write them.
            Self::Npt => page.get() | 0b111 | (1 << 5) | (1 << 6) | large,
            // Memory type 6, write-back, in bits 3..=5.
            Self::Ept => page.get() | 0b111 | (6 << 3) | large,
        }
    }

    /// The bit without which nothing may be executed; AMD's format has the opposite.
    const fn execute(self) -> u64 {
        match self {
            Self::Npt => 0,
            Self::Ept => 0b100,
        }
    }
}

/// How much one entry may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the sizes")]
pub enum PageSize {
    FourKilobytes = 1,
    TwoMegabytes = 2,
    Gigabyte = 3,
}

#[repr(C, align(4096))]
struct Table([u64; 512]);

/// Another view of a guest's memory: with one page more, which belongs to nobody and is never reached. The CPU
/// knows its address, and does something else instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrappingView {
    /// Where the top-level table lies.
    pub root: HostPhys,
    /// Where the page lies.
    pub page: HostPhys,
}

/// One guest's nested page tables.
pub struct NestedTables {
    // Boxed one by one: the hardware holds their addresses.
    tables: Vec<Box<Table>>,
    trapping: Option<TrappingView>,
    format: Format,
    largest: PageSize,
    memory: Arc<GuestMemory>,
}

/// A guest-physical address does not fit the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooHigh(pub GuestPhys);

impl NestedTables {
    /// The tables that map exactly `memory`, with pages of `largest` at most.
    pub fn new(memory: Arc<GuestMemory>, format: Format, largest: PageSize) -> Result<Self, TooHigh> {
        let mut tables =
            Self { tables: Vec::new(), trapping: None, format, largest, memory: Arc::clone(&memory) };
        tables.add_table();
        for region in memory.regions() {
            tables.map(region.base(), region.host(), region.len())?;
        }
        Ok(tables)
    }

    /// Where the top-level table lies.
    pub fn root(&self) -> HostPhys {
        self.tables.first().map_or(HostPhys::new(0), |table| address_of(table))
    }

    /// Adds a second view, in which there is a page at `at`, to read and write; no memory may be within a gigabyte
    /// of it.
    pub fn trap(&mut self, at: GuestPhys) {
        let page = self.add_table();
        let root = self.tables.len();
        self.add_copy(self.root());
        let mut table = root;
        for level in (2..=LEVELS).rev() {
            let slot = slot(at, level);
            let next = self.tables.len();
            let copy = self.add_copy(HostPhys::new(self.entry(table, slot) & !0xfff));
            self.set_entry(table, slot, self.format.table(copy));
            table = next;
        }
        self.set_entry(table, slot(at, 1), self.format.leaf(page, 1) & !self.format.execute());
        self.trapping = self.tables.get(root).map(|root| TrappingView { root: address_of(root), page });
    }

    /// The second view, if there is one.
    pub fn trapping(&self) -> Option<TrappingView> {
        self.trapping
    }

    /// The memory that they map.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// How much memory the tables themselves take, in bytes.
    pub fn footprint(&self) -> usize {
        self.tables.len().saturating_mul(size_of::<Table>())
    }

    fn add_table(&mut self) -> HostPhys {
        let table = Box::new(Table([0; 512]));
        let address = address_of(&table);
        self.tables.push(table);
        address
    }

    /// Another table with the same entries as the one at `original`, or an empty one where none is there.
    fn add_copy(&mut self, original: HostPhys) -> HostPhys {
        let entries = self.tables.iter().find(|table| address_of(table) == original).map(|table| table.0);
        let address = self.add_table();
        if let (Some(copy), Some(entries)) = (self.tables.last_mut(), entries) {
            copy.0 = entries;
        }
        address
    }

    fn map(&mut self, guest: GuestPhys, host: HostPhys, len: u64) -> Result<(), TooHigh> {
        let mut done = 0_u64;
        while done < len {
            let error = TooHigh(guest);
            let (from, to) = (guest.checked_add(done).ok_or(error)?, host.checked_add(done).ok_or(error)?);
            if from.get() >> ADDRESS_BITS != 0 {
                return Err(TooHigh(from));
            }
            let level = self.level_that_fits(from, to, len.saturating_sub(done));
            self.set_leaf(from, to, level);
            done = done.saturating_add(page_size(level));
        }
        Ok(())
    }

    fn level_that_fits(&self, from: GuestPhys, to: HostPhys, left: u64) -> u8 {
        (2..=self.largest as u8)
            .rev()
            .find(|level| {
                let size = page_size(*level);
                from.is_aligned(size) && to.is_aligned(size) && left >= size
            })
            .unwrap_or(1)
    }

    fn set_leaf(&mut self, from: GuestPhys, to: HostPhys, leaf_level: u8) {
        let mut table = 0_usize;
        for level in (leaf_level.saturating_add(1)..=LEVELS).rev() {
            let slot = slot(from, level);
            let entry = self.entry(table, slot);
            table = if entry == 0 {
                let new = self.add_table();
                let index = self.tables.len().saturating_sub(1);
                self.set_entry(table, slot, self.format.table(new));
                index
            } else {
                let wanted = entry & !0xfff;
                self.tables.iter().position(|table| address_of(table).get() == wanted).unwrap_or(0)
            };
        }
        self.set_entry(table, slot(from, leaf_level), self.format.leaf(to, leaf_level));
    }

    fn entry(&self, table: usize, slot: usize) -> u64 {
        self.tables.get(table).and_then(|table| table.0.get(slot)).copied().unwrap_or(0)
    }

    fn set_entry(&mut self, table: usize, slot: usize, value: u64) {
        if let Some(entry) = self.tables.get_mut(table).and_then(|table| table.0.get_mut(slot)) {
            *entry = value;
        }
    }
}

fn address_of(table: &Table) -> HostPhys {
    // The monitor runs identity-mapped: a table's address is its physical address.
    HostPhys::new(core::ptr::from_ref(table).expose_provenance() as u64)
}

const fn shift(level: u8) -> u32 {
    PAGE_SHIFT.wrapping_add(LEVEL_BITS.wrapping_mul((level as u32).wrapping_sub(1)))
}

const fn page_size(level: u8) -> u64 {
    1 << shift(level)
}

const fn slot(at: GuestPhys, level: u8) -> usize {
    ((at.get() >> shift(level)) & 511) as usize
}

#[cfg(test)]
mod tests {
    use super::super::{HeapBlock, HostBlock, Region};
    use super::*;

    /// Host addresses that nothing reads: only the tables are under test.
    struct Fake(u64, u64);
    // SAFETY: the tests never touch the memory that this block claims.
    #[expect(unsafe_code, reason = "a block at a chosen address")]
    unsafe impl HostBlock for Fake {
        fn host(&self) -> HostPhys {
            HostPhys::new(self.0)
        }
        fn len(&self) -> u64 {
            self.1
        }
    }

    fn tables(regions: &[(u64, u64, u64)], largest: PageSize) -> NestedTables {
        let regions = regions
            .iter()
            .map(|(guest, host, len)| Region::new(GuestPhys::new(*guest), Box::new(Fake(*host, *len))));
        let memory = GuestMemory::new(regions.collect()).unwrap();
        NestedTables::new(Arc::new(memory), Format::Npt, largest).unwrap()
    }

    /// Walks as the hardware does; gives the host address and the page's level.
    fn walk(tables: &NestedTables, at: u64) -> Option<(u64, u8)> {
        let mut table = 0;
        for level in (1..=LEVELS).rev() {
            let entry = tables.entry(table, slot(GuestPhys::new(at), level));
            if entry & 1 == 0 {
                return None;
            }
            let base = entry & 0x000f_ffff_ffff_f000;
            if level == 1 || entry & (1 << 7) != 0 {
                return Some((base + (at & (page_size(level) - 1)), level));
            }
            table = tables.tables.iter().position(|table| address_of(table).get() == base)?;
        }
        None
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_largest_pages_that_fit_are_used() {
        let tables = tables(
            &[(0, GIB, GIB + 0x20_1000), (4 * GIB, 8 * GIB + 0x20_0000, 0x40_0000)],
            PageSize::Gigabyte,
        );
        assert_eq!(walk(&tables, 0x1234), Some((GIB + 0x1234, 3)));
        assert_eq!(walk(&tables, GIB + 5), Some((2 * GIB + 5, 2)));
        assert_eq!(walk(&tables, GIB + 0x20_0fff), Some((2 * GIB + 0x20_0fff, 1)));
        assert_eq!(walk(&tables, GIB + 0x20_1000), None, "memory ends where it should");
        assert_eq!(walk(&tables, 4 * GIB + 0x20_0001), Some((8 * GIB + 0x40_0001, 2)));
        assert_eq!(walk(&tables, 4 * GIB - 1), None);
    }

    #[test]
    fn without_gigabyte_pages_two_megabytes_are_the_largest() {
        let tables = tables(&[(0, GIB, GIB)], PageSize::TwoMegabytes);
        assert_eq!(walk(&tables, GIB - 1), Some((2 * GIB - 1, 2)));
        assert_eq!(tables.footprint(), 3 * 4096);
    }

    #[test]
    fn odd_alignment_falls_back_to_small_pages() {
        let tables = tables(&[(0, 0x1000, 0x40_0000)], PageSize::Gigabyte);
        for at in [0, 0x1f_ffff, 0x3f_ffff] {
            assert_eq!(walk(&tables, at), Some((at + 0x1000, 1)));
        }
    }

    #[test]
    fn a_second_view_has_one_page_more() {
        const AT: u64 = 0xfee0_0000;
        let mut tables = tables(&[(0, GIB, GIB), (4 * GIB, 8 * GIB, GIB)], PageSize::Gigabyte);
        let before = tables.footprint();
        assert_eq!(tables.trapping(), None);
        tables.trap(GuestPhys::new(AT));
        // The page itself, the way to it, nothing else.
        assert_eq!(tables.footprint() - before, 5 * 4096);
        let view = tables.trapping().unwrap();
        assert_eq!(walk(&tables, AT), None, "the first view stays as it is");
        let root = tables.tables.iter().position(|table| address_of(table) == view.root).unwrap();
        tables.tables.swap(0, root);
        assert_eq!(walk(&tables, AT + 0x80), Some((view.page.get() + 0x80, 1)));
        for at in [AT - 1, AT + 0x1000, 2 * GIB] {
            assert_eq!(walk(&tables, at), None, "{at:#x}");
        }
        assert_eq!(walk(&tables, 0x1234), Some((GIB + 0x1234, 3)));
        assert_eq!(walk(&tables, 4 * GIB), Some((8 * GIB, 3)));
    }

    #[test]
    fn addresses_past_four_levels_are_refused() {
        let block = HeapBlock::zeroed(0x1000, 0x1000).unwrap();
        let region = Region::new(GuestPhys::new(1 << 48), Box::new(block));
        let memory = GuestMemory::new(alloc::vec![region]).unwrap();
        let error = NestedTables::new(Arc::new(memory), Format::Ept, PageSize::Gigabyte).err();
        assert_eq!(error, Some(TooHigh(GuestPhys::new(1 << 48))));
    }
}
