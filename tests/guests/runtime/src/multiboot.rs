//! What a Multiboot guest is told (Multiboot Specification 0.6.96, 3.3).

use crate::machine::{MemoryRange, Module, text};
use crate::memory::read;

/// What the loader leaves in EAX.
pub const MAGIC: u32 = 0x2bad_b002;

const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY_MAP: u32 = 1 << 6;

fn has(info: u64, flag: u32) -> bool {
    read::<u32>(info) & flag != 0
}

/// Nobody tells: it lies at a multiple of 16 in the BIOS's memory (ACPI 5.2.5.1).
pub fn rsdp() -> u64 {
    let mut places = (0xe_0000..0x10_0000).step_by(16);
    places.find(|at| read::<[u8; 8]>(*at) == *b"RSD PTR ").expect("an RSDP in the BIOS's memory")
}

pub fn command_line(info: u64) -> &'static str {
    if has(info, HAS_COMMAND_LINE) { text(read::<u32>(info + 16).into()) } else { "" }
}

pub fn module(info: u64, number: u64) -> Option<Module> {
    let (count, list): (u32, u32) = (read(info + 20), read(info + 24));
    let entry = u64::from(list) + number * 16;
    (has(info, HAS_MODULES) && number < count.into()).then(|| {
        let (start, end, line): (u32, u32, u32) = (read(entry), read(entry + 4), read(entry + 8));
        Module { start: start.into(), len: (end - start).into(), command_line: text(line.into()) }
    })
}

pub fn memory(info: u64, number: u64) -> Option<MemoryRange> {
    assert!(has(info, HAS_MEMORY_MAP), "a memory map");
    let (len, list): (u32, u32) = (read(info + 44), read(info + 48));
    let end = u64::from(list) + u64::from(len);
    let mut entry = u64::from(list);
    for _ in 0..number {
        // Its size does not count the field that holds it.
        entry += 4 + u64::from(read::<u32>(entry));
    }
    (entry < end).then(|| MemoryRange::read(entry + 4))
}
