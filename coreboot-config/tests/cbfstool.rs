//! ROMs that coreboot's own cbfstool makes.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use coreboot_config::{
    cbfs::{Attribute, Cbfs, CbfsFault, Compression, HashAlgorithm, Kind},
    fmap::{COREBOOT_AREA, Fmap},
    selfboot::Payload,
};

const ROM_LEN: usize = 256 << 10;
const FLASH_MAP: &str = "FLASH 256K { BIOS { FMAP 4K COREBOOT(CBFS) } }";

/// A ROM file in a folder of its own, which goes when it does.
struct Rom {
    folder: PathBuf,
}

impl Rom {
    /// An empty file system in the area COREBOOT.
    fn new() -> Self {
        Self::of(FLASH_MAP)
    }

    /// An empty file system in the area COREBOOT of this flash map.
    fn of(flash_map: &str) -> Self {
        let rom = Self::nothing();
        fs::write(rom.path("flash.fmd"), flash_map).unwrap();
        run(Command::new("fmaptool").arg(rom.path("flash.fmd")).arg(rom.path("flash.fmap")));
        rom.cbfstool(&["create", "-M", rom.path("flash.fmap").to_str().unwrap()]);
        rom
    }

    /// An empty file system that only a master header leads to.
    fn legacy() -> Self {
        let rom = Self::nothing();
        rom.cbfstool(&["create", "-m", "x86", "-s", "256K"]);
        rom
    }

    fn nothing() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("peerboot-cbfs-{}-{count}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn cbfstool(&self, arguments: &[&str]) {
        run(Command::new("cbfstool").arg(self.path("rom")).args(arguments));
    }

    fn add(&self, name: &str, contents: &[u8], options: &[&str]) {
        let file = self.path("file");
        fs::write(&file, contents).unwrap();
        let command = ["add", "-t", "raw", "-n", name, "-f", file.to_str().unwrap()];
        self.cbfstool(&[&command, options].concat());
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path("rom")).unwrap()
    }
}

impl Drop for Rom {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| {
        let tool = Path::new(command.get_program()).display();
        panic!("{tool} (Debian package coreboot-utils) is needed: {error}")
    });
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Text that compresses, and does not repeat within LZ4's window.
fn contents(lines: u32) -> Vec<u8> {
    (0..lines).flat_map(|line| format!("line {}\n", line.wrapping_mul(2_654_435_761)).into_bytes()).collect()
}

#[test]
fn every_compression_gives_back_the_file() {
    let rom = Rom::new();
    // Larger than an LZ4 block of coreboot's, too.
    let large = contents(8000);
    for compression in ["none", "lzma", "lz4"] {
        rom.add(&format!("empty/{compression}"), &[], &["-c", "none"]);
        rom.add(&format!("small/{compression}"), &contents(3), &["-c", compression]);
    }
    rom.add("large/lzma", &large, &["-c", "lzma"]);
    rom.add("large/lz4", &large, &["-c", "lz4"]);
    let bytes = rom.bytes();
    let cbfs = Cbfs::in_image(&bytes).unwrap();
    for file in cbfs.files() {
        let file = file.unwrap();
        let expected = match file.name.split('/').next().unwrap() {
            "empty" => Vec::new(),
            "small" => contents(3),
            _ => large.clone(),
        };
        assert_eq!(*file.contents(1 << 20).unwrap(), expected, "{}", file.name);
    }
    let compression = |name| cbfs.find(name).unwrap().compression().unwrap();
    assert_eq!(compression("large/lzma"), (Compression::Lzma, large.len() as u64));
    assert_eq!(compression("large/lz4"), (Compression::Lz4, large.len() as u64));
    assert!(matches!(cbfs.find("small/none").unwrap().contents(1 << 20).unwrap(), Cow::Borrowed(_)));
    let limit = large.len() - 1;
    let error = cbfs.find("large/lz4").unwrap().contents(limit).unwrap_err();
    assert_eq!(error.fault, CbfsFault::TooLarge { size: large.len() as u64, limit: limit as u64 });
}

#[test]
fn every_hash_is_checked() {
    let rom = Rom::new();
    let text = contents(500);
    let algorithms = [
        ("sha1", HashAlgorithm::Sha1),
        ("sha224", HashAlgorithm::Sha224),
        ("sha256", HashAlgorithm::Sha256),
        ("sha384", HashAlgorithm::Sha384),
        ("sha512", HashAlgorithm::Sha512),
    ];
    for (name, _) in algorithms {
        rom.add(name, &text, &["-A", name, "-c", "lzma"]);
    }
    let good = rom.bytes();
    for (name, algorithm) in algorithms {
        let file = Cbfs::in_image(&good).unwrap().find(name).unwrap();
        assert_eq!(*file.contents(1 << 20).unwrap(), text);
        assert!(file.attributes().any(
            |attribute| matches!(attribute, Ok(Attribute::Hash { algorithm: found, .. }) if found == algorithm)
        ));

        let data_at = file.data.as_ptr() as usize - good.as_ptr() as usize;
        let mut bad = good.clone();
        bad[data_at + file.data.len() / 2] ^= 1;
        let cbfs = Cbfs::in_image(&bad).unwrap();
        let error = cbfs.find(name).unwrap().contents(1 << 20).unwrap_err();
        assert_eq!((error.file.as_deref(), error.fault), (Some(name), CbfsFault::Hash));
        for (other, _) in algorithms.iter().filter(|(other, _)| *other != name) {
            assert!(cbfs.find(other).unwrap().contents(1 << 20).is_ok());
        }
    }
}

#[test]
fn the_boards_flash_map_leaves_all_but_the_map_to_files() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("boards/qemu-q35/flash.fmd");
    let rom = Rom::of(&fs::read_to_string(path).unwrap());
    let bytes = rom.bytes();
    assert_eq!(bytes.len(), 16 << 20);
    let map = Fmap::find(&bytes).unwrap();
    // As coreboot's log of its own image says: base 0, the whole flash, three areas.
    assert_eq!((map.base, map.size, map.name.as_str(), map.areas().len()), (0, 16 << 20, "FLASH", 3));
    let area = map.area(COREBOOT_AREA).unwrap();
    assert_eq!((area.offset, area.end()), (0x1000, 16 << 20));
    assert_eq!(Cbfs::in_image(&bytes).unwrap().files().count(), 0);
}

#[test]
fn positions_alignments_and_integers_are_seen() {
    let rom = Rom::new();
    rom.add("placed", b"here", &["-b", "0x8000"]);
    rom.add("aligned", b"there", &["-a", "4096"]);
    rom.cbfstool(&["add-int", "-i", "0x1122334455667788", "-n", "number"]);
    rom.add("gone", b"soon", &[]);
    rom.cbfstool(&["remove", "-n", "gone"]);
    let bytes = rom.bytes();
    let cbfs = Cbfs::in_image(&bytes).unwrap();
    let place = |name| cbfs.find(name).unwrap().data.as_ptr() as usize - bytes.as_ptr() as usize;
    assert_eq!(place("placed"), 0x1000 + 0x8000);
    assert_eq!(place("aligned") % 4096, 0);
    assert_eq!(cbfs.find("number").unwrap().data, 0x1122_3344_5566_7788_u64.to_le_bytes());
    assert_eq!(cbfs.find("gone").unwrap_err().fault, CbfsFault::NotFound);
}

#[test]
fn the_master_header_leads_to_the_files_where_there_is_no_fmap() {
    let rom = Rom::legacy();
    rom.add("file", &contents(100), &["-c", "lzma"]);
    let bytes = rom.bytes();
    let cbfs = Cbfs::in_image(&bytes).unwrap();
    assert_eq!(*cbfs.find("file").unwrap().contents(1 << 20).unwrap(), contents(100));

    // The same file system through the header that is itself a file.
    let rom = Rom::new();
    rom.add("file", &contents(100), &[]);
    rom.cbfstool(&["add-master-header"]);
    let mut bytes = rom.bytes();
    assert_eq!(Cbfs::in_image(&bytes).unwrap().find("cbfs master header").unwrap().kind, Kind::MasterHeader);
    bytes[..8].fill(0);
    let found = Cbfs::in_image(&bytes).unwrap().find("file").unwrap();
    assert_eq!(*found.contents(1 << 20).unwrap(), contents(100));

    let pointer = ROM_LEN - 4;
    for value in [0_u32, 4, u32::MAX, 0x8000_0000, (-(ROM_LEN as i32)) as u32] {
        bytes[pointer..].copy_from_slice(&value.to_le_bytes());
        assert!(matches!(Cbfs::in_image(&bytes).unwrap_err().fault, CbfsFault::NoFileSystem(_)));
    }
}

/// An ELF file of one segment: `code` at 1 MiB, followed by as many zeros.
fn elf(code: &[u8]) -> Vec<u8> {
    let len = code.len() as u32;
    let mut bytes = b"\x7fELF\x01\x01\x01".to_vec();
    bytes.resize(16, 0);
    let halves = |halves: &[u16]| halves.iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<u8>>();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    bytes.extend(halves(&[2, 3]));
    bytes.extend(words(&[1, 0x10_0004, 52, 84, 0]));
    bytes.extend(halves(&[52, 32, 1, 40, 1, 0]));
    bytes.extend(words(&[1, 124, 0x10_0000, 0x10_0000, len, 2 * len, 7, 4]));
    // One empty section, without which cbfstool does not begin.
    bytes.extend([0; 40]);
    bytes.extend(code);
    bytes
}

#[test]
fn payloads_come_apart_into_segments() {
    let code = contents(300);
    for compression in ["none", "lzma", "lz4"] {
        let rom = Rom::new();
        fs::write(rom.path("elf"), elf(&code)).unwrap();
        let elf = rom.path("elf");
        rom.cbfstool(&[
            "add-payload",
            "-n",
            "fallback/payload",
            "-c",
            compression,
            "-f",
            elf.to_str().unwrap(),
        ]);
        let bytes = rom.bytes();
        let file = Cbfs::in_image(&bytes).unwrap().find("fallback/payload").unwrap();
        assert_eq!(file.kind, Kind::SimpleElf);
        let contents = file.contents(1 << 20).unwrap();
        let payload = Payload::parse(&contents).unwrap();
        assert_eq!(payload.entry, 0x10_0004);
        let segments: Vec<_> = payload.segments().collect();
        let [segment] = segments.as_slice() else { panic!("{segments:?}") };
        assert_eq!((segment.load_address, segment.memory_len as usize), (0x10_0000, 2 * code.len()));
        let mut memory = vec![0xaa; segment.memory_len as usize];
        let len = segment.compression.decompress(segment.data, &mut memory).unwrap();
        assert_eq!(memory[..len], code);
    }
}

/// Whatever byte of a file is wrong, the others are still there, and the error names the file or its place.
#[test]
fn corruption_costs_one_file() {
    let rom = Rom::new();
    let text = contents(60);
    rom.add("before", &text, &["-A", "sha256"]);
    rom.add("victim", &text, &["-c", "lzma"]);
    rom.add("victim-lz4", &text, &["-c", "lz4"]);
    rom.add("after", &text, &["-A", "sha256"]);
    let good = rom.bytes();
    for victim in ["victim", "victim-lz4"] {
        let file = Cbfs::in_image(&good).unwrap().find(victim).unwrap();
        let start = file.offset as usize;
        let end = file.data.as_ptr() as usize - good.as_ptr() as usize + file.data.len();
        for at in start..end {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                let cbfs = Cbfs::in_image(&bad).unwrap();
                for name in ["before", "after"] {
                    let contents = cbfs.find(name).unwrap().contents(1 << 20);
                    assert_eq!(*contents.unwrap(), text, "{name} after a change at {at:#x}");
                }
                if let Err(error) = cbfs.find(victim).and_then(|file| file.contents(1 << 20)) {
                    let named = error.file.as_deref() == Some(victim) || error.offset == start as u64;
                    assert!(named || error.fault == CbfsFault::NotFound, "{error}");
                }
            }
        }
    }
}

#[test]
fn truncated_images_lose_only_what_is_cut_off() {
    let rom = Rom::new();
    let text = contents(60);
    rom.add("first", &text, &[]);
    rom.add("last", &text, &["-b", "0x30000"]);
    let good = rom.bytes();
    let area = &good[0x1000..];
    for len in [0, 1, 23, 24, 63, 64, 0x2000, 0x30000, 0x30010, area.len() - 1] {
        let cbfs = Cbfs::new(&area[..len]);
        assert_eq!(cbfs.find("first").is_ok(), len >= 0x2000, "{len:#x}");
        let last = cbfs.find("last").and_then(|file| file.contents(1 << 20).map(Cow::into_owned));
        assert_eq!(last.is_ok(), len == area.len() - 1, "{len:#x}");
    }
    assert!(matches!(Cbfs::in_image(&good[..0x2000]).unwrap_err().fault, CbfsFault::Map(_)));
}
