//! One file, and the walk over all of them.

use alloc::{borrow::Cow, string::String, vec::Vec};

use super::{
    attribute::{Attribute, Attributes},
    compression::Compression,
    error::{CbfsError, CbfsFault},
};
use crate::bytes::{be_u32, slice};

const MAGIC: &[u8; 8] = b"LARCHIVE";
const HEADER_LEN: usize = 24;
/// Files begin at multiples of this.
const ALIGNMENT: usize = 64;

/// What a file is, by coreboot's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The code at the reset vector.
    Bootblock,
    /// A legacy master header.
    MasterHeader,
    /// A stage with a header of its own, as coreboot wrote it until 4.14.
    LegacyStage,
    /// A stage.
    Stage,
    /// A payload: see [`crate::selfboot`].
    SimpleElf,
    /// A payload as a flattened image tree.
    FitPayload,
    /// A PCI option ROM.
    OptionRom,
    /// A picture.
    Bootsplash,
    /// Anything.
    Raw,
    /// CPU microcode.
    Microcode,
    /// A structure that only its name explains.
    Struct,
    /// CMOS option layout.
    CmosLayout,
    /// CMOS option defaults.
    CmosDefault,
    /// Another number.
    Other(u32),
}

impl Kind {
    const DELETED: u32 = 0;
    const NULL: u32 = u32::MAX;

    /// The kind that this number stands for.
    pub const fn from_number(number: u32) -> Self {
        match number {
            0x01 => Self::Bootblock,
            0x02 => Self::MasterHeader,
            0x10 => Self::LegacyStage,
            0x11 => Self::Stage,
            0x20 => Self::SimpleElf,
            0x21 => Self::FitPayload,
            0x30 => Self::OptionRom,
            0x40 => Self::Bootsplash,
            0x50 => Self::Raw,
            0x53 => Self::Microcode,
            0x70 => Self::Struct,
            0x1aa => Self::CmosLayout,
            0xaa => Self::CmosDefault,
            other => Self::Other(other),
        }
    }
}

/// A file as it lies in the flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub kind: Kind,
    /// Its bytes in the flash, which may be compressed.
    pub data: &'a [u8],
    /// Where its header lies, in bytes from the flash's or the CBFS's beginning.
    pub offset: u64,
    attributes: &'a [u8],
}

impl<'a> File<'a> {
    /// The file's attributes.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.attributes)
    }

    /// How the file is compressed, and the size of its contents in bytes.
    pub fn compression(&self) -> Result<(Compression, u64), CbfsError> {
        let uncompressed = (Compression::None, self.data.len() as u64);
        let found = self.find_attribute(|attribute| match attribute {
            Attribute::Compression { algorithm, decompressed_size } => {
                Some((algorithm, u64::from(decompressed_size)))
            }
            _ => None,
        })?;
        Ok(match found {
            None | Some((Compression::None, _)) => uncompressed,
            Some(compressed) => compressed,
        })
    }

    /// The file's contents, of at most `limit` bytes: its hash checked where it has one, and decompressed.
    /// What is not compressed is borrowed from the flash.
    pub fn contents(&self, limit: usize) -> Result<Cow<'a, [u8]>, CbfsError> {
        let (compression, size) = self.compression()?;
        if size > limit as u64 {
            return Err(self.error(CbfsFault::TooLarge { size, limit: limit as u64 }));
        }
        self.verify()?;
        if compression == Compression::None {
            return Ok(Cow::Borrowed(self.data));
        }
        let mut contents = Vec::new();
        let len = usize::try_from(size).map_err(|_| self.error(CbfsFault::OutOfMemory(size)))?;
        contents.try_reserve_exact(len).map_err(|_| self.error(CbfsFault::OutOfMemory(size)))?;
        contents.resize(len, 0);
        self.decompress_into(&mut contents)?;
        Ok(Cow::Owned(contents))
    }

    /// Decompresses the file to the beginning of `output`: as many bytes as [`Self::compression`] says. The
    /// hash is not checked.
    pub fn decompress_into(&self, output: &mut [u8]) -> Result<(), CbfsError> {
        let (compression, size) = self.compression()?;
        let found = compression
            .decompress(self.data, output)
            .map_err(|error| self.error(error.fault(compression)))?;
        if found as u64 != size {
            return Err(self.error(CbfsFault::Size { found: found as u64, expected: size }));
        }
        Ok(())
    }

    /// Checks the bytes in the flash against each hash attribute; a file without one passes.
    #[cfg(feature = "hash")]
    pub fn verify(&self) -> Result<(), CbfsError> {
        for attribute in self.attributes() {
            let Attribute::Hash { algorithm, digest } = attribute.map_err(|fault| self.error(fault))? else {
                continue;
            };
            match super::hash::matches(algorithm, digest, self.data) {
                Some(true) => {}
                Some(false) => return Err(self.error(CbfsFault::Hash)),
                None => return Err(self.error(CbfsFault::UnknownHash(algorithm.number()))),
            }
        }
        Ok(())
    }

    /// Without the feature `hash` nothing is checked, as a coreboot without CBFS verification does.
    #[cfg(not(feature = "hash"))]
    pub fn verify(&self) -> Result<(), CbfsError> {
        Ok(())
    }

    /// `fault`, said of this file.
    pub fn error(&self, fault: CbfsFault) -> CbfsError {
        CbfsError { file: Some(self.name.into()), offset: self.offset, fault }
    }

    fn find_attribute<T>(&self, pick: impl Fn(Attribute<'a>) -> Option<T>) -> Result<Option<T>, CbfsError> {
        for attribute in self.attributes() {
            if let Some(found) = pick(attribute.map_err(|fault| self.error(fault))?) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// The walk over a CBFS; empty space is passed over.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    bytes: &'a [u8],
    base: u64,
    at: usize,
}

impl<'a> Files<'a> {
    pub(super) fn new(bytes: &'a [u8], base: u64) -> Self {
        Self { bytes, base, at: 0 }
    }

    /// The first file that begins within a file from `start` to `end` whose length cannot be right: each file
    /// or piece of empty space is followed by the next, up to the end of the CBFS. (A file that is followed
    /// so may well hold another CBFS.)
    fn file_run_over(&self, start: usize, end: usize) -> Option<usize> {
        let is_header = |at: &usize| self.bytes.get(*at..).is_some_and(|rest| rest.starts_with(MAGIC));
        let is_last = end.checked_add(HEADER_LEN)? > self.bytes.len();
        if is_last || is_header(&end) {
            return None;
        }
        (start.checked_add(ALIGNMENT)?..end).step_by(ALIGNMENT).find(is_header)
    }
}

impl<'a> Iterator for Files<'a> {
    type Item = Result<File<'a>, CbfsError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let here = self.at;
            let rest = self.bytes.get(here..)?;
            if rest.len() < HEADER_LEN {
                return None;
            }
            if !rest.starts_with(MAGIC) {
                self.at = here.checked_add(ALIGNMENT)?;
                continue;
            }
            let offset = self.base.saturating_add(here as u64);
            let header = match Header::parse(rest) {
                Ok(header) => header,
                Err(fault) => {
                    // Where the file ends is unknown; the next may begin anywhere.
                    self.at = here.checked_add(ALIGNMENT)?;
                    return Some(Err(CbfsError { file: Header::guess_name(rest), offset, fault }));
                }
            };
            let end = here.checked_add(header.end)?.checked_next_multiple_of(ALIGNMENT)?;
            if let Some(other) = self.file_run_over(here, end) {
                self.at = other;
                let fault = CbfsFault::RunsOver(self.base.saturating_add(other as u64));
                return Some(Err(CbfsError { file: Header::guess_name(rest), offset, fault }));
            }
            self.at = end;
            if !header.is_empty_space() {
                return Some(header.file(rest, offset));
            }
        }
    }
}

/// The checked header of a file.
struct Header {
    kind: u32,
    data_start: usize,
    data_len: usize,
    end: usize,
    /// Where the attributes begin; the data's beginning when there are none.
    attributes: usize,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, CbfsFault> {
        let word = |at| be_u32(bytes, at).unwrap_or(0);
        let (len, kind, attributes, offset) = (word(8), word(12), word(16), word(20));
        let within = |field, found, least: usize, most: usize| {
            let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
            let (least, most) = (size(least), size(most));
            match (least..=most).contains(&found) {
                true => Ok(found as usize),
                false => Err(CbfsFault::Header { field, found, least, most }),
            }
        };
        let data_start = within("offset", offset, HEADER_LEN, bytes.len())?;
        let data_len = within("len", len, 0, bytes.len().saturating_sub(data_start))?;
        let attributes = match attributes {
            0 => data_start,
            attributes => within("attributes_offset", attributes, HEADER_LEN, data_start)?,
        };
        Ok(Self { kind, data_start, data_len, end: data_start.saturating_add(data_len), attributes })
    }

    fn is_empty_space(&self) -> bool {
        self.kind == Kind::DELETED || self.kind == Kind::NULL
    }

    fn file<'a>(&self, bytes: &'a [u8], offset: u64) -> Result<File<'a>, CbfsError> {
        let name_field = bytes.get(HEADER_LEN..self.attributes).unwrap_or(&[]);
        let fault = |fault| CbfsError { file: Self::guess_name(bytes), offset, fault };
        let name = name_of(name_field).ok_or_else(|| fault(CbfsFault::Name))?;
        Ok(File {
            name,
            kind: Kind::from_number(self.kind),
            data: slice(bytes, self.data_start, self.data_len).unwrap_or(&[]),
            offset,
            attributes: bytes.get(self.attributes..self.data_start).unwrap_or(&[]),
        })
    }

    /// The name behind a header whose offsets cannot be trusted, to name the file in an error.
    fn guess_name(bytes: &[u8]) -> Option<String> {
        const LONGEST: usize = 232;
        let rest = bytes.get(HEADER_LEN..)?;
        let name = name_of(slice(rest, 0, LONGEST.min(rest.len()))?)?;
        name.chars().all(|letter| letter.is_ascii_graphic()).then(|| name.into())
    }
}

/// The UTF-8 up to a NUL, which there must be.
fn name_of(field: &[u8]) -> Option<&str> {
    let len = field.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(field.get(..len)?).ok()
}
