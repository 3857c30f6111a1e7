//! A guest's physical address space: where its memory lies, what it is told about it, and where PCI devices
//! go.
//!
//! As on a PC with the q35 chipset: memory up to 2 GiB below, the rest from 4 GiB on, so that the ECAM window
//! and PCI devices find room between.

use crate::chipset::layout;
use crate::memory::GuestPhys;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 0x1000;
/// What a level-2 page-table entry maps.
const LARGE_PAGE: u64 = 2 << 20;
/// What a level-3 page-table entry maps.
const HUGE_PAGE: u64 = 1 << 30;

/// Where low memory ends at the latest.
pub const LOW_MEMORY_LIMIT: u64 = layout::LOW_MEMORY_LIMIT.get();
/// Where memory goes on.
pub const HIGH_MEMORY_START: u64 = 1 << 32;
/// The least memory a guest can have: the legacy megabyte and one more.
pub const LEAST_MEMORY: u64 = 2 << 20;

/// The PC's hole for VGA memory and ROMs. It is backed by memory all the same, but told of as none: firmware and
/// tables live there as in shadowed ROM, and a program that writes to VGA text memory costs no exits.
pub const LEGACY_HOLE: Range<u64> = 0xa_0000..0x10_0000;

/// How large the window above 4 GiB is.
const PCI_MEMORY_64_SIZE: u64 = 32 << 30;

/// What an E820 entry says about its range (ACPI table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Free to use.
    Memory = 1,
    /// Not to be touched, nor given to a device.
    Reserved = 2,
}

/// One range of the map that a guest is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// The first byte.
    pub base: GuestPhys,
    /// In bytes; not zero.
    pub len: u64,
    /// What it is.
    pub kind: E820Kind,
}

/// A contiguous block of host memory that a guest needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRequest {
    /// Where the guest will see it.
    pub base: GuestPhys,
    /// In bytes.
    pub len: u64,
    /// The host address should be a multiple of this power of two, so that the largest nested pages fit.
    /// [`PAGE_SIZE`] works too.
    pub alignment: u64,
}

/// Why a guest cannot have the memory it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMapError {
    /// Fewer than [`LEAST_MEMORY`] bytes.
    TooSmall(u64),
    /// Not a multiple of [`PAGE_SIZE`].
    NotPages(u64),
    /// More than `bits` physical address bits reach.
    TooLarge {
        /// The bytes asked for.
        bytes: u64,
        /// The guest's physical address width.
        bits: u8,
    },
}

impl fmt::Display for MemoryMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall(bytes) => {
                write!(f, "{bytes} bytes of memory are too few; the least is {LEAST_MEMORY}")
            }
            Self::NotPages(bytes) => {
                write!(f, "{bytes} bytes of memory are not a multiple of the page size, {PAGE_SIZE}")
            }
            Self::TooLarge { bytes, bits } => {
                write!(f, "{bytes} bytes of memory are more than {bits} physical address bits reach")
            }
        }
    }
}

impl core::error::Error for MemoryMapError {}

/// Where a guest's memory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    low: u64,
    high: u64,
    address_bits: u8,
}

impl MemoryMap {
    /// The map of `bytes` of memory on a CPU with `address_bits` physical address bits.
    pub fn new(bytes: u64, address_bits: u8) -> Result<Self, MemoryMapError> {
        if bytes < LEAST_MEMORY {
            return Err(MemoryMapError::TooSmall(bytes));
        }
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryMapError::NotPages(bytes));
        }
        let low = bytes.min(LOW_MEMORY_LIMIT);
        let high = bytes.saturating_sub(low);
        let space = 1_u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX);
        if high > space.saturating_sub(HIGH_MEMORY_START) {
            return Err(MemoryMapError::TooLarge { bytes, bits: address_bits });
        }
        Ok(Self { low, high, address_bits })
    }

    /// All memory in bytes.
    pub const fn size(&self) -> u64 {
        self.low.saturating_add(self.high)
    }

    /// Where memory below 4 GiB ends.
    pub const fn low_end(&self) -> u64 {
        self.low
    }

    /// The blocks of host memory to allocate, by rising address.
    pub fn regions(&self) -> impl Iterator<Item = RegionRequest> {
        [(0, self.low), (HIGH_MEMORY_START, self.high)].into_iter().filter(|(_, len)| *len > 0).map(
            |(base, len)| RegionRequest { base: GuestPhys::new(base), len, alignment: alignment_for(len) },
        )
    }

    /// The map that the guest is given, by rising address.
    pub fn e820(&self) -> Vec<E820Entry> {
        let ecam = layout::ECAM_BASE.get();
        let ecam = ecam..ecam.saturating_add(layout::ECAM_BYTES);
        let ranges = [
            (0..LEGACY_HOLE.start, E820Kind::Memory),
            // As on a PC, nothing is said of what lies below: some kernels have their own mind about it.
            (layout::ACPI_TABLES.start..LEGACY_HOLE.end, E820Kind::Reserved),
            (LEGACY_HOLE.end..self.low, E820Kind::Memory),
            // Linux uses ECAM only where firmware reserves it.
            (ecam, E820Kind::Reserved),
            (HIGH_MEMORY_START..HIGH_MEMORY_START.saturating_add(self.high), E820Kind::Memory),
        ];
        ranges
            .into_iter()
            .filter(|(range, _)| !range.is_empty())
            .map(|(range, kind)| E820Entry {
                base: GuestPhys::new(range.start),
                len: range.end.saturating_sub(range.start),
                kind,
            })
            .collect()
    }

    /// The highest page in memory below 4 GiB from which on `len` bytes end before `limit`, if they fit there.
    pub fn highest_place(&self, len: u64, limit: u64) -> Option<u64> {
        let start = self.low.min(limit).checked_sub(len)?;
        Some(start & !PAGE_SIZE.wrapping_sub(1))
    }

    /// Above 4 GiB, where PCI devices' memory goes: behind all memory, if the address width leaves room.
    pub fn pci_memory_64(&self) -> Option<Range<u64>> {
        let start =
            HIGH_MEMORY_START.saturating_add(self.high).checked_next_multiple_of(PCI_MEMORY_64_SIZE)?;
        let end = start.checked_add(PCI_MEMORY_64_SIZE)?;
        (end <= 1_u64.checked_shl(self.address_bits.into())?).then_some(start..end)
    }
}

/// The size of the largest nested pages that a region of `len` bytes can use.
const fn alignment_for(len: u64) -> u64 {
    if len >= HUGE_PAGE {
        HUGE_PAGE
    } else if len >= LARGE_PAGE {
        LARGE_PAGE
    } else {
        PAGE_SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_that_fits_low_is_one_region() {
        let map = MemoryMap::new(512 * MIB, 40).unwrap();
        let regions: Vec<_> = map.regions().collect();
        assert_eq!(
            regions,
            [RegionRequest { base: GuestPhys::new(0), len: 512 * MIB, alignment: LARGE_PAGE }]
        );
        assert_eq!(map.pci_memory_64(), Some(32 * GIB..64 * GIB));
    }

    #[test]
    fn the_rest_goes_above_four_gib() {
        let map = MemoryMap::new(3 * GIB + 4096, 40).unwrap();
        let regions: Vec<_> = map.regions().collect();
        assert_eq!(regions.len(), 2);
        assert_eq!(
            regions[1],
            RegionRequest { base: GuestPhys::new(4 * GIB), len: GIB + 4096, alignment: HUGE_PAGE }
        );
        assert_eq!(map.e820().last().unwrap().len, GIB + 4096);
        assert_eq!(map.low_end(), 2 * GIB);
    }

    #[test]
    fn the_e820_map_is_sorted_and_says_all_memory_but_the_hole() {
        for bytes in [2 * MIB, 64 * MIB + 4096, 2 * GIB, 2 * GIB + 4096, 5 * GIB] {
            let map = MemoryMap::new(bytes, 48).unwrap();
            let e820 = map.e820();
            assert!(e820.windows(2).all(|pair| pair[0].base.get() + pair[0].len <= pair[1].base.get()));
            let memory: u64 = e820.iter().filter(|e| e.kind == E820Kind::Memory).map(|e| e.len).sum();
            assert_eq!(memory, bytes - (LEGACY_HOLE.end - LEGACY_HOLE.start));
            let window = map.pci_memory_64().unwrap();
            assert!(e820.iter().all(|e| e.base.get() + e.len <= window.start));
        }
    }

    #[test]
    fn the_64_bit_window_needs_address_bits() {
        assert_eq!(MemoryMap::new(64 * MIB, 36).unwrap().pci_memory_64(), Some(32 * GIB..64 * GIB));
        assert_eq!(MemoryMap::new(64 * MIB, 35).unwrap().pci_memory_64(), None);
        assert_eq!(MemoryMap::new(40 * GIB, 36).unwrap().pci_memory_64(), None);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(MemoryMap::new(MIB, 40), Err(MemoryMapError::TooSmall(MIB)));
        assert_eq!(MemoryMap::new(4 * MIB + 1, 40), Err(MemoryMapError::NotPages(4 * MIB + 1)));
        let bytes = 64 * GIB;
        assert_eq!(MemoryMap::new(bytes, 36), Err(MemoryMapError::TooLarge { bytes, bits: 36 }));
        assert!(MemoryMap::new(!0xfff, 64).is_err());
        assert!(MemoryMap::new(4 * GIB, 8).is_err());
    }
}
