//! The memory map that the payload is told, and the emulator's own that it is made from.

use alloc::vec::Vec;
use core::ops::Range;

use coreboot_config::tables::{MemoryKind, MemoryRange};

const PAGE: u64 = 0x1000;
const FOUR_GIB: u64 = 1 << 32;
/// Conventional memory ends where display memory begins.
const CONVENTIONAL_END: u64 = 0xA_0000;
const FIRST_MIB_END: u64 = 0x10_0000;
/// The unit in which CMOS counts memory.
const CMOS_UNIT: u64 = 0x1_0000;
/// Bytes of one entry of the fw_cfg file `etc/e820`: address, length, type.
const E820_ENTRY_BYTES: usize = 20;

/// The page of the F segment in which a scan for ACPI's RSDP finds it.
pub const F_SEGMENT_TABLES: Range<u64> = 0xF_6000..0xF_7000;

/// RAM that the emulator says it has, from its file `etc/e820`, in ascending order.
pub fn ram_of_e820(file: &[u8]) -> Vec<Range<u64>> {
    let word = |entry: &[u8], at: usize| {
        entry.get(at..at + 8).map_or(0, |bytes| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    let mut ram: Vec<Range<u64>> = Vec::new();
    for entry in file.chunks_exact(E820_ENTRY_BYTES).filter(|entry| entry[16..] == [1, 0, 0, 0]) {
        let range = word(entry, 0)..word(entry, 0).saturating_add(word(entry, 8));
        if !range.is_empty() {
            let after = ram.iter().take_while(|other| other.start <= range.start).count();
            ram.insert(after, range);
        }
    }
    ram
}

/// RAM by what an emulator notes in CMOS: what lies between 16 MiB and 4 GiB, and above, in units of 64 KiB.
/// Machines with less than 16 MiB are none of ours.
pub fn ram_of_cmos(low: u32, high: u32) -> impl DoubleEndedIterator<Item = Range<u64>> {
    let end = |start: u64, units: u32| start + u64::from(units) * CMOS_UNIT;
    [0..end(16 << 20, low), FOUR_GIB..end(FOUR_GIB, high)].into_iter().filter(|range| !range.is_empty())
}

/// The end of the RAM that starts at 0.
pub fn low_memory_end(ram: &[Range<u64>]) -> u64 {
    ram.iter().find(|range| range.start == 0).map_or(0, |range| range.end.min(FOUR_GIB))
}

/// What the coreboot table says of memory. `ram` is all there is, `cbmem` what is kept at the top of low memory,
/// `reserved` the ranges below 4 GiB that are no RAM and no device's to take.
pub fn compose(ram: &[Range<u64>], cbmem: Range<u64>, reserved: &[Range<u64>]) -> Vec<MemoryRange> {
    let mut map = Vec::new();
    let mut add = |range: Range<u64>, kind| {
        if !range.is_empty() {
            map.push(MemoryRange { start: range.start, size: range.end - range.start, kind });
        }
    };
    let low_end = low_memory_end(ram);
    add(0..PAGE, MemoryKind::Table);
    add(PAGE..CONVENTIONAL_END, MemoryKind::Ram);
    add(CONVENTIONAL_END..F_SEGMENT_TABLES.start, MemoryKind::Reserved);
    add(F_SEGMENT_TABLES, MemoryKind::Table);
    add(F_SEGMENT_TABLES.end..FIRST_MIB_END, MemoryKind::Reserved);
    add(FIRST_MIB_END..cbmem.start, MemoryKind::Ram);
    add(cbmem.clone(), MemoryKind::Table);
    add(cbmem.end..low_end, MemoryKind::Reserved);
    for range in reserved {
        add(range.clone(), MemoryKind::Reserved);
    }
    for range in ram.iter().filter(|range| range.start >= FOUR_GIB) {
        add(range.clone(), MemoryKind::Ram);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start: u64, size: u64, kind: u32) -> Vec<u8> {
        [&start.to_le_bytes()[..], &size.to_le_bytes(), &kind.to_le_bytes()].concat()
    }

    #[test]
    fn ram_is_taken_from_e820() {
        let file = [
            entry(0xFD_0000_0000, 0x3_0000_0000, 2),
            entry(1 << 32, 1 << 32, 1),
            entry(0, 0x8000_0000, 1),
            vec![7; 5],
        ]
        .concat();
        let ram = ram_of_e820(&file);
        assert_eq!(ram, [0..0x8000_0000, 1 << 32..2 << 32]);
        assert_eq!(low_memory_end(&ram), 0x8000_0000);
        assert_eq!(low_memory_end(&[]), 0);
    }

    #[test]
    fn ram_is_taken_from_cmos() {
        assert_eq!(ram_of_cmos(0x3F00, 0).next_back(), Some(0..1 << 30));
        let both: Vec<_> = ram_of_cmos(0xBF00, 0x1_0000).collect();
        assert_eq!(both, [0..3 << 30, 1 << 32..2 << 32]);
    }

    #[test]
    fn the_map_covers_memory_without_overlap() {
        let ram = [0..0x8000_0000, 1 << 32..2 << 32];
        let map =
            compose(&ram, 0x7FD0_0000..0x8000_0000, &[0xB000_0000..0xC000_0000, 0xFED1_C000..0xFED2_0000]);
        for pair in map.windows(2) {
            assert!(pair[0].end() <= pair[1].start, "{pair:x?}");
        }
        let kind_at = |address| {
            map.iter().find(|range| (range.start..range.end()).contains(&address)).map(|range| range.kind)
        };
        assert_eq!(kind_at(0x500), Some(MemoryKind::Table));
        assert_eq!(kind_at(0x1000), Some(MemoryKind::Ram));
        assert_eq!(kind_at(0xF6000), Some(MemoryKind::Table));
        assert_eq!(kind_at(0x7FCF_FFFF), Some(MemoryKind::Ram));
        assert_eq!(kind_at(0x7FFF_FFFF), Some(MemoryKind::Table));
        assert_eq!(kind_at(0x8000_0000), None);
        assert_eq!(kind_at(0xB000_0000), Some(MemoryKind::Reserved));
        assert_eq!(kind_at(0x1_8000_0000), Some(MemoryKind::Ram));
    }
}
