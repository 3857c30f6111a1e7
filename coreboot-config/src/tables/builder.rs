//! Writing coreboot tables, for who stands in for coreboot.

use alloc::vec::Vec;

use super::{Record, header::Header};

/// Collects records into a table.
#[derive(Clone, Debug, Default)]
pub struct TableBuilder {
    records: Vec<u8>,
    entries: u32,
}

impl TableBuilder {
    /// A table without records.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes of a table whose only record leads to the table at `address`.
    pub fn forwarder(address: u64) -> Vec<u8> {
        Self::new().with(&Record::Forward(address)).finish()
    }

    /// Adds a record.
    pub fn add(&mut self, record: &Record) {
        record.encode(&mut self.records);
        self.entries = self.entries.saturating_add(1);
    }

    /// The table with a record more.
    #[must_use]
    pub fn with(mut self, record: &Record) -> Self {
        self.add(record);
        self
    }

    /// The table's bytes, checksums included, to lie at a multiple of [`super::TABLE_ALIGNMENT`].
    pub fn finish(self) -> Vec<u8> {
        let mut bytes = Header::encode(&self.records, self.entries).to_vec();
        bytes.extend(self.records);
        bytes
    }
}
