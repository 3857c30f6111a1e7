//! File systems on a block device: FAT and ext2 to ext4, read, and files of theirs as disks.
//!
//! Nothing here writes what a file system keeps for itself: [`FileDisk`] writes into the blocks that a file has
//! already, and whatever would need more is refused.

mod disk;
mod error;
#[cfg(feature = "ext4")]
mod ext4;
mod extents;
#[cfg(feature = "fat")]
mod fat;

pub use disk::FileDisk;
pub use error::FileError;

use crate::block::{BlockDevice, read_bytes};
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use extents::Extents;

/// How many symbolic links a path may go through; as many as Linux allows.
const MOST_LINKS: usize = 40;
/// The longest path, and target of a symbolic link, in bytes; Linux's PATH_MAX.
const LONGEST_LINK: u64 = 4096;
/// How many directories deep a path may lead.
const DEEPEST: usize = 256;
/// How many entries of one directory are listed: they are in the firmware's memory.
const MOST_ENTRIES: usize = 1 << 11;
/// How many names a path may still lead through, those in links included.
const LONGEST_WAY: usize = 1 << 10;
/// Files are read in requests of at most so many bytes.
const REQUEST: usize = 1 << 20;

/// How many bytes of its own a file system may read between being opened and closed: paths may lead through as many
/// long directories as somebody likes. Debian's boot files take a few megabytes.
const MOST_OWN: u64 = 256 << 20;

/// How much a file system has read of its own: directories, and where files are.
#[derive(Debug, Default)]
struct Effort(AtomicU64);

impl Effort {
    /// So many bytes are about to be read.
    fn spend(&self, bytes: u64) -> Result<(), FileError> {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        if before > MOST_OWN { Err(FileError::Unsupported("so much to look through")) } else { Ok(()) }
    }
}

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A file with bytes.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, a pipe or a socket.
    Special,
}

/// What is known of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Its length in bytes.
    pub size: u64,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name; what is no UTF-8 in it is replaced.
    pub name: String,
    /// What has this name.
    pub kind: FileKind,
}

/// A file system on a block device.
///
/// Paths begin at its root, with or without a slash. ext4's names are compared byte by byte, FAT's without regard
/// to the case of ASCII letters. It holds little in memory and reads anew each time.
pub struct FileSystem {
    device: Arc<dyn BlockDevice>,
    format: Format,
}

enum Format {
    #[cfg(feature = "ext4")]
    Ext4(ext4::Ext4),
    #[cfg(feature = "fat")]
    Fat(fat::Fat),
}

/// A file that was found.
pub struct File {
    device: Arc<dyn BlockDevice>,
    content: Content,
    size: u64,
}

/// Where a file's bytes are.
enum Content {
    /// In the device's blocks.
    Extents(Extents),
    /// Among the file system's own data, as FAT has no file.
    #[cfg_attr(not(feature = "ext4"), allow(dead_code))]
    Inline(Vec<u8>),
}

/// Something in the file system.
#[derive(Clone, Copy, Debug)]
struct Node {
    kind: FileKind,
    size: u64,
    /// What the file system finds it by: ext4's inode number, FAT's first cluster.
    place: u32,
}

/// A directory's entry, as the file system has it.
struct Found {
    name: Vec<u8>,
    node: Node,
}

impl FileSystem {
    /// Opens the file system on `device`.
    ///
    /// # Errors
    /// There is none that is known, or it is damaged, or has features that are not.
    pub async fn open(device: Arc<dyn BlockDevice>) -> Result<Self, FileError> {
        #[cfg(feature = "ext4")]
        if let Some(ext4) = ext4::Ext4::open(&device).await? {
            return Ok(Self { device, format: Format::Ext4(ext4) });
        }
        #[cfg(feature = "fat")]
        if let Some(fat) = fat::Fat::open(&device).await? {
            return Ok(Self { device, format: Format::Fat(fat) });
        }
        Err(FileError::NoFileSystem)
    }

    /// How many entries it keeps in memory about its journal.
    pub(crate) fn weight(&self) -> usize {
        match &self.format {
            #[cfg(feature = "ext4")]
            Format::Ext4(ext4) => ext4.weight(),
            #[cfg(feature = "fat")]
            Format::Fat(_) => 0,
        }
    }

    /// What kind of file system it is, as `blkid` calls it; `ext4` for its forerunners too.
    pub fn name(&self) -> &'static str {
        match &self.format {
            #[cfg(feature = "ext4")]
            Format::Ext4(_) => "ext4",
            #[cfg(feature = "fat")]
            Format::Fat(_) => "vfat",
        }
    }

    /// What tells it from others, written as Linux's UUID of a file system: `0A1B-2C3D` for FAT.
    pub fn id(&self) -> String {
        match &self.format {
            #[cfg(feature = "ext4")]
            Format::Ext4(ext4) => ext4.id(),
            #[cfg(feature = "fat")]
            Format::Fat(fat) => fat.id(),
        }
    }

    /// Its label; empty where it has none.
    pub fn label(&self) -> String {
        match &self.format {
            #[cfg(feature = "ext4")]
            Format::Ext4(ext4) => ext4.label(),
            #[cfg(feature = "fat")]
            Format::Fat(fat) => fat.label(),
        }
    }

    /// What is at `path`, where its links lead.
    ///
    /// # Errors
    /// Nothing is there, or the file system cannot be read.
    pub async fn metadata(&self, path: &str) -> Result<Metadata, FileError> {
        let node = self.walk(path).await?;
        Ok(Metadata { kind: node.kind, size: node.size })
    }

    /// What is in the directory at `path`, in the order of the disk, without itself and its parent.
    ///
    /// # Errors
    /// It is no directory, or the file system cannot be read.
    pub async fn list(&self, path: &str) -> Result<Vec<DirectoryEntry>, FileError> {
        let node = self.walk(path).await?;
        if node.kind != FileKind::Directory {
            return Err(FileError::NotADirectory(path.to_owned()));
        }
        let found = self.entries(&node, None).await?;
        let named = |found: Found| DirectoryEntry {
            name: String::from_utf8_lossy(&found.name).into_owned(),
            kind: found.node.kind,
        };
        Ok(found.into_iter().map(named).collect())
    }

    /// The file at `path`.
    ///
    /// # Errors
    /// There is none, or the file system cannot be read, or the file is encrypted or compressed.
    pub async fn file(&self, path: &str) -> Result<File, FileError> {
        let node = self.walk(path).await?;
        if node.kind != FileKind::File {
            return Err(FileError::NotAFile(path.to_owned()));
        }
        let content = self.content(&node).await?;
        Ok(File { device: Arc::clone(&self.device), content, size: node.size })
    }

    /// All bytes of the file at `path`, which may be at most `most`.
    ///
    /// # Errors
    /// As [`FileSystem::file`]; or it is larger, or the device cannot read it.
    pub async fn read(&self, path: &str, most: usize) -> Result<Vec<u8>, FileError> {
        let file = self.file(path).await?;
        match usize::try_from(file.size) {
            Ok(size) if size <= most => file.read(0, size).await,
            _ => Err(FileError::TooLarge { path: path.to_owned(), size: file.size, most: most as u64 }),
        }
    }

    /// The file at `path` as a disk, which is written in place if it is `writable`.
    ///
    /// # Errors
    /// As [`FileSystem::file`]; or its blocks are not for others to write: the file system was not left in a clean
    /// state, or the file's bytes lie in its inode or are signed or shared.
    pub async fn disk(&self, path: &str, writable: bool) -> Result<FileDisk, FileError> {
        let node = self.walk(path).await?;
        if node.kind != FileKind::File {
            return Err(FileError::NotAFile(path.to_owned()));
        }
        match &self.format {
            #[cfg(feature = "ext4")]
            Format::Ext4(ext4) => ext4.check_in_place(&node, writable).await?,
            #[cfg(feature = "fat")]
            Format::Fat(_) => {}
        }
        match self.content(&node).await? {
            Content::Extents(extents) => Ok(FileDisk::new(Arc::clone(&self.device), extents, writable)),
            Content::Inline(_) => {
                Err(FileError::Unsupported("a disk in a file whose bytes lie in its inode"))
            }
        }
    }

    /// Follows `path` from the root.
    async fn walk(&self, path: &str) -> Result<Node, FileError> {
        let root = self.root();
        // The directories from below the root down to where the path has led so far.
        let mut way: Vec<Node> = Vec::new();
        let mut rest: Vec<Vec<u8>> = Vec::new();
        let mut links = 0_usize;
        if path.len() > LONGEST_LINK as usize {
            return Err(FileError::TooDeep(path.chars().take(64).collect()));
        }
        push_reversed(&mut rest, path.as_bytes());
        while let Some(name) = rest.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    way.pop();
                    continue;
                }
                _ => {}
            }
            if rest.len() > LONGEST_WAY {
                return Err(FileError::TooDeep(path.to_owned()));
            }
            let here = way.last().copied().unwrap_or(root);
            if here.kind != FileKind::Directory {
                return Err(FileError::NotADirectory(path.to_owned()));
            }
            let Some(found) = self.entries(&here, Some(&name)).await?.pop() else {
                return Err(FileError::NotFound(path.to_owned()));
            };
            let node = self.resolved(found.node).await?;
            if node.kind == FileKind::Link {
                links = links.saturating_add(1);
                if links > MOST_LINKS {
                    return Err(FileError::TooManyLinks(path.to_owned()));
                }
                let target = self.target(&node).await?;
                if target.first() == Some(&b'/') {
                    way.clear();
                }
                push_reversed(&mut rest, &target);
                continue;
            }
            if way.len() >= DEEPEST {
                return Err(FileError::TooDeep(path.to_owned()));
            }
            way.push(node);
        }
        Ok(way.last().copied().unwrap_or(root))
    }

    fn root(&self) -> Node {
        match &self.format {
            #[cfg(feature = "ext4")]
            Format::Ext4(_) => ext4::ROOT,
            #[cfg(feature = "fat")]
            Format::Fat(fat) => fat.root(),
        }
    }

    /// The node with its size, which a directory of ext4 does not know.
    async fn resolved(&self, node: Node) -> Result<Node, FileError> {
        match &self.format {
            #[cfg(feature = "ext4")]
            Format::Ext4(ext4) => ext4.node(node.place).await,
            #[cfg(feature = "fat")]
            Format::Fat(_) => Ok(node),
        }
    }

    /// The entries of a directory, or the one that has this name.
    async fn entries(&self, directory: &Node, wanted: Option<&[u8]>) -> Result<Vec<Found>, FileError> {
        match &self.format {
            #[cfg(feature = "ext4")]
            Format::Ext4(ext4) => ext4.entries(directory, wanted).await,
            #[cfg(feature = "fat")]
            Format::Fat(fat) => fat.entries(directory, wanted).await,
        }
    }

    async fn content(&self, node: &Node) -> Result<Content, FileError> {
        match &self.format {
            #[cfg(feature = "ext4")]
            Format::Ext4(ext4) => ext4.content(&ext4.inode(node.place).await?).await,
            #[cfg(feature = "fat")]
            Format::Fat(fat) => fat.extents(node).await.map(Content::Extents),
        }
    }

    /// Where a symbolic link leads.
    async fn target(&self, link: &Node) -> Result<Vec<u8>, FileError> {
        if link.size == 0 || link.size > LONGEST_LINK {
            return Err(FileError::Damaged { what: "length of a symbolic link", found: link.size });
        }
        let content = self.content(link).await?;
        let file = File { device: Arc::clone(&self.device), content, size: link.size };
        file.read(0, link.size as usize).await
    }
}

/// Adds the names of `path` to what is still to be followed, which is taken from the end.
fn push_reversed(rest: &mut Vec<Vec<u8>>, path: &[u8]) {
    rest.extend(path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
}

impl File {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The `len` bytes at `at`.
    ///
    /// # Errors
    /// They are not all there, or the device cannot read them.
    pub async fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, FileError> {
        let behind = FileError::BehindTheEnd { at, len: len as u64, size: self.size };
        if at.checked_add(len as u64).is_none_or(|end| end > self.size) {
            return Err(behind);
        }
        let extents = match &self.content {
            Content::Inline(bytes) => {
                let there = bytes.get(at as usize..).and_then(|rest| rest.get(..len));
                return there.map(<[u8]>::to_vec).ok_or(behind);
            }
            Content::Extents(extents) => extents,
        };
        let mut bytes = vec![0; len];
        let mut rest = bytes.as_mut_slice();
        let mut place = at;
        while !rest.is_empty() {
            let (from, there) = extents.piece(place, rest.len().min(REQUEST) as u64).ok_or(behind.clone())?;
            let (piece, after) = rest.split_at_mut_checked(there as usize).ok_or(behind.clone())?;
            if let Some(from) = from {
                piece.copy_from_slice(&read_bytes(&*self.device, from, piece.len()).await?);
            }
            place = place.saturating_add(there);
            rest = after;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
