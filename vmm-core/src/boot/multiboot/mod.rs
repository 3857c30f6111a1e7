//! Multiboot 1 (GNU Multiboot Specification 0.6.96) and Multiboot 2 (Multiboot2 Specification 2.0): an ELF file,
//! or one whose header says where it lies, is entered in 32-bit protected mode with a description of the
//! machine in EBX.

mod fields;
mod sections;
mod v1;
mod v2;

use super::first_megabyte::{COMMAND_LINE, COMMAND_LINE_MAX, START_INFO, START_INFO_MAX, write_command_line};
use super::memory_map::{E820Entry, MemoryMap, PAGE_SIZE};
use super::program::{LOWEST_SEGMENT, Program, ProgramError, Segment, parse_elf};
use super::{Images, Module};
use crate::cpu::{CpuState, Gpr};
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use sections::Sections;

pub use super::MultibootVersion as Version;

/// What kernels are told that they were started by.
const BOOT_LOADER_NAME: &str = "Peerboot";

/// What a header asks of us beyond what every kernel gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Where in the file it begins.
    offset: usize,
    /// Where the file goes, which is no ELF file then.
    addresses: Option<Addresses>,
    /// Where it is entered, else at the ELF file's entry.
    entry: Option<u32>,
    /// Where else it may go.
    relocation: Option<Relocation>,
}

/// Where a file goes that is loaded as it is. All addresses are physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    /// Where the header goes.
    header: u32,
    /// Where the first loaded byte goes; all ones when that is the file's first byte.
    load: u32,
    /// Behind the last loaded byte; zero for the file's end.
    load_end: u32,
    /// Behind the zeros that follow; zero for none.
    bss_end: u32,
}

/// Where a kernel that can lie anywhere may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Relocation {
    /// The lowest address of its first byte.
    lowest: u32,
    /// The highest address of its last byte.
    highest: u32,
    /// Its first byte's address is a multiple of this power of two.
    alignment: u32,
}

/// What a kernel is told, whatever the version.
struct Told<'a> {
    bootargs: &'a str,
    low_end: u64,
    e820: Vec<E820Entry>,
    modules: Vec<(u64, Module<'a>)>,
    sections: Option<Sections<'a>>,
    /// The RSDP's bytes.
    rsdp: Vec<u8>,
    /// Where a relocatable kernel was put.
    load_base: Option<u32>,
}

/// Why a multiboot kernel cannot be started.
#[derive(Debug)]
pub enum MultibootError {
    /// The file holds no header of this version where one must be.
    NoHeader {
        /// The version that was asked for.
        version: Version,
        /// Whether there is a header of the other version.
        other: bool,
    },
    /// The header is cut off, or its parts are.
    Truncated(Version),
    /// The header asks for features that are not known: bits 3 to 15 of its flags.
    Flags(u32),
    /// The header is for another architecture than 32-bit x86.
    Architecture(u32),
    /// The header has a tag that is not known and not optional.
    Tag(u16),
    /// The header asks for information of a type that is not known.
    Information(u32),
    /// The kernel does not run without a console that its loader sets up.
    Console,
    /// The header's addresses contradict each other or the file: in which way.
    Addresses(&'static str),
    /// A file loaded by the header's addresses has no entry.
    NoEntry,
    /// The file cannot be loaded.
    Program(ProgramError),
    /// A section lies outside of the file.
    Section {
        /// Its offset in the file.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The entry lies in nothing that is loaded.
    Entry(u64),
    /// The kernel fits nowhere that it may lie.
    Relocation {
        /// Its length in bytes.
        len: u64,
        /// The lowest address of its first byte.
        lowest: u32,
        /// The highest address of its last byte.
        highest: u32,
    },
    /// The command line is longer than there is room for.
    CommandLineTooLong(usize),
    /// The description of the machine, with all command lines, is longer than there is room for.
    InformationTooLong(usize),
    /// A module or section does not fit above the kernel.
    NotEnoughMemory {
        /// Its length in bytes.
        len: u64,
        /// What is left, in bytes.
        found: u64,
    },
    /// A structure does not fit into the guest's memory.
    Memory(OutOfRange),
}

impl fmt::Display for MultibootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader { version, other } => {
                let (bytes, others) = match version {
                    Version::One => (v1::SEARCHED, Version::Two),
                    Version::Two => (v2::SEARCHED, Version::One),
                };
                write!(f, "the file has no {version} header in its first {bytes} bytes")?;
                if *other { write!(f, "; it has a {others} header") } else { Ok(()) }
            }
            Self::Truncated(version) => write!(f, "the {version} header is cut off"),
            Self::Flags(found) => {
                write!(f, "the Multiboot header asks for features {found:#x}, expected no more than 0x7")
            }
            Self::Architecture(found) => {
                write!(f, "the Multiboot2 header is for architecture {found}, expected 0 (32-bit x86)")
            }
            Self::Tag(found) => {
                write!(
                    f,
                    "the Multiboot2 header has a tag of type {found}, which is neither known nor optional"
                )
            }
            Self::Information(found) => {
                write!(f, "the Multiboot2 header asks for information of type {found}, which is not known")
            }
            Self::Console => f.write_str("the kernel needs a console that its loader sets up, and has none"),
            Self::Addresses(fault) => write!(f, "the header's addresses are wrong: {fault}"),
            Self::NoEntry => f.write_str("the header says where the file goes, but not where it is entered"),
            Self::Program(error) => error.fmt(f),
            Self::Section { offset, len } => {
                write!(
                    f,
                    "the ELF file is cut off: a section of {len} bytes at offset {offset:#x} is not in it"
                )
            }
            Self::Entry(entry) => write!(f, "the entry {entry:#x} lies in nothing that is loaded"),
            Self::Relocation { len, lowest, highest } => write!(
                f,
                "the kernel needs {len} bytes of memory between {lowest:#x} and {highest:#x}, and the guest has \
                 no such place"
            ),
            Self::CommandLineTooLong(found) => {
                write!(f, "the command line has {found} bytes, expected at most {COMMAND_LINE_MAX}")
            }
            Self::InformationTooLong(found) => write!(
                f,
                "command lines and section headers need {found} bytes, expected at most {START_INFO_MAX}"
            ),
            Self::NotEnoughMemory { len, found } => write!(
                f,
                "a module or section has {len} bytes, and the guest has {found} left above its kernel and below \
                 2 GiB"
            ),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for MultibootError {}

impl From<OutOfRange> for MultibootError {
    fn from(error: OutOfRange) -> Self {
        Self::Memory(error)
    }
}

impl From<ProgramError> for MultibootError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

/// Puts the kernel with everything it needs into `memory`, which is laid out as `map` says and zeroed, and
/// gives the state of its first CPU. `rsdp` is where the ACPI tables begin.
pub fn load(
    version: Version,
    memory: &GuestMemory,
    map: &MemoryMap,
    images: &Images,
    rsdp: GuestPhys,
) -> Result<CpuState, MultibootError> {
    let header = find(version, images.kernel)?;
    if images.bootargs.len() > COMMAND_LINE_MAX {
        return Err(MultibootError::CommandLineTooLong(images.bootargs.len()));
    }
    let kernel = Kernel::parse(images.kernel, &header)?.placed(&header, map.low_end())?;
    let mut room = Room { next: kernel.program.end(), end: map.low_end() };
    let sections = kernel.sections.map(|sections| sections.place(&mut room)).transpose()?;
    let mut modules = Vec::new();
    for module in images.all_modules() {
        modules.push((room.take(module.image.len() as u64, PAGE_SIZE)?, module));
    }
    let told = Told {
        bootargs: images.bootargs,
        low_end: map.low_end(),
        e820: map.e820(),
        modules,
        sections,
        rsdp: read_rsdp(memory, rsdp)?,
        load_base: kernel.load_base,
    };
    let (information, magic) = match version {
        Version::One => (v1::information(&told), v1::BOOTED_BY),
        Version::Two => (v2::information(&told), v2::BOOTED_BY),
    };
    if information.len() > START_INFO_MAX {
        return Err(MultibootError::InformationTooLong(information.len()));
    }

    kernel.program.write(memory)?;
    for (at, bytes) in told.sections.iter().flat_map(Sections::contents) {
        memory.write(GuestPhys::new(at), bytes)?;
    }
    for (at, module) in &told.modules {
        memory.write(GuestPhys::new(*at), module.image)?;
    }
    write_command_line(memory, COMMAND_LINE, images.bootargs)?;
    memory.write(START_INFO, &information)?;
    let mut state = CpuState::flat_protected_mode(kernel.entry);
    state.registers.set(Gpr::Rax, magic.into());
    state.registers.set(Gpr::Rbx, START_INFO.get());
    Ok(state)
}

/// The file's header of this version.
fn find(version: Version, image: &[u8]) -> Result<Header, MultibootError> {
    let found = match version {
        Version::One => v1::find(image)?,
        Version::Two => v2::find(image)?,
    };
    found.ok_or_else(|| {
        let other = match version {
            Version::One => matches!(v2::find(image), Ok(Some(_))),
            Version::Two => matches!(v1::find(image), Ok(Some(_))),
        };
        MultibootError::NoHeader { version, other }
    })
}

/// A kernel file, its parts named.
struct Kernel<'a> {
    program: Program<'a>,
    entry: u32,
    sections: Option<Sections<'a>>,
    load_base: Option<u32>,
}

impl<'a> Kernel<'a> {
    /// Takes the file apart as its header says.
    fn parse(image: &'a [u8], header: &Header) -> Result<Self, MultibootError> {
        let (program, entry, sections) = match &header.addresses {
            Some(addresses) => {
                let program = Program::new(vec![addresses.segment(image, header.offset)?])?;
                (program, header.entry.ok_or(MultibootError::NoEntry)?.into(), None)
            }
            None => {
                let file = parse_elf(image)?;
                let program = Program::from_elf(&file)?;
                // Linkers write the entry as the kernel itself will see it.
                let elf_entry = program.physical(file.ehdr.e_entry).unwrap_or(file.ehdr.e_entry);
                let entry = header.entry.map_or(elf_entry, u64::from);
                (program, entry, Sections::parse(image, &file)?)
            }
        };
        if !program.holds(entry) {
            return Err(MultibootError::Entry(entry));
        }
        let entry = u32::try_from(entry).map_err(|_| MultibootError::Entry(entry))?;
        Ok(Self { program, entry, sections, load_base: None })
    }

    /// The same at its place in memory that ends at `memory_end`: where it was linked to, else as low as it may
    /// lie.
    fn placed(mut self, header: &Header, memory_end: u64) -> Result<Self, MultibootError> {
        if let Some(relocation) = &header.relocation {
            let linked = self.program.start();
            let len = self.program.end().saturating_sub(linked);
            let start = relocation.place(linked, len, memory_end)?;
            // The entry lies in the program, so it moves below the same end.
            let entry = u64::from(self.entry).saturating_sub(linked).saturating_add(start);
            self.entry = u32::try_from(entry).map_err(|_| MultibootError::Entry(entry))?;
            self.load_base = Some(start as u32);
            self.program = self.program.moved_to(start);
        }
        self.program.check(memory_end)?;
        Ok(self)
    }
}

impl Addresses {
    /// What of the file goes where; the header begins at `header_offset` of it.
    fn segment<'a>(&self, image: &'a [u8], header_offset: usize) -> Result<Segment<'a>, MultibootError> {
        let wrong = MultibootError::Addresses;
        let (start, offset) = if self.load == u32::MAX {
            let start = u64::from(self.header).checked_sub(header_offset as u64);
            (start.ok_or(wrong("the file would begin below zero"))?, 0)
        } else {
            let before =
                self.header.checked_sub(self.load).ok_or(wrong("the header lies before what is loaded"))?;
            let offset = header_offset.checked_sub(before as usize);
            (self.load.into(), offset.ok_or(wrong("more lies before the header than the file has there"))?)
        };
        let rest = image.get(offset..).unwrap_or_default();
        let bytes = if self.load_end == 0 {
            rest
        } else {
            let len = u64::from(self.load_end).checked_sub(start).ok_or(wrong("it ends before it begins"))?;
            rest.get(..len as usize).ok_or(wrong("the file ends before what is loaded"))?
        };
        let loaded = bytes.len() as u64;
        let bss_end = if self.bss_end == 0 { start.saturating_add(loaded) } else { self.bss_end.into() };
        let len = bss_end.checked_sub(start).filter(|len| *len >= loaded && *len > 0);
        let len = len.ok_or(wrong("its zeros end before they begin"))?;
        Ok(Segment { address: start, bytes, len, virtual_address: start })
    }
}

impl Relocation {
    /// Where a kernel of `len` bytes goes that was linked to `linked`.
    fn place(&self, linked: u64, len: u64, memory_end: u64) -> Result<u64, MultibootError> {
        let fits = |start: &u64| {
            let end = start.checked_add(len);
            let within = |end: u64| end <= memory_end && end <= u64::from(self.highest).saturating_add(1);
            *start >= LOWEST_SEGMENT.max(self.lowest.into()) && end.is_some_and(within)
        };
        let alignment = u64::from(self.alignment.max(1));
        let lowest = LOWEST_SEGMENT.max(self.lowest.into()).checked_next_multiple_of(alignment);
        let aligned = Some(linked).filter(|linked| linked.is_multiple_of(alignment));
        aligned.filter(fits).or(lowest.filter(fits)).ok_or(MultibootError::Relocation {
            len,
            lowest: self.lowest,
            highest: self.highest,
        })
    }
}

/// Memory that is still free above the kernel.
struct Room {
    next: u64,
    end: u64,
}

impl Room {
    /// The address of the next `len` bytes at a multiple of `alignment`.
    fn take(&mut self, len: u64, alignment: u64) -> Result<u64, MultibootError> {
        let error = MultibootError::NotEnoughMemory { len, found: self.end.saturating_sub(self.next) };
        let place = self.next.checked_next_multiple_of(alignment);
        let place = place.and_then(|at| Some((at, at.checked_add(len).filter(|end| *end <= self.end)?)));
        let (at, next) = place.ok_or(error)?;
        self.next = next;
        Ok(at)
    }
}

/// The bytes of the RSDP of revision 2 at `at`.
fn read_rsdp(memory: &GuestMemory, at: GuestPhys) -> Result<Vec<u8>, OutOfRange> {
    const LENGTH: usize = 36;
    let mut bytes = vec![0; LENGTH];
    memory.read(at, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
