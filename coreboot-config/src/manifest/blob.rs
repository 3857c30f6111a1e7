//! The soundness of a device tree blob (Devicetree Specification 0.4, chapter 5).
//!
//! The crate `fdt` panics on blobs that are not sound, so every byte it will follow is checked before.

use core::fmt;

use fdt::Fdt;

use crate::bytes::{array, be_u32, slice};

/// The longest blob that is read, in bytes.
pub const MAX_BLOB_LEN: usize = 1 << 20;

const MAGIC: u32 = 0xd00d_feed;
const HEADER_LEN: usize = 40;
/// The version that every dtc of the last two decades writes.
const VERSION: u32 = 17;
/// `fdt` recurses into nodes; a manifest needs four levels.
const MAX_DEPTH: usize = 16;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;

/// What is wrong with a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobError {
    /// Where, in bytes from the blob's beginning.
    pub offset: usize,
    /// What is wrong there.
    pub fault: BlobFault,
}

/// What is wrong at a place of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobFault {
    /// A header field's value, by its name in the specification.
    Field(&'static str, u32),
    /// The blob or its structure ends here.
    End,
    /// A token other than those that may stand here.
    Token(u32),
    /// A name that is not printable ASCII and ends in a zero byte.
    Name,
    /// A property's value of this many bytes runs past the structure.
    Value(u32),
    /// Nodes within nodes, deeper than any manifest.
    Depth,
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device tree blob at offset {:#x}: ", self.offset)?;
        match self.fault {
            BlobFault::Field(name, found) => {
                write!(f, "found {found:#x} as the header's {name}, expected what dtc writes")
            }
            BlobFault::End => f.write_str("found its end, expected more"),
            BlobFault::Token(found) => {
                write!(f, "found token {found:#x}, expected a node's or property's as dtc orders them")
            }
            BlobFault::Name => f.write_str("found a name that is not printable ASCII ending in a zero byte"),
            BlobFault::Value(len) => {
                write!(f, "found a value of {len} bytes, expected it to end within the blob")
            }
            BlobFault::Depth => write!(f, "found nodes nested deeper than {MAX_DEPTH}"),
        }
    }
}

impl core::error::Error for BlobError {}

/// The tree in `bytes`, once it is known to be sound.
pub(super) fn parse(bytes: &[u8]) -> Result<Fdt<'_>, BlobError> {
    let blob = check(bytes)?;
    Fdt::new(blob).map_err(|_| BlobError { offset: 0, fault: BlobFault::Field("magic", 0) })
}

/// The blob that `bytes` begin with, checked through.
fn check(bytes: &[u8]) -> Result<&[u8], BlobError> {
    let field =
        |offset: usize| be_u32(bytes, offset).ok_or(BlobError { offset: bytes.len(), fault: BlobFault::End });
    let wrong = |offset: usize, name: &'static str| {
        let found = be_u32(bytes, offset).unwrap_or(0);
        BlobError { offset, fault: BlobFault::Field(name, found) }
    };
    field(HEADER_LEN.saturating_sub(4))?;
    if field(0)? != MAGIC {
        return Err(wrong(0, "magic"));
    }
    if field(20)? != VERSION {
        return Err(wrong(20, "version"));
    }
    if field(24)? > VERSION {
        return Err(wrong(24, "last_comp_version"));
    }
    let total = field(4)? as usize;
    if !(HEADER_LEN..=MAX_BLOB_LEN).contains(&total) {
        return Err(wrong(4, "totalsize"));
    }
    let blob = bytes.get(..total).ok_or(BlobError { offset: bytes.len(), fault: BlobFault::End })?;

    let structure_start = field(8)? as usize;
    if !structure_start.is_multiple_of(4) {
        return Err(wrong(8, "off_dt_struct"));
    }
    let structure = slice(blob, structure_start, field(36)? as usize);
    let strings = slice(blob, field(12)? as usize, field(32)? as usize);
    let walk = Walk {
        structure: structure.ok_or_else(|| wrong(36, "size_dt_struct"))?,
        strings: strings.ok_or_else(|| wrong(32, "size_dt_strings"))?,
        at: 0,
    };
    walk.check().map_err(|error| BlobError {
        offset: error.offset.saturating_add(structure_start),
        fault: error.fault,
    })?;
    Ok(blob)
}

/// A walk through the structure block; its errors count offsets from there.
struct Walk<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    fn check(mut self) -> Result<(), BlobError> {
        self.expect(BEGIN_NODE)?;
        if self.name()? != 0 {
            return Err(self.error(BlobFault::Name));
        }
        let mut depth = 1_usize;
        // Properties come before child nodes; `fdt` does not look for them behind.
        let mut properties_allowed = true;
        while depth > 0 {
            let here = self.at;
            match self.word()? {
                BEGIN_NODE => {
                    if self.name()? == 0 {
                        return Err(BlobError { offset: here, fault: BlobFault::Name });
                    }
                    depth = depth.saturating_add(1);
                    if depth > MAX_DEPTH {
                        return Err(BlobError { offset: here, fault: BlobFault::Depth });
                    }
                    properties_allowed = true;
                }
                END_NODE => {
                    depth = depth.saturating_sub(1);
                    properties_allowed = false;
                }
                PROPERTY if properties_allowed => self.property()?,
                token => return Err(BlobError { offset: here, fault: BlobFault::Token(token) }),
            }
        }
        self.expect(END)
    }

    fn property(&mut self) -> Result<(), BlobError> {
        let here = self.at;
        let len = self.word()?;
        let name = self.word()? as usize;
        let name = self.strings.get(name..).and_then(name_len);
        if name.is_none_or(|len| len == 0) {
            return Err(BlobError { offset: here, fault: BlobFault::Name });
        }
        self.skip(len as usize).ok_or(BlobError { offset: here, fault: BlobFault::Value(len) })
    }

    /// Passes over a node's name and gives its length.
    fn name(&mut self) -> Result<usize, BlobError> {
        let name = self.structure.get(self.at..).and_then(name_len);
        let len = name.ok_or_else(|| self.error(BlobFault::Name))?;
        self.skip(len.saturating_add(1)).ok_or_else(|| self.error(BlobFault::End))?;
        Ok(len)
    }

    fn expect(&mut self, token: u32) -> Result<(), BlobError> {
        let here = self.at;
        match self.word()? {
            found if found == token => Ok(()),
            found => Err(BlobError { offset: here, fault: BlobFault::Token(found) }),
        }
    }

    fn word(&mut self) -> Result<u32, BlobError> {
        let word = array(self.structure, self.at).ok_or_else(|| self.error(BlobFault::End))?;
        self.at = self.at.saturating_add(4);
        Ok(u32::from_be_bytes(word))
    }

    /// Passes over `len` bytes and their padding, all of which must be there.
    fn skip(&mut self, len: usize) -> Option<()> {
        let end = self.at.checked_add(len.checked_next_multiple_of(4)?)?;
        self.structure.get(self.at..end)?;
        self.at = end;
        Some(())
    }

    fn error(&self, fault: BlobFault) -> BlobError {
        BlobError { offset: self.at, fault }
    }
}

/// The length of the printable ASCII that ends at the first zero byte.
fn name_len(bytes: &[u8]) -> Option<usize> {
    let len = bytes.iter().position(|byte| *byte == 0)?;
    bytes.get(..len)?.iter().all(u8::is_ascii_graphic).then_some(len)
}
