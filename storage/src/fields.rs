//! Fields of what lies on disks: the low byte first, but for those that say otherwise.

/// The `N` bytes at `offset`; zeroes where the bytes end before.
pub fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// The number of 16 bits at `offset`.
pub fn u16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array(bytes, offset))
}

/// The number of 32 bits at `offset`.
pub fn u32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array(bytes, offset))
}

/// The number of 64 bits at `offset`.
pub fn u64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array(bytes, offset))
}

/// The number of 16 bits at `offset`, its high byte first.
pub fn be_u16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes(array(bytes, offset))
}

/// The number of 32 bits at `offset`, its high byte first.
pub fn be_u32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(array(bytes, offset))
}

/// The number of 64 bits at `offset`, its high byte first.
pub fn be_u64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(array(bytes, offset))
}

/// Puts `value` at `offset`; what does not fit is left out.
pub fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes.iter_mut().skip(offset).zip(value).for_each(|(to, from)| *to = *from);
}
