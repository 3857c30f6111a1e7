//! From the manifest's name of a place to the device that is there.

use super::held::Held;
use super::names::{self, NoDisk};
use super::{MACHINE, found};
use crate::machine::own_memory;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use coreboot_config::manifest::{DiskPlace, PartitionName};
use storage::files::{FileError, FileSystem};
use storage::partitions::{NotFound, Partition, PartitionTable, TableError, Window};
use storage::share::{Access, Conflict, Source};
use storage::{BlockDevice, BlockError};
use vmm_core::own_memory::Shortage;

/// Why a place cannot be had.
#[derive(Debug)]
pub enum OpenError {
    /// No disk is meant.
    Disk(NoDisk),
    /// The disk's partitions are not known.
    Table(TableError),
    /// No partition is meant, of these.
    Partition(NotFound, String),
    /// The partition does not fit the disk.
    Window(BlockError),
    /// The file cannot be had.
    File(FileError),
    /// Another has it.
    Conflict(Conflict),
    /// The file is in more pieces than there is memory for.
    Memory(Shortage),
}

/// What each piece of a file takes of our memory: in the file's list and in the register's, both of which grew.
const OWN_MEMORY_OF_EXTENT: u64 = 64;

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(f),
            Self::Table(error) => error.fmt(f),
            Self::Partition(error, there) if there.is_empty() => write!(f, "{error}; the disk has none"),
            Self::Partition(error, there) => write!(f, "{error}; the disk has {there}"),
            Self::Window(error) => write!(f, "the partition: {error}"),
            Self::File(error) => error.fmt(f),
            Self::Conflict(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

/// The device at a place, open for `holder` until it is dropped.
pub async fn place(
    place: &DiskPlace,
    access: Access,
    holder: &str,
) -> Result<Arc<dyn BlockDevice>, OpenError> {
    let number = names::find(&MACHINE.disks, &place.disk).map_err(OpenError::Disk)?;
    let mut device = Arc::clone(&found()[number].disk.device);
    let mut start = 0;
    if let Some(name) = &place.partition {
        let table = PartitionTable::read(&*device).await.map_err(OpenError::Table)?;
        let partition = table.find(&word(name)).map_err(|e| OpenError::Partition(e, listed(&table)))?;
        start = partition.start;
        device = Arc::new(Window::new(device, partition).map_err(OpenError::Window)?);
    }
    let whole = start..start.saturating_add(device.geometry().size());
    let mut ranges: Vec<_> = Some(whole).into_iter().collect();
    let mut lists = None;
    if let Some(path) = &place.file {
        let files = FileSystem::open(device).await.map_err(OpenError::File)?;
        let disk = files.disk(path, access == Access::Write).await.map_err(OpenError::File)?;
        let on_disk =
            |range: core::ops::Range<u64>| start.saturating_add(range.start)..start.saturating_add(range.end);
        ranges = disk.places().map(on_disk).collect();
        let memory = (ranges.len() as u64).saturating_mul(OWN_MEMORY_OF_EXTENT);
        lists = Some(own_memory().claim(memory).map_err(OpenError::Memory)?);
        device = Arc::new(disk);
    }
    let source = Source { disk: number as u64, ranges, name: format!("{place}") };
    let hold = MACHINE.register.open(source, access, holder).map_err(OpenError::Conflict)?;
    Ok(Arc::new(Held::new(device, (hold, lists))))
}

/// A partition as its table finds it.
fn word(name: &PartitionName) -> String {
    match name {
        PartitionName::Number(number) => format!("{number}"),
        PartitionName::Label(label) => format!("label:{label}"),
        PartitionName::Uuid(id) => format!("uuid:{id}"),
    }
}

/// The partitions that there are, for messages.
fn listed(table: &PartitionTable) -> String {
    let mut text = String::new();
    for Partition { number, label, id, .. } in &table.partitions {
        text += if text.is_empty() { "" } else { ", " };
        text += &match label {
            Some(label) => format!("{number} (label/{label}, uuid/{id})"),
            None => format!("{number} (uuid/{id})"),
        };
    }
    text
}
