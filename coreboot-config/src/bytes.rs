//! Integers out of byte slices, by offset; `None` past the end.

use alloc::string::String;

macro_rules! integer {
    ($name:ident, $int:ty, $from:ident) => {
        pub(crate) fn $name(bytes: &[u8], at: usize) -> Option<$int> {
            array(bytes, at).map(<$int>::$from)
        }
    };
}

integer!(le_u16, u16, from_le_bytes);
integer!(le_u32, u32, from_le_bytes);
integer!(le_u64, u64, from_le_bytes);
integer!(be_u32, u32, from_be_bytes);
integer!(be_u64, u64, from_be_bytes);

/// The `N` bytes at `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    slice(bytes, at, N)?.try_into().ok()
}

/// The `len` bytes at `at`.
pub(crate) fn slice(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?)
}

/// The text up to the first NUL, or to the end; what is not UTF-8 shows as replacement characters.
pub(crate) fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or(bytes);
    String::from_utf8_lossy(text).into_owned()
}
