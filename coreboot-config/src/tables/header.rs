//! What a coreboot table begins with.

use super::{MAX_TABLE_LEN, TableError, internet_checksum};
use crate::bytes::le_u32;

/// Length of the header that every coreboot writes, in bytes.
pub(super) const HEADER_LEN: usize = 24;
const SIGNATURE: [u8; 4] = *b"LBIO";

/// The header's account of its records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub table_bytes: u32,
    pub table_entries: u32,
    table_checksum: u32,
}

impl Header {
    /// The header in `bytes`, which were at physical `address`.
    pub(super) fn check(bytes: &[u8; HEADER_LEN], address: u64) -> Result<Self, TableError> {
        let no_signature = TableError::NoSignature(address);
        if !bytes.starts_with(&SIGNATURE) {
            return Err(no_signature);
        }
        let word = |at| le_u32(bytes, at).ok_or(no_signature);
        let length = |found, least, most| TableError::Length { address, found, least, most };
        let header_bytes = word(4)?;
        if header_bytes != HEADER_LEN as u32 {
            return Err(length(header_bytes, HEADER_LEN as u32, HEADER_LEN as u32));
        }
        let found = word(8)?;
        let expected = header_checksum(bytes);
        if found != expected {
            return Err(TableError::Checksum { address, part: "header", found, expected });
        }
        let table_bytes = word(12)?;
        if table_bytes > MAX_TABLE_LEN {
            return Err(length(table_bytes, 0, MAX_TABLE_LEN));
        }
        Ok(Self { table_bytes, table_checksum: word(16)?, table_entries: word(20)? })
    }

    /// Whether `records`, of the table at `address`, are what the header was made for.
    pub(super) fn check_records(&self, records: &[u8], address: u64) -> Result<(), TableError> {
        let found = self.table_checksum;
        let expected = u32::from(internet_checksum(records));
        if found != expected {
            return Err(TableError::Checksum { address, part: "table", found, expected });
        }
        Ok(())
    }

    /// The header for `entries` records of these bytes.
    pub(super) fn encode(records: &[u8], entries: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields = [
            u32::from_le_bytes(SIGNATURE),
            HEADER_LEN as u32,
            0,
            u32::try_from(records.len()).unwrap_or(u32::MAX),
            internet_checksum(records).into(),
            entries,
        ];
        put_words(&mut bytes, &fields);
        let [signature, length, _, rest @ ..] = fields;
        let checksum = header_checksum(&bytes);
        let [table_bytes, table_checksum, entries] = rest;
        put_words(&mut bytes, &[signature, length, checksum, table_bytes, table_checksum, entries]);
        bytes
    }
}

/// The header's checksum, taken as if the field for it were zero.
fn header_checksum(bytes: &[u8; HEADER_LEN]) -> u32 {
    let mut bytes = *bytes;
    bytes.iter_mut().skip(8).take(4).for_each(|byte| *byte = 0);
    internet_checksum(&bytes).into()
}

fn put_words(bytes: &mut [u8; HEADER_LEN], words: &[u32; 6]) {
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.iter_mut().zip(words).for_each(|(byte, value)| *byte = value);
}
