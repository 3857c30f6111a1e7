//! All that can be had of a file system.

use std::sync::{Arc, Mutex};

use storage::files::{FileKind, FileSystem};
use storage::{BlockDevice, Buffer};

use crate::disk::{BLOCK, RamDisk, at_once};

/// Lists all directories, reads all files, and writes into the first block of each; nothing else may change.
pub fn walk(image: Vec<u8>) {
    let disk = Arc::new(RamDisk(Mutex::new(image)));
    let Ok(files) = at_once(FileSystem::open(disk.clone())) else { return };
    let (_, _) = (files.id(), files.label());
    let mut below = vec![String::new()];
    for _ in 0..32 {
        let Some(path) = below.pop() else { return };
        let entries = at_once(files.list(&path)).unwrap_or_default();
        for entry in entries.into_iter().take(16) {
            let path = format!("{path}/{}", entry.name);
            let Ok(metadata) = at_once(files.metadata(&path)) else { continue };
            if metadata.kind == FileKind::Directory {
                below.push(path);
                continue;
            }
            if let Ok(bytes) = at_once(files.read(&path, 1 << 16)) {
                assert_eq!(bytes.len() as u64, metadata.size);
            }
            let Ok(file) = at_once(files.disk(&path, true)) else { continue };
            let before = disk.0.lock().expect("one thread").clone();
            let written = at_once(file.write(0, Buffer::holding(&[0x5a; BLOCK])));
            let after = disk.0.lock().expect("one thread").clone();
            let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            assert!(changed <= if written.is_ok() { BLOCK } else { 0 });
            *disk.0.lock().expect("one thread") = before;
        }
    }
}
