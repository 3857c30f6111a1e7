//! Who has which parts of the host's disks open: nobody writes what another uses.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use spin::Mutex;

/// All that is open.
#[derive(Clone, Debug, Default)]
pub struct Register(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    open: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    source: Source,
    access: Access,
    holder: String,
}

/// What somebody opens: parts of one of the host's disks. A partition is one part, and a file in it as many as it
/// has extents, so that whole disks, partitions, files and images all meet where they overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Which disk, by a number that it keeps.
    pub disk: u64,
    /// The parts, in bytes on that disk.
    pub ranges: Vec<Range<u64>>,
    /// How the user names it.
    pub name: String,
}

/// What somebody does with what he opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads alone, as others may too.
    Read,
    /// Writes as well, while nobody else may even read.
    Write,
}

/// Somebody else has it open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What was to be opened.
    pub source: String,
    /// By whom.
    pub holder: String,
    /// And for what.
    pub access: Access,
    /// What is open and overlaps it.
    pub other_source: String,
    /// Who has that open.
    pub other_holder: String,
    /// And for what.
    pub other_access: Access,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = |access| if access == Access::Write { "write" } else { "read" };
        let (want, does) = (verb(self.access), verb(self.other_access));
        write!(f, "{} cannot {want} `{}`: {} {does}s ", self.holder, self.source, self.other_holder)?;
        if self.source == self.other_source {
            f.write_str("it")
        } else {
            write!(f, "`{}`, which overlaps it", self.other_source)
        }
    }
}

impl core::error::Error for Conflict {}

/// Something is open for as long as this lives.
#[derive(Debug)]
pub struct Hold {
    register: Register,
    ticket: u64,
}

impl Source {
    /// Whether both have some byte.
    fn overlaps(&self, other: &Self) -> bool {
        let meet = |one: &Range<u64>, two: &Range<u64>| one.start.max(two.start) < one.end.min(two.end);
        self.disk == other.disk && self.ranges.iter().any(|one| other.ranges.iter().any(|two| meet(one, two)))
    }
}

impl Register {
    /// Opens `source` for `holder`, who is named to others that want it.
    ///
    /// # Errors
    /// Someone writes something of it, or it is to be written and someone uses something of it. Who has it open
    /// already is someone else too.
    pub fn open(&self, source: Source, access: Access, holder: &str) -> Result<Hold, Conflict> {
        let mut entries = self.0.lock();
        let excludes = |other: &&Entry| {
            (access == Access::Write || other.access == Access::Write) && other.source.overlaps(&source)
        };
        if let Some(other) = entries.open.iter().find(excludes) {
            return Err(Conflict {
                source: source.name,
                holder: holder.to_owned(),
                access,
                other_source: other.source.name.clone(),
                other_holder: other.holder.clone(),
                other_access: other.access,
            });
        }
        let ticket = entries.next;
        entries.next = ticket.wrapping_add(1);
        entries.open.push(Entry { ticket, source, access, holder: holder.to_owned() });
        Ok(Hold { register: self.clone(), ticket })
    }

    /// What is open of a disk, in words, in the order in which it was opened.
    pub fn of_disk(&self, disk: u64) -> Vec<String> {
        let entries = self.0.lock();
        let open = entries.open.iter().filter(|entry| entry.source.disk == disk);
        let words = |entry: &Entry| match entry.access {
            Access::Read => format!("{} reads `{}`", entry.holder, entry.source.name),
            Access::Write => format!("{} writes `{}`", entry.holder, entry.source.name),
        };
        open.map(words).collect()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.register.0.lock().open.retain(|entry| entry.ticket != self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(disk: u64, name: &str, ranges: impl IntoIterator<Item = Range<u64>>) -> Source {
        Source { disk, ranges: ranges.into_iter().collect(), name: name.to_owned() }
    }

    #[test]
    fn both_holders_are_named() {
        let register = Register::default();
        let partition = source(0, "disk:QM1/part:2", Some(100..200));
        let held = register.open(partition.clone(), Access::Write, "guest `a`, disk0").unwrap();
        let error =
            |source, access| register.open(source, access, "guest `b`, disk1").unwrap_err().to_string();
        assert_eq!(
            error(partition.clone(), Access::Read),
            "guest `b`, disk1 cannot read `disk:QM1/part:2`: guest `a`, disk0 writes it"
        );
        assert_eq!(
            error(source(0, "disk:QM1", Some(0..1000)), Access::Write),
            "guest `b`, disk1 cannot write `disk:QM1`: guest `a`, disk0 writes `disk:QM1/part:2`, which overlaps it"
        );
        let file = source(0, "disk:QM1/part:2/base.img", [50..60, 190..195]);
        assert!(register.open(file.clone(), Access::Read, "guest `b`").is_err());
        assert!(register.open(source(1, "disk:QM2", Some(0..1000)), Access::Write, "guest `b`").is_ok());
        assert!(
            register.open(source(0, "disk:QM1/part:3", Some(200..300)), Access::Write, "guest `b`").is_ok()
        );
        assert_eq!(register.of_disk(0), ["guest `a`, disk0 writes `disk:QM1/part:2`"]);
        assert!(register.of_disk(2).is_empty());
        drop(held);
        let readers: Vec<Hold> =
            ["a", "b"].map(|guest| register.open(file.clone(), Access::Read, guest).unwrap()).into();
        assert!(register.open(partition.clone(), Access::Write, "guest `c`").is_err());
        assert!(register.open(partition.clone(), Access::Read, "guest `c`").is_ok());
        drop(readers);
        assert!(register.open(partition, Access::Write, "guest `c`").is_ok());
    }

    /// Disks and places on them.
    type Bytes = Vec<(u64, u64)>;

    proptest! {
        /// Of what is open, no byte is written by one and used by another; what is refused would break that.
        #[test]
        fn no_byte_is_written_by_one_and_used_by_another(
            steps in proptest::collection::vec(
                (0_u64..2, 0_u64..64, 1_u64..20, 0_u64..64, 0_u64..5, any::<bool>(), any::<bool>()),
                1..40,
            ),
        ) {
            let register = Register::default();
            let mut held: Vec<(Hold, Bytes, bool)> = Vec::new();
            for (disk, at, len, other, other_len, writes, closes) in steps {
                if closes && !held.is_empty() {
                    held.remove(at as usize % held.len());
                    continue;
                }
                let ranges = [at..at + len, other..other + other_len];
                let bytes: Bytes =
                    ranges.iter().cloned().flatten().map(|byte| (disk, byte)).collect();
                let access = if writes { Access::Write } else { Access::Read };
                let free = held.iter().all(|(_, others, written)| {
                    !(writes || *written) || !others.iter().any(|byte| bytes.contains(byte))
                });
                let opened = register.open(source(disk, "x", ranges), access, "y");
                prop_assert_eq!(opened.is_ok(), free);
                if let Ok(hold) = opened {
                    held.push((hold, bytes, writes));
                }
            }
            held.clear();
            prop_assert!(register.0.lock().open.is_empty());
        }
    }
}
