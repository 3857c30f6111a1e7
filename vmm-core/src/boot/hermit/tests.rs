// Unsafe because hermit-entry reads what a loader tells by its own type, with a pointer to it.
#![allow(unsafe_code)]

use super::*;
use crate::boot::Module;
use crate::boot::testing::{bytes, machine};
use alloc::vec;
use elf::abi::{EM_X86_64, ET_EXEC, PT_LOAD, PT_NOTE};
use hermit_entry::boot_info::{BootInfo, PlatformInfo, RawBootInfo};

const MIB: u64 = 1 << 20;
const RSDP: GuestPhys = GuestPhys::new(0xe_0040);
const HEADERS: u64 = 64 + 4 * 56;
const NOTE_AT: usize = HEADERS as usize;
const DYNAMIC_AT: u64 = HEADERS + 24;
const RELA_AT: u64 = DYNAMIC_AT + 4 * 16;
const SYMBOLS_AT: u64 = RELA_AT + 4 * 24;
/// Four words that are relocated.
const WORDS_AT: u64 = SYMBOLS_AT + 3 * 24;
const IN_FILE: u64 = WORDS_AT + 4 * 8;
const IN_MEMORY: u64 = IN_FILE + 0x3000;

fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.map(u64::to_le_bytes).as_flattened().to_vec()
}

/// A 64-bit ELF file, all of it one segment at `base`: note, dynamic table, relocations, symbols, words.
fn image(kind: u16, base: u64) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01\xff\0\0\0\0\0\0\0\0".to_vec();
    image.extend([kind, EM_X86_64].map(u16::to_le_bytes).as_flattened());
    image.extend(1_u32.to_le_bytes());
    image.extend(words([base + WORDS_AT, 64, 0]));
    image.extend(0_u32.to_le_bytes());
    image.extend([64_u16, 56, 4, 64, 0, 0].map(u16::to_le_bytes).as_flattened());
    for (kind, at, len, memory, align) in [
        (PT_LOAD, 0, IN_FILE, IN_MEMORY, 0x1000),
        (PT_NOTE, HEADERS, 21, 21, 4),
        (PT_DYNAMIC, DYNAMIC_AT, 64, 64, 8),
        (PT_TLS, WORDS_AT, 16, 40, 32),
    ] {
        image.extend([kind, 7].map(u32::to_le_bytes).as_flattened());
        image.extend(words([at, base + at, base + at, len, memory, align]));
    }
    image.extend([7_u32, 1, 0x5a00].map(u32::to_le_bytes).as_flattened());
    image.extend(b"HERMIT\0\0\x04\0\0\0");
    let (rela, size, symbols) = (DT_RELA as u64, DT_RELASZ as u64, DT_SYMTAB as u64);
    image.extend(words([rela, base + RELA_AT, size, 4 * 24, symbols, base + SYMBOLS_AT, 0, 0]));
    let places = [0, 8, 16, 24].map(|word| base + WORDS_AT + word);
    let kinds = [8, 1 << 32 | 1, 2 << 32 | 6, 1 << 32 | 6];
    for ((place, kind), addend) in places.into_iter().zip(kinds).zip([0x123, 5, 0, 0]) {
        image.extend(words([place, kind, addend]));
    }
    // No symbol, one in a section, and one that may be missing.
    image.extend(words([0, 0, 0, 1 << 48 | 0x10 << 32, 0x1000, 8, 0x20 << 32, 0, 0]));
    image.extend(words([0, 0, 0, 0]));
    image
}

fn start(kernel: &[u8]) -> Result<(GuestMemory, CpuState), HermitError> {
    let (memory, map) = machine(8 * MIB);
    let images = Images { kernel, ramdisk: None, modules: &[], bootargs: "-freq 2000 -- hello" };
    load(&memory, &map, &images, RSDP).map(|state| (memory, state))
}

/// What the kernel reads at RDI.
fn told(memory: &GuestMemory, state: &CpuState) -> BootInfo {
    let bytes = bytes(memory, state.registers.get(Gpr::Rdi), size_of::<RawBootInfo>());
    assert_eq!(boot_info_size(), bytes.len());
    // SAFETY: as many bytes as it has, in the layout that the crate promises to kernels; unaligned.
    BootInfo::from(unsafe { bytes.as_ptr().cast::<RawBootInfo>().read_unaligned() })
}

fn boot_info_size() -> usize {
    let image = image(ET_DYN, 0);
    let file = parse_elf(&image).unwrap();
    boot_info(&file, &Program::from_elf(&file).unwrap(), 0).len()
}

#[test]
fn hermit_reads_what_it_is_told() {
    let (memory, state) = start(&image(ET_DYN, 0)).unwrap();
    assert_eq!(state.registers.rip, KERNEL + WORDS_AT);
    assert_eq!((state.registers.get(Gpr::Rsi), state.registers.get(Gpr::Rsp)), (0, STACK));
    let BootInfo { hardware_info, load_info, platform_info } = told(&memory, &state);
    assert_eq!(hardware_info.serial_port_base.unwrap().get(), 0x3f8);
    assert_eq!(load_info.kernel_image_addr_range, KERNEL..KERNEL + IN_MEMORY);
    let tls = load_info.tls_info.unwrap();
    assert_eq!([tls.start, tls.filesz, tls.memsz, tls.align], [KERNEL + WORDS_AT, 16, 40, 32]);
    assert!(matches!(platform_info, PlatformInfo::Fdt));

    let blob = bytes(&memory, hardware_info.device_tree.unwrap().get(), TREE_MAX);
    let tree = fdt::Fdt::new(&blob).unwrap();
    assert_eq!(tree.chosen().bootargs(), Some("-freq 2000 -- hello"));
    let memory = tree.find_all_nodes("/memory").flat_map(|node| node.reg().unwrap());
    let memory: Vec<_> = memory.map(|range| (range.starting_address as u64, range.size)).collect();
    assert_eq!(memory, [(0, Some(0xa_0000)), (MIB, Some(7 << 20))]);
    let rsdp = tree.find_node("/hermit,rsdp").unwrap().reg().unwrap().next().unwrap();
    assert_eq!(rsdp.starting_address as u64, RSDP.get());
}

#[test]
fn a_kernel_that_runs_anywhere_is_relocated() {
    let (memory, _) = start(&image(ET_DYN, 0)).unwrap();
    let found = [0, 8, 16, 24].map(|word| memory.read_u64(GuestPhys::new(KERNEL + WORDS_AT + word)).unwrap());
    assert_eq!(found, [KERNEL + 0x123, KERNEL + 0x1005, 0, KERNEL + 0x1000]);
    // Linked to another place than zero, it moves all the same.
    let (memory, state) = start(&image(ET_DYN, 0x4000)).unwrap();
    assert_eq!(state.registers.rip, KERNEL + WORDS_AT);
    let moved = memory.read_u64(GuestPhys::new(KERNEL + WORDS_AT)).unwrap();
    assert_eq!(moved, (KERNEL + 0x123).wrapping_sub(0x4000));
}

#[test]
fn a_kernel_with_a_place_of_its_own_stays_there() {
    let (memory, state) = start(&image(ET_EXEC, 4 * MIB)).unwrap();
    assert_eq!(state.registers.rip, 4 * MIB + WORDS_AT);
    assert_eq!(memory.read_u64(GuestPhys::new(4 * MIB + WORDS_AT)), Ok(0));
    assert_eq!(told(&memory, &state).load_info.kernel_image_addr_range.start, 4 * MIB);
}

#[test]
fn the_ramdisk_lies_at_the_top_and_the_tree_says_where() {
    let (memory, map) = machine(8 * MIB);
    let kernel = image(ET_DYN, 0);
    let images = Images { kernel: &kernel, ramdisk: Some(&[7; 5000]), modules: &[], bootargs: "" };
    load(&memory, &map, &images, RSDP).unwrap();
    let blob = bytes(&memory, TREE.get(), TREE_MAX);
    let tree = fdt::Fdt::new(&blob).unwrap();
    let chosen = tree.find_node("/chosen").unwrap();
    let at = |name| chosen.property(name).unwrap().as_usize().unwrap() as u64;
    assert_eq!((at("linux,initrd-start"), at("linux,initrd-end")), (8 * MIB - 8192, 8 * MIB - 8192 + 5000));
    assert_eq!(bytes(&memory, 8 * MIB - 8192, 5001), [&[7; 5000][..], &[0]].concat());

    for (ramdisk, modules) in
        [(vec![0; 7 << 20], vec![]), (vec![], vec![Module { image: b"module", bootargs: "" }])]
    {
        let images = Images { ramdisk: Some(&ramdisk), modules: &modules, ..images };
        assert!(matches!(load(&memory, &map, &images, RSDP), Err(HermitError::Ramdisk)));
    }
}

#[test]
fn errors_say_what_was_found_and_expected() {
    let error = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = image(ET_DYN, 0);
        change(&mut image);
        alloc::format!("{}", start(&image).err().unwrap())
    };
    let version = "the kernel wants Hermit entry version Some(5), expected 4";
    assert_eq!(error(&|image| image[NOTE_AT + 20] = 5), version);
    let no_note = "the file has no Hermit note; expected a 64-bit ELF file with one";
    assert_eq!(error(&|image| image[NOTE_AT + 12] = b'X'), no_note);
    let kind = "the kernel has a relocation of unknown type 7";
    assert_eq!(error(&|image| image[RELA_AT as usize + 8] = 7), kind);
    let entry =
        alloc::format!("the entry {:#x} lies in nothing that is loaded", 0x7f00_0000 + KERNEL + WORDS_AT);
    assert_eq!(error(&|image| image[24 + 3] = 0x7f), entry);
    assert!(error(&|image| image.truncate(100)).contains("not a whole ELF file"));
    let (memory, map) = machine(8 * MIB);
    let (kernel, line) = (image(ET_DYN, 0), "x".repeat(TREE_MAX));
    let images = Images { kernel: &kernel, ramdisk: None, modules: &[], bootargs: &line };
    assert!(matches!(load(&memory, &map, &images, RSDP), Err(HermitError::TreeTooLong(_))));
}

proptest::proptest! {
    #[test]
    fn a_mutated_file_never_panics(
        changes in proptest::collection::vec((0_usize..IN_FILE as usize, proptest::num::u8::ANY), 1..8),
    ) {
        let mut image = image(ET_DYN, 0);
        for (offset, value) in changes {
            image[offset] = value;
        }
        let _ = start(&image);
    }
}
