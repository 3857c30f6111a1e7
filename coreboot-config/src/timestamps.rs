//! The CBMEM timestamp table: when the boot reached which step, in ticks of the TSC.
//!
//! Only what to write where is computed here; who owns the memory writes it.

use crate::bytes::{array, le_u16, le_u32, le_u64};

/// Length of the header, in bytes; the entries follow.
pub const HEADER_LEN: usize = 16;
/// Length of an entry, in bytes.
pub const ENTRY_LEN: usize = 12;
/// Where the header's count of entries lies, in bytes from the table's beginning.
pub const COUNT_OFFSET: u64 = 12;

/// What a timestamp says was reached, by coreboot's numbering; 1000 and up are payloads'.
pub mod id {
    /// The bootblock began.
    pub const BOOTBLOCK_START: u32 = 11;
    /// LZMA decompression began.
    pub const LZMA_START: u32 = 15;
    /// LZMA decompression ended.
    pub const LZMA_END: u32 = 16;
    /// Devices were enumerated.
    pub const DEVICE_ENUMERATE: u32 = 31;
    /// Tables were being written.
    pub const WRITE_TABLES: u32 = 80;
    /// The payload was being loaded.
    pub const LOAD_PAYLOAD: u32 = 90;
    /// The jump into the payload.
    pub const SELFBOOT_JUMP: u32 = 99;
}

/// The header of a timestamp table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// TSC at the first stamp, which is entries' zero.
    pub base_time: u64,
    /// For how many entries there is room.
    pub max_entries: u16,
    /// Ticks per microsecond; 0 when nobody has said.
    pub tick_freq_mhz: u16,
    /// How many entries there are.
    pub num_entries: u32,
}

/// One step of the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What was reached: one of [`id`] or another number.
    pub id: u32,
    /// When, in ticks since the table's base time; before it when negative.
    pub stamp: i64,
}

impl Header {
    /// The header that `bytes` begin with, when it can be one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = Self {
            base_time: le_u64(bytes, 0)?,
            max_entries: le_u16(bytes, 8)?,
            tick_freq_mhz: le_u16(bytes, 10)?,
            num_entries: le_u32(bytes, 12)?,
        };
        (header.num_entries <= u32::from(header.max_entries)).then_some(header)
    }

    /// The header's bytes.
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields = self.base_time.to_le_bytes().into_iter();
        let fields = fields.chain(self.max_entries.to_le_bytes()).chain(self.tick_freq_mhz.to_le_bytes());
        let fields = fields.chain(self.num_entries.to_le_bytes());
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        bytes
    }

    /// Length of the whole table in bytes, with room for all its entries.
    pub fn table_len(&self) -> usize {
        usize::from(self.max_entries).saturating_mul(ENTRY_LEN).saturating_add(HEADER_LEN)
    }

    /// Adds the stamp that the TSC read `tsc` at step `id`: counts it, and says at which offset from the
    /// table's beginning to write which bytes, before writing the count. `None` when the table is full.
    pub fn append(&mut self, id: u32, tsc: u64) -> Option<(u64, [u8; ENTRY_LEN])> {
        if self.num_entries >= u32::from(self.max_entries) {
            return None;
        }
        let at = u64::from(self.num_entries).checked_mul(ENTRY_LEN as u64)?.checked_add(HEADER_LEN as u64)?;
        self.num_entries = self.num_entries.checked_add(1)?;
        let stamp = tsc.wrapping_sub(self.base_time).cast_signed();
        Some((at, Entry { id, stamp }.encode()))
    }
}

impl Entry {
    /// The entry that `bytes` begin with.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self { id: le_u32(bytes, 0)?, stamp: i64::from_le_bytes(array(bytes, 4)?) })
    }

    /// The entry's bytes.
    pub fn encode(self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        let fields = self.id.to_le_bytes().into_iter().chain(self.stamp.to_le_bytes());
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_appended_until_the_table_is_full() {
        let mut header = Header { base_time: 1000, max_entries: 2, tick_freq_mhz: 2400, num_entries: 0 };
        let (first, entry) = header.append(id::SELFBOOT_JUMP, 1500).unwrap();
        assert_eq!(first, 16);
        assert_eq!(entry, [99, 0, 0, 0, 0xf4, 1, 0, 0, 0, 0, 0, 0]);
        let (second, entry) = header.append(1300, 900).unwrap();
        assert_eq!(second, 28);
        assert_eq!(Entry::decode(&entry).unwrap(), Entry { id: 1300, stamp: -100 });
        assert_eq!(header.append(1301, 0), None);
        assert_eq!(header.table_len(), 40);
        assert_eq!(Header::decode(&header.encode()), Some(header));
        let broken = Header { num_entries: 3, ..header };
        assert_eq!(Header::decode(&broken.encode()), None);
    }
}
