//! File systems made by e2fsprogs, dosfstools and mtools.

use super::pattern;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory of a test's own, gone with it.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// An empty one for this test.
    pub fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("peerboot-files-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where in it something with this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a program that Debian has in /sbin or /usr/bin.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // e2fsck says with 1 that it has corrected something.
    let fine = output.status.success() || (program == "e2fsck" && output.status.code() == Some(1));
    assert!(fine, "{program} {arguments:?}: {said}");
    said
}

/// An image of so many MiB with what is under `root`.
pub fn mke2fs(scratch: &Scratch, root: &Path, mib: u32, options: &[&str]) -> Vec<u8> {
    let image = scratch.path("image");
    let _ = fs::remove_file(&image);
    let size = format!("{mib}M");
    let mut arguments =
        vec!["-q", "-F", "-L", "the label", "-U", "01234567-89ab-cdef-0123-456789abcdef", "-d"];
    arguments.push(root.to_str().unwrap());
    arguments.extend(options);
    arguments.extend([image.to_str().unwrap(), &size]);
    run("mke2fs", &arguments);
    fs::read(image).unwrap()
}

/// FAT in an image of so many MiB, with what is under `root`.
pub fn mkfs_vfat(scratch: &Scratch, root: &Path, mib: usize, options: &[&str]) -> Vec<u8> {
    let image = scratch.path("fat");
    fs::File::create(&image).unwrap().set_len((mib as u64) << 20).unwrap();
    let path = image.to_str().unwrap();
    let mut arguments = vec!["-n", "DAS LABEL", "-i", "0a1b2c3d"];
    arguments.extend(options);
    arguments.push(path);
    run("mkfs.vfat", &arguments);
    // Files in between that are gone again, so that others are in pieces.
    let filler = scratch.path("filler");
    fs::write(&filler, pattern(30_000, 9)).unwrap();
    let names: Vec<String> = (0..20).map(|n| format!("::filler{n}")).collect();
    names.iter().for_each(|name| drop(run("mcopy", &["-i", path, filler.to_str().unwrap(), name])));
    names.iter().step_by(2).for_each(|name| drop(run("mdel", &["-i", path, name])));
    let mut arguments = vec!["-s", "-i", path];
    let children: Vec<_> = fs::read_dir(root).unwrap().flatten().map(|entry| entry.path()).collect();
    arguments.extend(children.iter().map(|path| path.to_str().unwrap()));
    arguments.push("::");
    run("mcopy", &arguments);
    names.iter().skip(1).step_by(2).for_each(|name| drop(run("mdel", &["-i", path, name])));
    fs::read(image).unwrap()
}
