//! A FAT file system that boot loaders of all kinds were told something of, any bytes each.
#![no_main]

use std::sync::Arc;

use storage::boot_entries::BootDisk;
use storage::testing::{RamDisk, wait};

#[path = "../heap.rs"]
mod heap;

/// How many bytes may be taken beside the disk.
const MEMORY: usize = 3 << 20;
/// The size of a sector, which is a cluster too.
const SECTOR: usize = 512;
/// Where the root directory is, which has two sectors, and cluster 2.
const ROOT: usize = 7 * SECTOR;
const DATA: usize = ROOT + 2 * SECTOR;
const CLUSTERS: usize = 1500;

/// A FAT12 file system that is being made.
struct Image {
    bytes: Vec<u8>,
    next: usize,
}

impl Image {
    fn new() -> Self {
        let mut bytes = vec![0; DATA + CLUSTERS * SECTOR];
        let sectors = (bytes.len() / SECTOR) as u16;
        bytes[..3].copy_from_slice(&[0xeb, 0, 0x90]);
        // 512 bytes a sector, 1 sector a cluster, 1 reserved, 1 table of 6 sectors, 32 entries in the root.
        bytes[11..19].copy_from_slice(&[0, 2, 1, 1, 0, 1, 32, 0]);
        bytes[19..21].copy_from_slice(&sectors.to_le_bytes());
        bytes[22] = 6;
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        Self { bytes, next: 2 }
    }

    /// Puts `content` into clusters that follow each other; the first one.
    fn store(&mut self, content: &[u8]) -> usize {
        let (first, count) = (self.next, content.len().div_ceil(SECTOR).max(1));
        let at = DATA + (first - 2) * SECTOR;
        self.bytes[at..at + content.len()].copy_from_slice(content);
        for cluster in first..first + count {
            let next = if cluster + 1 == first + count { 0xfff } else { cluster + 1 };
            let at = SECTOR + cluster / 2 * 3;
            let entry = &mut self.bytes[at..at + 3];
            if cluster % 2 == 0 {
                entry[0] = next as u8;
                entry[1] |= (next >> 8) as u8;
            } else {
                entry[1] |= (next << 4) as u8;
                entry[2] = (next >> 4) as u8;
            }
        }
        self.next += count;
        first
    }

    /// The entries of a directory for something of at most 13 letters.
    fn entries(name: &str, attributes: u8, cluster: usize, len: usize, number: usize) -> [u8; 64] {
        let short = format!("{number:011}");
        let sum = short.bytes().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(byte));
        let mut entries = [0; 64];
        let (long, own) = entries.split_at_mut(32);
        (long[0], long[11], long[13]) = (0x41, 0x0f, sum);
        let places = (1..11).chain(14..26).chain(28..32).step_by(2);
        let letters = name.bytes().map(u16::from).chain([0]).chain([0xffff; 13]);
        places.zip(letters).for_each(|(at, letter)| long[at..at + 2].copy_from_slice(&letter.to_le_bytes()));
        own[..11].copy_from_slice(short.as_bytes());
        own[11] = attributes;
        own[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
        own[28..32].copy_from_slice(&(len as u32).to_le_bytes());
        entries
    }

    fn directory(&mut self, children: &[(&str, u8, usize, usize)]) -> Vec<u8> {
        let numbered = children.iter().enumerate();
        numbered.flat_map(|(n, (name, kind, at, len))| Self::entries(name, *kind, *at, *len, n)).collect()
    }
}

libfuzzer_sys::fuzz_target!(|data: [&[u8]; 6]| {
    const FILE: u8 = 0x20;
    const DIRECTORY: u8 = 0x10;
    let mut image = Image::new();
    let texts = data.map(|text| &text[..text.len().min(32 << 10)]);
    let [entry, loader, unified, extlinux, grub, environment] =
        texts.map(|text| (image.store(text), text.len()));
    let file = |name, (at, len): (usize, usize)| (name, FILE, at, len);
    let mut make = |children: &[(&'static str, u8, usize, usize)]| {
        let bytes = image.directory(children);
        image.store(&bytes)
    };
    let entries = make(&[file("a.conf", entry), file("b.conf", extlinux)]);
    let loader = make(&[("entries", DIRECTORY, entries, 0), file("loader.conf", loader)]);
    let linux = make(&[file("a.efi", unified), file("b.efi", entry)]);
    let efi = make(&[("Linux", DIRECTORY, linux, 0)]);
    let grub = make(&[file("grub.cfg", grub), file("grubenv", environment)]);
    let root = image.directory(&[
        ("loader", DIRECTORY, loader, 0),
        ("EFI", DIRECTORY, efi, 0),
        ("grub", DIRECTORY, grub, 0),
        file("extlinux.conf", extlinux),
        file("k", entry),
        file("vmlinuz", unified),
    ]);
    image.bytes[ROOT..ROOT + root.len()].copy_from_slice(&root);
    let device = Arc::new(RamDisk::new(512, image.bytes));
    heap::with_at_most(MEMORY, || {
        let disk = wait(BootDisk::open(device)).expect("a FAT file system");
        // There is /vmlinuz at least.
        let menu = wait(disk.menu()).expect("something to boot");
        assert!(menu.default < menu.entries.len());
        for entry in menu.entries.iter().take(8) {
            if let Ok(loaded) = wait(disk.load(entry, 1 << 16)) {
                assert!(loaded.kernel.len() + loaded.ramdisk.len() <= 1 << 16);
            }
        }
    });
});
