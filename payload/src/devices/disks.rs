//! The disks that drivers found.

use super::service::{self, block_on};
use crate::{info, warn};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::future::{Future, poll_fn};
use core::task::Poll;
use drivers::Disk;
use drivers::pci::Address;
use spin::Once;
use storage::partitions::{PartitionTable, Scheme, TableError};

static DISKS: Once<Vec<FoundDisk>> = Once::new();

/// A disk of this machine's.
pub struct FoundDisk {
    /// Its controller's kind and number among those of this kind, as in `nvme0`.
    pub controller: String,
    /// Its controller's place.
    pub address: Address,
    /// The disk.
    pub disk: Disk,
    /// How it is divided, or why that is not known.
    pub partitions: Result<PartitionTable, TableError>,
}

/// All disks, in the order of their controllers' addresses.
pub fn disks() -> &'static [FoundDisk] {
    DISKS.get().map_or(&[], |disks| disks)
}

/// Asks all drivers for their disks, and reads all partition tables at once.
pub fn find() {
    let (mut found, mut kinds) = (Vec::new(), Vec::new());
    for running in service::running() {
        // virtio-blk is called as the manifest calls it.
        let kind = running.driver.name().split('-').next().unwrap_or_default();
        let number = kinds.iter().filter(|other| **other == kind).count();
        kinds.push(kind);
        let address = running.function.address();
        let disks = running.driver.disks().into_iter();
        found.extend(disks.map(|disk| (format!("{kind}{number}"), address, disk)));
    }
    let tables = found.iter().map(|(.., disk)| PartitionTable::read(&*disk.device));
    let tables = block_on(all(tables.collect()));
    let found: Vec<FoundDisk> = found
        .into_iter()
        .zip(tables)
        .map(|((controller, address, disk), partitions)| FoundDisk { controller, address, disk, partitions })
        .collect();
    for disk in &found {
        info!("{disk}");
        for problem in disk.partitions.iter().flat_map(|table| &table.problems) {
            warn!("{}.{}: {problem}", disk.controller, disk.disk.unit);
        }
    }
    DISKS.call_once(|| found);
}

/// What comes of all these, which go on at once.
async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    poll_fn(move |context| {
        for (future, done) in waiting.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                *done = Some(value);
            }
        }
        if done.iter().any(Option::is_none) {
            return Poll::Pending;
        }
        Poll::Ready(done.drain(..).flatten().collect())
    })
    .await
}

impl fmt::Display for FoundDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let geometry = self.disk.device.geometry();
        write!(f, "disk: {}.{} at pci:{}", self.controller, self.disk.unit, self.address)?;
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
    use core::pin::pin;
    use core::sync::atomic::{AtomicUsize, Ordering};
    use core::task::{Context, Waker};

    #[test]
    fn what_waits_keeps_nothing_else_waiting() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        // The first is ready when it is asked for the third time, the second for the first time.
        let futures = [3, 1].map(|times| {
            let mut left = times;
            poll_fn(move |_| {
                ASKED.fetch_add(1, Ordering::Relaxed);
                left -= 1;
                if left == 0 { Poll::Ready(times) } else { Poll::Pending }
            })
        });
        let mut all = pin!(all(futures.into()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(all.as_mut().poll(&mut context).is_pending());
        assert!(all.as_mut().poll(&mut context).is_pending());
        assert_eq!(all.as_mut().poll(&mut context), Poll::Ready(vec![3, 1]));
        assert_eq!(ASKED.load(Ordering::Relaxed), 4, "who is ready is not asked again");
    }

    #[test]
    fn what_disks_say_moves_no_terminal() {
        assert_eq!(Plain("a\x1b[2J\u{9b}é").to_string(), "a?[2J?é");
    }
}
