//! Memory type range registers: everything write-back but the hole below 4 GiB where devices are.

use alloc::vec::Vec;
use core::ops::Range;

const DEF_TYPE: u32 = 0x2FF;
const DEF_TYPE_ENABLE: u64 = 1 << 11;
const DEF_TYPE_FIXED_ENABLE: u64 = 1 << 10;
const WRITE_BACK: u64 = 6;
const UNCACHEABLE: u64 = 0;
const VARIABLE_VALID: u64 = 1 << 11;

/// The register writes, in order, that make memory cacheable up to `hole` and after it (SDM volume 3, 12.11).
/// `hole` is aligned to 64 KiB; `variable` registers exist (IA32_MTRRCAP); addresses have `address_bits` bits.
/// Where the registers do not suffice, the top of the hole is left cacheable.
pub fn writes(hole: Range<u64>, variable: usize, address_bits: u32) -> Vec<(u32, u64)> {
    let mut writes = Vec::new();
    writes.push((DEF_TYPE, 0));
    for register in [0x250, 0x258] {
        writes.push((register, WRITE_BACK * 0x0101_0101_0101_0101)); // 0 to 0x9FFFF
    }
    writes.push((0x259, UNCACHEABLE)); // 0xA0000 to 0xBFFFF: display memory
    for register in 0x268..=0x26F {
        writes.push((register, WRITE_BACK * 0x0101_0101_0101_0101)); // 0xC0000 to 0xFFFFF
    }
    let limit = 1_u64.checked_shl(address_bits).unwrap_or(0).wrapping_sub(1);
    let mut blocks = blocks(hole);
    blocks.resize(variable, 0..0);
    for (index, block) in (0..).zip(blocks) {
        let valid = if block.is_empty() { 0 } else { VARIABLE_VALID };
        let mask = limit & !(block.end - block.start).wrapping_sub(1);
        writes.push((0x200 + 2 * index, block.start | UNCACHEABLE));
        writes.push((0x201 + 2 * index, if valid == 0 { 0 } else { mask | valid }));
    }
    writes.push((DEF_TYPE, DEF_TYPE_ENABLE | DEF_TYPE_FIXED_ENABLE | WRITE_BACK));
    writes
}

/// `range` as naturally aligned powers of two, in ascending order.
fn blocks(range: Range<u64>) -> Vec<Range<u64>> {
    let mut blocks = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let mut size = if start == 0 { 1 << 32 } else { start & start.wrapping_neg() };
        while size > range.end - start {
            size /= 2;
        }
        blocks.push(start..start + size);
        start += size;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cacheable(writes: &[(u32, u64)], address: u64) -> bool {
        let value = |register| writes.iter().rev().find(|write| write.0 == register).map(|write| write.1);
        !(0..8).any(|index| {
            let (base, mask) = (value(0x200 + 2 * index).unwrap(), value(0x201 + 2 * index).unwrap());
            mask & VARIABLE_VALID != 0 && address & mask & !0xFFF == base & mask & !0xFFF
        })
    }

    #[test]
    fn the_hole_alone_is_uncacheable() {
        for top in [0x2000_0000_u64, 0x8000_0000, 0xA000_0000, 0x7FF0_0000] {
            let writes = writes(top..1 << 32, 8, 40);
            assert_eq!(writes.first(), Some(&(DEF_TYPE, 0)));
            assert_eq!(writes.last(), Some(&(DEF_TYPE, 0xC06)));
            for address in [0, top / 2, top - 0x1000, 1 << 32, 1 << 36] {
                assert!(cacheable(&writes, address), "{top:#x} {address:#x}");
            }
            for address in [top, 0xB000_0000, 0xFEE0_0000, 0xFFFF_F000] {
                assert!(!cacheable(&writes, address), "{top:#x} {address:#x}");
            }
        }
    }
}
