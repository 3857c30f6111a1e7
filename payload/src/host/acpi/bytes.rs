//! Little-endian numbers out of a table's bytes, where they are there.

/// Reads from bytes that may be too few.
pub trait Bytes {
    /// The byte at `offset`.
    fn u8_at(&self, offset: usize) -> Option<u8>;
    /// The two bytes at `offset`.
    fn u16_at(&self, offset: usize) -> Option<u16>;
    /// The four bytes at `offset`.
    fn u32_at(&self, offset: usize) -> Option<u32>;
    /// The eight bytes at `offset`.
    fn u64_at(&self, offset: usize) -> Option<u64>;
}

impl Bytes for [u8] {
    fn u8_at(&self, offset: usize) -> Option<u8> {
        self.get(offset).copied()
    }
    fn u16_at(&self, offset: usize) -> Option<u16> {
        self.get(offset..)?.first_chunk().copied().map(u16::from_le_bytes)
    }
    fn u32_at(&self, offset: usize) -> Option<u32> {
        self.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
    }
    fn u64_at(&self, offset: usize) -> Option<u64> {
        self.get(offset..)?.first_chunk().copied().map(u64::from_le_bytes)
    }
}

/// Whether all bytes add up to zero, as those of every ACPI table do.
pub fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}
