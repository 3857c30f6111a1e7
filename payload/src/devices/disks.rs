//! The disks that drivers found.

use super::service::{self, block_on};
use crate::{info, warn};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use drivers::Disk;
use drivers::pci::Address;
use spin::Once;
use storage::partitions::{PartitionTable, Scheme, TableError};

static DISKS: Once<Vec<FoundDisk>> = Once::new();

/// A disk of this machine's.
pub struct FoundDisk {
    /// Its controller's place.
    pub address: Address,
    /// Its driver's name.
    pub driver: &'static str,
    /// The disk.
    pub disk: Disk,
    /// How it is divided, or why that is not known.
    pub partitions: Result<PartitionTable, TableError>,
}

/// All disks, in the order of their controllers' addresses.
pub fn disks() -> &'static [FoundDisk] {
    DISKS.get().map_or(&[], |disks| disks)
}

/// Asks all drivers for their disks, and reads their partition tables.
pub fn find() {
    let mut found = Vec::new();
    for running in service::running() {
        for disk in running.driver.disks() {
            let partitions = block_on(PartitionTable::read(&*disk.device));
            let address = running.function.address();
            let disk = FoundDisk { address, driver: running.driver.name(), disk, partitions };
            info!("{disk}");
            for problem in disk.partitions.iter().flat_map(|table| &table.problems) {
                warn!("{} {}: {problem}", disk.driver, disk.address);
            }
            found.push(disk);
        }
    }
    DISKS.call_once(|| found);
}

impl fmt::Display for FoundDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let geometry = self.disk.device.geometry();
        write!(f, "disk: {} {}/{}", self.driver, self.address, self.disk.unit)?;
        if !self.disk.model.is_empty() {
            write!(f, ", {}", Plain(&self.disk.model))?;
        }
        if !self.disk.serial.is_empty() {
            write!(f, ", serial {}", Plain(&self.disk.serial))?;
        }
        write!(f, ", {} MiB in blocks of {}", geometry.size() >> 20, geometry.block_size)?;
        if geometry.read_only {
            f.write_str(", read-only")?;
        }
        match &self.partitions {
            Ok(table) => {
                let scheme = match table.scheme {
                    Scheme::Gpt => "GPT",
                    Scheme::Mbr => "MBR",
                };
                write!(f, ", {scheme} with {} partition(s)", table.partitions.len())?;
                table.partitions.iter().try_for_each(|partition| {
                    write!(f, ", {}", partition.number)?;
                    partition.label.as_deref().map_or(Ok(()), |label| write!(f, " \"{}\"", Plain(label)))
                })
            }
            Err(error) => write!(f, ", {error}"),
        }
    }
}

/// What a disk says of itself, with nothing in it that moves a terminal.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| f.write_char(if c.is_control() { '?' } else { c }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_disks_say_moves_no_terminal() {
        assert_eq!(Plain("a\x1b[2J\u{9b}é").to_string(), "a?[2J?é");
    }
}
