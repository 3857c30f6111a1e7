//! The footer of every image, and the header of those that are not fixed. Numbers have their high byte first.

use super::{SECTOR, VhdError};
use crate::fields::{array as field, be_u32 as u32_at, be_u64 as u64_at};
use alloc::string::String;

const FOOTER_COOKIE: [u8; 8] = *b"conectix";
const FOOTER_SUM: usize = 64;
const SPARSE_COOKIE: [u8; 8] = *b"cxsparse";
const SPARSE_SUM: usize = 36;
/// The header's length in bytes.
pub const SPARSE_SIZE: usize = 1024;
/// The higher half of both versions; the lower may grow.
const VERSION: u32 = 1;

/// How an image lays its disk out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Byte by byte.
    Fixed,
    /// In blocks that are there once something was written to them.
    Dynamic,
    /// In blocks, of what differs from a parent.
    Differencing,
}

/// What the last sector says.
#[derive(Clone, Copy, Debug)]
pub struct Footer {
    pub kind: Kind,
    /// Of the disk, in bytes.
    pub size: u64,
    /// Where the header of an image lies that is not fixed.
    pub header_at: u64,
    pub id: [u8; 16],
    /// All of it, as it is written behind the last block.
    pub bytes: [u8; SECTOR as usize],
}

impl Footer {
    pub fn parse(bytes: &[u8]) -> Result<Self, VhdError> {
        if field(bytes, 0) != FOOTER_COOKIE {
            return Err(VhdError::NoFooter);
        }
        check_sum("footer", bytes, FOOTER_SUM)?;
        check_version("the footer's version", u32_at(bytes, 12))?;
        let kind = match u32_at(bytes, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => return Err(VhdError::Field { name: "the disk's type", found: other.into() }),
        };
        let (header_at, size) = (u64_at(bytes, 16), u64_at(bytes, 48));
        if !size.is_multiple_of(SECTOR) {
            return Err(VhdError::Field { name: "the size", found: size });
        }
        if kind != Kind::Fixed && !header_at.is_multiple_of(SECTOR) {
            return Err(VhdError::Field { name: "the header's place", found: header_at });
        }
        Ok(Self { kind, size, header_at, id: field(bytes, 68), bytes: field(bytes, 0) })
    }
}

/// What the header says of an image that is not fixed.
#[derive(Clone, Copy, Debug)]
pub struct SparseHeader {
    pub table_at: u64,
    /// Of the block table.
    pub entries: u32,
    /// In bytes.
    pub block_size: u32,
    /// The parent's identity.
    pub parent: [u8; 16],
}

impl SparseHeader {
    pub fn parse(bytes: &[u8]) -> Result<Self, VhdError> {
        let cookie = field(bytes, 0);
        if cookie != SPARSE_COOKIE {
            return Err(VhdError::Field { name: "the header's cookie", found: u64::from_be_bytes(cookie) });
        }
        check_sum("header", bytes, SPARSE_SUM)?;
        check_version("the header's version", u32_at(bytes, 24))?;
        let table_at = u64_at(bytes, 16);
        if !table_at.is_multiple_of(SECTOR) {
            return Err(VhdError::Field { name: "the block table's place", found: table_at });
        }
        let (entries, block_size) = (u32_at(bytes, 28), u32_at(bytes, 32));
        Ok(Self { table_at, entries, block_size, parent: field(bytes, 40) })
    }
}

/// The parent's name in UTF-16, up to a zero, in a header that is not fixed.
pub fn parent_name(bytes: &[u8]) -> String {
    let (units, _) = bytes.get(64..576).unwrap_or(&[]).as_chunks();
    let units = units.iter().map(|unit| u16::from_be_bytes(*unit)).take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

fn check_version(name: &'static str, found: u32) -> Result<(), VhdError> {
    if found >> 16 == VERSION { Ok(()) } else { Err(VhdError::Field { name, found: found.into() }) }
}

/// The one's complement of the sum of all bytes but the sum's own, which lies at `place`.
pub fn sum(bytes: &[u8], place: usize) -> u32 {
    let counted = bytes.iter().enumerate().filter(|(at, _)| !(place..place.saturating_add(4)).contains(at));
    !counted.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

fn check_sum(what: &'static str, bytes: &[u8], place: usize) -> Result<(), VhdError> {
    let (found, expected) = (u32_at(bytes, place), sum(bytes, place));
    if found == expected { Ok(()) } else { Err(VhdError::Sum { what, found, expected }) }
}
