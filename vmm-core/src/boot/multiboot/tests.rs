use super::*;
use crate::boot::testing::{bytes, machine};
use elf::abi::{EM_386, PT_LOAD};

const MIB: u64 = 1 << 20;
const RSDP: GuestPhys = GuestPhys::new(0xe_0000);
/// Where the test kernels' headers begin in their files.
const HEADER_AT: usize = 0x80;
const SYMBOLS: &[u8] = b"sixteen symbols.";
const NAMES: &[u8] = b"\0.symtab\0";

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Multiboot 1's header with these flags and further fields.
fn header1(flags: u32, fields: &[u32]) -> Vec<u8> {
    let checksum = 0_u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    [words(&[0x1bad_b002, flags, checksum]), words(fields)].concat()
}

/// Multiboot 2's header with these tags and an end tag: type, flags, fields.
fn header2(tags: &[(u16, u16, &[u32])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, flags, fields) in tags.iter().copied().chain([(0, 0, &[][..])]) {
        let size = 8 + 4 * fields.len() as u32;
        body.extend(words(&[u32::from(flags) << 16 | u32::from(kind), size]));
        body.extend(words(fields));
        body.resize(body.len().next_multiple_of(8), 0);
    }
    let len = 16 + body.len() as u32;
    [words(&[0xe852_50d6, 0, len, 0_u32.wrapping_sub(0xe852_50d6).wrapping_sub(len)]), body].concat()
}

/// A 32-bit ELF file whose one segment is the whole file's start, at `at`, with a page more of zeros; the kernel
/// thinks that it lies at 3 GiB more. Its entry is its 16th byte. With symbols and names beside.
fn elf(header: &[u8], at: u32) -> Vec<u8> {
    let mut image = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend([2, EM_386].map(u16::to_le_bytes).as_flattened());
    let loaded = (HEADER_AT + header.len()) as u32;
    let sections_at = loaded + (SYMBOLS.len() + NAMES.len()) as u32;
    image.extend(words(&[1, at + 0xc000_0010, 52, sections_at, 0]));
    image.extend([52_u16, 32, 1, 40, 3, 2].map(u16::to_le_bytes).as_flattened());
    image.extend(words(&[PT_LOAD, 0, at + 0xc000_0000, at, loaded, loaded + 4096, 5, 16]));
    image.resize(HEADER_AT, 0x90);
    image.extend(header);
    image.extend([SYMBOLS, NAMES].concat());
    image.extend([0; 40]);
    image.extend(words(&[1, 2, 0, 0, loaded, SYMBOLS.len() as u32, 2, 0, 64, 16]));
    image.extend(words(&[0, 3, 0, 0, loaded + SYMBOLS.len() as u32, NAMES.len() as u32, 0, 0, 1, 0]));
    image
}

fn start_with(
    version: Version,
    kernel: &[u8],
    modules: &[Module],
) -> Result<(GuestMemory, CpuState), MultibootError> {
    let (memory, map) = machine(4 * MIB);
    memory.write(RSDP, b"RSD PTR and so on").unwrap();
    let images = Images { kernel, ramdisk: None, modules, bootargs: "verbose" };
    load(version, &memory, &map, &images, RSDP).map(|state| (memory, state))
}

fn start(version: Version, kernel: &[u8]) -> Result<(GuestMemory, CpuState), MultibootError> {
    start_with(version, kernel, &[])
}

fn error(version: Version, kernel: &[u8]) -> alloc::string::String {
    alloc::format!("{}", start(version, kernel).err().unwrap())
}

const MODULES: [Module; 2] =
    [Module { image: &[7; 5000], bootargs: "first one" }, Module { image: b"second", bootargs: "" }];

fn u32_at(memory: &GuestMemory, at: u64) -> u64 {
    memory.read_u32(GuestPhys::new(at)).unwrap().into()
}

fn text(memory: &GuestMemory, at: u64) -> alloc::string::String {
    let bytes = (at..).map(|at| memory.read_u8(GuestPhys::new(at)).unwrap()).take_while(|byte| *byte != 0);
    bytes.map(char::from).collect()
}

#[test]
fn a_multiboot_kernel_finds_what_its_loader_tells() {
    let kernel = elf(&header1(3, &[]), 0x10_0000);
    let (memory, state) = start_with(Version::One, &kernel, &MODULES).unwrap();
    assert_eq!(state.registers.rip, 0x10_0010, "the entry is where the kernel sees it");
    assert_eq!(state.registers.get(Gpr::Rax), 0x2bad_b002);
    assert_eq!(bytes(&memory, MIB, HEADER_AT), kernel[..HEADER_AT]);
    let info = state.registers.get(Gpr::Rbx);
    let field = |offset| u32_at(&memory, info + offset);
    assert_eq!(field(0), 0x26d);
    assert_eq!([field(4), field(8)], [640, 3072]);
    assert_eq!(text(&memory, field(16)), "verbose");
    assert_eq!(text(&memory, field(64)), "Peerboot");

    assert_eq!(field(20), 2);
    let module = |number: u64, offset| u32_at(&memory, field(24) + 16 * number + offset);
    for (number, expected) in (0..).zip(MODULES) {
        assert_eq!(module(number, 0) % 4096, 0);
        assert_eq!(module(number, 4) - module(number, 0), expected.image.len() as u64);
        assert_eq!(bytes(&memory, module(number, 0), expected.image.len()), expected.image);
        assert_eq!(text(&memory, module(number, 8)), expected.bootargs);
    }
    let kernel_end = MIB + (HEADER_AT + 12) as u64 + 4096;
    assert!(module(0, 0) >= kernel_end, "the zeros behind the kernel stay free");

    let (mut at, end) = (field(48), field(48) + field(44));
    let mut map = Vec::new();
    while at < end {
        map.push([4, 12, 20].map(|offset| u32_at(&memory, at + offset)));
        at += 4 + u32_at(&memory, at);
    }
    assert_eq!(map[..3], [[0, 0xa_0000, 1], [0xe_0000, 0x2_0000, 2], [MIB, 3 * MIB, 1]]);

    assert_eq!([field(28), field(32), field(40)], [3, 40, 2]);
    let section = |number: u64, offset| u32_at(&memory, field(36) + 40 * number + offset);
    assert_eq!(bytes(&memory, section(1, 12), SYMBOLS.len()), SYMBOLS);
    assert_eq!(section(1, 12) % 64, 0);
    assert_eq!(bytes(&memory, section(2, 12), NAMES.len()), NAMES);
    assert!(section(1, 12) >= kernel_end && section(2, 12) < module(0, 0));
}

#[test]
fn a_multiboot2_kernel_finds_what_its_loader_tells() {
    let kernel = elf(&header2(&[(1, 0, &[1, 3, 6, 8, 9, 15]), (6, 0, &[])]), 0x10_0000);
    let (memory, state) = start_with(Version::Two, &kernel, &MODULES).unwrap();
    assert_eq!(state.registers.rip, 0x10_0010);
    assert_eq!(state.registers.get(Gpr::Rax), 0x36d7_6289);
    let info = state.registers.get(Gpr::Rbx);
    let (mut at, end) = (info + 8, info + u32_at(&memory, info));
    let mut tags = Vec::new();
    while at < end {
        let (kind, size) = (u32_at(&memory, at), u32_at(&memory, at + 4));
        tags.push((kind, at + 8, size - 8));
        at += size.next_multiple_of(8);
    }
    assert_eq!(at, end);
    let kinds: Vec<u64> = tags.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, [1, 2, 3, 3, 4, 6, 9, 15, 0]);
    let contents = |number: usize| tags[number].1;
    assert_eq!(text(&memory, contents(0)), "verbose");
    assert_eq!(tags[0].2, 8);
    assert_eq!(text(&memory, contents(1)), "Peerboot");
    for (tag, expected) in (2..).zip(MODULES) {
        let [start, end] = [0, 4].map(|offset| u32_at(&memory, contents(tag) + offset));
        assert_eq!(bytes(&memory, start, (end - start) as usize), expected.image);
        assert_eq!(text(&memory, contents(tag) + 8), expected.bootargs);
    }
    assert_eq!([0, 4].map(|offset| u32_at(&memory, contents(4) + offset)), [640, 3072]);
    assert_eq!(u32_at(&memory, contents(5)), 24);
    let third = contents(5) + 8 + 2 * 24;
    assert_eq!([0, 8, 16].map(|offset| u32_at(&memory, third + offset)), [MIB, 3 * MIB, 1]);
    assert_eq!([0, 4, 8].map(|offset| u32_at(&memory, contents(6) + offset)), [3, 40, 2]);
    let symbols = u32_at(&memory, contents(6) + 12 + 40 + 12);
    assert_eq!(bytes(&memory, symbols, SYMBOLS.len()), SYMBOLS);
    assert_eq!(bytes(&memory, contents(7), 17), b"RSD PTR and so on");
}

#[test]
fn addresses_in_the_header_make_any_file_a_kernel() {
    let mut raw = vec![0x90; 0x40];
    // Loaded from the file's 16th byte on to 2 MiB; the header would be at 2 MiB + 0x30.
    raw.extend(header1(1 << 16, &[0x20_0030, 0x20_0000, 0x20_0100, 0x20_1000, 0x20_0004]));
    raw.resize(0x200, 0x5a);
    let (memory, state) = start_with(Version::One, &raw, &MODULES).unwrap();
    assert_eq!(state.registers.rip, 0x20_0004);
    assert_eq!(bytes(&memory, 0x20_0000, 0x101), [&raw[0x10..0x110], &[0]].concat());
    let first_module = u32_at(&memory, u32_at(&memory, START_INFO.get() + 24));
    assert_eq!(first_module, 0x20_1000);
    assert_eq!(u32_at(&memory, START_INFO.get()) & 1 << 5, 0, "no sections");

    let mut raw = vec![0x90; 0x40];
    raw.extend(header2(&[(2, 0, &[0x20_0040, u32::MAX, 0, 0]), (3, 0, &[0x20_0000])]));
    let (memory, state) = start(Version::Two, &raw).unwrap();
    assert_eq!(state.registers.rip, 0x20_0000);
    assert_eq!(bytes(&memory, 0x20_0000, raw.len()), raw);
}

#[test]
fn addresses_must_agree_with_the_file() {
    let raw = |fields: [u32; 5]| {
        let mut raw = header1(1 << 16, &fields);
        raw.resize(0x200, 0);
        raw
    };
    assert!(start(Version::One, &raw([0x20_0000, 0x20_0000, 0, 0, 0x20_0000])).is_ok());
    for (fields, fault) in [
        ([0x20_0000, 0x20_0001, 0, 0, 0], "the header lies before what is loaded"),
        ([0x20_0004, 0x20_0000, 0, 0, 0], "more lies before the header than the file has there"),
        ([0x20_0000, 0x20_0000, 0x1f_0000, 0, 0], "it ends before it begins"),
        ([0x20_0000, 0x20_0000, 0x20_0201, 0, 0], "the file ends before what is loaded"),
        ([0x20_0000, 0x20_0000, 0, 0x20_0100, 0], "its zeros end before they begin"),
    ] {
        assert_eq!(
            error(Version::One, &raw(fields)),
            alloc::format!("the header's addresses are wrong: {fault}")
        );
    }
    assert_eq!(
        error(Version::One, &raw([0x20_0000, 0x20_0000, 0, 0, 0x20_0200])),
        "the entry 0x200200 lies in nothing that is loaded"
    );
    assert!(error(Version::One, &raw([0x8000, 0x8000, 0, 0, 0x8000])).contains("loads 512 bytes to 0x8000"));
    let no_entry = header2(&[(2, 0, &[0x20_0000, 0x20_0000, 0, 0])]);
    assert!(error(Version::Two, &no_entry).contains("not where it is entered"));
}

#[test]
fn a_relocatable_kernel_goes_where_there_is_memory() {
    let kernel =
        |lowest, highest, alignment, at| elf(&header2(&[(10, 0, &[lowest, highest, alignment, 0])]), at);
    let started = |kernel: &[u8]| {
        let (memory, state) = start(Version::Two, kernel).unwrap();
        let info = bytes(&memory, START_INFO.get(), 0x400);
        let base = info.windows(12).step_by(8).find(|tag| tag[..8] == [21, 0, 0, 0, 12, 0, 0, 0]);
        let base = u32::from_le_bytes(base.unwrap()[8..].try_into().unwrap());
        assert_eq!(bytes(&memory, base.into(), 4), b"\x7fELF");
        (u64::from(base), state.registers.rip)
    };
    assert_eq!(started(&kernel(0, u32::MAX, 4096, 0x20_0000)), (0x20_0000, 0x20_0010));
    assert_eq!(started(&kernel(0, u32::MAX, 0, 0x1000)), (0x10_0000, 0x10_0010));
    assert_eq!(started(&kernel(0x18_0001, u32::MAX, 0x1_0000, 0x3000_0000)), (0x19_0000, 0x19_0010));
    assert_eq!(
        error(Version::Two, &kernel(0, 0x10_1000, 4096, 0x20_0000)),
        "the kernel needs 4272 bytes of memory between 0x0 and 0x101000, and the guest has no such place"
    );
}

#[test]
fn what_is_not_understood_is_refused() {
    let tag = |kind, flags, fields: &[u32]| elf(&header2(&[(kind, flags, fields)]), 0x10_0000);
    assert_eq!(
        error(Version::One, &elf(&header1(0x8003, &[]), 0x10_0000)),
        "the Multiboot header asks for features 0x8003, expected no more than 0x7"
    );
    assert_eq!(
        error(Version::Two, &tag(11, 0, &[])),
        "the Multiboot2 header has a tag of type 11, which is neither known nor optional"
    );
    assert_eq!(
        error(Version::Two, &tag(1, 0, &[1, 22])),
        "the Multiboot2 header asks for information of type 22, which is not known"
    );
    assert!(error(Version::Two, &tag(4, 0, &[3])).contains("needs a console"));
    for optional in [tag(11, 1, &[]), tag(1, 1, &[22]), tag(4, 1, &[3]), tag(4, 0, &[2])] {
        assert!(start(Version::Two, &optional).is_ok());
    }
    let mut mips = header2(&[]);
    (mips[4], mips[12]) = (4, mips[12] - 4);
    assert_eq!(
        error(Version::Two, &elf(&mips, 0x10_0000)),
        "the Multiboot2 header is for architecture 4, expected 0 (32-bit x86)"
    );
}

#[test]
fn a_file_without_header_is_told_from_one_with_the_other() {
    let (one, two) = (elf(&header1(0, &[]), 0x10_0000), elf(&header2(&[]), 0x10_0000));
    assert_eq!(
        error(Version::One, &two),
        "the file has no Multiboot header in its first 8192 bytes; it has a Multiboot2 header"
    );
    assert_eq!(
        error(Version::Two, &one),
        "the file has no Multiboot2 header in its first 32768 bytes; it has a Multiboot header"
    );
    assert_eq!(error(Version::One, b"MZ"), "the file has no Multiboot header in its first 8192 bytes");
    let late = [vec![0; 8192 - 8], header1(0, &[])].concat();
    assert!(error(Version::One, &late).contains("no Multiboot header"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let kernel = elf(&header1(0, &[]), 0x10_0000);
    let error =
        |modules: &[Module]| alloc::format!("{}", start_with(Version::One, &kernel, modules).err().unwrap());
    assert!(
        error(&[Module { image: &vec![1; 3 << 20], bootargs: "" }])
            .starts_with("a module or section has 3145728 bytes, and the guest has 314")
    );
    assert!(
        error(&[Module { image: b"", bootargs: &"x".repeat(START_INFO_MAX) }])
            .starts_with("command lines and section headers need 57")
    );
}

#[test]
fn every_truncation_is_an_error() {
    let header = header2(&[(1, 0, &[1]), (3, 0, &[0x10_0020])]);
    for (version, image) in
        [(Version::One, elf(&header1(0, &[]), 0x10_0000)), (Version::Two, elf(&header, 0x10_0000))]
    {
        for len in 0..image.len() {
            assert!(start(version, &image[..len]).is_err(), "{len} bytes of {} loaded", image.len());
        }
        assert!(start(version, &image).is_ok());
    }
}

proptest::proptest! {
    #[test]
    fn a_mutated_file_never_panics(
        changes in proptest::collection::vec((0_usize..400, proptest::num::u8::ANY), 1..8),
        relocatable in proptest::bool::ANY,
    ) {
        let addresses: &[u32] = &[0x10_0080, 0x10_0000, 0, 0, 0x10_0010];
        let relocation: (u16, u16, &[u32]) = (10, 0, &[0, u32::MAX, 4096, 0]);
        let two = if relocatable {
            header2(&[(1, 0, &[1, 3]), relocation])
        } else {
            header2(&[(2, 0, &addresses[..4]), (3, 0, &addresses[4..])])
        };
        let one = header1(if relocatable { 3 } else { 1 << 16 }, addresses);
        for (version, mut image) in
            [(Version::One, elf(&one, 0x10_0000)), (Version::Two, elf(&two, 0x10_0000))]
        {
            for (offset, value) in &changes {
                if let Some(byte) = image.get_mut(*offset) {
                    *byte = *value;
                }
            }
            if let Ok((_, state)) = start_with(version, &image, &MODULES) {
                proptest::prop_assert!(state.registers.rip < 4 * MIB);
            }
        }
    }
}
