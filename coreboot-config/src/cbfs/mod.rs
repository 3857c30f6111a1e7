//! CBFS: the files in a coreboot image.
//!
//! Files lie one after the other at multiples of 64 bytes, each behind a big-endian header with its name and
//! attributes. A file that is corrupted costs that file: the walk goes on behind it.

mod attribute;
mod compression;
mod error;
mod file;
#[cfg(feature = "hash")]
mod hash;

pub use attribute::{Attribute, Attributes, HashAlgorithm, StageHeader};
pub use compression::{Compression, StreamError};
pub use error::{CbfsError, CbfsFault};
pub use file::{File, Files, Kind};

use crate::{
    bytes::{array, be_u32, slice},
    fmap::{COREBOOT_AREA, Fmap, FmapError},
};

/// What a legacy master header begins with, as a big-endian word: "ORBC".
const MASTER_MAGIC: u32 = 0x4f52_4243;
const MASTER_HEADER_LEN: usize = 32;

/// A CBFS.
#[derive(Clone, Copy, Debug)]
pub struct Cbfs<'a> {
    bytes: &'a [u8],
    base: u64,
}

impl<'a> Cbfs<'a> {
    /// The CBFS that fills `bytes`. Errors name places by their offset there.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::at(bytes, 0)
    }

    /// The CBFS that fills `bytes`, which begin at offset `base` of the flash. Errors name places by their
    /// offset in the flash.
    pub fn at(bytes: &'a [u8], base: u64) -> Self {
        Self { bytes, base }
    }

    /// The CBFS of a whole flash image: the FMAP's area COREBOOT, else what the legacy master header says,
    /// to which the image's last four bytes (0xFFFFFFFC in memory) point.
    pub fn in_image(image: &'a [u8]) -> Result<Self, CbfsError> {
        let area = Fmap::find(image).and_then(|map| {
            let offset = map.area(COREBOOT_AREA)?.offset;
            Ok(Self::at(map.area_bytes(image, COREBOOT_AREA)?, offset.into()))
        });
        match area {
            Ok(cbfs) => Ok(cbfs),
            Err(error @ FmapError::OutOfBounds { .. }) => Err(CbfsError::image(CbfsFault::Map(error))),
            Err(error) => {
                Self::by_master_header(image).ok_or(CbfsError::image(CbfsFault::NoFileSystem(error)))
            }
        }
    }

    /// All files that are not empty space, in the order they lie.
    pub fn files(&self) -> Files<'a> {
        Files::new(self.bytes, self.base)
    }

    /// The first file of this name. A file of that name whose header is corrupted gives its error.
    pub fn find(&self, name: &str) -> Result<File<'a>, CbfsError> {
        let wanted = |file: &Result<File<'_>, CbfsError>| match file {
            Ok(file) => file.name == name,
            Err(error) => error.file.as_deref() == Some(name),
        };
        let not_found =
            || CbfsError { file: Some(name.into()), offset: self.base, fault: CbfsFault::NotFound };
        self.files().find(wanted).unwrap_or_else(|| Err(not_found()))
    }

    fn by_master_header(image: &'a [u8]) -> Option<Self> {
        let pointer = i32::from_le_bytes(array(image, image.len().checked_sub(4)?)?);
        let from_end = usize::try_from(i64::from(pointer).checked_neg()?).ok()?;
        let header = slice(image, image.len().checked_sub(from_end)?, MASTER_HEADER_LEN)?;
        if be_u32(header, 0)? != MASTER_MAGIC {
            return None;
        }
        let end = be_u32(header, 8)?.checked_sub(be_u32(header, 12)?)?;
        let start = be_u32(header, 20)?;
        Some(Self::at(image.get(start as usize..end as usize)?, start.into()))
    }
}

#[cfg(test)]
mod tests;
