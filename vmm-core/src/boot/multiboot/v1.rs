//! The header and the information structure of Multiboot 1.

use super::fields::{put32, put64, u32_at};
use super::{Addresses, BOOT_LOADER_NAME, Header, MultibootError, Told, Version};
use crate::boot::first_megabyte::{COMMAND_LINE, START_INFO};
use crate::boot::memory_map::LEGACY_HOLE;
use alloc::vec::Vec;

/// In how many bytes of the file its header lies.
pub const SEARCHED: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What the kernel finds in EAX.
pub const BOOTED_BY: u32 = 0x2bad_b002;

/// Header flags that the loader must know. Of these it does: align modules (bit 0, they always are), tell
/// memory sizes (bit 1, always told), and tell the video mode (bit 2, which is nothing on a machine without).
const REQUIRED: u32 = 0xffff;
const KNOWN: u32 = 0x7;
/// Header flag: the addresses are valid.
const HAS_ADDRESSES: u32 = 1 << 16;

/// Information flags, by what they say is there.
mod told {
    pub const MEMORY: u32 = 1 << 0;
    pub const COMMAND_LINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const ELF_SECTIONS: u32 = 1 << 5;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const BOOT_LOADER_NAME: u32 = 1 << 9;
}

/// Bytes of the information structure, up to the framebuffer's fields.
const INFORMATION_SIZE: u64 = 120;
const MODULE_SIZE: u64 = 16;
/// An entry of the memory map, and its size without the field that holds it.
const MEMORY_MAP_ENTRY_SIZE: u64 = 24;
const MEMORY_MAP_ENTRY_REST: u32 = 20;
const KIB: u64 = 1 << 10;

/// The header of the file `image`, if it has one.
pub fn find(image: &[u8]) -> Result<Option<Header>, MultibootError> {
    let searched = image.get(..SEARCHED).unwrap_or(image);
    let field =
        |offset: usize, number: usize| u32_at(searched, offset.saturating_add(number.saturating_mul(4)));
    let is_header = |offset: &usize| {
        let sum = |sum: u32, number| Some(sum.wrapping_add(field(*offset, number)?));
        field(*offset, 0) == Some(HEADER_MAGIC) && (0..3).try_fold(0, sum) == Some(0)
    };
    let Some(offset) = (0..searched.len()).step_by(4).find(is_header) else { return Ok(None) };
    let flags = field(offset, 1).unwrap_or_default();
    if flags & REQUIRED & !KNOWN != 0 {
        return Err(MultibootError::Flags(flags & REQUIRED));
    }
    let mut header = Header { offset, addresses: None, entry: None, relocation: None };
    if flags & HAS_ADDRESSES != 0 {
        let address = |number| field(offset, number).ok_or(MultibootError::Truncated(Version::One));
        header.addresses = Some(Addresses {
            header: address(3)?,
            load: address(4)?,
            load_end: address(5)?,
            bss_end: address(6)?,
        });
        header.entry = Some(address(7)?);
    }
    Ok(Some(header))
}

/// The information structure as it lies at [`START_INFO`], with everything that it points to behind it but the
/// command line.
pub fn information(told: &Told) -> Vec<u8> {
    let start = START_INFO.get();
    let table = told.sections.as_ref().map(super::Sections::table).unwrap_or_default();
    let modules_at = start.saturating_add(INFORMATION_SIZE);
    let map_at = modules_at.saturating_add(MODULE_SIZE.saturating_mul(told.modules.len() as u64));
    let map_len = MEMORY_MAP_ENTRY_SIZE.saturating_mul(told.e820.len() as u64);
    let table_at = map_at.saturating_add(map_len).next_multiple_of(8);
    let texts_at = table_at.saturating_add(table.len() as u64);

    // The texts, and where each module's begins.
    let mut texts: Vec<u8> = BOOT_LOADER_NAME.bytes().chain([0]).collect();
    let mut modules = Vec::new();
    for (at, module) in &told.modules {
        let end = at.saturating_add(module.image.len() as u64);
        let text_at = texts_at.saturating_add(texts.len() as u64);
        put32(&mut modules, &[*at as u32, end as u32, text_at as u32, 0]);
        texts.extend(module.bootargs.bytes().chain([0]));
    }

    let mut flags =
        told::MEMORY | told::COMMAND_LINE | told::MODULES | told::MEMORY_MAP | told::BOOT_LOADER_NAME;
    let mut sections = [0; 4];
    if let Some(headers) = &told.sections {
        flags |= told::ELF_SECTIONS;
        sections = [headers.count(), headers.header_size(), table_at as u32, headers.names()];
    }
    let lower = LEGACY_HOLE.start / KIB;
    let upper = told.low_end.saturating_sub(LEGACY_HOLE.end) / KIB;
    let mut info = Vec::new();
    put32(&mut info, &[flags, lower as u32, upper as u32]);
    // No boot device.
    put32(&mut info, &[0, COMMAND_LINE.get() as u32, told.modules.len() as u32, modules_at as u32]);
    put32(&mut info, &sections);
    put32(&mut info, &[map_len as u32, map_at as u32]);
    // No drives, no configuration table of a BIOS.
    put32(&mut info, &[0, 0, 0, texts_at as u32]);
    info.resize(INFORMATION_SIZE as usize, 0);
    info.extend(modules);
    for entry in &told.e820 {
        put32(&mut info, &[MEMORY_MAP_ENTRY_REST]);
        put64(&mut info, &[entry.base.get(), entry.len]);
        put32(&mut info, &[entry.kind as u32]);
    }
    info.resize(table_at.saturating_sub(start) as usize, 0);
    info.extend(table);
    info.extend(texts);
    info
}
