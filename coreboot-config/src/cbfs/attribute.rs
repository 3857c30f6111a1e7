//! The attributes of a file.

use super::{compression::Compression, error::CbfsFault};
use crate::bytes::{be_u32, be_u64};

const COMPRESSION: u32 = 0x4243_5a4c;
const HASH: u32 = 0x6873_6148;
const POSITION: u32 = 0x4243_5350;
const ALIGNMENT: u32 = 0x4243_4c41;
const IBB: u32 = 0x3249_4242;
const PADDING: u32 = 0x4744_4150;
const STAGE_HEADER: u32 = 0x5374_6748;
/// Flash that was never written reads so, and a header may be filled with either.
const UNUSED: [u32; 2] = [0, u32::MAX];
const HEADER_LEN: usize = 8;

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute<'a> {
    /// The file is compressed.
    Compression {
        /// How.
        algorithm: Compression,
        /// The size of its contents, in bytes.
        decompressed_size: u32,
    },
    /// A hash of the file's bytes in the flash.
    Hash {
        /// Which.
        algorithm: HashAlgorithm,
        /// Its value.
        digest: &'a [u8],
    },
    /// The file must stay at this offset.
    Position(u32),
    /// The file must stay aligned to this many bytes.
    Alignment(u32),
    /// The file is part of Intel's initial boot block.
    InitialBootBlock,
    /// Room that was kept for attributes.
    Padding,
    /// Where a stage goes in memory.
    StageHeader(StageHeader),
    /// A tag that this code does not know, with its body.
    Unknown(u32, &'a [u8]),
}

/// Where a stage goes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageHeader {
    /// The address of its first byte.
    pub load_address: u64,
    /// Its entry point, from there.
    pub entry_offset: u32,
    /// Its length in memory, in bytes.
    pub memory_len: u32,
}

/// A hash function, by coreboot's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// Another number.
    Unknown(u32),
}

impl HashAlgorithm {
    /// The algorithm that this number stands for.
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Sha1,
            2 => Self::Sha256,
            3 => Self::Sha512,
            4 => Self::Sha224,
            5 => Self::Sha384,
            other => Self::Unknown(other),
        }
    }

    /// The number that stands for it in an attribute.
    pub const fn number(self) -> u32 {
        match self {
            Self::Sha1 => 1,
            Self::Sha256 => 2,
            Self::Sha512 => 3,
            Self::Sha224 => 4,
            Self::Sha384 => 5,
            Self::Unknown(number) => number,
        }
    }
}

/// The walk over a file's attributes. It ends at the first one that is corrupted, after giving its fault.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, CbfsFault>;

    fn next(&mut self) -> Option<Self::Item> {
        let tag = be_u32(self.rest, 0)?;
        if UNUSED.contains(&tag) {
            return None;
        }
        let len = be_u32(self.rest, 4).unwrap_or(0);
        let fault = CbfsFault::Attribute { tag, len };
        let split = self.rest.split_at_checked(len as usize);
        let (body, rest) = split.and_then(|(whole, rest)| Some((whole.get(HEADER_LEN..)?, rest))).unzip();
        self.rest = rest.unwrap_or(&[]);
        let Some(body) = body else { return Some(Err(fault)) };
        Some(parse(tag, body).ok_or(fault))
    }
}

fn parse(tag: u32, body: &[u8]) -> Option<Attribute<'_>> {
    Some(match tag {
        COMPRESSION => Attribute::Compression {
            algorithm: Compression::from_number(be_u32(body, 0)?),
            decompressed_size: be_u32(body, 4)?,
        },
        HASH => Attribute::Hash {
            algorithm: HashAlgorithm::from_number(be_u32(body, 0)?),
            digest: body.get(4..)?,
        },
        POSITION => Attribute::Position(be_u32(body, 0)?),
        ALIGNMENT => Attribute::Alignment(be_u32(body, 0)?),
        IBB => Attribute::InitialBootBlock,
        PADDING => Attribute::Padding,
        STAGE_HEADER => Attribute::StageHeader(StageHeader {
            load_address: be_u64(body, 0)?,
            entry_offset: be_u32(body, 8)?,
            memory_len: be_u32(body, 12)?,
        }),
        tag => Attribute::Unknown(tag, body),
    })
}
