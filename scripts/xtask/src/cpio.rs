//! A cpio archive in the "newc" form that Linux unpacks as its initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst), the same bytes at each build.

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive that grows entry by entry. Everything in it belongs to root and dates from 1970.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file with its permission bits.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, REGULAR | permissions, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[]);
    }

    /// Ends the archive and gives its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.header("TRAILER!!!", 0, (0, 0), 0, 1);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        self.header(path, mode, device, content.len(), links);
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Thirteen fields of eight hexadecimal digits, then the name.
    fn header(&mut self, path: &str, mode: u32, device: (u32, u32), size: usize, links: u32) {
        let name_size = path.len() + 1;
        let inode = self.entries;
        let (major, minor) = device;
        let header = format!(
            "070701{inode:08X}{mode:08X}{:08X}{:08X}{links:08X}{:08X}{size:08X}{:08X}{:08X}{major:08X}{minor:08X}\
             {name_size:08X}{:08X}{path}\0",
            0, 0, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// What `cpio -tv` makes of an archive.
    fn listed(archive: &[u8]) -> Option<String> {
        // busybox's own cpio is what a machine without the cpio package has.
        let mut child = Command::new("cpio")
            .args(["-tv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take()?.write_all(archive).ok()?;
        Some(String::from_utf8_lossy(&child.wait_with_output().ok()?.stdout).into_owned())
    }

    #[test]
    fn cpio_reads_what_was_written() {
        let mut archive = Archive::new();
        archive.directory("dev");
        archive.character_device("dev/console", 5, 1);
        archive.file("init", 0o755, b"#!/bin/sh\n");
        archive.symlink("sbin", "bin");
        let bytes = archive.finish();
        let list = listed(&bytes).expect("cpio runs");
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 4, "{list}");
        assert!(lines[0].starts_with("drwxr-xr-x   2 0        0"), "{list}");
        assert!(lines[1].starts_with("crw-------") && lines[1].contains("5,   1"), "{list}");
        assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].contains(" 10 "), "{list}");
        assert!(lines[3].ends_with("sbin -> bin"), "{list}");
    }

    #[test]
    fn every_part_starts_at_a_multiple_of_four() {
        let mut archive = Archive::new();
        archive.file("odd", 0o644, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[116..122], b"12345\0");
        assert_eq!(&bytes[124..130], b"070701");
    }
}
