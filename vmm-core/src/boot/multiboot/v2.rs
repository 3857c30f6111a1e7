//! The header and the information of Multiboot 2: tags.

use super::fields::{put32, put64, u16_at, u32_at};
use super::{Addresses, BOOT_LOADER_NAME, Header, MultibootError, Relocation, Told, Version};
use crate::boot::memory_map::LEGACY_HOLE;
use alloc::vec::Vec;

/// In how many bytes of the file its header lies.
pub const SEARCHED: usize = 32768;
const HEADER_MAGIC: u32 = 0xe852_50d6;
/// What the kernel finds in EAX.
pub const BOOTED_BY: u32 = 0x36d7_6289;
/// The header's architecture: 32-bit protected mode on x86.
const I386: u32 = 0;
/// Bytes of the header before its tags, and of a tag before what it says.
const HEADER_SIZE: usize = 16;
const TAG_SIZE: usize = 8;
/// Tags begin at multiples of it.
const TAG_ALIGNMENT: usize = 8;
/// Tag flag: a loader that does not know it passes over it.
const OPTIONAL: u16 = 1 << 0;

/// The header's tags.
mod wanted {
    pub const END: u16 = 0;
    pub const INFORMATION: u16 = 1;
    pub const ADDRESSES: u16 = 2;
    pub const ENTRY: u16 = 3;
    pub const CONSOLE: u16 = 4;
    pub const FRAMEBUFFER: u16 = 5;
    pub const ALIGN_MODULES: u16 = 6;
    pub const EFI_BOOT_SERVICES: u16 = 7;
    pub const EFI_I386_ENTRY: u16 = 8;
    pub const EFI_AMD64_ENTRY: u16 = 9;
    pub const RELOCATABLE: u16 = 10;
}

/// [`wanted::CONSOLE`]: a console that the kernel knows must be there.
const CONSOLE_REQUIRED: u32 = 1 << 0;

/// The information's tags.
mod told {
    pub const END: u32 = 0;
    pub const COMMAND_LINE: u32 = 1;
    pub const BOOT_LOADER_NAME: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const MEMORY: u32 = 4;
    pub const MEMORY_MAP: u32 = 6;
    pub const ELF_SECTIONS: u32 = 9;
    pub const NEW_RSDP: u32 = 15;
    pub const LOAD_BASE: u32 = 21;
    /// The last that version 2.0 knows. What there is nothing to say of, such as a framebuffer, is left out.
    pub const LAST: u32 = LOAD_BASE;
}

const MEMORY_MAP_ENTRY_SIZE: u32 = 24;
const KIB: u64 = 1 << 10;

/// The header of the file `image`, if it has one.
pub fn find(image: &[u8]) -> Result<Option<Header>, MultibootError> {
    let searched = image.get(..SEARCHED).unwrap_or(image);
    let field =
        |offset: usize, number: usize| u32_at(searched, offset.saturating_add(number.saturating_mul(4)));
    let is_header = |offset: &usize| {
        let sum = |sum: u32, number| Some(sum.wrapping_add(field(*offset, number)?));
        field(*offset, 0) == Some(HEADER_MAGIC) && (0..4).try_fold(0, sum) == Some(0)
    };
    let Some(offset) = (0..searched.len()).step_by(TAG_ALIGNMENT).find(is_header) else { return Ok(None) };
    let architecture = field(offset, 1).unwrap_or_default();
    if architecture != I386 {
        return Err(MultibootError::Architecture(architecture));
    }
    let len = field(offset, 2).unwrap_or_default() as usize;
    let truncated = MultibootError::Truncated(Version::Two);
    let tags = searched.get(offset..).and_then(|rest| rest.get(HEADER_SIZE..len)).ok_or(truncated)?;
    read_tags(tags, offset).map(Some)
}

fn read_tags(mut tags: &[u8], offset: usize) -> Result<Header, MultibootError> {
    let truncated = || MultibootError::Truncated(Version::Two);
    let mut header = Header { offset, addresses: None, entry: None, relocation: None };
    loop {
        let (kind, flags) = (u16_at(tags, 0).ok_or_else(truncated)?, u16_at(tags, 2).ok_or_else(truncated)?);
        let size = u32_at(tags, 4).ok_or_else(truncated)? as usize;
        let tag = tags.get(TAG_SIZE..size).ok_or_else(truncated)?;
        if kind == wanted::END {
            return Ok(header);
        }
        read_tag(&mut header, kind, flags & OPTIONAL != 0, tag)?;
        tags = tags.get(size.next_multiple_of(TAG_ALIGNMENT)..).ok_or_else(truncated)?;
    }
}

/// Notes what a tag asks for, or refuses.
fn read_tag(header: &mut Header, kind: u16, optional: bool, tag: &[u8]) -> Result<(), MultibootError> {
    let field =
        |number: usize| u32_at(tag, number.saturating_mul(4)).ok_or(MultibootError::Truncated(Version::Two));
    match kind {
        wanted::INFORMATION if !optional => {
            let (requests, _) = tag.as_chunks();
            let mut requests = requests.iter().map(|request| u32::from_le_bytes(*request));
            requests
                .find(|request| *request > told::LAST)
                .map_or(Ok(()), |request| Err(MultibootError::Information(request)))?;
        }
        wanted::ADDRESSES => {
            let [header_at, load, load_end, bss_end] = [field(0)?, field(1)?, field(2)?, field(3)?];
            header.addresses = Some(Addresses { header: header_at, load, load_end, bss_end });
        }
        wanted::ENTRY => header.entry = Some(field(0)?),
        wanted::CONSOLE if !optional && field(0)? & CONSOLE_REQUIRED != 0 => {
            return Err(MultibootError::Console);
        }
        wanted::RELOCATABLE => {
            let [lowest, highest, alignment] = [field(0)?, field(1)?, field(2)?];
            header.relocation = Some(Relocation { lowest, highest, alignment });
        }
        // Modules always begin at pages; there is no framebuffer to set up and no EFI to be entered from.
        wanted::INFORMATION
        | wanted::CONSOLE
        | wanted::FRAMEBUFFER
        | wanted::ALIGN_MODULES
        | wanted::EFI_BOOT_SERVICES
        | wanted::EFI_I386_ENTRY
        | wanted::EFI_AMD64_ENTRY => {}
        _ if optional => {}
        _ => return Err(MultibootError::Tag(kind)),
    }
    Ok(())
}

/// The information as it lies at [`START_INFO`](crate::boot::first_megabyte::START_INFO).
pub fn information(told: &Told) -> Vec<u8> {
    let mut tags = Vec::new();
    text_tag(&mut tags, told::COMMAND_LINE, &[], told.bootargs);
    text_tag(&mut tags, told::BOOT_LOADER_NAME, &[], BOOT_LOADER_NAME);
    for (at, module) in &told.modules {
        let end = at.saturating_add(module.image.len() as u64);
        text_tag(&mut tags, told::MODULE, &[*at as u32, end as u32], module.bootargs);
    }
    let lower = LEGACY_HOLE.start / KIB;
    let upper = told.low_end.saturating_sub(LEGACY_HOLE.end) / KIB;
    tag(&mut tags, told::MEMORY, |tag| put32(tag, &[lower as u32, upper as u32]));
    tag(&mut tags, told::MEMORY_MAP, |tag| {
        put32(tag, &[MEMORY_MAP_ENTRY_SIZE, 0]);
        for entry in &told.e820 {
            put64(tag, &[entry.base.get(), entry.len]);
            put32(tag, &[entry.kind as u32, 0]);
        }
    });
    if let Some(sections) = &told.sections {
        tag(&mut tags, told::ELF_SECTIONS, |tag| {
            put32(tag, &[sections.count(), sections.header_size(), sections.names()]);
            tag.extend(sections.table());
        });
    }
    tag(&mut tags, told::NEW_RSDP, |tag| tag.extend(&told.rsdp));
    if let Some(base) = told.load_base {
        tag(&mut tags, told::LOAD_BASE, |tag| put32(tag, &[base]));
    }
    tag(&mut tags, told::END, |_| {});
    let mut information = Vec::new();
    put32(&mut information, &[tags.len().saturating_add(TAG_SIZE) as u32, 0]);
    information.extend(tags);
    information
}

/// Appends a tag whose contents `fill` appends.
fn tag(tags: &mut Vec<u8>, kind: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut contents = Vec::new();
    fill(&mut contents);
    put32(tags, &[kind, contents.len().saturating_add(TAG_SIZE) as u32]);
    tags.extend(contents);
    tags.resize(tags.len().next_multiple_of(TAG_ALIGNMENT), 0);
}

/// Appends a tag that ends with a text.
fn text_tag(tags: &mut Vec<u8>, kind: u32, fields: &[u32], text: &str) {
    tag(tags, kind, |tag| {
        put32(tag, fields);
        tag.extend(text.bytes().chain([0]));
    });
}
