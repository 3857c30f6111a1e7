//! Why a file cannot be had.

use crate::block::BlockError;
use alloc::string::String;
use core::fmt;

/// Why a file, or the file system it is in, cannot be read or used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    /// The device cannot be read.
    Disk(BlockError),
    /// There is no file system of a kind that is known.
    NoFileSystem,
    /// Nothing is at this path.
    NotFound(String),
    /// What is at this path, or on the way, is no directory.
    NotADirectory(String),
    /// What is at this path is no file.
    NotAFile(String),
    /// The links of this path lead in circles, or through too many.
    TooManyLinks(String),
    /// This path leads through too many directories.
    TooDeep(String),
    /// A file has more bytes than whoever wants it can take.
    TooLarge {
        /// Where it is.
        path: String,
        /// How many it has.
        size: u64,
        /// How many may be.
        most: u64,
    },
    /// Bytes behind the end of a file were asked for.
    BehindTheEnd {
        /// Where they begin.
        at: u64,
        /// How many.
        len: u64,
        /// The file's length.
        size: u64,
    },
    /// A structure of the file system holds what cannot be.
    Damaged {
        /// Which value.
        what: &'static str,
        /// What it is.
        found: u64,
    },
    /// A structure of the file system does not fit its checksum.
    Checksum {
        /// Which structure.
        what: &'static str,
        /// Its number.
        number: u64,
    },
    /// The file system needs something that is not supported.
    Unsupported(&'static str),
    /// The file system has features that are not known: the field, and the bits.
    Features(&'static str, u32),
    /// The file system was not left in a clean state, so that its files may not be where it says.
    NotClean,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(f),
            Self::NoFileSystem => f.write_str("there is no file system of a known kind (FAT, ext2 to ext4)"),
            Self::NotFound(path) => write!(f, "{path} does not exist"),
            Self::NotADirectory(path) => write!(f, "{path} is no directory, or leads through something else"),
            Self::NotAFile(path) => write!(f, "{path} is no file"),
            Self::TooManyLinks(path) => write!(f, "{path} leads through too many symbolic links"),
            Self::TooDeep(path) => write!(f, "{path} leads through too many directories"),
            Self::TooLarge { path, size, most } => {
                write!(f, "{path} has {size} bytes, {most} are the most that are taken")
            }
            Self::BehindTheEnd { at, len, size } => {
                write!(f, "{len} bytes at {at:#x} are not all in a file of {size} bytes")
            }
            Self::Damaged { what, found } => {
                write!(f, "the file system is damaged: {found:#x} as the {what}")
            }
            Self::Checksum { what, number } => {
                write!(f, "the file system is damaged: {what} {number} does not fit its checksum")
            }
            Self::Unsupported(what) => write!(f, "not supported: {what}"),
            Self::Features(field, bits) => write!(f, "not supported: {field} features {bits:#x} of ext4"),
            Self::NotClean => f.write_str(
                "the file system was not unmounted cleanly; mount and unmount it, or check it with fsck, first",
            ),
        }
    }
}

impl core::error::Error for FileError {}

impl From<BlockError> for FileError {
    fn from(error: BlockError) -> Self {
        Self::Disk(error)
    }
}
