//! PVH: an ELF kernel with a Xen note that names its 32-bit entry
//! (xen/include/public/arch-x86/hvm/start_info.h).

use super::Images;
use super::first_megabyte::{COMMAND_LINE, COMMAND_LINE_MAX, START_INFO, write_command_line};
use super::memory_map::{E820Entry, MemoryMap, PAGE_SIZE};
use crate::cpu::{CpuState, Gpr};
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use alloc::vec::Vec;
use core::fmt;
use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::{Note, NoteIterator};
use elf::parse::ParseError;
use elf::segment::ProgramHeader;

/// XEN_ELFNOTE_PHYS32_ENTRY: the physical address of the entry in protected mode.
const PHYS32_ENTRY: u64 = 18;
const XEN: &[u8] = b"Xen\0";

/// `hvm_start_info.magic`: "xEn3", the highest bit of its E set.
const START_INFO_MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const START_INFO_VERSION: u32 = 1;
const START_INFO_SIZE: u64 = 56;
/// The one entry of the module list follows the start info, then comes the memory map.
const MODULE_SIZE: u64 = 32;

/// The lowest address for a segment: below lies what the monitor writes.
const LOWEST_SEGMENT: u64 = 0x10_0000;

/// Why a PVH kernel cannot be started.
#[derive(Debug)]
pub enum PvhError {
    /// The file is not an ELF file, or is cut off.
    Elf(ParseError),
    /// An ELF file for another machine.
    Machine(u16),
    /// No note names a PVH entry.
    NoEntry,
    /// The note that names the entry has the wrong length.
    EntryLength(usize),
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
    /// The entry lies in no segment.
    Entry(u64),
    /// The command line is longer than there is room for.
    CommandLineTooLong(usize),
    /// The ramdisk does not fit above the kernel.
    NotEnoughMemory {
        /// The ramdisk's length in bytes.
        ramdisk: u64,
        /// What is left above the kernel, in bytes.
        found: u64,
    },
    /// A structure does not fit into the guest's memory.
    Memory(OutOfRange),
}

impl fmt::Display for PvhError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => write!(f, "the file is not a whole ELF file: {error}"),
            Self::Machine(machine) => {
                write!(f, "the ELF file is for machine {machine}, expected x86 ({EM_386} or {EM_X86_64})")
            }
            Self::NoEntry => f.write_str("the ELF file names no PVH entry; expected a Xen note of type 18"),
            Self::EntryLength(found) => {
                write!(f, "the Xen note of type 18 has {found} bytes, expected an address of 4 or 8")
            }
            Self::NoSegments => f.write_str("the ELF file has nothing to load"),
            Self::Segment { address, len, memory_end } => write!(
                f,
                "the ELF file loads {len} bytes to {address:#x}, expected memory from {LOWEST_SEGMENT:#x} to \
                 {memory_end:#x}"
            ),
            Self::SegmentSize { address, in_file, in_memory } => write!(
                f,
                "the ELF segment at {address:#x} has {in_file} bytes in the file, more than the {in_memory} \
                 that it has in memory"
            ),
            Self::Entry(entry) => write!(f, "the PVH entry {entry:#x} lies in nothing that is loaded"),
            Self::CommandLineTooLong(found) => {
                write!(f, "the command line has {found} bytes, expected at most {COMMAND_LINE_MAX}")
            }
            Self::NotEnoughMemory { ramdisk, found } => write!(
                f,
                "the ramdisk has {ramdisk} bytes, and the guest has {found} above its kernel and below 2 GiB"
            ),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PvhError {}

impl From<OutOfRange> for PvhError {
    fn from(error: OutOfRange) -> Self {
        Self::Memory(error)
    }
}

impl From<ParseError> for PvhError {
    fn from(error: ParseError) -> Self {
        Self::Elf(error)
    }
}

/// Puts the kernel with everything it needs into `memory`, which is laid out as `map` says and zeroed, and
/// gives the state of its first CPU. `rsdp` is where the ACPI tables begin.
pub fn load(
    memory: &GuestMemory,
    map: &MemoryMap,
    images: &Images,
    rsdp: GuestPhys,
) -> Result<CpuState, PvhError> {
    let kernel = Kernel::parse(images.kernel, map.low_end())?;
    if images.bootargs.len() > COMMAND_LINE_MAX {
        return Err(PvhError::CommandLineTooLong(images.bootargs.len()));
    }
    let module = images.ramdisk.map(|ramdisk| kernel.place(map, ramdisk)).transpose()?;
    for (at, bytes) in kernel.segments.iter().copied().chain(module) {
        memory.write(GuestPhys::new(at), bytes)?;
    }
    write_command_line(memory, COMMAND_LINE, images.bootargs)?;
    let module = module.map(|(at, bytes)| (at, bytes.len() as u64));
    memory.write(START_INFO, &start_info(module, &map.e820(), rsdp))?;
    let mut state = CpuState::flat_protected_mode(kernel.entry);
    state.registers.set(Gpr::Rbx, START_INFO.get());
    Ok(state)
}

/// An ELF file that has been checked.
struct Kernel<'a> {
    /// What is loaded, with its guest-physical address.
    segments: Vec<(u64, &'a [u8])>,
    /// Behind the last byte of any segment.
    end: u64,
    entry: u32,
}

impl<'a> Kernel<'a> {
    fn parse(image: &'a [u8], memory_end: u64) -> Result<Self, PvhError> {
        let file = ElfBytes::<LittleEndian>::minimal_parse(image)?;
        if ![EM_386, EM_X86_64].contains(&file.ehdr.e_machine) {
            return Err(PvhError::Machine(file.ehdr.e_machine));
        }
        let headers = || file.segments().into_iter().flatten();
        let mut entry = None;
        for header in headers().filter(|header| header.p_type == PT_NOTE) {
            entry = entry.or(find_entry(&file, &header)?);
        }
        let entry = entry.ok_or(PvhError::NoEntry)?;
        let mut kernel = Self { segments: Vec::new(), end: 0, entry: entry as u32 };
        let mut holds_entry = false;
        for header in headers().filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0) {
            kernel.end = kernel.end.max(check_segment(&header, memory_end)?);
            kernel.segments.push((header.p_paddr, file.segment_data(&header)?));
            holds_entry |= entry.checked_sub(header.p_paddr).is_some_and(|offset| offset < header.p_memsz);
        }
        if kernel.segments.is_empty() {
            return Err(PvhError::NoSegments);
        }
        if !holds_entry {
            return Err(PvhError::Entry(entry));
        }
        Ok(kernel)
    }

    /// Where the ramdisk goes: as high as it can.
    fn place<'r>(&self, map: &MemoryMap, ramdisk: &'r [u8]) -> Result<(u64, &'r [u8]), PvhError> {
        let len = ramdisk.len() as u64;
        match map.highest_place(len, u64::MAX).filter(|at| *at >= self.end) {
            Some(at) => Ok((at, ramdisk)),
            None => Err(PvhError::NotEnoughMemory {
                ramdisk: len,
                found: map.low_end().saturating_sub(self.end.next_multiple_of(PAGE_SIZE)),
            }),
        }
    }
}

/// The entry that a note segment names, if it does.
fn find_entry(file: &ElfBytes<LittleEndian>, header: &ProgramHeader) -> Result<Option<u64>, PvhError> {
    // Notes are aligned to 4 bytes whatever the segment says, but for those in segments aligned to 8.
    let alignment = if header.p_align == 8 { 8 } else { 4 };
    let notes = NoteIterator::new(LittleEndian, file.ehdr.class, alignment, file.segment_data(header)?);
    for note in notes {
        match note {
            Note::Unknown(note) if note.name == XEN && note.n_type == PHYS32_ENTRY => {
                let address = match *note.desc {
                    [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
                    [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                    _ => return Err(PvhError::EntryLength(note.desc.len())),
                };
                return Ok(Some(address));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Checks that a segment lies in memory, and gives its end.
fn check_segment(header: &ProgramHeader, memory_end: u64) -> Result<u64, PvhError> {
    let (address, in_file, in_memory) = (header.p_paddr, header.p_filesz, header.p_memsz);
    if in_file > in_memory {
        return Err(PvhError::SegmentSize { address, in_file, in_memory });
    }
    let end = address.checked_add(in_memory).filter(|end| *end <= memory_end && address >= LOWEST_SEGMENT);
    end.ok_or(PvhError::Segment { address, len: in_memory, memory_end })
}

/// The start info with its module list and memory map behind it.
fn start_info(module: Option<(u64, u64)>, e820: &[E820Entry], rsdp: GuestPhys) -> Vec<u8> {
    let modules = START_INFO.get().saturating_add(START_INFO_SIZE);
    let memory_map = modules.saturating_add(MODULE_SIZE);
    let (ramdisk, ramdisk_len) = module.unwrap_or((0, 0));
    let mut info = Vec::new();
    let mut put32 = |fields: &[u32]| fields.iter().for_each(|field| info.extend(field.to_le_bytes()));
    put32(&[START_INFO_MAGIC, START_INFO_VERSION, 0, module.is_some().into()]);
    let mut put64 = |fields: &[u64]| fields.iter().for_each(|field| info.extend(field.to_le_bytes()));
    put64(&[modules, COMMAND_LINE.get(), rsdp.get(), memory_map, e820.len() as u64]);
    // The module has no command line of its own.
    put64(&[ramdisk, ramdisk_len, 0, 0]);
    for entry in e820 {
        put64(&[entry.base.get(), entry.len, u64::from(entry.kind as u32)]);
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{bytes, machine};
    use alloc::vec;

    const MIB: u64 = 1 << 20;
    const RSDP: GuestPhys = GuestPhys::new(0xe_0000);
    const TEXT: &[u8] = b"code of a tiny kernel";
    const NOTE_OFFSET: usize = 64 + 2 * 56;

    /// A 64-bit ELF file with a note and one segment at 2 MiB whose memory is a page.
    fn image(machine: u16, entry: u32) -> Vec<u8> {
        let mut image = Vec::new();
        let note = [
            &4_u32.to_le_bytes()[..],
            &4_u32.to_le_bytes(),
            &18_u32.to_le_bytes(),
            XEN,
            &entry.to_le_bytes(),
        ];
        let note = note.concat();
        image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        image.extend([2_u16, machine].map(u16::to_le_bytes).as_flattened());
        image.extend(1_u32.to_le_bytes());
        image.extend([0x20_0000_u64, 64, 0].map(u64::to_le_bytes).as_flattened());
        image.extend(0_u32.to_le_bytes());
        image.extend([64_u16, 56, 2, 64, 0, 0].map(u16::to_le_bytes).as_flattened());
        let text_offset = (NOTE_OFFSET + note.len()) as u64;
        for (kind, offset, address, len, memory) in [
            (PT_NOTE, NOTE_OFFSET as u64, 0, note.len() as u64, note.len() as u64),
            (PT_LOAD, text_offset, 2 * MIB, TEXT.len() as u64, 4096),
        ] {
            image.extend([kind, 5].map(u32::to_le_bytes).as_flattened());
            image.extend([offset, address, address, len, memory, 4].map(u64::to_le_bytes).as_flattened());
        }
        image.extend(note);
        image.extend(TEXT);
        image
    }

    fn good() -> Vec<u8> {
        image(EM_X86_64, 0x20_0010)
    }

    fn start(kernel: &[u8], ramdisk: Option<&[u8]>) -> Result<(GuestMemory, CpuState), PvhError> {
        let (memory, map) = machine(4 * MIB);
        let images = Images { kernel, ramdisk, modules: &[], bootargs: "verbose" };
        load(&memory, &map, &images, RSDP).map(|state| (memory, state))
    }

    #[test]
    fn a_kernel_finds_its_start_info() {
        let (memory, state) = start(&good(), Some(&[9; 5000])).unwrap();
        assert_eq!(bytes(&memory, 2 * MIB, TEXT.len() + 1), [TEXT, &[0]].concat());
        assert_eq!(state.registers.rip, 0x20_0010);
        assert_eq!(state.control.cr0 & !0x10, 1);
        let info = state.registers.get(Gpr::Rbx);
        let u32_at = |at| memory.read_u32(GuestPhys::new(at)).unwrap();
        let u64_at = |at| memory.read_u64(GuestPhys::new(at)).unwrap();
        assert_eq!([info, info + 4, info + 8, info + 12].map(u32_at), [START_INFO_MAGIC, 1, 0, 1]);
        let module = u64_at(info + 16);
        assert_eq!(u64_at(module), 4 * MIB - 8192);
        assert_eq!(u64_at(module + 8), 5000);
        assert_eq!(bytes(&memory, 4 * MIB - 8192, 5001), [&[9; 5000][..], &[0]].concat());
        assert_eq!(bytes(&memory, u64_at(info + 24), 8), b"verbose\0");
        assert_eq!(u64_at(info + 32), RSDP.get());
        let (map, entries) = (u64_at(info + 40), u32_at(info + 48));
        assert_eq!((entries, u32_at(info + 52)), (4, 0));
        assert_eq!([map + 48, map + 56].map(u64_at), [MIB, 3 * MIB]);
        assert_eq!(u32_at(map + 64), 1);
    }

    #[test]
    fn a_kernel_without_ramdisk_gets_no_module() {
        let (memory, state) = start(&good(), None).unwrap();
        let info = state.registers.get(Gpr::Rbx);
        assert_eq!(memory.read_u32(GuestPhys::new(info + 12)), Ok(0));
    }

    #[test]
    fn errors_say_what_was_found_and_expected() {
        let error = |image: &[u8]| alloc::format!("{}", start(image, None).err().unwrap());
        assert!(error(b"MZ").contains("not a whole ELF file"));
        assert_eq!(error(&image(40, 0x20_0010)), "the ELF file is for machine 40, expected x86 (3 or 62)");
        assert_eq!(
            error(&image(EM_X86_64, 0x30_0000)),
            "the PVH entry 0x300000 lies in nothing that is loaded"
        );
        let mut without = good();
        without[NOTE_OFFSET + 8] = 17;
        assert_eq!(error(&without), "the ELF file names no PVH entry; expected a Xen note of type 18");
        let mut low = good();
        // The address of the second program header: 2 MiB becomes 512 KiB.
        low[64 + 56 + 24 + 2] = 8;
        assert_eq!(
            error(&low),
            "the ELF file loads 4096 bytes to 0x80000, expected memory from 0x100000 to 0x400000"
        );
        assert_eq!(
            alloc::format!("{}", start(&good(), Some(&vec![1; 3 << 20])).err().unwrap()),
            "the ramdisk has 3145728 bytes, and the guest has 2093056 above its kernel and below 2 GiB"
        );
    }

    #[test]
    fn every_truncation_is_an_error() {
        let image = good();
        for len in 0..image.len() {
            assert!(start(&image[..len], None).is_err(), "{len} bytes of {} loaded", image.len());
        }
    }

    proptest::proptest! {
        #[test]
        fn a_mutated_file_never_panics(
            changes in proptest::collection::vec((0_usize..200, proptest::num::u8::ANY), 1..8),
        ) {
            let mut image = good();
            for (offset, value) in changes {
                image[offset] = value;
            }
            let _ = start(&image, Some(&[1; 100]));
        }
    }
}
