//! What boot protocols leave for the kernel below the legacy hole. The kernel takes it or overwrites it;
//! nothing of it outlives boot.

use crate::cpu::DescriptorTable;
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use alloc::vec;
use alloc::vec::Vec;

/// The descriptor table.
const GDT: GuestPhys = GuestPhys::new(0x1000);
/// The protocol's own structure: Linux's boot_params, PVH's start info, multiboot's information.
pub const START_INFO: GuestPhys = GuestPhys::new(0x2000);
/// How many bytes it may have where there is no identity map.
#[cfg(any(feature = "pvh", feature = "multiboot"))]
pub const START_INFO_MAX: usize = 0xe000;
/// The top of the identity map, six pages, for who has no other wish.
pub const PAGE_TABLES: u64 = 0x4000;
/// The command line, NUL-terminated.
pub const COMMAND_LINE: GuestPhys = GuestPhys::new(0x1_0000);
/// The longest command line in bytes, without the NUL.
pub const COMMAND_LINE_MAX: usize = 0xffff;

/// Selector of the flat code segment: Linux's __BOOT_CS.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the flat data segment: Linux's __BOOT_DS.
pub const DATA_SELECTOR: u16 = 0x18;

const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;

/// Page-table entry bits (SDM table 4-15): present, writable, and a page rather than a table.
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

/// Writes a descriptor table with a flat code segment, 64-bit or 32-bit, and a flat data segment.
pub fn write_gdt(memory: &GuestMemory, long: bool) -> Result<DescriptorTable, OutOfRange> {
    let code = if long { CODE64 } else { CODE32 };
    let descriptors = [0, 0, code, DATA].map(u64::to_le_bytes);
    let bytes = descriptors.as_flattened();
    memory.write(GDT, bytes)?;
    Ok(DescriptorTable { base: GDT.get(), limit: (bytes.len() as u16).saturating_sub(1) })
}

/// Writes page tables, six pages from `at` on, that map the first 4 GiB onto themselves, and gives the CR3 for them.
pub fn write_identity_map(memory: &GuestMemory, at: u64) -> Result<u64, OutOfRange> {
    const DIRECTORIES: usize = 4;
    // One page each: the root, the table below it, and four directories of 512 2-MiB pages.
    let mut tables = vec![0; 6 * 512];
    let entry = |page: u64| at.wrapping_add(page << 12) | PRESENT | WRITABLE;
    let (root, rest) = tables.split_at_mut(512);
    let (pointers, directories) = rest.split_at_mut(512);
    if let Some(first) = root.first_mut() {
        *first = entry(1);
    }
    for (pointer, page) in pointers.iter_mut().take(DIRECTORIES).zip(2..) {
        *pointer = entry(page);
    }
    for (directory, number) in directories.iter_mut().zip(0_u64..) {
        *directory = (number << 21) | PRESENT | WRITABLE | LARGE;
    }
    let bytes: Vec<[u8; 8]> = tables.into_iter().map(u64::to_le_bytes).collect();
    memory.write(GuestPhys::new(at), bytes.as_flattened())?;
    Ok(at)
}

/// Writes the command line with its NUL to `at`. The caller has checked its length.
pub fn write_command_line(memory: &GuestMemory, at: GuestPhys, line: &str) -> Result<(), OutOfRange> {
    memory.write(at, line.as_bytes())?;
    let end = at.checked_add(line.len() as u64).unwrap_or(at);
    memory.write_u8(end, 0)
}
