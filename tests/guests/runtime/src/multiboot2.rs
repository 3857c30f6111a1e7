//! What a Multiboot2 guest is told (Multiboot2 Specification 2.0, 3.6): tags.

use crate::machine::{MemoryRange, Module, text};
use crate::memory::read;

/// What the loader leaves in EAX.
pub const MAGIC: u32 = 0x36d7_6289;

const COMMAND_LINE: u32 = 1;
const MODULE: u32 = 3;
const MEMORY_MAP: u32 = 6;
const NEW_RSDP: u32 = 15;

/// Where each tag of this type has its contents, and where those end.
fn tags(info: u64, kind: u32) -> impl Iterator<Item = (u64, u64)> {
    let end = info + u64::from(read::<u32>(info));
    let mut at = info + 8;
    core::iter::from_fn(move || {
        while at < end {
            let tag = at;
            let size = u64::from(read::<u32>(tag + 4));
            at += size.next_multiple_of(8);
            if read::<u32>(tag) == kind {
                return Some((tag + 8, tag + size));
            }
        }
        None
    })
}

pub fn rsdp(info: u64) -> u64 {
    tags(info, NEW_RSDP).next().expect("an RSDP").0
}

pub fn command_line(info: u64) -> &'static str {
    tags(info, COMMAND_LINE).next().map_or("", |(line, _)| text(line))
}

pub fn module(info: u64, number: u64) -> Option<Module> {
    let (tag, _) = tags(info, MODULE).nth(number as usize)?;
    let (start, end): (u32, u32) = (read(tag), read(tag + 4));
    Some(Module { start: start.into(), len: (end - start).into(), command_line: text(tag + 8) })
}

pub fn memory(info: u64, number: u64) -> Option<MemoryRange> {
    let (tag, end) = tags(info, MEMORY_MAP).next().expect("a memory map");
    let entry = tag + 8 + number * u64::from(read::<u32>(tag));
    (entry < end).then(|| MemoryRange::read(entry))
}
