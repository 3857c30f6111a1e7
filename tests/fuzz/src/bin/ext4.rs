//! An ext4 file system of any bytes behind a superblock that could be one's.
#![no_main]

#[path = "../heap.rs"]
mod heap;
#[path = "../tree.rs"]
mod tree;

libfuzzer_sys::fuzz_target!(|data: (u32, &[u8])| {
    let (features, bytes) = data;
    // The inodes come first, and all that they lead to is the same again.
    let mut image = vec![0; 3 << 10];
    image.extend(bytes.iter().cycle().take(61 << 10));
    image.resize(64 << 10, 0);
    let mut set = |at: usize, value: u32| image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let superblock = 1024;
    set(superblock, 16);
    set(superblock + 0x04, 64);
    set(superblock + 0x14, 1);
    set(superblock + 0x20, 8192);
    set(superblock + 0x28, 16);
    set(superblock + 0x38, 0x1_ef53);
    set(superblock + 0x4c, 1);
    set(superblock + 0x58, 256);
    // A journal in inode 8, to be replayed or not; trees of extents; inline data.
    set(superblock + 0x60, 0x2 | (features & 0x80d4));
    set(superblock + 0xe0, 8);
    set(superblock + 0xfc, 0x40_0000);
    // The inodes of the only group, of which the second is the root directory.
    set(2048 + 8, 3);
    image[3072 + 256 + 1] = 0x40 | (image[3072 + 256 + 1] & 0xf);
    heap::with_at_most(3 << 20, || tree::walk(image));
});
