//! Where a file's bytes lie on the device.

use super::error::FileError;
use alloc::vec::Vec;

/// How many extents a file may be in: a damaged file system must not fill the firmware's memory.
const MOST: usize = 1 << 14;
/// Where an extent lies that is not written.
const NOWHERE: u64 = u64::MAX;

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// Where it begins in the file.
    start: u64,
    /// Where it begins on the device.
    at: u64,
}

impl Extent {
    /// Where it begins on the device; `None` where nothing is written, and zeroes are read.
    fn place(self) -> Option<u64> {
        (self.at != NOWHERE).then_some(self.at)
    }
}

/// All of a file, without gaps.
#[derive(Debug)]
pub struct Extents {
    list: Vec<Extent>,
    /// How many bytes the list has so far.
    mapped: u64,
    /// The file's length.
    size: u64,
}

impl Extents {
    /// Of a file of `size` bytes, of which nothing is known yet.
    pub fn new(size: u64) -> Self {
        Self { list: Vec::new(), mapped: 0, size }
    }

    /// The file's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many bytes are mapped.
    #[cfg(feature = "fat")]
    pub fn mapped(&self) -> u64 {
        self.mapped
    }

    /// Adds the next run: `len` bytes from `start` on lie at `at`, or are unwritten. What is between it and the one
    /// before is a hole.
    ///
    /// # Errors
    /// It begins before the last one ends, or there are too many.
    pub fn push(&mut self, start: u64, len: u64, at: Option<u64>) -> Result<(), FileError> {
        if start < self.mapped || len == 0 {
            return Err(FileError::Damaged { what: "place of an extent", found: start });
        }
        if start > self.mapped {
            self.add(start.saturating_sub(self.mapped), None)?;
        }
        self.add(len, at)
    }

    /// The file ends here: what is left is a hole.
    #[cfg(feature = "ext4")]
    pub fn finish(mut self) -> Result<Self, FileError> {
        let left = self.size.saturating_sub(self.mapped);
        if left > 0 {
            self.add(left, None)?;
        }
        Ok(self)
    }

    fn add(&mut self, len: u64, at: Option<u64>) -> Result<(), FileError> {
        let start = self.mapped;
        let joins = self.list.last().is_some_and(|last| match (last.place(), at) {
            (Some(before), Some(at)) => before.checked_add(start.saturating_sub(last.start)) == Some(at),
            (None, None) => true,
            _ => false,
        });
        if !joins {
            if self.list.len() >= MOST {
                return Err(FileError::Unsupported("a file in so many pieces"));
            }
            self.list.push(Extent { start, at: at.unwrap_or(NOWHERE) });
        }
        self.mapped = start.saturating_add(len);
        Ok(())
    }

    /// The file ends with what is mapped.
    #[cfg(feature = "fat")]
    pub fn cut(mut self) -> Self {
        self.size = self.mapped;
        self
    }

    /// Where the byte at `place` lies, and how many from there on are in one piece, of at most `most`; `None` behind
    /// the end.
    pub fn piece(&self, place: u64, most: u64) -> Option<(Option<u64>, u64)> {
        let left = self.size.checked_sub(place).filter(|left| *left > 0)?;
        let after = self.list.partition_point(|extent| extent.start <= place);
        let extent = self.list.get(after.checked_sub(1)?)?;
        let end = self.list.get(after).map_or(self.mapped, |next| next.start);
        let len = end.checked_sub(place).filter(|len| *len > 0)?.min(left).min(most);
        let at = match extent.place() {
            Some(at) => Some(at.checked_add(place.checked_sub(extent.start)?)?),
            None => None,
        };
        Some((at, len))
    }

    /// The same, with the blocks that `moved` knows somewhere else; all runs begin and end with a block.
    #[cfg(feature = "ext4")]
    pub fn moved(
        self,
        block: u64,
        moved: &alloc::collections::BTreeMap<u64, u64>,
    ) -> Result<Self, FileError> {
        if moved.is_empty() {
            return Ok(self);
        }
        let mut result = Self::new(self.size);
        for (index, extent) in self.list.iter().enumerate() {
            let end = self.list.get(index.saturating_add(1)).map_or(self.mapped, |next| next.start);
            let Some(at) = extent.place() else {
                result.push(extent.start, end.saturating_sub(extent.start), None)?;
                continue;
            };
            let len = end.saturating_sub(extent.start);
            let first = at.checked_div(block).unwrap_or(0);
            let last = at.saturating_add(len).checked_div(block).unwrap_or(0).max(first);
            let mut done = 0;
            for (from, to) in moved.range(first..last) {
                let offset = from.saturating_mul(block).saturating_sub(at);
                if offset > done {
                    let before = offset.saturating_sub(done);
                    result.push(extent.start.saturating_add(done), before, Some(at.saturating_add(done)))?;
                }
                let here = extent.start.saturating_add(offset);
                result.push(here, block.min(end.saturating_sub(here)), Some(to.saturating_mul(block)))?;
                done = offset.saturating_add(block);
            }
            if len > done {
                let rest = len.saturating_sub(done);
                result.push(extent.start.saturating_add(done), rest, Some(at.saturating_add(done)))?;
            }
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_between_and_behind() {
        let mut extents = Extents::new(10_000);
        extents.push(1024, 1024, Some(5120)).unwrap();
        extents.push(2048, 1024, Some(6144)).unwrap();
        extents.push(3072, 1024, Some(1024)).unwrap();
        extents.push(6144, 1024, None).unwrap();
        assert!(extents.push(7000, 1, None).is_err(), "this is in the one before");
        let extents = extents.finish().unwrap();
        assert_eq!(extents.list.len(), 4, "what touches is one");
        assert_eq!(extents.piece(0, 9999), Some((None, 1024)));
        assert_eq!(extents.piece(1025, 9999), Some((Some(5121), 2047)));
        assert_eq!(extents.piece(1025, 10), Some((Some(5121), 10)));
        assert_eq!(extents.piece(3072, 9999), Some((Some(1024), 1024)));
        assert_eq!(extents.piece(4096, 9999), Some((None, 5904)));
        assert_eq!(extents.piece(10_000, 1), None);
    }

    #[cfg(feature = "ext4")]
    #[test]
    fn blocks_that_a_journal_has_are_read_there() {
        let mut extents = Extents::new(5 * 1024);
        extents.push(0, 4096, Some(10 * 1024)).unwrap();
        let moved = [(9, 90), (11, 50), (12, 51), (14, 99)].into_iter().collect();
        let extents = extents.finish().unwrap().moved(1024, &moved).unwrap();
        let places: Vec<_> = (0..5).map(|block| extents.piece(block * 1024, 1024).unwrap().0).collect();
        assert_eq!(places, [Some(10 * 1024), Some(50 * 1024), Some(51 * 1024), Some(13 * 1024), None]);
    }
}
