//! Who has which place on which disk, so that none is written by two.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use spin::Mutex;

/// A place that somebody may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The disk's number.
    pub disk: usize,
    /// The bytes of the disk that it is in: a partition's, or all.
    pub range: Range<u64>,
    /// Where the file in a file system there begins, in bytes of the disk; `None` for the whole range.
    pub file: Option<u64>,
}

impl Place {
    /// Whether bytes belong to both. Files of one file system are apart unless they are the same.
    fn overlaps(&self, other: &Self) -> bool {
        let meet = self.range.start < other.range.end && other.range.start < self.range.end;
        let apart = matches!((self.file, other.file), (Some(one), Some(two)) if one != two);
        self.disk == other.disk && meet && !apart
    }
}

/// All that is held.
#[derive(Default)]
pub struct Holds(Mutex<Vec<Arc<Held>>>);

struct Held {
    place: Place,
    writes: bool,
    holder: String,
    /// The place as the manifest names it.
    name: String,
}

/// A place is held for as long as this lives.
pub struct Hold {
    holds: Arc<Holds>,
    held: Arc<Held>,
}

/// Somebody else holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Who.
    pub holder: String,
    /// To write it.
    pub writes: bool,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.writes { "written" } else { "read" };
        write!(f, "it, or a part of it, is {what} by {}", self.holder)
    }
}

impl Holds {
    /// Holds a place, alone where it is to be written.
    pub fn take(
        self: &Arc<Self>,
        place: Place,
        writes: bool,
        holder: &str,
        name: &str,
    ) -> Result<Hold, InUse> {
        let mut all = self.0.lock();
        if let Some(other) = all.iter().find(|one| (one.writes || writes) && one.place.overlaps(&place)) {
            return Err(InUse { holder: other.holder.clone(), writes: other.writes });
        }
        let held = Arc::new(Held { place, writes, holder: holder.into(), name: name.into() });
        all.push(Arc::clone(&held));
        Ok(Hold { holds: Arc::clone(self), held })
    }

    /// Who has what of the disk of this number, in words.
    pub fn of_disk(&self, disk: usize) -> Vec<String> {
        let all = self.0.lock();
        let words = |held: &Arc<Held>| {
            let what = if held.writes { "written" } else { "read" };
            format!("{} is {what} by {}", held.name, held.holder)
        };
        all.iter().filter(|held| held.place.disk == disk).map(words).collect()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.0.lock().retain(|one| !Arc::ptr_eq(one, &self.held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(range: Range<u64>, file: Option<u64>) -> Place {
        Place { disk: 0, range, file }
    }

    #[test]
    fn what_is_written_is_held_alone() {
        let holds = Arc::new(Holds::default());
        let whole = place(0..1000, None);
        let reader = holds.take(whole.clone(), false, "one", "disk:x").ok().unwrap();
        let second = holds.take(whole.clone(), false, "two", "disk:x").ok().unwrap();
        let refused = holds.take(place(500..600, None), true, "three", "disk:x").err().unwrap();
        assert_eq!(refused, InUse { holder: "one".into(), writes: false });
        let said = ["one", "two"].map(|who| format!("disk:x is read by {who}"));
        assert_eq!((holds.of_disk(0), holds.of_disk(1)), (said.into(), vec![]));
        drop((reader, second));
        let writer = holds.take(place(500..600, None), true, "three", "disk:x").ok().unwrap();
        let refused = holds.take(whole.clone(), false, "one", "disk:x").err().unwrap();
        assert_eq!(refused.to_string(), "it, or a part of it, is written by three");
        assert!(holds.take(place(0..500, None), true, "one", "disk:x").is_ok());
        assert!(holds.take(Place { disk: 1, ..whole.clone() }, true, "one", "disk:x").is_ok());
        drop(writer);
        assert!(holds.take(whole, true, "one", "disk:x").is_ok());
    }

    #[test]
    fn files_of_one_file_system_are_apart() {
        let holds = Arc::new(Holds::default());
        let _one = holds.take(place(100..900, Some(128)), true, "one", "disk:x").ok().unwrap();
        let _two = holds.take(place(100..900, Some(512)), true, "two", "disk:x").ok().unwrap();
        assert!(holds.take(place(100..900, Some(128)), false, "three", "disk:x").is_err(), "the same file");
        assert!(holds.take(place(100..900, None), false, "three", "disk:x").is_err(), "the file system");
        assert!(holds.take(place(0..100, None), true, "three", "disk:x").is_ok());
    }
}
