//! File systems that e2fsprogs, dosfstools and mtools make, compared with what was put into them.

use super::*;
use crate::block::BlockError;
use crate::buffer::Buffer;
use crate::testing::{RamDisk, Scratch, mke2fs, mkfs_vfat, pattern, run, wait};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::OnceLock;

fn open(image: Vec<u8>) -> FileSystem {
    open_device(Arc::new(RamDisk::new(512, image)))
}

fn open_device(disk: Arc<dyn BlockDevice>) -> FileSystem {
    wait(FileSystem::open(disk)).unwrap()
}

/// What there is to be compared: a file's bytes, or nothing for a directory.
type Tree = BTreeMap<String, Option<Vec<u8>>>;

/// What a directory here has, links followed as a file system of its own would.
fn tree_here(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut below = vec![String::new()];
    while let Some(path) = below.pop() {
        for entry in fs::read_dir(root.join(&path)).unwrap().flatten() {
            let path = format!("{path}{}", entry.file_name().to_str().unwrap());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                below.push(format!("{path}/"));
                tree.insert(path, None);
            } else if kind.is_file() {
                tree.insert(path.clone(), Some(fs::read(root.join(path)).unwrap()));
            }
        }
    }
    tree
}

/// What a file system has, but for links.
fn tree_there(fs: &FileSystem) -> Tree {
    let mut tree = Tree::new();
    let mut below = vec![String::new()];
    while let Some(path) = below.pop() {
        for entry in wait(fs.list(&path)).unwrap() {
            let path = format!("{path}{}", entry.name);
            match entry.kind {
                FileKind::Directory if path == "lost+found" => {}
                FileKind::Directory => {
                    below.push(format!("{path}/"));
                    tree.insert(path, None);
                }
                FileKind::File => {
                    let bytes = wait(fs.read(&path, 1 << 26)).unwrap();
                    tree.insert(path, Some(bytes));
                }
                _ => {}
            }
        }
    }
    tree
}

fn assert_same(here: &Tree, there: &Tree, what: &str) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(here), names(there), "{what}");
    for (path, bytes) in here {
        assert!(there[path] == *bytes, "{what}: {path} differs");
    }
}

/// A tree of files of all sizes that matter.
fn make_tree(root: &Path) {
    for dir in ["", "boot/grub", "deep/er/than/usual", "many", "empty"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for len in [0, 1, 59, 60, 61, 120, 1023, 4096, 4097, 13 << 10, 300 << 10, (3 << 20) + 7] {
        fs::write(root.join(format!("boot/file of {len} bytes")), pattern(len, len)).unwrap();
    }
    fs::write(root.join("deep/er/than/usual/Größe und Ähnliches – 日本.txt"), "einfach").unwrap();
    for n in 0..300 {
        let name = format!("many/a file with a name that is long enough to fill blocks, number {n:03}");
        fs::write(root.join(name), n.to_string()).unwrap();
    }
}

/// Adds what FAT cannot have.
fn add_links(root: &Path) {
    symlink("boot/file of 120 bytes", root.join("short")).unwrap();
    symlink("/boot/grub/../file of 4097 bytes", root.join("deep/absolute")).unwrap();
    symlink(
        "./../deep/./er/../er/than/../../../deep/er/than/usual/../../../../boot/file of 61 bytes",
        root.join("deep/long"),
    )
    .unwrap();
    symlink("deep/er", root.join("directory")).unwrap();
    symlink("round", root.join("round")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    let mut sparse = fs::File::create(root.join("sparse")).unwrap();
    for at in [0, 40 << 10, 4 << 20] {
        sparse.seek(SeekFrom::Start(at)).unwrap();
        sparse.write_all(&pattern(9000, 1)).unwrap();
    }
    sparse.set_len(5 << 20).unwrap();
}

const EXT4: &[(&str, &[&str])] = &[
    ("Debian's ext4", &["-t", "ext4"]),
    ("blocks of 1 KiB", &["-t", "ext4", "-b", "1024"]),
    ("blocks of 2 KiB", &["-t", "ext4", "-b", "2048"]),
    ("no 64 bits", &["-t", "ext4", "-O", "^64bit"]),
    ("no checksums", &["-t", "ext4", "-O", "^metadata_csum"]),
    ("a seed", &["-t", "ext4", "-O", "metadata_csum_seed"]),
    ("inline data", &["-t", "ext4", "-O", "inline_data"]),
    ("inline data in large inodes", &["-t", "ext4", "-O", "inline_data", "-I", "1024"]),
    ("small inodes", &["-t", "ext4", "-I", "128"]),
    ("clusters", &["-t", "ext4", "-O", "bigalloc", "-C", "16384"]),
    ("meta groups", &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"]),
    (
        "meta groups in small groups",
        &["-t", "ext4", "-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode,^flex_bg"],
    ),
    (
        "everywhere a superblock",
        &["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode,^sparse_super"],
    ),
    ("no extents", &["-t", "ext4", "-O", "^extents,^64bit"]),
    ("ext3", &["-t", "ext3"]),
    ("ext2", &["-t", "ext2"]),
    ("ext2 in blocks of 1 KiB", &["-t", "ext2", "-b", "1024"]),
    ("no kinds in directories", &["-t", "ext2", "-O", "^filetype"]),
];

#[test]
fn ext4_is_read_as_it_was_written() {
    let scratch = Scratch::new("ext4");
    let root = scratch.path("root");
    make_tree(&root);
    add_links(&root);
    let here = tree_here(&root);
    for (what, options) in EXT4 {
        // Of e2fsprogs 1.47's sparse files in file systems with inline data, the ends are missing.
        let mut here = here.clone();
        if options.contains(&"inline_data") {
            fs::rename(root.join("sparse"), scratch.path("sparse")).unwrap();
            here.remove("sparse");
        }
        let fs = open(mke2fs(&scratch, &root, 24, options));
        if options.contains(&"inline_data") {
            fs::rename(scratch.path("sparse"), root.join("sparse")).unwrap();
        }
        assert_eq!((fs.name(), fs.label().as_str()), ("ext4", "the label"), "{what}");
        assert_eq!(fs.id(), "01234567-89ab-cdef-0123-456789abcdef", "{what}");
        assert_same(&here, &tree_there(&fs), what);
        let read = |path: &str| wait(fs.read(path, 1 << 20));
        assert_eq!(read("/short").unwrap(), pattern(120, 120), "{what}");
        assert_eq!(read("deep/absolute").unwrap(), pattern(4097, 4097), "{what}");
        assert_eq!(read("/deep//./long").unwrap(), pattern(61, 61), "{what}");
        assert_eq!(read("/directory/../../boot/file of 1 bytes").unwrap(), pattern(1, 1), "{what}");
        assert_eq!(read("/../../short").unwrap().len(), 120, "there is nothing above the root");
        let kinds = wait(fs.list("/")).unwrap();
        let kind = |name: &str| kinds.iter().find(|entry| entry.name == name).unwrap().kind;
        assert_eq!((kind("short"), kind("boot")), (FileKind::Link, FileKind::Directory), "{what}");
        assert!(matches!(read("/round"), Err(FileError::TooManyLinks(_))), "{what}");
        assert!(matches!(read("/dangling"), Err(FileError::NotFound(_))), "{what}");
        assert!(matches!(read("/short/file"), Err(FileError::NotADirectory(_))), "{what}");
        assert!(matches!(read("/boot"), Err(FileError::NotAFile(_))), "{what}");
        assert!(matches!(wait(fs.list("/short")), Err(FileError::NotADirectory(_))), "{what}");
        let large =
            FileError::TooLarge { path: "boot/file of 4096 bytes".to_owned(), size: 4096, most: 4095 };
        assert_eq!(wait(fs.read("boot/file of 4096 bytes", 4095)).unwrap_err(), large);
    }
}

#[test]
fn hashed_directories_and_deep_trees_are_read() {
    let scratch = Scratch::new("deep");
    let root = scratch.path("root");
    fs::create_dir_all(root.join("many")).unwrap();
    for n in 0..800 {
        fs::write(root.join(format!("many/{n} {}", "x".repeat(60))), "").unwrap();
    }
    // Every second page of it is a hole: as many extents as pages.
    let mut holed = fs::File::create(root.join("holed")).unwrap();
    for n in 0..2500_u64 {
        holed.seek(SeekFrom::Start(n * 8192)).unwrap();
        holed.write_all(&pattern(4096, n as usize)).unwrap();
    }
    drop(holed);
    let here = tree_here(&root);
    for options in
        [&["-t", "ext4", "-b", "1024"], &["-t", "ext4", "-b", "4096"], &["-t", "ext2", "-b", "1024"]]
    {
        mke2fs(&scratch, &root, 40, options);
        let image = scratch.path("image");
        let image = image.to_str().unwrap();
        run("e2fsck", &["-fyD", image]);
        let hashed = run("debugfs", &["-R", "htree_dump /many", image]);
        assert!(hashed.contains("Root node dump"), "{hashed}");
        let extents = run("debugfs", &["-R", "ex /holed", image]);
        assert!(options[1] == "ext2" || extents.contains(" 1/ "), "the tree is deep: {extents}");
        assert_same(&here, &tree_there(&open(fs::read(image).unwrap())), &format!("{options:?}"));
    }
}

/// Writes this block by way of the journal, which is then not replayed.
fn write_to_journal(scratch: &Scratch, image: &str, how: &str, blocks: &[(u64, Vec<u8>)], revoked: &[u64]) {
    let mut script = format!("jo {how}\n");
    for (number, bytes) in blocks {
        let file = scratch.path(&format!("block {number}"));
        fs::write(&file, bytes).unwrap();
        script.push_str(&format!("jw -b {number} \"{}\"\n", file.display()));
    }
    for number in revoked {
        script.push_str(&format!("jw -r {number}\n"));
    }
    script.push_str("jc\n");
    let commands = scratch.path("commands");
    fs::write(&commands, script).unwrap();
    let said = run("debugfs", &["-w", "-f", commands.to_str().unwrap(), image]);
    assert!(!said.contains("rror") && !said.contains("sage"), "{said}");
}

#[test]
fn a_journal_is_read_along_until_it_is_replayed() {
    let scratch = Scratch::new("journal");
    let (old, new) = (scratch.path("old"), scratch.path("new"));
    for (root, name) in [(&old, "before"), (&new, "after")] {
        fs::create_dir(root).unwrap();
        fs::write(root.join(name), name).unwrap();
        fs::write(root.join("same"), pattern(50_000, 3)).unwrap();
    }
    for (options, how) in [
        (["-t", "ext4", "-E", "hash_seed=01234567-89ab-cdef-0123-456789abcdef"], ""),
        (["-t", "ext4", "-O", "^metadata_csum"], ""),
        (["-t", "ext4", "-O", "metadata_csum_seed"], "-c"),
        (["-t", "ext4", "-O", "64bit"], "-c -v 2"),
        (["-t", "ext4", "-O", "^64bit"], "-c -v 2"),
        (["-t", "ext4", "-O", "^metadata_csum,^64bit"], "-c"),
        (["-t", "ext4", "-O", "^64bit"], "-c"),
        (["-t", "ext3", "-m", "0"], ""),
    ] {
        let options: Vec<&str> = options.iter().copied().chain(["-b", "1024", "-N", "64"]).collect();
        // Two that differ in some metadata; the first gets the second's by its journal.
        let after = mke2fs(&scratch, &new, 16, &options);
        let before = mke2fs(&scratch, &old, 16, &options);
        let size = 1024;
        let differ = |n: &usize| before[n * size..][..size] != after[n * size..][..size];
        let blocks: Vec<usize> = (2..before.len() / size).filter(differ).collect();
        assert!((2..40).contains(&blocks.len()), "{blocks:?}");
        let written: Vec<_> =
            blocks.iter().map(|n| (*n as u64, after[n * size..][..size].to_vec())).collect();
        let image = scratch.path("image");
        let image = image.to_str().unwrap();
        write_to_journal(&scratch, image, how, &written, &[]);
        // A later transaction spoils what a third one revokes.
        let free = (before.len() / size - 2) as u64;
        write_to_journal(&scratch, image, how, &[(free, vec![0xee; size])], &[]);
        write_to_journal(&scratch, image, how, &[], &[free]);
        let dirty = fs::read(image).unwrap();
        let fs_dirty = open(dirty);
        assert_eq!(wait(fs_dirty.read("after", 100)).unwrap(), b"after", "{options:?}");
        assert!(wait(fs_dirty.metadata("before")).is_err());
        assert_eq!(wait(fs_dirty.disk("same", false)).err(), Some(FileError::NotClean));
        run("e2fsck", &["-fy", image]);
        let replayed = open(fs::read(image).unwrap());
        assert_same(&tree_there(&replayed), &tree_there(&fs_dirty), "as e2fsck has it");
        assert!(wait(replayed.disk("same", true)).is_ok());
    }
}

#[test]
fn what_goes_on_for_ever_is_not_read() {
    let scratch = Scratch::new("endless");
    let root = scratch.path("root");
    fs::create_dir_all(root.join("directory")).unwrap();
    let options = ["-t", "ext3", "-b", "1024", "-J", "size=17"];
    let mut bytes = mke2fs(&scratch, &root, 40, &options);
    let image = scratch.path("image");
    let image = image.to_str().unwrap();
    run("debugfs", &["-w", "-R", "sif directory size 20000000", image]);
    let long = wait(open(fs::read(image).unwrap()).list("directory")).err();
    assert_eq!(long, Some(FileError::Unsupported("so long a directory")));

    // A journal of blocks that revoke nothing, all in one transaction that never ends.
    let blocks = run("debugfs", &["-R", "blocks <8>", image]);
    let blocks: Vec<usize> = blocks.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let own = &mut bytes[blocks[0] * 1024..][..1024];
    own[0x18..0x20].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]);
    let revoke: Vec<u8> = [0xc03b_3998_u32, 5, 1, 16].iter().flat_map(|word| word.to_be_bytes()).collect();
    for number in &blocks {
        let block = &mut bytes[number * 1024..][..1024];
        if block == [0; 1024] {
            block[..16].copy_from_slice(&revoke);
        }
    }
    // It is to be replayed.
    bytes[1024 + 0x60] |= 4;
    let refused = wait(FileSystem::open(Arc::new(RamDisk::new(512, bytes)))).err();
    assert_eq!(refused, Some(FileError::Unsupported("a journal to be replayed that is so long")));
}

#[test]
fn looking_for_files_has_an_end() {
    let scratch = Scratch::new("effort");
    let root = scratch.path("root");
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    for (image, many) in [
        (mke2fs(&scratch, &root, 16, &["-t", "ext4", "-b", "4096"]), 40_000),
        (mkfs_vfat(&scratch, &root, 32, &["-F", "16", "-s", "8"]), 100_000),
    ] {
        let files = open(image.clone());
        let error = (0..many).find_map(|_| wait(files.metadata("a/b/c/d")).err().filter(|e| !is_missing(e)));
        assert_eq!(error, Some(FileError::Unsupported("so much to look through")));
        assert!(wait(open(image).metadata("a/b/c")).is_ok(), "it is opened anew for the next life");
    }
}

fn is_missing(error: &FileError) -> bool {
    matches!(error, FileError::NotFound(_))
}

#[test]
fn a_file_of_ext4_is_a_disk() {
    let scratch = Scratch::new("disk");
    let root = scratch.path("root");
    fs::create_dir(&root).unwrap();
    let mut file = fs::File::create(root.join("disk.img")).unwrap();
    file.write_all(&pattern(100_000, 5)).unwrap();
    file.seek(SeekFrom::Start(200_000)).unwrap();
    file.write_all(&pattern(100_100, 6)).unwrap();
    drop(file);
    fs::write(root.join("small"), "inline").unwrap();
    for (options, block_size) in [
        (["-t", "ext4", "-b", "4096"], 512),
        (["-t", "ext4", "-b", "1024"], 4096),
        (["-t", "ext2", "-b", "1024"], 512),
        (["-t", "ext4", "-O", "inline_data"], 4096),
    ] {
        let disk = Arc::new(RamDisk::new(block_size, mke2fs(&scratch, &root, 16, &options)));
        let fs = open_device(Arc::clone(&disk) as Arc<dyn BlockDevice>);
        assert!(wait(fs.disk("disk.img", false)).unwrap().geometry().read_only);
        let inline = wait(fs.disk("small", true)).err();
        assert_eq!(inline.is_some(), options.contains(&"inline_data"));
        let file = wait(fs.disk("/disk.img", true)).unwrap();
        let mut expected = fs::read(root.join("disk.img")).unwrap();
        assert_eq!(file.geometry().blocks, 587, "the last block is not full");
        expected.resize(587 * 512, 0);
        let all = Buffer::holding(&pattern(587 * 512, 77));
        wait(file.read(0, all.clone())).unwrap();
        assert_eq!(all.to_vec(), expected);
        for (at, len) in
            [(0, 512), (512, 1024), (3584, 8192), (98_304, 1536), (200_192, 99_840), (299_520, 1024)]
        {
            let new = pattern(len, at);
            wait(file.write(at as u64, Buffer::holding(&new))).unwrap();
            expected[at..at + len].copy_from_slice(&new);
        }
        wait(file.write_zeroes(1024, 5632)).unwrap();
        expected[1024..6656].fill(0);
        wait(file.write_zeroes(120_832, 512)).unwrap();
        let hole = wait(file.write(102_400, Buffer::zeroed(512)));
        assert_eq!(hole, Err(BlockError::NotAllocated), "nothing is written if not all of it can be");
        assert_eq!(wait(file.write(101_888 - 512, Buffer::zeroed(16_384))), Err(BlockError::NotAllocated));
        assert!(wait(file.read(587 * 512, Buffer::zeroed(512))).is_err());
        expected[300_100..].fill(0);
        wait(file.read(0, all.clone())).unwrap();
        assert!(all.to_vec() == expected, "{options:?}");
        wait(file.flush()).unwrap();
        // What others see of it.
        let image = scratch.path("image");
        fs::write(&image, disk.bytes()).unwrap();
        run("e2fsck", &["-fn", image.to_str().unwrap()]);
        let dump = scratch.path("dump");
        run("debugfs", &["-R", &format!("dump /disk.img {}", dump.display()), image.to_str().unwrap()]);
        assert!(fs::read(&dump).unwrap() == expected[..300_100], "{options:?}");
        assert!(fs.name() == "ext4" && wait(fs.read("small", 10)).unwrap() == b"inline");
    }
}

#[test]
fn what_others_keep_is_not_made_a_disk() {
    let scratch = Scratch::new("refused");
    let root = scratch.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), pattern(9000, 1)).unwrap();
    let image = scratch.path("image");
    let flags = |flags: &str| {
        mke2fs(&scratch, &root, 8, &["-t", "ext4"]);
        run("debugfs", &["-w", "-R", &format!("sif file flags {flags}"), image.to_str().unwrap()]);
        open(fs::read(&image).unwrap())
    };
    let refused =
        |flags: &FileSystem, writable| wait(flags.disk("file", writable)).err().map(|e| e.to_string());
    let encrypted = flags("0x80800");
    assert_eq!(refused(&encrypted, false).unwrap(), "not supported: an encrypted file");
    assert_eq!(
        wait(encrypted.read("file", 1 << 20)).unwrap_err(),
        FileError::Unsupported("an encrypted file")
    );
    assert!(refused(&flags("0x180000"), false).unwrap().contains("fs-verity"));
    let immutable = flags("0x80010");
    assert!(refused(&immutable, true).unwrap().contains("immutable") && refused(&immutable, false).is_none());
    mke2fs(&scratch, &root, 8, &["-t", "ext2"]);
    run("debugfs", &["-w", "-R", "dirty", image.to_str().unwrap()]);
    let dirty = open(fs::read(&image).unwrap());
    assert!(refused(&dirty, true).unwrap().contains("not unmounted cleanly"));
    mke2fs(&scratch, &root, 8, &["-t", "ext4"]);
    run("debugfs", &["-w", "-R", "feature shared_blocks", image.to_str().unwrap()]);
    let shared = open(fs::read(&image).unwrap());
    assert_eq!(refused(&shared, true).unwrap(), "not supported: read-only features 0x4000 of ext4");
    assert!(refused(&shared, false).is_none());
}

#[test]
fn what_was_never_written_is_zero_and_not_written() {
    let scratch = Scratch::new("unwritten");
    let root = scratch.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), pattern(9000, 1)).unwrap();
    mke2fs(&scratch, &root, 8, &["-t", "ext4", "-b", "1024"]);
    let image = scratch.path("image");
    let image = image.to_str().unwrap();
    run("debugfs", &["-w", "-R", "fallocate /file 10 20", image]);
    run("debugfs", &["-w", "-R", "sif file size 21000", image]);
    let said = run("debugfs", &["-R", "bmap /file 12", image]);
    let block: usize = said.lines().find_map(|line| line.split_whitespace().next()?.parse().ok()).unwrap();
    let mut bytes = fs::read(image).unwrap();
    bytes[block * 1024..][..4096].fill(0xee);
    let unwritten = open(bytes);
    let disk = wait(unwritten.disk("file", true)).unwrap();
    let bytes = Buffer::holding(&[7; 4096]);
    wait(disk.read(12_288, bytes.clone())).unwrap();
    assert_eq!(bytes.to_vec(), [0; 4096], "what was never written is zero, whatever the block has");
    assert_eq!(wait(disk.write(12_288, bytes)), Err(BlockError::NotAllocated));
}

#[test]
fn fat_is_read_as_it_was_written() {
    let scratch = Scratch::new("fat");
    let root = scratch.path("root");
    make_tree(&root);
    let here = tree_here(&root);
    for (mib, block_size, options) in [
        (7, 512, &["-F", "12", "-s", "8"][..]),
        (16, 512, &["-F", "16"]),
        (16, 512, &["-F", "16", "-s", "1"]),
        (48, 512, &["-F", "32", "-s", "1"]),
        (24, 4096, &["-F", "16", "-S", "4096", "-s", "1"]),
        (16, 512, &["-F", "16", "-f", "1", "-r", "1024"]),
    ] {
        let fs = open_device(Arc::new(RamDisk::new(block_size, mkfs_vfat(&scratch, &root, mib, options))));
        assert_eq!((fs.name(), fs.id().as_str(), fs.label().as_str()), ("vfat", "0A1B-2C3D", "DAS LABEL"));
        assert_same(&here, &tree_there(&fs), &format!("{options:?}"));
        assert_eq!(wait(fs.read("BOOT/grub/../File Of 61 BYTES", 100)).unwrap(), pattern(61, 61));
        assert_eq!(wait(fs.metadata("/boot/grub")).unwrap().kind, FileKind::Directory);
        assert!(matches!(wait(fs.read("/boot/nothing", 1)), Err(FileError::NotFound(_))));
        assert!(matches!(wait(fs.read("/boot/file of 60 bytes/x", 1)), Err(FileError::NotADirectory(_))));
    }
}

#[test]
fn a_file_of_fat_is_a_disk() {
    let scratch = Scratch::new("fat-disk");
    let root = scratch.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("disk.img"), pattern(500_000, 5)).unwrap();
    let disk = Arc::new(RamDisk::new(512, mkfs_vfat(&scratch, &root, 16, &["-F", "16", "-s", "4"])));
    let fs = open_device(Arc::clone(&disk) as Arc<dyn BlockDevice>);
    let file = wait(fs.disk("Disk.IMG", true)).unwrap();
    let mut expected = pattern(500_000, 5);
    for (at, len) in [(0, 100_352), (250_368, 51_200), (499_712, 512)] {
        let new = pattern(len, at);
        wait(file.write(at as u64, Buffer::holding(&new))).unwrap();
        let end = (at + len).min(expected.len());
        expected[at..end].copy_from_slice(&new[..end - at]);
    }
    let all = Buffer::zeroed(977 * 512);
    wait(file.read(0, all.clone())).unwrap();
    assert!(all.to_vec()[..500_000] == expected && all.to_vec()[500_000..] == [0; 224]);
    let image = scratch.path("fat");
    fs::write(&image, disk.bytes()).unwrap();
    run("fsck.vfat", &["-n", image.to_str().unwrap()]);
    let dump = scratch.path("dump");
    run("mcopy", &["-n", "-i", image.to_str().unwrap(), "::disk.img", dump.to_str().unwrap()]);
    assert!(fs::read(dump).unwrap() == expected);
}

#[test]
fn what_is_no_file_system_is_said_to_be_none() {
    for len in [0, 512, 1536, 1 << 16] {
        let empty = wait(FileSystem::open(Arc::new(RamDisk::new(512, vec![0; len])))).err();
        assert_eq!(empty, Some(FileError::NoFileSystem));
    }
}

/// Small file systems of each kind, to be damaged.
fn small() -> &'static [Vec<u8>] {
    static IMAGES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let scratch = Scratch::new("small");
        let root = scratch.path("root");
        fs::create_dir_all(root.join("dir")).unwrap();
        fs::write(root.join("dir/file"), pattern(5000, 1)).unwrap();
        fs::write(root.join("a longer name than eight letters"), pattern(300, 1)).unwrap();
        let fat = mkfs_vfat(&scratch, &root, 2, &["-F", "12"]);
        symlink("x".repeat(100), root.join("link")).unwrap();
        let plain =
            mke2fs(&scratch, &root, 2, &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,inline_data"]);
        let ext2 = mke2fs(&scratch, &root, 2, &["-t", "ext2", "-b", "1024"]);
        let sums = mke2fs(&scratch, &root, 2, &["-t", "ext4", "-b", "1024"]);
        vec![fat, plain, ext2, sums]
    })
}

/// Reads all that there is, as far as that goes.
fn read_all(fs: &FileSystem) {
    let mut below = vec![String::new()];
    while let Some(path) = below.pop().filter(|path| path.len() < 200) {
        for entry in wait(fs.list(&path)).unwrap_or_default().into_iter().take(50) {
            let path = format!("{path}/{}", entry.name);
            if entry.kind == FileKind::Directory {
                below.push(path.clone());
            }
            let _ = wait(fs.read(&path, 1 << 20));
            if let Ok(disk) = wait(fs.disk(&path, true)) {
                let _ = wait(disk.write(0, Buffer::zeroed(512)));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damage_is_an_error_at_most(
        which in 0..4_usize,
        damage in prop::collection::vec((0..200_000_usize, any::<u8>()), 1..20),
        zero in 0..200_usize,
    ) {
        let mut image = small()[which].clone();
        for (at, byte) in damage {
            image[at] = byte;
        }
        image[zero * 1024..][..1024].rotate_left(zero);
        if let Ok(fs) = wait(FileSystem::open(Arc::new(RamDisk::new(512, image)))) {
            read_all(&fs);
        }
    }
}
