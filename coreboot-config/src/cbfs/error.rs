//! What can be wrong with a CBFS.

use alloc::string::String;
use core::fmt;

use super::compression::StreamError;
use crate::fmap::FmapError;

/// A fault, and the file and place it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CbfsError {
    /// The file's name, where it could be read.
    pub file: Option<String>,
    /// Where the file's header lies, in bytes from the flash's or the CBFS's beginning.
    pub offset: u64,
    /// What is wrong.
    pub fault: CbfsFault,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CbfsFault {
    /// The image has neither an FMAP with an area COREBOOT (the error says which) nor a legacy master header.
    NoFileSystem(FmapError),
    /// The FMAP's area COREBOOT is not in the image.
    Map(FmapError),
    /// No file of that name.
    NotFound,
    /// The header's offsets and length do not fit each other or the CBFS.
    Header {
        /// Which header field: "offset", "len" or "attributes_offset".
        field: &'static str,
        /// What it says.
        found: u32,
        /// The least it can be.
        least: u32,
        /// The most it can be.
        most: u32,
    },
    /// By its length the file runs over the one at this offset, and ends where no other begins.
    RunsOver(u64),
    /// The name is not UTF-8 that ends in a NUL.
    Name,
    /// The attribute of this tag says that it has this many bytes, which does not fit.
    Attribute {
        /// The attribute's tag; 0 when even that is missing.
        tag: u32,
        /// Its length in bytes, by its own account.
        len: u32,
    },
    /// Compressed in a way that this build does not know; by coreboot's number.
    UnknownCompression(u32),
    /// The file's contents are larger than the caller takes, in bytes.
    TooLarge {
        /// The contents' size.
        size: u64,
        /// The caller's limit.
        limit: u64,
    },
    /// There is no memory for contents of this many bytes.
    OutOfMemory(u64),
    /// The compressed stream is corrupted.
    Stream(StreamError),
    /// Decompression gave another number of bytes than the attribute says.
    Size {
        /// What it gave.
        found: u64,
        /// What the attribute says.
        expected: u64,
    },
    /// The hash attribute's algorithm, by coreboot's number, is unknown, or its digest has a wrong length.
    UnknownHash(u32),
    /// The file's bytes are not those that its hash was made of.
    Hash,
}

impl CbfsError {
    pub(super) fn image(fault: CbfsFault) -> Self {
        Self { file: None, offset: 0, fault }
    }
}

impl fmt::Display for CbfsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(name) => write!(f, "CBFS file {name} at {:#x}: {}", self.offset, self.fault),
            None => write!(f, "CBFS at {:#x}: {}", self.offset, self.fault),
        }
    }
}

impl core::error::Error for CbfsError {}

impl fmt::Display for CbfsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFileSystem(error) => write!(f, "no file system: {error}, and no legacy master header"),
            Self::Map(error) => write!(f, "{error}"),
            Self::NotFound => f.write_str("not in the ROM"),
            Self::Header { field, found, least, most } => {
                write!(f, "found {field} {found:#x} in its header, expected {least:#x} to {most:#x}")
            }
            Self::RunsOver(other) => {
                write!(
                    f,
                    "found a length that runs over the file at {other:#x}, expected the next file behind it"
                )
            }
            Self::Name => f.write_str("its name is not UTF-8 that ends in a zero byte"),
            Self::Attribute { tag, len } => {
                write!(f, "attribute {tag:#010x} says it has {len} bytes, which does not fit")
            }
            Self::UnknownCompression(number) => {
                write!(f, "found compression {number}, expected one of {}", super::Compression::NAMES)
            }
            Self::TooLarge { size, limit } => write!(f, "found {size} bytes, expected at most {limit}"),
            Self::OutOfMemory(size) => write!(f, "no memory for its {size} bytes"),
            Self::Stream(error) => write!(f, "{error}"),
            Self::Size { found, expected } => {
                write!(f, "decompressed to {found} bytes, expected {expected}")
            }
            Self::UnknownHash(number) => write!(f, "found a hash of kind {number} that is not known"),
            Self::Hash => f.write_str("its bytes do not have the hash that its attribute says"),
        }
    }
}
