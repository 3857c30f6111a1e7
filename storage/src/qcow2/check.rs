//! Counting what refers to each cluster, and making the image say so.

use super::header::{Header, Snapshot};
use super::layout::{COPIED, Cluster};
use super::refcounts::Refcounts;
use super::{Qcow2Error, read_table};
use crate::block::{BlockDevice, BlockError, read_bytes_or_zeros};
use crate::buffer::Buffer;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// So many clusters are counted at a time, in 2 MiB of memory: 64 GiB in clusters of 64 KiB.
pub const WINDOW: u64 = 1 << 20;
/// Tables are read in pieces of at most so many bytes.
pub const PIECE: u64 = 64 << 10;
/// Something that nothing else may refer to: header, L1 tables, refcounts.
const ALONE: u16 = 1 << 15;
/// An L2 table, which snapshots may share, but nothing else.
const TABLE: u16 = 1 << 14;
const COUNT: u16 = TABLE - 1;

/// What was wrong with an image when it was opened, and has been made right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Clusters that were marked as used, or used more often than they are.
    pub leaked: u64,
    /// Clusters that were marked as used less often than they are, or as free.
    pub uncounted: u64,
    /// Entries that said wrongly whether their cluster is referred to elsewhere.
    pub flags: u64,
}

/// The image that is counted.
pub struct Image<'a> {
    pub file: &'a dyn BlockDevice,
    pub header: &'a Header,
    pub l1: &'a mut [u64],
    pub snapshots: &'a [Snapshot],
    /// The length of the snapshot table in bytes.
    pub snapshots_len: u64,
}

/// How often each cluster of a range is referred to.
struct Counts {
    window: Range<u64>,
    counts: Vec<u16>,
    /// How many clusters the file has, the last perhaps not whole.
    limit: u64,
    /// The number behind the highest that was referred to.
    end: u64,
    /// Some entry's flag may be wrong.
    doubtful: bool,
}

impl Counts {
    /// `at` is the place of what refers to the cluster.
    fn add(&mut self, numbers: Range<u64>, kind: u16, at: u64) -> Result<(), BlockError> {
        if numbers.is_empty() {
            return Ok(());
        }
        if numbers.end > self.limit {
            return Err(BlockError::Damaged { what: "something points behind the end of the file", at });
        }
        self.end = self.end.max(numbers.end);
        let first = numbers.start.max(self.window.start);
        for number in first..numbers.end.min(self.window.end) {
            let Some(count) = self.get_mut(number) else { continue };
            if *count != 0 && (kind == ALONE || *count & !COUNT != kind) {
                return Err(BlockError::Damaged { what: "two structures share the cluster", at: number });
            }
            if *count & COUNT == COUNT {
                return Err(BlockError::Damaged { what: "too much refers to the cluster", at: number });
            }
            *count = count.saturating_add(1) | kind;
            self.doubtful |= *count & COUNT > 1;
        }
        Ok(())
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut u16> {
        let index = number.checked_sub(self.window.start)?;
        self.counts.get_mut(usize::try_from(index).ok()?)
    }

    /// How often, if that was counted.
    fn get(&self, number: u64) -> Option<u64> {
        let index = number.checked_sub(self.window.start)?;
        self.counts.get(usize::try_from(index).ok()?).map(|count| u64::from(count & COUNT))
    }

    fn first_free(&self, from: u64) -> Option<u64> {
        let skip = usize::try_from(from.saturating_sub(self.window.start)).ok()?;
        let free = self.counts.iter().skip(skip).position(|count| *count == 0)?;
        Some(from.max(self.window.start).saturating_add(free as u64))
    }
}

impl Image<'_> {
    /// Makes refcounts and flags what they have to be, and says where free clusters begin.
    ///
    /// # Errors
    /// Two structures share a cluster, or something points to where nothing can be: that cannot be mended.
    pub async fn repair(&mut self, refcounts: &mut Refcounts) -> Result<Repaired, Qcow2Error> {
        let layout = self.header.layout;
        let size = self.file.geometry().size();
        let (limit, whole) = (size.div_ceil(layout.cluster_size()), layout.number(size));
        let mut repaired = Repaired::default();
        let mut free = None;
        let mut start = 0_u64;
        loop {
            let window = start..start.saturating_add(WINDOW).min(limit);
            let len = usize::try_from(window.end.saturating_sub(start)).unwrap_or(0);
            let counts = vec![0; len];
            let mut counts = Counts { window: window.clone(), counts, limit, end: 0, doubtful: false };
            self.count(refcounts, &mut counts).await?;
            self.add_blocks(refcounts, &mut counts, whole).await?;
            self.correct(refcounts, &counts, &mut repaired).await?;
            if counts.doubtful {
                self.correct_flags(&counts, &mut repaired).await?;
            }
            free = free.or_else(|| counts.first_free(window.start));
            start = window.end;
            if start >= limit || start >= counts.end.max(refcounts.counted()) {
                break;
            }
        }
        refcounts.start_at(free.unwrap_or(start));
        if repaired != Repaired::default() {
            refcounts.write_back(self.file).await?;
            self.file.flush().await?;
        }
        Ok(repaired)
    }

    /// Counts everything that refers to clusters in the window.
    async fn count(&self, refcounts: &Refcounts, counts: &mut Counts) -> Result<(), Qcow2Error> {
        let (header, layout) = (self.header, self.header.layout);
        counts.add(0..1, ALONE, 0)?;
        counts.add(refcounts.table_clusters(), ALONE, header.refcounts_at)?;
        for block in refcounts.blocks() {
            let number = layout.number(block?);
            counts.add(number..number.saturating_add(1), ALONE, header.refcounts_at)?;
        }
        counts.add(layout.clusters(header.snapshots_at, self.snapshots_len), ALONE, header.snapshots_at)?;
        self.count_table(self.l1, header.l1_at, true, counts).await?;
        for snapshot in self.snapshots {
            let l1 = read_table(self.file, snapshot.l1_at, snapshot.l1_len).await?;
            self.count_table(&l1, snapshot.l1_at, false, counts).await?;
        }
        Ok(())
    }

    /// Counts an L1 table, at `at`, and everything below.
    async fn count_table(
        &self,
        l1: &[u64],
        at: u64,
        active: bool,
        counts: &mut Counts,
    ) -> Result<(), Qcow2Error> {
        let layout = self.header.layout;
        counts.add(layout.clusters(at, (l1.len() as u64).saturating_mul(8)), ALONE, at)?;
        let mut tables = Vec::new();
        for entry in l1 {
            if let Some(table) = layout.table(*entry, WRONG_TABLE)? {
                counts.doubtful |= active && entry & COPIED == 0;
                tables.push(table);
            }
        }
        // One L1 table refers to each L2 table once: what is read is bounded by the file's size.
        tables.sort_unstable();
        if let Some(twice) =
            tables.windows(2).find(|pair| pair.first() == pair.last()).and_then(|pair| pair.first())
        {
            return Err(BlockError::Damaged { what: "two L1 entries share the L2 table", at: *twice }.into());
        }
        for table in tables {
            let number = layout.number(table);
            counts.add(number..number.saturating_add(1), TABLE, at)?;
            for (at, len) in pieces(table, layout.cluster_size()) {
                let bytes = read_bytes_or_zeros(self.file, at, len).await?;
                let (entries, _) = bytes.as_chunks();
                for entry in
                    entries.iter().map(|bytes| u64::from_be_bytes(*bytes)).filter(|entry| *entry != 0)
                {
                    let cluster = layout.cluster(entry)?;
                    let doubtful = match cluster {
                        Cluster::Data(place) | Cluster::Zero(Some(place)) => !place.own,
                        Cluster::Compressed(_) => entry & COPIED != 0,
                        Cluster::Absent | Cluster::Zero(None) => false,
                    };
                    counts.doubtful |= active && doubtful;
                    counts.add(layout.referred(cluster), 0, table)?;
                }
            }
        }
        Ok(())
    }

    /// Adds refcount blocks where something is counted and none is there.
    async fn add_blocks(
        &self,
        refcounts: &mut Refcounts,
        counts: &mut Counts,
        whole: u64,
    ) -> Result<(), Qcow2Error> {
        let in_block = 1_u64.wrapping_shl(self.header.layout.refcount_bits());
        let mut start = counts.window.start;
        while start < counts.window.end {
            let end = start.saturating_add(in_block).min(counts.window.end);
            let needed = (start..end).any(|number| counts.get(number).is_some_and(|count| count != 0));
            if !needed || refcounts.is_counted(start)? {
                start = end;
                continue;
            }
            // In what it counts itself, if that has room: else another may be needed for its place.
            let free = counts.first_free(start).or_else(|| counts.first_free(0)).filter(|free| *free < whole);
            let no_room = BlockError::NoRoom { size: self.file.geometry().size() };
            let place = free.ok_or(no_room)?;
            refcounts.add_block(self.file, start, place).await?;
            counts.add(place..place.saturating_add(1), ALONE, self.header.refcounts_at)?;
            start = if place < start { counts.window.start } else { end };
        }
        Ok(())
    }

    /// Makes the image's counts the ones that were counted.
    async fn correct(
        &self,
        refcounts: &mut Refcounts,
        counts: &Counts,
        repaired: &mut Repaired,
    ) -> Result<(), Qcow2Error> {
        let mut number = counts.window.start;
        while number < counts.window.end {
            let stored = refcounts.some(self.file, number..counts.window.end).await?;
            if stored.is_empty() {
                break;
            }
            for (stored, number) in stored.iter().zip(number..) {
                let counted = counts.get(number).unwrap_or(0);
                if *stored == counted {
                    continue;
                }
                let found = if *stored > counted { &mut repaired.leaked } else { &mut repaired.uncounted };
                *found = found.saturating_add(1);
                refcounts.set(self.file, number, counted).await?;
            }
            number = number.saturating_add(stored.len() as u64);
        }
        Ok(())
    }

    /// Corrects the flags of entries that refer to clusters in the window.
    async fn correct_flags(&mut self, counts: &Counts, repaired: &mut Repaired) -> Result<(), Qcow2Error> {
        let layout = self.header.layout;
        let before = repaired.flags;
        let mut l1 = self.l1.to_vec();
        for entry in &mut l1 {
            let Some(table) = layout.table(*entry, WRONG_TABLE)? else { continue };
            correct_flag(entry, counts.get(layout.number(table)), repaired);
            for (at, len) in pieces(table, layout.cluster_size()) {
                let mut bytes = read_bytes_or_zeros(self.file, at, len).await?;
                let found = repaired.flags;
                let (entries, _) = bytes.as_chunks_mut();
                for bytes in entries {
                    let mut entry = u64::from_be_bytes(*bytes);
                    let count = match layout.cluster(entry)? {
                        Cluster::Absent | Cluster::Zero(None) => continue,
                        // Never written in place.
                        Cluster::Compressed(_) => Some(0),
                        Cluster::Data(place) | Cluster::Zero(Some(place)) => {
                            counts.get(layout.number(place.at))
                        }
                    };
                    correct_flag(&mut entry, count, repaired);
                    *bytes = entry.to_be_bytes();
                }
                if repaired.flags != found {
                    self.file.write(at, Buffer::holding(&bytes)).await?;
                }
            }
        }
        if repaired.flags != before {
            let sectors = l1.chunks(64).zip(self.l1.chunks(64)).zip((self.header.l1_at..).step_by(512));
            for ((new, _), at) in sectors.filter(|((new, old), _)| new != old) {
                let mut bytes: Vec<u8> = new.iter().flat_map(|entry| entry.to_be_bytes()).collect();
                bytes.resize(512, 0);
                self.file.write(at, Buffer::holding(&bytes)).await?;
            }
            self.l1.copy_from_slice(&l1);
        }
        Ok(())
    }
}

const WRONG_TABLE: &str = "an L1 entry points into a cluster";

/// The `len` bytes at `at` in pieces.
fn pieces(at: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    let end = at.saturating_add(len);
    (at..end).step_by(PIECE as usize).map(move |at| (at, end.saturating_sub(at).min(PIECE) as usize))
}

/// An entry says that its cluster is its own where nothing else refers to it.
fn correct_flag(entry: &mut u64, count: Option<u64>, repaired: &mut Repaired) {
    let Some(count) = count else { return };
    let right = if count == 1 { *entry | COPIED } else { *entry & !COPIED };
    if right != *entry {
        *entry = right;
        repaired.flags = repaired.flags.saturating_add(1);
    }
}
