//! Which cluster of the disk lies where: the L1 table, and what is known of the L2 tables.

use super::cache::Cache;
use super::layout::{COPIED, Layout};
use crate::block::BlockError;
use crate::fields::be_u64;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// How many slices of L2 tables are kept: 512 KiB, of 4 GiB of a disk in clusters of 64 KiB.
pub const SLICES: usize = 128;
/// The L1 table is written in sectors of so many bytes.
const SECTOR: u64 = 512;

/// The L1 table, and slices of L2 tables.
pub struct Map {
    layout: Layout,
    l1_at: u64,
    l1: Vec<u64>,
    /// The sectors of the L1 table that differ from the file's.
    l1_dirty: BTreeSet<u64>,
    l2: Cache,
}

/// An entry of the L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Where the L2 table lies.
    pub at: u64,
    /// No snapshot refers to it.
    pub own: bool,
}

impl Map {
    /// With the L1 table at `l1_at`.
    pub fn new(layout: Layout, l1_at: u64, l1: Vec<u64>) -> Self {
        let l2 = Cache::new(layout.slice_size(), SLICES);
        Self { layout, l1_at, l1, l1_dirty: BTreeSet::new(), l2 }
    }

    /// The L2 table that has the entry of the cluster with this number.
    pub fn table(&self, number: u64) -> Result<Option<Table>, BlockError> {
        let entry = self.l1.get(self.layout.l1_index(number)).copied().unwrap_or(0);
        let at = self.layout.table(entry, "an L1 entry points into a cluster")?;
        Ok(at.map(|at| Table { at, own: entry & COPIED != 0 }))
    }

    /// Where the entry of that cluster lies.
    pub fn place(&self, number: u64) -> Result<Option<u64>, BlockError> {
        Ok(self.table(number)?.map(|table| table.at.saturating_add(self.layout.l2_offset(number))))
    }

    /// That cluster's entry, if it is known.
    pub fn find(&mut self, number: u64) -> Result<Option<u64>, BlockError> {
        let Some(at) = self.place(number)? else { return Ok(Some(0)) };
        Ok(self.l2.get(at).map(|(bytes, offset)| be_u64(bytes, offset)))
    }

    /// Changes that cluster's entry, which is known.
    pub fn set(&mut self, number: u64, entry: u64) -> Result<(), BlockError> {
        match self.place(number)? {
            Some(at) if self.l2.put(at, &entry.to_be_bytes()) => Ok(()),
            _ => Err(BlockError::Failed),
        }
    }

    /// Names a new L2 table, which lies at `at`, and belongs to this alone.
    pub fn set_table(&mut self, number: u64, at: u64) {
        let index = self.layout.l1_index(number);
        self.l2.forget(at..at.saturating_add(self.layout.cluster_size()));
        if let Some(entry) = self.l1.get_mut(index) {
            *entry = at | COPIED;
            self.l1_dirty.insert((index as u64).saturating_mul(8) / SECTOR);
        }
    }

    /// Where the slice begins that has the entry at `at`, and its length.
    pub const fn slice(&self, at: u64) -> (u64, usize) {
        (self.l2.start(at), self.l2.slice_size())
    }

    /// Takes in a slice of an L2 table; false where changes must first be written to have room for it.
    pub fn make_room(&mut self) -> bool {
        self.l2.make_room()
    }

    /// Takes in a slice of an L2 table.
    pub fn insert(&mut self, at: u64, bytes: Vec<u8>) {
        self.l2.insert(at, bytes);
    }

    /// Whether something is to be written.
    pub fn is_dirty(&self) -> bool {
        !self.l1_dirty.is_empty() || self.l2.is_dirty()
    }

    /// Where what is to be written lies.
    pub fn dirty(&self) -> Vec<u64> {
        let l1 = self.l1_dirty.iter().map(|sector| self.l1_at.saturating_add(sector.saturating_mul(SECTOR)));
        self.l2.dirty().chain(l1).collect()
    }

    /// What is to be written there.
    pub fn bytes(&mut self, at: u64) -> Vec<u8> {
        if let Some((bytes, _)) = self.l2.get(at) {
            return bytes.to_vec();
        }
        let first = usize::try_from(at.saturating_sub(self.l1_at) / 8).unwrap_or(usize::MAX);
        let entries = self.l1.iter().skip(first).take(SECTOR as usize / 8);
        let mut bytes: Vec<u8> = entries.flat_map(|entry| entry.to_be_bytes()).collect();
        bytes.resize(SECTOR as usize, 0);
        bytes
    }

    /// All of it has been written.
    pub fn clean(&mut self) {
        self.l1_dirty.clear();
        self.l2.clean();
    }
}
