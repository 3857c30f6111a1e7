//! What a disk has to boot: kernels, their ramdisks and arguments, as boot loaders are told of them.
//!
//! Looked for are, in this order: unified kernel images and entries of the Boot Loader Specification on the EFI
//! system partition and its extension; `extlinux.conf`; GRUB's configuration as Debian writes it; and `/vmlinuz`
//! with `/initrd.img`, where there is none of these. The default of the first kind that has entries is the default
//! of all.

mod extlinux;
mod grub;
mod loader_spec;
mod plain;
mod unified;
mod version;

use crate::block::BlockDevice;
use crate::files::{File, FileError, FileKind, FileSystem};
use crate::partitions::{Partition, PartitionTable, TableError, Window};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

// A disk is its guest's to write, and what is read of it is in the memory of all: everything has a bound.

/// How many file systems are looked at.
const MOST_VOLUMES: usize = 16;
/// How many blocks their journals may have in newer versions, all together.
const MOST_WEIGHT: usize = 1 << 15;
/// The longest configuration file in bytes.
const LONGEST_TEXT: usize = 128 << 10;
/// How many entries are listed.
const MOST_ENTRIES: usize = 128;
/// How many bytes an entry's texts may have; Linux takes arguments of 2047.
const LONGEST_ENTRY: usize = 6 << 10;
/// How many ramdisks an entry may have.
const MOST_RAMDISKS: usize = 32;
/// How many remarks are kept, and how many letters of each.
const MOST_REMARKS: usize = 32;
const LONGEST_REMARK: usize = 256;
/// Ramdisks are read in pieces of so many bytes.
const STEP: u64 = 1 << 20;
/// What several ramdisks are padded to, so that Linux finds the next archive.
const ALIGNMENT: usize = 4;

/// A disk's file systems.
pub struct BootDisk {
    volumes: Vec<Volume>,
    /// Partitions without a file system, and why.
    remarks: Vec<String>,
}

/// A file system, and where it is.
struct Volume {
    /// `None` for one that has the disk to itself.
    partition: Option<Partition>,
    files: FileSystem,
    /// Its own identifier and label, which GRUB searches for.
    id: String,
    label: String,
}

/// Something to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What users read.
    pub title: String,
    /// What tells it from the others of its kind.
    pub id: String,
    /// How it was found.
    pub source: Source,
    /// The number of the partition that it was found in; 0 where the disk has none.
    pub partition: u32,
    /// The file that told of it.
    pub path: String,
    /// The kernel.
    pub kernel: Image,
    /// What comes into memory with the kernel, in this order.
    pub ramdisks: Vec<Image>,
    /// The kernel's command line.
    pub arguments: String,
}

/// How an entry was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A unified kernel image.
    UnifiedKernel,
    /// An entry of the Boot Loader Specification, type 1.
    LoaderEntry,
    /// A label of extlinux or syslinux.
    Extlinux,
    /// An entry of GRUB's menu.
    Grub,
    /// A kernel that no boot loader was told of.
    Plain,
}

impl Entry {
    /// Whether it is of a length that entries have.
    fn is_short(&self) -> bool {
        let paths = self.ramdisks.iter().map(|image| image.path.len());
        let texts =
            [self.title.len(), self.id.len(), self.path.len(), self.kernel.path.len(), self.arguments.len()];
        let len = texts.into_iter().chain(paths).fold(0_usize, usize::saturating_add);
        self.ramdisks.len() <= MOST_RAMDISKS && len <= LONGEST_ENTRY
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnifiedKernel => "unified kernel image",
            Self::LoaderEntry => "boot loader entry",
            Self::Extlinux => "extlinux",
            Self::Grub => "GRUB",
            Self::Plain => "kernel without a boot loader",
        })
    }
}

/// A file on the disk, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    volume: usize,
    /// Where it is in its file system.
    pub path: String,
    /// Where in the file it begins, and its length in bytes, if it is not all of it.
    pub section: Option<(u64, u64)>,
}

/// What there is to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Menu {
    /// The entries, in the order of their boot loaders' menus. There is at least one.
    pub entries: Vec<Entry>,
    /// The number of the one that boots if nobody chooses.
    pub default: usize,
    /// What was found and cannot be used, one sentence each.
    pub remarks: Vec<String>,
}

/// An entry in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The kernel.
    pub kernel: Vec<u8>,
    /// All ramdisks, each from a multiple of four bytes on; empty where there is none.
    pub ramdisk: Vec<u8>,
    /// The kernel's command line.
    pub arguments: String,
}

/// Why nothing boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootError {
    /// The disk's partitions cannot be read.
    Table(TableError),
    /// There is nothing that is known to boot; what was there instead, one sentence each.
    Nothing(Vec<String>),
    /// An entry's file cannot be read.
    File {
        /// The number of its partition; 0 where the disk has none.
        partition: u32,
        /// The file.
        path: String,
        /// Why.
        error: FileError,
    },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(error) => error.fmt(f),
            Self::Nothing(remarks) => {
                f.write_str(
                    "nothing to boot: looked for EFI/Linux/*.efi and loader/entries/*.conf on EFI system and \
                     extended boot loader partitions, and for extlinux.conf, grub/grub.cfg and vmlinuz in / and \
                     /boot of each partition",
                )?;
                remarks.iter().try_for_each(|remark| write!(f, "; {remark}"))
            }
            Self::File { partition, path, error } => write!(f, "{}{path}: {error}", Place(*partition)),
        }
    }
}

impl core::error::Error for BootError {}

/// The beginning of a remark about a partition.
struct Place(u32);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { f.write_str("the disk: ") } else { write!(f, "partition {}: ", self.0) }
    }
}

/// What was found so far.
#[derive(Default)]
struct Findings {
    entries: Vec<Entry>,
    default: Option<usize>,
    remarks: Vec<String>,
}

impl Findings {
    fn remark(&mut self, volume: &Volume, path: &str, what: &str) {
        if self.remarks.len() < MOST_REMARKS {
            let remark = format!("{}{path}: {what}", Place(volume.number()));
            self.remarks.push(remark.chars().take(LONGEST_REMARK).collect());
        }
    }

    /// Adds an entry to those of a configuration, if it is of a length that entries have.
    fn push(&mut self, volume: &Volume, entries: &mut Vec<Entry>, entry: Entry) {
        if entries.len().saturating_add(self.entries.len()) >= MOST_ENTRIES {
            self.remark(volume, &entry.path, "there are more entries than are listed");
        } else if entry.is_short() {
            entries.push(entry);
        } else {
            self.remark(volume, &entry.path, "an entry is too long and left out");
        }
    }

    /// Adds the entries of one configuration, of which this one is the default.
    fn add(&mut self, entries: Vec<Entry>, default: usize) {
        if self.default.is_none() && !entries.is_empty() {
            let default = default.min(entries.len().saturating_sub(1));
            self.default = Some(self.entries.len().saturating_add(default));
        }
        self.entries.extend(entries);
    }
}

impl Volume {
    async fn open(device: Arc<dyn BlockDevice>, partition: Option<Partition>) -> Result<Self, FileError> {
        let files = FileSystem::open(device).await?;
        let (id, label) = (files.id(), files.label());
        Ok(Self { partition, files, id, label })
    }

    fn number(&self) -> u32 {
        self.partition.as_ref().map_or(0, |partition| partition.number)
    }

    /// Whether boot loaders for EFI look here. A file system without a partition has nobody to say no.
    fn is_for_boot_loaders(&self) -> bool {
        let kind = self.partition.as_ref().map(|partition| partition.kind);
        kind.is_none_or(|kind| kind.is_efi_system() || kind.is_extended_boot())
    }

    /// A configuration file; nothing where there is none.
    async fn text(&self, path: &str, findings: &mut Findings) -> Option<String> {
        match self.files.read(path, LONGEST_TEXT).await {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => {
                if !is_missing(&error) {
                    findings.remark(self, path, &error.to_string());
                }
                None
            }
        }
    }

    /// The names in a directory that end with `suffix`, in any case of letters; none where there is no directory.
    async fn names(&self, path: &str, suffix: &str, findings: &mut Findings) -> Vec<String> {
        let entries = match self.files.list(path).await {
            Ok(entries) => entries,
            Err(error) => {
                if !is_missing(&error) {
                    findings.remark(self, path, &error.to_string());
                }
                return Vec::new();
            }
        };
        let fits = |name: &str| {
            let end = name.len().checked_sub(suffix.len()).and_then(|start| name.get(start..));
            end.is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        };
        let fitting =
            entries.into_iter().filter(|entry| entry.kind != FileKind::Directory && fits(&entry.name));
        fitting.map(|entry| entry.name).take(MOST_ENTRIES).collect()
    }

    async fn has(&self, path: &str) -> bool {
        self.files.metadata(path).await.is_ok()
    }
}

/// Whether this only says that something is not there.
fn is_missing(error: &FileError) -> bool {
    matches!(error, FileError::NotFound(_) | FileError::NotADirectory(_) | FileError::NotAFile(_))
}

/// `path` as seen from the directory `base`.
fn join(base: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", base.trim_end_matches('/')) }
}

impl BootDisk {
    /// Opens the file systems of a disk.
    ///
    /// # Errors
    /// It has neither partitions nor a file system.
    pub async fn open(disk: Arc<dyn BlockDevice>) -> Result<Self, BootError> {
        let table = match PartitionTable::read(&*disk).await {
            Ok(table) => table,
            Err(error) => {
                let volume = Volume::open(disk, None).await.map_err(|_| BootError::Table(error))?;
                return Ok(Self { volumes: Vec::from([volume]), remarks: Vec::new() });
            }
        };
        let (mut volumes, mut remarks) = (Vec::new(), Vec::new());
        // The first sector of a lone FAT file system may look like a table that is empty.
        if table.partitions.is_empty()
            && let Ok(volume) = Volume::open(Arc::clone(&disk), None).await
        {
            volumes.push(volume);
        }
        let mut weight = 0_usize;
        for partition in table.partitions {
            let number = partition.number;
            if volumes.len() >= MOST_VOLUMES || remarks.len() >= MOST_REMARKS {
                remarks.push(format!("the partitions from {number} on are not looked at"));
                break;
            }
            let volume = match Window::new(Arc::clone(&disk), &partition) {
                Ok(window) => Volume::open(Arc::new(window), Some(partition)).await,
                Err(error) => Err(error.into()),
            };
            match volume {
                Ok(volume) => {
                    weight = weight.saturating_add(volume.files.weight());
                    if weight > MOST_WEIGHT {
                        remarks.push(format!("{}its journal is too long to be read along", Place(number)));
                        break;
                    }
                    volumes.push(volume);
                }
                Err(error) => remarks.push(format!("{}{error}", Place(number))),
            }
        }
        Ok(Self { volumes, remarks })
    }

    /// Looks for what there is to boot.
    ///
    /// # Errors
    /// There is nothing.
    pub async fn menu(&self) -> Result<Menu, BootError> {
        let mut findings = Findings { remarks: self.remarks.clone(), ..Findings::default() };
        loader_spec::find(self, &mut findings).await;
        self.drop_incomplete(&mut findings, 0).await;
        for find in [Source::Extlinux, Source::Grub] {
            let known = findings.entries.len();
            match find {
                Source::Extlinux => extlinux::find(self, &mut findings).await,
                _ => grub::find(self, &mut findings).await,
            }
            self.drop_incomplete(&mut findings, known).await;
        }
        if findings.entries.is_empty() {
            plain::find(self, &mut findings).await;
        }
        let Findings { entries, default, mut remarks } = findings;
        if entries.is_empty() {
            let there =
                |volume: &Volume| format!("{}{} file system", Place(volume.number()), volume.files.name());
            remarks.splice(0..0, self.volumes.iter().map(there));
            return Err(BootError::Nothing(remarks));
        }
        Ok(Menu { entries, default: default.unwrap_or(0), remarks })
    }

    /// Leaves out entries from this one on whose files are not there.
    async fn drop_incomplete(&self, findings: &mut Findings, known: usize) {
        let found = findings.entries.split_off(known.min(findings.entries.len()));
        let mut default = None;
        for (index, entry) in found.into_iter().enumerate() {
            let was_default = findings.default == Some(known.saturating_add(index));
            let mut missing = None;
            for image in core::iter::once(&entry.kernel).chain(&entry.ramdisks) {
                if let Some(volume) = self.volumes.get(image.volume)
                    && let Err(error) = volume.files.metadata(&image.path).await
                {
                    missing = Some(format!("\"{}\" is left out: {error}", entry.title));
                }
            }
            if let (Some(missing), Some(volume)) = (missing, self.volumes.get(entry.kernel.volume)) {
                findings.remark(volume, &entry.path, &missing);
                continue;
            }
            if was_default {
                default = Some(findings.entries.len());
            }
            findings.entries.push(entry);
        }
        // An earlier kind's default stays; a missing one is the first that is there.
        if findings.default.is_some_and(|default| default >= known) {
            findings.default = default.or_else(|| (findings.entries.len() > known).then_some(known));
        }
    }

    /// Reads an entry's files, which may have at most `most` bytes together.
    ///
    /// # Errors
    /// A file is not there, cannot be read, or is too large.
    pub async fn load(&self, entry: &Entry, most: usize) -> Result<Loaded, BootError> {
        let mut left = most;
        let kernel = self.image(&entry.kernel).await?;
        kernel.take_from(&mut left)?;
        let (mut ramdisks, mut len) = (Vec::new(), 0_usize);
        for image in &entry.ramdisks {
            let image = self.image(image).await?;
            image.take_from(&mut left)?;
            len = len.next_multiple_of(ALIGNMENT).saturating_add(image.len as usize);
            ramdisks.push(image);
        }
        let kernel = kernel.read(0, kernel.len as usize).await?;
        let mut ramdisk = Vec::with_capacity(len);
        for image in ramdisks {
            ramdisk.resize(ramdisk.len().next_multiple_of(ALIGNMENT), 0);
            let mut done = 0;
            while done < image.len {
                let step = image.len.saturating_sub(done).min(STEP);
                ramdisk.extend(image.read(done, step as usize).await?);
                done = done.saturating_add(step);
            }
        }
        Ok(Loaded { kernel, ramdisk, arguments: entry.arguments.clone() })
    }

    /// Opens a kernel or a ramdisk, to be read piece by piece where [`BootDisk::load`] would need too much memory.
    ///
    /// # Errors
    /// It is not there, or the file system cannot be read.
    pub async fn image(&self, image: &Image) -> Result<OpenImage, BootError> {
        let volume = self.volumes.get(image.volume);
        let failed = |error| BootError::File {
            partition: volume.map_or(0, Volume::number),
            path: image.path.clone(),
            error,
        };
        let found = volume.ok_or_else(|| failed(FileError::NotFound(image.path.clone())))?;
        let file = found.files.file(&image.path).await.map_err(failed)?;
        let (start, len) = image.section.unwrap_or((0, file.size()));
        Ok(OpenImage { file, start, len, partition: found.number(), path: image.path.clone() })
    }
}

/// A kernel or a ramdisk that was opened.
pub struct OpenImage {
    file: File,
    start: u64,
    len: u64,
    partition: u32,
    path: String,
}

impl OpenImage {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// The `len` bytes at `at`.
    ///
    /// # Errors
    /// They are not all there, or the disk cannot read them.
    pub async fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, BootError> {
        let behind = FileError::BehindTheEnd { at, len: len as u64, size: self.len };
        let is_there = at.checked_add(len as u64).is_some_and(|end| end <= self.len);
        let start = self.start.checked_add(at).filter(|_| is_there).ok_or_else(|| self.failed(behind))?;
        self.file.read(start, len).await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: FileError) -> BootError {
        BootError::File { partition: self.partition, path: self.path.clone(), error }
    }

    /// Takes as many bytes as it has from what may be.
    fn take_from(&self, left: &mut usize) -> Result<(), BootError> {
        let most = *left as u64;
        let too_large = || FileError::TooLarge { path: self.path.clone(), size: self.len, most };
        let rest = most.checked_sub(self.len).ok_or_else(|| self.failed(too_large()))?;
        *left = rest as usize;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
