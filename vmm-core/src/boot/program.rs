//! A kernel as it lies in memory: what of its file goes where.

use super::memory_map::LEGACY_HOLE;
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use alloc::vec::Vec;
use core::fmt;
use elf::ElfBytes;
#[cfg(any(feature = "pvh", feature = "hermit"))]
use elf::abi::PT_NOTE;
use elf::abi::{EM_386, EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;
#[cfg(any(feature = "pvh", feature = "hermit"))]
use elf::note::{Note, NoteIterator};
use elf::parse::ParseError;

/// The lowest address for a segment: below lies what boot protocols write.
pub const LOWEST_SEGMENT: u64 = LEGACY_HOLE.end;

/// One piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Its first byte in guest-physical memory.
    pub address: u64,
    /// Its bytes in the file.
    pub bytes: &'a [u8],
    /// Its length in memory, zeros behind what is in the file; not zero.
    pub len: u64,
    /// Where the kernel itself thinks that it lies, once it has paging.
    pub virtual_address: u64,
}

/// All pieces of a kernel, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program<'a> {
    segments: Vec<Segment<'a>>,
}

/// Why a file is no kernel that can be loaded.
#[derive(Debug)]
pub enum ProgramError {
    /// The file is not an ELF file, or is cut off.
    Elf(ParseError),
    /// An ELF file for another machine.
    Machine(u16),
    /// Nothing is to be loaded.
    NoSegments,
    /// A segment lies outside the guest's memory from 1 MiB to 2 GiB.
    Segment {
        /// Its first byte.
        address: u64,
        /// Its length in memory, in bytes.
        len: u64,
        /// Where the guest's memory below 4 GiB ends.
        memory_end: u64,
    },
    /// A segment is longer in the file than in memory.
    SegmentSize {
        /// Its first byte.
        address: u64,
        /// Bytes in the file.
        in_file: u64,
        /// Bytes in memory.
        in_memory: u64,
    },
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => write!(f, "the file is not a whole ELF file: {error}"),
            Self::Machine(machine) => {
                write!(f, "the ELF file is for machine {machine}, expected x86 ({EM_386} or {EM_X86_64})")
            }
            Self::NoSegments => f.write_str("the kernel file has nothing to load"),
            Self::Segment { address, len, memory_end } => write!(
                f,
                "the kernel file loads {len} bytes to {address:#x}, expected memory from {LOWEST_SEGMENT:#x} \
                 to {memory_end:#x}"
            ),
            Self::SegmentSize { address, in_file, in_memory } => write!(
                f,
                "the ELF segment at {address:#x} has {in_file} bytes in the file, more than the {in_memory} \
                 that it has in memory"
            ),
        }
    }
}

impl core::error::Error for ProgramError {}

impl From<ParseError> for ProgramError {
    fn from(error: ParseError) -> Self {
        Self::Elf(error)
    }
}

/// An x86 ELF file of either class.
pub fn parse_elf(image: &[u8]) -> Result<ElfBytes<'_, LittleEndian>, ProgramError> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(image)?;
    match file.ehdr.e_machine {
        EM_386 | EM_X86_64 => Ok(file),
        machine => Err(ProgramError::Machine(machine)),
    }
}

/// What the note of this kind says, if the file has one. The name is with its NUL.
#[cfg(any(feature = "pvh", feature = "hermit"))]
pub fn note<'a>(
    file: &ElfBytes<'a, LittleEndian>,
    name: &[u8],
    kind: u64,
) -> Result<Option<&'a [u8]>, ParseError> {
    for header in file.segments().into_iter().flatten().filter(|header| header.p_type == PT_NOTE) {
        // Notes are aligned to 4 bytes whatever the segment says, but for those in segments aligned to 8.
        let alignment = if header.p_align == 8 { 8 } else { 4 };
        let notes = NoteIterator::new(LittleEndian, file.ehdr.class, alignment, file.segment_data(&header)?);
        for note in notes {
            match note {
                Note::Unknown(note) if note.name == name && note.n_type == kind => {
                    return Ok(Some(note.desc));
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

impl<'a> Program<'a> {
    /// What an ELF file's program headers say.
    pub fn from_elf(file: &ElfBytes<'a, LittleEndian>) -> Result<Self, ProgramError> {
        let mut segments = Vec::new();
        let headers = file.segments().into_iter().flatten();
        for header in headers.filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0) {
            let (address, in_file, in_memory) = (header.p_paddr, header.p_filesz, header.p_memsz);
            if in_file > in_memory {
                return Err(ProgramError::SegmentSize { address, in_file, in_memory });
            }
            segments.push(Segment {
                address,
                bytes: file.segment_data(&header)?,
                len: in_memory,
                virtual_address: header.p_vaddr,
            });
        }
        Self::new(segments)
    }

    /// These pieces.
    pub fn new(segments: Vec<Segment<'a>>) -> Result<Self, ProgramError> {
        if segments.is_empty() { Err(ProgramError::NoSegments) } else { Ok(Self { segments }) }
    }

    /// Its first byte.
    #[cfg(any(feature = "multiboot", feature = "hermit"))]
    pub fn start(&self) -> u64 {
        self.segments.iter().map(|segment| segment.address).min().unwrap_or(0)
    }

    /// Behind its last byte.
    pub fn end(&self) -> u64 {
        let ends = self.segments.iter().map(|segment| segment.address.saturating_add(segment.len));
        ends.max().unwrap_or(0)
    }

    /// The same, so that it starts at `start`.
    #[cfg(any(feature = "multiboot", feature = "hermit"))]
    pub fn moved_to(mut self, start: u64) -> Self {
        let old = self.start();
        for segment in &mut self.segments {
            // Addresses wrap only where the check finds them outside of memory.
            segment.address = segment.address.wrapping_sub(old).wrapping_add(start);
        }
        self
    }

    /// Whether a byte of it lies at `address`.
    pub fn holds(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| contains(segment.address, segment.len, address))
    }

    /// Where the byte lies that the kernel itself will see at `address`.
    #[cfg(feature = "multiboot")]
    pub fn physical(&self, address: u64) -> Option<u64> {
        let segment =
            self.segments.iter().find(|segment| contains(segment.virtual_address, segment.len, address))?;
        segment.address.checked_add(address.checked_sub(segment.virtual_address)?)
    }

    /// Checks that all of it lies in memory that ends at `memory_end`.
    pub fn check(&self, memory_end: u64) -> Result<(), ProgramError> {
        for &Segment { address, len, .. } in &self.segments {
            let end = address.checked_add(len).filter(|end| *end <= memory_end && address >= LOWEST_SEGMENT);
            end.ok_or(ProgramError::Segment { address, len, memory_end })?;
        }
        Ok(())
    }

    /// Puts it into memory, which is zeroed.
    pub fn write(&self, memory: &GuestMemory) -> Result<(), OutOfRange> {
        self.segments
            .iter()
            .try_for_each(|segment| memory.write(GuestPhys::new(segment.address), segment.bytes))
    }
}

fn contains(start: u64, len: u64, address: u64) -> bool {
    address.checked_sub(start).is_some_and(|offset| offset < len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn segment(address: u64, len: u64) -> Segment<'static> {
        Segment { address, bytes: b"text", len, virtual_address: address.wrapping_add(0xc000_0000) }
    }

    #[test]
    fn a_program_moves_as_a_whole() {
        let program = Program::new(vec![segment(2 * MIB, 0x100), segment(MIB, 0x2000)]).unwrap();
        assert_eq!((program.start(), program.end()), (MIB, 2 * MIB + 0x100));
        assert_eq!(program.physical(0xc010_1fff), Some(MIB + 0x1fff));
        assert_eq!(program.physical(0xc010_2000), None);
        let moved = program.moved_to(5 * MIB);
        assert_eq!((moved.start(), moved.end()), (5 * MIB, 6 * MIB + 0x100));
        assert!(moved.holds(6 * MIB) && !moved.holds(MIB));
        assert_eq!(moved.physical(0xc020_0000), Some(6 * MIB));
    }

    #[test]
    fn what_is_not_in_memory_is_refused() {
        let check = |address, len| Program::new(vec![segment(address, len)]).unwrap().check(8 * MIB);
        assert!(check(MIB, 7 * MIB).is_ok());
        for (address, len) in [(MIB, 7 * MIB + 1), (MIB - 1, 2), (u64::MAX - 1, 4), (8 * MIB, 1)] {
            assert!(matches!(check(address, len), Err(ProgramError::Segment { .. })), "{address:#x}");
        }
        assert!(matches!(Program::new(vec![]), Err(ProgramError::NoSegments)));
    }
}
