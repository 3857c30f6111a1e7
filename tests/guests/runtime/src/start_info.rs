//! What a PVH guest is told (xen/include/public/arch-x86/hvm/start_info.h).

use crate::machine::{MemoryRange, Module, text};
use crate::memory::read;

const MAGIC: u32 = 0x336e_c578;

/// Panics when no start info lies at `info`.
pub fn check(info: u64) {
    assert_eq!(read::<u32>(info), MAGIC, "the start info's magic");
    assert!(read::<u32>(info + 4) >= 1, "a start info without memory map");
}

pub fn rsdp(info: u64) -> u64 {
    read(info + 32)
}

pub fn command_line(info: u64) -> &'static str {
    text(read(info + 24))
}

pub fn module(info: u64, number: u64) -> Option<Module> {
    let (list, count): (u64, u32) = (read(info + 16), read(info + 12));
    let entry = list + number * 32;
    (number < count.into()).then(|| Module {
        start: read(entry),
        len: read(entry + 8),
        command_line: text(read(entry + 16)),
    })
}

pub fn memory(info: u64, number: u64) -> Option<MemoryRange> {
    let (list, count): (u64, u32) = (read(info + 40), read(info + 48));
    (number < count.into()).then(|| MemoryRange::read(list + number * 24))
}
