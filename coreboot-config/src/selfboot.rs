//! SELF: how a payload lies in a CBFS file of kind "simple elf".
//!
//! A table of segment headers, big-endian, ending with the one that names the entry point, then the segments'
//! data, each compressed on its own.

use core::fmt;

use crate::{
    bytes::{be_u32, be_u64, slice},
    cbfs::Compression,
};

const SEGMENT_HEADER_LEN: usize = 28;
const CODE: u32 = u32::from_be_bytes(*b"CODE");
const DATA: u32 = u32::from_be_bytes(*b"DATA");
const BSS: u32 = u32::from_be_bytes(*b"BSS ");
const PARAMS: u32 = u32::from_be_bytes(*b"PARA");
const ENTRY: u32 = u32::from_be_bytes(*b"ENTR");

/// A payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    bytes: &'a [u8],
    segments: usize,
    /// The physical address of its entry point.
    pub entry: u64,
}

/// A part of a payload to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The physical address it goes to.
    pub load_address: u64,
    /// Its length there, in bytes; what its data does not fill is zero.
    pub memory_len: u32,
    /// How its data is compressed.
    pub compression: Compression,
    /// Its data; none for a segment of zeros.
    pub data: &'a [u8],
}

/// Why the bytes are no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfError {
    /// The table of segments runs past the end of the file, at this offset.
    Truncated(usize),
    /// The segment header at this offset is of an unknown type.
    UnknownType {
        /// Where the header lies, in bytes from the file's beginning.
        at: usize,
        /// The type it says.
        found: u32,
    },
    /// The data of the segment whose header is at this offset is not within the file.
    DataOutOfBounds(usize),
}

impl fmt::Display for SelfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated(at) => {
                write!(f, "payload: the segment table runs past the file's end at offset {at:#x}")
            }
            Self::UnknownType { at, found } => write!(
                f,
                "payload: segment header at {at:#x}: found type {found:#010x}, expected CODE, DATA, BSS or ENTRY"
            ),
            Self::DataOutOfBounds(at) => {
                write!(f, "payload: segment header at {at:#x}: its data is not within the file")
            }
        }
    }
}

impl core::error::Error for SelfError {}

impl<'a> Payload<'a> {
    /// Reads the table of segments and checks that all data lies within `bytes`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SelfError> {
        let mut payload = Self { bytes, segments: 0, entry: 0 };
        loop {
            match payload.header(payload.segments)? {
                Header::Entry(entry) => {
                    payload.entry = entry;
                    return Ok(payload);
                }
                Header::Segment(_) | Header::Other => {
                    payload.segments = payload.segments.saturating_add(1);
                }
            }
        }
    }

    /// The segments, in the order they are to be loaded.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let payload = *self;
        (0..payload.segments).filter_map(move |index| match payload.header(index) {
            Ok(Header::Segment(segment)) => Some(segment),
            _ => None,
        })
    }

    fn header(&self, index: usize) -> Result<Header<'a>, SelfError> {
        let at = index.saturating_mul(SEGMENT_HEADER_LEN);
        let header = slice(self.bytes, at, SEGMENT_HEADER_LEN).ok_or(SelfError::Truncated(at))?;
        let word = |offset| be_u32(header, offset).unwrap_or(0);
        let load_address = be_u64(header, 12).unwrap_or(0);
        let (compression, memory_len) = (Compression::from_number(word(4)), word(24));
        match word(0) {
            ENTRY => Ok(Header::Entry(load_address)),
            BSS => {
                let zeros = Segment { load_address, memory_len, compression: Compression::None, data: &[] };
                Ok(Header::Segment(zeros))
            }
            CODE | DATA => {
                let data = slice(self.bytes, word(8) as usize, word(20) as usize);
                let data = data.ok_or(SelfError::DataOutOfBounds(at))?;
                Ok(Header::Segment(Segment { load_address, memory_len, compression, data }))
            }
            PARAMS => Ok(Header::Other),
            found => Err(SelfError::UnknownType { at, found }),
        }
    }
}

enum Header<'a> {
    Segment(Segment<'a>),
    Entry(u64),
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: u32, offset: u32, load: u64, len: u32, memory_len: u32) -> Vec<u8> {
        let mut bytes = [kind.to_be_bytes(), 0_u32.to_be_bytes(), offset.to_be_bytes()].concat();
        bytes.extend(load.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(memory_len.to_be_bytes());
        bytes
    }

    fn payload() -> Vec<u8> {
        let mut bytes = header(CODE, 84, 0x10_0000, 3, 8);
        bytes.extend(header(BSS, 0, 0x20_0000, 0, 64));
        bytes.extend(header(ENTRY, 0, 0x10_0004, 0, 0));
        bytes.extend([1, 2, 3]);
        bytes
    }

    #[test]
    fn segments_and_entry_are_read() {
        let bytes = payload();
        let payload = Payload::parse(&bytes).unwrap();
        assert_eq!(payload.entry, 0x10_0004);
        let segments: Vec<_> = payload.segments().collect();
        assert_eq!(segments.len(), 2);
        assert_eq!(segments[0].data, [1, 2, 3]);
        assert_eq!((segments[0].load_address, segments[0].memory_len), (0x10_0000, 8));
        assert_eq!((segments[1].load_address, segments[1].memory_len), (0x20_0000, 64));
        assert!(segments[1].data.is_empty());
    }

    #[test]
    fn faults_name_their_header() {
        let mut bytes = payload();
        assert_eq!(Payload::parse(&bytes[28..70]), Err(SelfError::Truncated(28)));
        assert_eq!(Payload::parse(&bytes[..86]), Err(SelfError::DataOutOfBounds(0)));
        bytes[28] = b'X';
        assert_eq!(Payload::parse(&bytes), Err(SelfError::UnknownType { at: 28, found: 0x5853_5320 }));
        assert_eq!(Payload::parse(&[]), Err(SelfError::Truncated(0)));
    }

    proptest! {
        #[test]
        fn mutated_payloads_never_panic(at in 0_usize..87, value: u8, cut in 0_usize..88) {
            let mut bytes = payload();
            bytes[at] = value;
            bytes.truncate(cut);
            if let Ok(payload) = Payload::parse(&bytes) {
                prop_assert!(payload.segments().count() <= 3);
            }
        }
    }
}
