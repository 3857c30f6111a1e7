//! Kernels that no boot loader was told of, as Debian leaves them: `/vmlinuz` and `/initrd.img`, or the newest
//! `vmlinuz-*` where no link says which one.

use super::{BootDisk, Entry, Findings, Image, Source, Volume, version};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// How many versions of a directory are looked at, the newest ones.
const MOST_VERSIONS: usize = 16;
/// What a root file system has, one of them at least.
const ROOT_SIGNS: [&str; 3] = ["/etc/os-release", "/sbin/init", "/etc/fstab"];

/// Looks on all partitions.
pub async fn find(disk: &BootDisk, findings: &mut Findings) {
    let mut root = None;
    for volume in &disk.volumes {
        if root.is_none() && is_root(volume).await {
            root = argument(volume);
        }
    }
    for (index, volume) in disk.volumes.iter().enumerate() {
        // A system with its own kernel is its own root; a separate /boot belongs to somebody else.
        let root = if is_root(volume).await { argument(volume) } else { root.clone() };
        let arguments = root.map_or_else(|| "ro".to_owned(), |root| format!("{root} ro"));
        let mut entries = Vec::new();
        for (kernel, ramdisk) in kernels(volume, findings).await {
            let image = |path: String| Image { volume: index, path, section: None };
            let entry = Entry {
                title: kernel.clone(),
                id: kernel.clone(),
                source: Source::Plain,
                partition: volume.number(),
                path: kernel.clone(),
                kernel: image(kernel),
                ramdisks: ramdisk.map(image).into_iter().collect(),
                arguments: arguments.clone(),
            };
            findings.push(volume, &mut entries, entry);
        }
        findings.add(entries, 0);
    }
}

async fn is_root(volume: &Volume) -> bool {
    for sign in ROOT_SIGNS {
        if volume.has(sign).await {
            return true;
        }
    }
    false
}

/// How the kernel is told of this root file system.
fn argument(volume: &Volume) -> Option<String> {
    volume.partition.as_ref().map(|partition| format!("root=PARTUUID={}", partition.id))
}

/// A volume's kernels with their ramdisks, the one that boots first.
async fn kernels(volume: &Volume, findings: &mut Findings) -> Vec<(String, Option<String>)> {
    let mut pairs = Vec::new();
    for directory in ["", "/boot"] {
        for suffix in ["", ".old"] {
            pairs.push((format!("{directory}/vmlinuz{suffix}"), format!("{directory}/initrd.img{suffix}")));
        }
        let names = volume.names(&format!("{directory}/"), "", findings).await;
        let mut versions: Vec<&str> = Vec::new();
        for version in names.iter().filter_map(|name| name.strip_prefix("vmlinuz-")) {
            let place = versions.partition_point(|other| version::compare(other, version).is_ge());
            versions.insert(place, version);
        }
        for version in versions.into_iter().take(MOST_VERSIONS) {
            pairs.push((
                format!("{directory}/vmlinuz-{version}"),
                format!("{directory}/initrd.img-{version}"),
            ));
        }
    }
    let mut there = Vec::new();
    for (kernel, ramdisk) in pairs {
        if volume.has(&kernel).await {
            let ramdisk = if volume.has(&ramdisk).await { Some(ramdisk) } else { None };
            there.push((kernel, ramdisk));
        }
    }
    there
}
