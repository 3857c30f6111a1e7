//! Hermit's own entry, version 4: what Hermit's loader does for a kernel, described by the crate hermit-entry.
//!
//! The crate itself serves the tests alone: the half of it that loads brings parsers of ELF files, TOML and tar
//! archives along, and makes structures with pointers in them, where a guest is to be given bytes.

use super::Images;
use super::first_megabyte::{CODE_SELECTOR, DATA_SELECTOR, START_INFO, write_gdt, write_identity_map};
use super::flat_tree::FlatTree;
use super::memory_map::{E820Kind, MemoryMap};
use super::program::{Program, ProgramError, note, parse_elf};
use crate::cpu::{ControlRegisters, CpuState, Gpr};
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use elf::ElfBytes;
use elf::abi::{
    DT_NULL, DT_RELA, DT_RELASZ, DT_SYMTAB, ET_DYN, PT_DYNAMIC, PT_TLS, R_X86_64_64, R_X86_64_GLOB_DAT,
    R_X86_64_RELATIVE,
};
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::parse::ParseError;

const NOTE_NAME: &[u8] = b"HERMIT\0";
/// NT_HERMIT_ENTRY_VERSION.
const NOTE_TYPE: u64 = 0x5a00;
/// HERMIT_ENTRY_VERSION.
const VERSION: u8 = 4;

/// Where a kernel goes that runs anywhere: Hermit gives away what lies below 2 MiB, which holds all that we tell.
const KERNEL: u64 = 2 << 20;
/// The device tree, and the most bytes that it may have.
const TREE: GuestPhys = GuestPhys::new(0x1_0000);
const TREE_MAX: usize = 0x1_0000;
/// The lowest byte of the first stack, of 32 KiB; the kernel goes to its top itself.
const STACK: u64 = 0x2_0000;
/// The identity map: the usual place is where Hermit's other cores begin.
const PAGE_TABLES: u64 = 0x3_0000;

/// Entries of the dynamic table, relocations and symbols, in bytes.
const DYNAMIC_SIZE: u64 = 16;
const RELOCATION_SIZE: u64 = 24;
const SYMBOL_SIZE: u64 = 24;

/// The first serial port.
const SERIAL_PORT: u64 = 0x3f8;
/// `RawPlatformInfo::Fdt`: all about the platform is in the device tree.
const PLATFORM_IN_TREE: u64 = 3;

/// Why a Hermit kernel cannot be started.
#[derive(Debug)]
pub enum HermitError {
    /// The file cannot be loaded.
    Program(ProgramError),
    /// No note says that it is one, for 64-bit machines.
    NoEntry,
    /// It wants another version of the entry.
    Version(Option<u8>),
    /// It wants to be relocated in a way that is not known here.
    Relocation(u32),
    /// The entry lies in no segment.
    Entry(u64),
    /// There are modules, or the ramdisk does not fit.
    Ramdisk,
    /// The device tree, with the command line in it, is longer than there is room for.
    TreeTooLong(usize),
    /// Something does not fit into the guest's memory.
    Memory(OutOfRange),
}

impl fmt::Display for HermitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(error) => error.fmt(f),
            Self::NoEntry => f.write_str("the file has no Hermit note; expected a 64-bit ELF file with one"),
            Self::Version(found) => {
                write!(f, "the kernel wants Hermit entry version {found:?}, expected {VERSION}")
            }
            Self::Relocation(kind) => write!(f, "the kernel has a relocation of unknown type {kind}"),
            Self::Entry(entry) => write!(f, "the entry {entry:#x} lies in nothing that is loaded"),
            Self::Ramdisk => f.write_str("Hermit takes one ramdisk that fits above it, and no modules"),
            Self::TreeTooLong(found) => {
                write!(f, "command line and memory map need {found} bytes, expected at most {TREE_MAX}")
            }
            Self::Memory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for HermitError {}

impl From<OutOfRange> for HermitError {
    fn from(error: OutOfRange) -> Self {
        Self::Memory(error)
    }
}

impl From<ProgramError> for HermitError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

impl From<ParseError> for HermitError {
    fn from(error: ParseError) -> Self {
        Self::Program(error.into())
    }
}

/// Puts the kernel with everything it needs into `memory`, which is laid out as `map` says and zeroed, and gives the
/// state of its first CPU. `rsdp` is where the ACPI tables begin.
pub fn load(
    memory: &GuestMemory,
    map: &MemoryMap,
    images: &Images<'_>,
    rsdp: GuestPhys,
) -> Result<CpuState, HermitError> {
    let file = parse_elf(images.kernel)?;
    check_version(&file)?;
    let program = Program::from_elf(&file)?;
    let moves = file.ehdr.e_type == ET_DYN;
    let (program, offset) = if moves {
        let start = program.start();
        (program.moved_to(KERNEL), KERNEL.wrapping_sub(start))
    } else {
        (program, 0)
    };
    program.check(map.low_end())?;
    let entry = file.ehdr.e_entry.wrapping_add(offset);
    if !program.holds(entry) {
        return Err(HermitError::Entry(entry));
    }
    program.write(memory)?;
    if moves {
        relocate(memory, &file, offset, images.kernel.len() as u64)?;
    }
    let ramdisk = place_ramdisk(memory, map, images, program.end())?;
    let tree = device_tree(map, images.bootargs, ramdisk, rsdp);
    if tree.len() > TREE_MAX {
        return Err(HermitError::TreeTooLong(tree.len()));
    }
    memory.write(TREE, &tree)?;
    memory.write(START_INFO, &boot_info(&file, &program, offset))?;

    let cr3 = write_identity_map(memory, PAGE_TABLES)?;
    let mut state = CpuState::long_mode(entry, cr3, CODE_SELECTOR, DATA_SELECTOR);
    state.gdt = write_gdt(memory, true)?;
    // Hermit maps pages as not executable from the start.
    state.control.efer |= ControlRegisters::EFER_NXE;
    state.registers.set(Gpr::Rdi, START_INFO.get());
    state.registers.set(Gpr::Rsp, STACK);
    Ok(state)
}

fn check_version(file: &ElfBytes<'_, LittleEndian>) -> Result<(), HermitError> {
    let description = note(file, NOTE_NAME, NOTE_TYPE)?.filter(|_| file.ehdr.class == Class::ELF64);
    match description.ok_or(HermitError::NoEntry)?.first() {
        Some(&VERSION) => Ok(()),
        other => Err(HermitError::Version(other.copied())),
    }
}

/// Adds `offset` to the addresses that lie in the program, which is in memory already. All that this reads is the
/// image's own tables there; a wrong one harms nobody else, and is not longer than the file.
fn relocate(
    memory: &GuestMemory,
    file: &ElfBytes<'_, LittleEndian>,
    offset: u64,
    file_len: u64,
) -> Result<(), HermitError> {
    let dynamic = file.segments().into_iter().flatten().find(|segment| segment.p_type == PT_DYNAMIC);
    let Some(dynamic) = dynamic else { return Ok(()) };
    let (mut table, mut len, mut symbols) = (0, 0, 0);
    let mut at = dynamic.p_vaddr.wrapping_add(offset);
    for _ in 0..dynamic.p_memsz.min(file_len) / DYNAMIC_SIZE {
        let [tag, value, _] = three_words(memory, at)?;
        match tag.cast_signed() {
            DT_NULL => break,
            DT_RELA => table = value.wrapping_add(offset),
            DT_RELASZ => len = value.min(file_len),
            DT_SYMTAB => symbols = value.wrapping_add(offset),
            _ => {}
        }
        at = at.wrapping_add(DYNAMIC_SIZE);
    }
    for _ in 0..len / RELOCATION_SIZE {
        let [place, info, addend] = three_words(memory, table)?;
        table = table.wrapping_add(RELOCATION_SIZE);
        let value = match info as u32 {
            R_X86_64_RELATIVE => addend,
            R_X86_64_64 | R_X86_64_GLOB_DAT => {
                let symbol = symbols.wrapping_add((info >> 32).wrapping_mul(SYMBOL_SIZE));
                let [names, value, _] = three_words(memory, symbol)?;
                // A symbol that is in no section, and may be missing, is zero.
                if names >> 48 == 0 {
                    continue;
                }
                value.wrapping_add(addend)
            }
            other => return Err(HermitError::Relocation(other)),
        };
        let place = GuestPhys::new(place.wrapping_add(offset));
        memory.write(place, &value.wrapping_add(offset).to_le_bytes())?;
    }
    Ok(())
}

/// The words at `at`: of an entry of the dynamic table, of a relocation, of a symbol.
#[inline(never)]
fn three_words(memory: &GuestMemory, at: u64) -> Result<[u64; 3], OutOfRange> {
    let mut bytes = [0; 24];
    memory.read(GuestPhys::new(at), &mut bytes)?;
    let (words, _) = bytes.as_chunks();
    Ok(match *words {
        [first, second, third] => [first, second, third].map(u64::from_le_bytes),
        _ => [0; 3],
    })
}

/// Puts the ramdisk as high as it can go, and gives where it begins and ends.
fn place_ramdisk(
    memory: &GuestMemory,
    map: &MemoryMap,
    images: &Images<'_>,
    kernel_end: u64,
) -> Result<Option<[u64; 2]>, HermitError> {
    if !images.modules.is_empty() {
        return Err(HermitError::Ramdisk);
    }
    let Some(image) = images.ramdisk else { return Ok(None) };
    let len = image.len() as u64;
    let start = map.highest_place(len, u64::MAX).filter(|start| *start >= kernel_end);
    let start = start.ok_or(HermitError::Ramdisk)?;
    memory.write(GuestPhys::new(start), image)?;
    Ok(Some([start, start.saturating_add(len)]))
}

/// What Hermit knows of the machine: its memory, its command line, its ramdisk and its ACPI tables.
fn device_tree(map: &MemoryMap, bootargs: &str, ramdisk: Option<[u64; 2]>, rsdp: GuestPhys) -> Vec<u8> {
    let mut tree = FlatTree::default();
    tree.begin("");
    tree.text("compatible", "hermit,peerboot");
    for cells in ["#address-cells", "#size-cells"] {
        tree.property(cells, &[0, 0, 0, 2]);
    }
    for range in map.e820().into_iter().filter(|range| range.kind == E820Kind::Memory) {
        let base = range.base.get();
        tree.begin(&format!("memory@{base:x}"));
        tree.text("device_type", "memory");
        tree.range("reg", base, range.len);
        tree.end();
    }
    tree.begin(&format!("hermit,rsdp@{:x}", rsdp.get()));
    tree.range("reg", rsdp.get(), 1);
    tree.end();
    tree.begin("chosen");
    tree.text("bootargs", bootargs);
    if let Some([start, end]) = ramdisk {
        tree.property("linux,initrd-start", &start.to_be_bytes());
        tree.property("linux,initrd-end", &end.to_be_bytes());
    }
    tree.end();
    tree.end();
    tree.finish()
}

/// `RawBootInfo` of hermit-entry 0.10: hardware, what is loaded where, platform.
fn boot_info(file: &ElfBytes<'_, LittleEndian>, program: &Program<'_>, offset: u64) -> Vec<u8> {
    let mut segments = file.segments().into_iter().flatten();
    let tls = segments
        .find(|segment| segment.p_type == PT_TLS)
        .map_or([0; 4], |tls| [tls.p_vaddr.wrapping_add(offset), tls.p_filesz, tls.p_memsz, tls.p_align]);
    let [tls_start, tls_in_file, tls_in_memory, tls_align] = tls;
    // The range of physical addresses is for machines without a device tree.
    let fields = [
        0,
        0,
        SERIAL_PORT,
        TREE.get(),
        program.start(),
        program.end(),
        tls_start,
        tls_in_file,
        tls_in_memory,
        tls_align,
        PLATFORM_IN_TREE,
        0,
        0,
        0,
        0,
        0,
    ];
    fields.map(u64::to_le_bytes).as_flattened().to_vec()
}

#[cfg(test)]
mod tests;
