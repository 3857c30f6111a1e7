//! CBMEM: what firmware leaves in memory for whoever comes after, packed downwards from the top of low memory.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use coreboot_config::tables::CbmemEntry;

/// Every area begins on a page, as coreboot's do.
const ALIGNMENT: u64 = 4096;

/// The areas given out so far.
#[derive(Debug)]
pub struct Cbmem {
    free: Range<u64>,
    top: u64,
    entries: Vec<CbmemEntry>,
}

/// No room is left for an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CbmemFull {
    /// What the area was for: a CBMEM id.
    pub id: u32,
    /// Bytes asked for.
    pub size: u32,
}

impl fmt::Display for CbmemFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CBMEM: no room for area {:#x} of {:#x} bytes", self.id, self.size)
    }
}

impl Cbmem {
    /// CBMEM that may grow from `room.end`, which is the top of low memory, down to `room.start`.
    pub fn new(room: Range<u64>) -> Self {
        Self { top: room.end, free: room, entries: Vec::new() }
    }

    /// Gives out `size` bytes for `id` and returns their physical address.
    pub fn allocate(&mut self, id: u32, size: u32) -> Result<u64, CbmemFull> {
        let full = CbmemFull { id, size };
        let address = self.free.end.checked_sub(u64::from(size)).ok_or(full)? & !(ALIGNMENT - 1);
        if address < self.free.start {
            return Err(full);
        }
        self.free.end = address;
        self.entries.push(CbmemEntry { address, size, id });
        Ok(address)
    }

    /// All that was given out: physical addresses, up to the top of low memory.
    pub fn used(&self) -> Range<u64> {
        self.free.end..self.top
    }

    /// The areas in the order in which they were given out.
    pub fn entries(&self) -> &[CbmemEntry] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_grow_down_from_the_top() {
        let mut cbmem = Cbmem::new(0x7FC0_0000..0x8000_0000);
        assert_eq!(cbmem.allocate(CbmemEntry::CONSOLE, 0x20000), Ok(0x7FFE_0000));
        assert_eq!(cbmem.allocate(CbmemEntry::TIMESTAMP, 0x910), Ok(0x7FFD_F000));
        assert_eq!(cbmem.used(), 0x7FFD_F000..0x8000_0000);
        let full = CbmemFull { id: CbmemEntry::ACPI, size: 0x40_0000 };
        assert_eq!(cbmem.allocate(CbmemEntry::ACPI, 0x40_0000), Err(full));
        assert_eq!(cbmem.entries().len(), 2);
    }
}
