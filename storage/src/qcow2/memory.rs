//! How much memory an open image takes.

use super::check::{PIECE, WINDOW};
use super::compressed::{LEAST_WINDOW, WORKSPACE};
use super::header::{Compression, Header, LONGEST_SNAPSHOT, MOST_L1};
use super::{COPIED_AT_ONCE, COPIERS, MOST_FREED, WRITTEN_AT_ONCE, map, refcounts};
use crate::block::Geometry;

/// What something kept takes beside its bytes: its place in a map, and what the allocator adds.
const BESIDE: u64 = 128;
/// What a request takes with its clusters' entries and all that overlaps in it.
const REQUEST: u64 = 8 << 10;
/// The bytes of an entry in a table, and of a range.
const ENTRY: u64 = 8;
const RANGE: u64 = 16;

impl Header {
    /// What the image with this header takes of the heap at most while it is open in a file of this geometry, with
    /// so many requests under way, in bytes. What the file takes comes in addition.
    pub fn memory(&self, file: &Geometry, requests: u64) -> u64 {
        let l1 = u64::from(self.l1_len).saturating_mul(ENTRY);
        let opening = self.opening(file, l1);
        let open = self.tables(l1).saturating_add(self.expanding());
        let open = open.saturating_add(requests.saturating_mul(REQUEST));
        let writing = if file.read_only { 0 } else { self.writing(file, l1) };
        opening.max(open.saturating_add(writing))
    }

    fn slice(&self) -> u64 {
        self.layout.slice_size().saturating_add(BESIDE)
    }

    /// The L1 table and slices of L2 tables, one of which is brought in.
    fn tables(&self, l1: u64) -> u64 {
        let kept = (map::SLICES as u64).saturating_add(2);
        l1.saturating_add(self.slice().saturating_mul(kept))
    }

    /// The refcount table, as often as it is in memory, slices of blocks, and the counts of one.
    fn refcounts(&self, file: &Geometry, tables: u64) -> u64 {
        let needed = self.refcount_blocks(file);
        let counts = self.layout.slice_size().saturating_mul(8).wrapping_shr(self.layout.refcount_order);
        let kept = (refcounts::SLICES as u64).saturating_add(2);
        needed
            .saturating_mul(ENTRY)
            .saturating_mul(tables)
            .saturating_add(self.slice().saturating_mul(kept))
            .saturating_add(counts.saturating_mul(ENTRY))
    }

    /// How many blocks count the clusters that the file has room for.
    fn refcount_blocks(&self, file: &Geometry) -> u64 {
        let clusters = self.layout.number(file.size());
        clusters.wrapping_shr(self.layout.refcount_bits()).saturating_add(1)
    }

    /// The table is read, then everything counted, in an L1 table at a time.
    fn opening(&self, file: &Geometry, l1: u64) -> u64 {
        let snapshots = u64::from(self.snapshots);
        let names = (LONGEST_SNAPSHOT as u64).saturating_mul(2).saturating_add(BESIDE);
        let others = if snapshots == 0 { 0 } else { u64::from(MOST_L1).saturating_mul(ENTRY) };
        // A table's bytes twice, its entries, and where they point to in a list that grew.
        let read = l1.max(others).saturating_mul(6);
        let reading = l1.saturating_add(read).saturating_add(snapshots.saturating_mul(names));
        if file.read_only {
            return reading;
        }
        let clusters = file.size().div_ceil(self.layout.cluster_size());
        let counts = clusters.min(WINDOW).saturating_mul(2);
        reading
            .saturating_add(self.refcounts(file, 3))
            .saturating_add(counts)
            .saturating_add(PIECE.saturating_mul(2))
            .saturating_add(self.written())
    }

    /// One compressed cluster as it is read, twice, and what it expands to.
    fn expanding(&self) -> u64 {
        let cluster = self.layout.cluster_size();
        let workspace = match self.compression {
            Compression::Zlib => WORKSPACE.0,
            Compression::Zstd => WORKSPACE.1.saturating_add(cluster.max(LEAST_WINDOW).saturating_mul(3)),
        };
        cluster.saturating_mul(3).saturating_add(PIECE).saturating_add(workspace)
    }

    /// What is known of refcounts, is copied, was freed, and is on its way to the file.
    fn writing(&self, file: &Geometry, l1: u64) -> u64 {
        let in_table = u64::from(self.refcount_clusters).saturating_mul(self.layout.cluster_size()) / ENTRY;
        // The table moves where it has not entries enough; the new one is twice as long, and whole clusters.
        let grown = if in_table < self.refcount_blocks(file) {
            self.refcounts(file, 8).saturating_add(self.layout.cluster_size().saturating_mul(4))
        } else {
            self.refcounts(file, 1)
        };
        let copied = self.layout.cluster_size().min(COPIED_AT_ONCE).saturating_add(BESIDE);
        let freed = (MOST_FREED as u64).saturating_mul(RANGE).saturating_mul(2);
        let slices = (map::SLICES as u64).saturating_add(refcounts::SLICES as u64);
        // The sectors of the L1 table that changed, and the list of all that did.
        let changed = (l1 / 512).saturating_add(slices).saturating_mul(ENTRY.saturating_mul(6));
        grown
            .saturating_add(copied.saturating_mul(COPIERS as u64))
            .saturating_add(freed)
            .saturating_add(changed)
            .saturating_add(self.written())
    }

    /// Slices of tables that are written at once, each as it was copied from the table and for the file.
    fn written(&self) -> u64 {
        self.slice().saturating_mul(3).saturating_mul(WRITTEN_AT_ONCE as u64)
    }
}
