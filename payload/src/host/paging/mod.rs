//! The address space we run in: everything at its own address, nothing both writable and executable, nothing
//! mapped that is neither memory nor asked for.
// Unsafe because page tables decide what every pointer means.
#![allow(unsafe_code)]

mod tables;

pub use tables::{Audit, Cache, Leaf, MapError, Rights};

use super::cpu::{self, Features};
use super::memory::{FrameAllocator, Frames, MemoryMap, PAGE, Range, RangeSet};
use super::mmio::Mmio;
use super::{image, stacks};
use alloc::vec::Vec;
use core::fmt;
use spin::{Mutex, Once};
use tables::{PAT, TableMemory, Tables};

/// IA32_PAT (SDM 4, table 2-2).
const IA32_PAT: u32 = 0x277;
/// The end of what the entry's tables map, and so of where new tables can be written before ours are in use.
const EARLY_LIMIT: u64 = 1 << 32;

static SPACE: Once<Mutex<AddressSpace>> = Once::new();

/// Our page tables, and who was given what outside of the allocator's memory.
struct AddressSpace {
    tables: Tables<TablePool>,
    ram: RangeSet,
    /// Lent out for reading as slices: never to be written.
    lent: RangeSet,
    /// Given out as devices, or as memory shared with firmware: never to be lent as slices.
    devices: RangeSet,
}

/// Pages for tables.
struct TablePool {
    frames: &'static FrameAllocator,
    /// Kept: the tables are in use for ever.
    pages: Vec<Frames>,
}

impl TableMemory for TablePool {
    fn allocate(&mut self) -> Option<u64> {
        let mut page = self.frames.allocate(PAGE, PAGE, EARLY_LIMIT)?;
        page.zero();
        let address = page.range().start;
        self.pages.push(page);
        Some(address)
    }

    fn read(&self, table: u64, index: u64) -> u64 {
        // SAFETY: `table` is a page that `allocate` gave, mapped at its own address; `index` is below 512.
        unsafe { (table as *const u64).add(index as usize).read_volatile() }
    }

    fn write(&mut self, table: u64, index: u64, entry: u64) {
        // SAFETY: as for `read`; the pages are ours alone.
        unsafe { (table as *mut u64).add(index as usize).write_volatile(entry) }
    }
}

/// Why a device could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The range holds memory of ours, or was given out for another use.
    InUse(Range),
    /// The page tables could not take it.
    Map(MapError),
    /// The page tables are not up yet.
    TooEarly,
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(range) => write!(f, "{range} is already in use as something else"),
            Self::Map(error) => error.fmt(f),
            Self::TooEarly => write!(f, "paging has not started"),
        }
    }
}

impl core::error::Error for DeviceError {}

impl From<MapError> for DeviceError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// Builds the page tables that `map` asks for and runs on them: RAM and firmware's tables as data, our image
/// by section, no page zero, no guard pages.
pub fn start(map: &MemoryMap, frames: &'static FrameAllocator) -> Result<(), DeviceError> {
    let pool = TablePool { frames, pages: Vec::new() };
    let mut tables = Tables::new(pool, Features::read().gigabyte_pages)?;
    for range in map.ram.iter().chain(map.tables.iter()) {
        tables.map(range, Rights::DATA)?;
    }
    tables.unmap(Range::new(0, PAGE))?;
    for (range, rights) in image::sections() {
        tables.map(range, rights)?;
    }
    for guard in stacks::BOOT_STACKS.guards() {
        tables.unmap(guard)?;
    }
    // SAFETY: the tables map our code, data and stacks to where they are, so the next instruction and every
    // pointer in use stay good.
    unsafe { use_tables(tables.root()) }
    SPACE.call_once(|| {
        let (lent, devices) = (RangeSet::new(), RangeSet::new());
        Mutex::new(AddressSpace { tables, ram: map.ram.clone(), lent, devices })
    });
    Ok(())
}

/// Has another CPU, which came here on the tables at [`root`], use them as they are now.
pub fn join() {
    // SAFETY: these tables map everything in use.
    unsafe { use_tables(root()) }
}

/// The address of our tables, which lie below 4 GiB; zero before [`start`].
pub fn root() -> u64 {
    SPACE.get().map_or(0, |space| space.lock().tables.root())
}

/// Takes the pages below stacks away. No CPU has used them yet, so none but this remembers where they were.
pub fn remove_guards(guards: impl Iterator<Item = Range>) -> Result<(), DeviceError> {
    let mut space = SPACE.get().ok_or(DeviceError::TooEarly)?.lock();
    for guard in guards {
        space.tables.unmap(guard)?;
    }
    // SAFETY: the tables in use; what they lost is used by nobody.
    unsafe { load(space.tables.root()) }
    Ok(())
}

/// Gives page attributes the meaning that the tables at `root` rely on, and runs on these.
///
/// # Safety
///
/// The tables map everything in use to itself, cached as entries 0 to 3 of the PAT say after reset.
unsafe fn use_tables(root: u64) {
    // SAFETY: every CPU with long mode has a PAT; entries 0 to 3 keep their meaning.
    unsafe {
        cpu::write_msr(IA32_PAT, PAT);
        load(root);
    }
}

/// Runs on the tables at `root`, forgetting all cached translations.
///
/// # Safety
///
/// The tables map everything in use to itself.
unsafe fn load(root: u64) {
    // SAFETY: the caller's promise.
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) }
}

/// Maps a device's registers or memory, or memory shared with firmware, and gives access to it.
pub fn map_device(range: Range, cache: Cache) -> Result<Mmio, DeviceError> {
    let mut space = SPACE.get().ok_or(DeviceError::TooEarly)?.lock();
    if space.lent.overlaps(range) {
        return Err(DeviceError::InUse(range));
    }
    space.map(range, Rights::device(cache))?;
    space.devices.insert(range);
    // SAFETY: the range is mapped, from now on and for ever, and no Rust object lives there: it is no RAM of
    // ours, and nobody was lent it.
    Ok(unsafe { Mmio::new(range) })
}

/// Maps what firmware left behind (tables, flash) for reading.
pub fn map_read_only(range: Range, cache: Cache) -> Result<&'static [u8], DeviceError> {
    let mut space = SPACE.get().ok_or(DeviceError::TooEarly)?.lock();
    if range.start < PAGE || space.devices.overlaps(range) {
        return Err(DeviceError::InUse(range));
    }
    // What the page tables hold already, as firmware's memory, stays as it is.
    let mapped = space.tables.lookup(range.start).is_some_and(|leaf| leaf.range.covers(range));
    if !mapped || space.ram.overlaps(range) {
        space.map(range, Rights { write: false, execute: false, cache })?;
    }
    space.lent.insert(range);
    // SAFETY: the range is mapped from now on and for ever; nobody writes to it, since it is no RAM of ours
    // and is given out for reading only.
    Ok(unsafe { core::slice::from_raw_parts(range.start as *const u8, range.len() as usize) })
}

impl AddressSpace {
    /// Maps the pages of `range` with `rights`, unless RAM of ours is among them.
    fn map(&mut self, range: Range, rights: Rights) -> Result<(), DeviceError> {
        let pages = range.grow_to(PAGE);
        if self.ram.overlaps(pages) {
            return Err(DeviceError::InUse(range));
        }
        self.tables.map(pages, rights)?;
        // Other CPUs may go on with a right to firmware's memory that is no longer given: they do not use it.
        // SAFETY: the tables are the ones in use; they only gained pages, or changed firmware's.
        unsafe { load(self.tables.root()) };
        Ok(())
    }
}

/// Reads the tables in use back, and counts what they allow; fails with a page that they let be both written
/// and executed.
pub fn audit() -> Result<Audit, Leaf> {
    SPACE.get().map_or(Ok(Audit::default()), |space| space.lock().tables.audit())
}

/// Whether our own tables are in use.
pub fn started() -> bool {
    SPACE.get().is_some()
}
