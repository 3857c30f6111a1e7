//! All that can be had of a file system.

use std::sync::Arc;

use storage::files::{FileKind, FileSystem};
use storage::testing::{RamDisk, wait};
use storage::{BlockDevice, Buffer};

/// The size of a block in bytes.
const BLOCK: usize = 512;

/// Lists all directories, reads all files, and writes into the first block of each; nothing else may change.
pub fn walk(image: Vec<u8>) {
    let disk = Arc::new(RamDisk::new(BLOCK as u32, image));
    let Ok(files) = wait(FileSystem::open(disk.clone())) else { return };
    let (_, _) = (files.id(), files.label());
    let mut below = vec![String::new()];
    for _ in 0..32 {
        let Some(path) = below.pop() else { return };
        let entries = wait(files.list(&path)).unwrap_or_default();
        for entry in entries.into_iter().take(16) {
            let path = format!("{path}/{}", entry.name);
            let Ok(metadata) = wait(files.metadata(&path)) else { continue };
            if metadata.kind == FileKind::Directory {
                below.push(path);
                continue;
            }
            if let Ok(bytes) = wait(files.read(&path, 1 << 16)) {
                assert_eq!(bytes.len() as u64, metadata.size);
            }
            let Ok(file) = wait(files.disk(&path, true)) else { continue };
            let before = disk.bytes();
            let written = wait(file.write(0, Buffer::holding(&[0x5a; BLOCK])));
            let after = disk.bytes();
            let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            assert!(changed <= if written.is_ok() { BLOCK } else { 0 });
            wait(disk.write(0, Buffer::holding(&before))).expect("a disk in memory");
        }
    }
}
