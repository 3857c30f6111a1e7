//! PVH: an ELF kernel with a Xen note that names its 32-bit entry
//! (xen/include/public/arch-x86/hvm/start_info.h).

use super::first_megabyte::{COMMAND_LINE, COMMAND_LINE_MAX, START_INFO, START_INFO_MAX, write_command_line};
use super::memory_map::{E820Entry, MemoryMap, PAGE_SIZE};
use super::program::{Program, ProgramError, note, parse_elf};
use super::{Images, Module};
use crate::cpu::{CpuState, Gpr};
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use alloc::vec::Vec;
use core::fmt;
use elf::ElfBytes;
use elf::endian::LittleEndian;
use elf::parse::ParseError;

/// XEN_ELFNOTE_PHYS32_ENTRY: the physical address of the entry in protected mode.
const PHYS32_ENTRY: u64 = 18;
const XEN: &[u8] = b"Xen\0";

/// `hvm_start_info.magic`: "xEn3", the highest bit of its E set.
const START_INFO_MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const START_INFO_VERSION: u32 = 1;
const START_INFO_SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;
const MEMORY_MAP_ENTRY_SIZE: u64 = 24;

/// Why a PVH kernel cannot be started.
#[derive(Debug)]
pub enum PvhError {
    /// The file cannot be loaded.
    Program(ProgramError),
    /// No note names a PVH entry.
    NoEntry,
    /// The note that names the entry has the wrong length.
    EntryLength(usize),
    /// The entry lies in no segment.
    Entry(u64),
    /// The command line is longer than there is room for.
    CommandLineTooLong(usize),
    /// A ramdisk or module does not fit above the kernel and below those before it.
    NotEnoughMemory {
        /// Its length in bytes.
        module: u64,
        /// What is left, in bytes.
        found: u64,
    },
    /// Module list, command lines and memory map are longer than there is room for; both in bytes.
    StartInfoTooLong(usize),
    /// A structure does not fit into the guest's memory.
    Memory(OutOfRange),
}

impl fmt::Display for PvhError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(error) => error.fmt(f),
            Self::NoEntry => f.write_str("the ELF file names no PVH entry; expected a Xen note of type 18"),
            Self::EntryLength(found) => {
                write!(f, "the Xen note of type 18 has {found} bytes, expected an address of 4 or 8")
            }
            Self::Entry(entry) => write!(f, "the PVH entry {entry:#x} lies in nothing that is loaded"),
            Self::CommandLineTooLong(found) => {
                write!(f, "the command line has {found} bytes, expected at most {COMMAND_LINE_MAX}")
            }
            Self::NotEnoughMemory { module, found } => write!(
                f,
                "a ramdisk or module has {module} bytes, and the guest has {found} left above its kernel and \
                 below 2 GiB"
            ),
            Self::StartInfoTooLong(found) => {
                write!(f, "the modules' command lines need {found} bytes, expected at most {START_INFO_MAX}")
            }
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

impl From<ProgramError> for PvhError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

impl From<ParseError> for PvhError {
    fn from(error: ParseError) -> Self {
        Self::Program(error.into())
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
    let file = parse_elf(images.kernel)?;
    let entry = entry(&file)?;
    let program = Program::from_elf(&file)?;
    program.check(map.low_end())?;
    if !program.holds(entry) {
        return Err(PvhError::Entry(entry));
    }
    if images.bootargs.len() > COMMAND_LINE_MAX {
        return Err(PvhError::CommandLineTooLong(images.bootargs.len()));
    }
    let modules = place(images, map, program.end())?;
    let info = start_info(&modules, &map.e820(), rsdp);
    if info.len() > START_INFO_MAX {
        return Err(PvhError::StartInfoTooLong(info.len()));
    }
    program.write(memory)?;
    for (at, module) in &modules {
        memory.write(GuestPhys::new(*at), module.image)?;
    }
    write_command_line(memory, COMMAND_LINE, images.bootargs)?;
    memory.write(START_INFO, &info)?;
    // The entry lies in memory below 4 GiB.
    let mut state = CpuState::flat_protected_mode(entry as u32);
    state.registers.set(Gpr::Rbx, START_INFO.get());
    Ok(state)
}

/// Where ramdisk and modules go: each as high as it can, above a kernel that ends at `kernel_end`.
fn place<'a>(
    images: &Images<'a>,
    map: &MemoryMap,
    kernel_end: u64,
) -> Result<Vec<(u64, Module<'a>)>, PvhError> {
    let mut limit = u64::MAX;
    let mut placed = Vec::new();
    for module in images.all_modules() {
        let len = module.image.len() as u64;
        let at = map.highest_place(len, limit).filter(|at| *at >= kernel_end);
        limit = at.ok_or(PvhError::NotEnoughMemory {
            module: len,
            found: map.low_end().min(limit).saturating_sub(kernel_end.next_multiple_of(PAGE_SIZE)),
        })?;
        placed.push((limit, module));
    }
    Ok(placed)
}

/// The entry that the file's notes name.
fn entry(file: &ElfBytes<LittleEndian>) -> Result<u64, PvhError> {
    match *note(file, XEN, PHYS32_ENTRY)?.ok_or(PvhError::NoEntry)? {
        [a, b, c, d] => Ok(u64::from(u32::from_le_bytes([a, b, c, d]))),
        [a, b, c, d, e, f, g, h] => Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        ref other => Err(PvhError::EntryLength(other.len())),
    }
}

/// The start info with its module list, memory map and modules' command lines behind it.
fn start_info(modules: &[(u64, Module)], e820: &[E820Entry], rsdp: GuestPhys) -> Vec<u8> {
    let list = START_INFO.get().saturating_add(START_INFO_SIZE);
    let memory_map = list.saturating_add(MODULE_SIZE.saturating_mul(modules.len() as u64));
    let mut text_at = memory_map.saturating_add(MEMORY_MAP_ENTRY_SIZE.saturating_mul(e820.len() as u64));
    let list_or_none = if modules.is_empty() { 0 } else { list };
    let mut info = Vec::new();
    let mut put32 = |fields: &[u32]| fields.iter().for_each(|field| info.extend(field.to_le_bytes()));
    put32(&[START_INFO_MAGIC, START_INFO_VERSION, 0, modules.len() as u32]);
    let mut put64 = |fields: &[u64]| fields.iter().for_each(|field| info.extend(field.to_le_bytes()));
    put64(&[list_or_none, COMMAND_LINE.get(), rsdp.get(), memory_map, e820.len() as u64]);
    for (at, module) in modules {
        let text = if module.bootargs.is_empty() { 0 } else { text_at };
        put64(&[*at, module.image.len() as u64, text, 0]);
        if text != 0 {
            text_at = text_at.saturating_add(module.bootargs.len() as u64).saturating_add(1);
        }
    }
    for entry in e820 {
        put64(&[entry.base.get(), entry.len, u64::from(entry.kind as u32)]);
    }
    for (_, module) in modules.iter().filter(|(_, module)| !module.bootargs.is_empty()) {
        info.extend(module.bootargs.bytes().chain([0]));
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{bytes, machine};
    use alloc::vec;
    use elf::abi::{EM_X86_64, PT_LOAD, PT_NOTE};

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
    fn modules_follow_the_ramdisk_with_their_command_lines() {
        let (memory, map) = machine(4 * MIB);
        let modules = [
            Module { image: b"first", bootargs: "one 1" },
            Module { image: &[3; 4096], bootargs: "" },
            Module { image: b"", bootargs: "empty" },
        ];
        let images = Images { kernel: &good(), ramdisk: Some(b"disk"), modules: &modules, bootargs: "" };
        let info = load(&memory, &map, &images, RSDP).unwrap().registers.get(Gpr::Rbx);
        let u64_at = |at| memory.read_u64(GuestPhys::new(at)).unwrap();
        assert_eq!(memory.read_u32(GuestPhys::new(info + 12)), Ok(4));
        let list = u64_at(info + 16);
        let found: Vec<_> = (0..4)
            .map(|number| {
                let [at, len, text] = [0, 8, 16].map(|offset| u64_at(list + 32 * number + offset));
                (bytes(&memory, at, len as usize), if text == 0 { vec![] } else { bytes(&memory, text, 6) })
            })
            .collect();
        let expected: [(&[u8], &[u8]); 4] =
            [(b"disk", b""), (b"first", b"one 1\0"), (&[3; 4096], b""), (b"", b"empty\0")];
        assert_eq!(found, expected.map(|(image, text)| (image.to_vec(), text.to_vec())));
        assert_eq!(u64_at(u64_at(info + 40)), 0, "the memory map is where it says");

        let long = "x".repeat(START_INFO_MAX);
        let images = Images { modules: &[Module { image: b"", bootargs: &long }], ..images };
        assert!(matches!(load(&memory, &map, &images, RSDP), Err(PvhError::StartInfoTooLong(_))));
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
            "the kernel file loads 4096 bytes to 0x80000, expected memory from 0x100000 to 0x400000"
        );
        assert_eq!(
            alloc::format!("{}", start(&good(), Some(&vec![1; 3 << 20])).err().unwrap()),
            "a ramdisk or module has 3145728 bytes, and the guest has 2093056 left above its kernel and below 2 GiB"
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
