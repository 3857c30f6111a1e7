//! Little-endian fields of a file, and of what kernels are told.

use alloc::vec::Vec;

/// The doubleword at `offset`.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// The word at `offset`.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().copied().map(u16::from_le_bytes)
}

/// Appends doublewords.
pub fn put32(to: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| to.extend(value.to_le_bytes()));
}

/// Appends quadwords.
pub fn put64(to: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| to.extend(value.to_le_bytes()));
}
