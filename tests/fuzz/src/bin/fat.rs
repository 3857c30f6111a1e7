//! A FAT file system of any bytes behind a boot sector that could be one's.
#![no_main]

#[path = "../heap.rs"]
mod heap;
#[path = "../tree.rs"]
mod tree;

libfuzzer_sys::fuzz_target!(|data: (u8, &[u8])| {
    let (kind, bytes) = data;
    let mut image: Vec<u8> = bytes.iter().copied().cycle().take(64 << 10).collect();
    image.resize(64 << 10, 0);
    let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, &[0xeb]);
    set(510, &[0x55, 0xaa]);
    // 512 bytes a sector, 1 sector a cluster, 1 reserved, 1 table of 1 sector, 16 entries in the root.
    set(11, &[0, 2, 1, 1, 0, 1, 16, 0, 128, 0]);
    set(22, &[u8::from(kind & 1 == 0), 0]);
    set(36, &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    heap::with_at_most(3 << 20, || tree::walk(image));
});
