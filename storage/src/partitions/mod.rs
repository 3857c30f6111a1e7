//! How a disk is divided: by a GUID partition table, or by the one of an MBR.

mod gpt;
mod mbr;
mod window;

pub use window::Window;

use crate::block::{BlockDevice, BlockError, read_bytes};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use uuid::Uuid;

/// What a disk's partition table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionTable {
    /// Which kind it is.
    pub scheme: Scheme,
    /// The disk's identifier, where it has one.
    pub disk: Option<Identifier>,
    /// What is in use, by number.
    pub partitions: Vec<Partition>,
    /// What is wrong with it but did not keep it from being read.
    pub problems: Vec<TableProblem>,
}

/// A kind of partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A GUID partition table (UEFI 2.10, chapter 5).
    Gpt,
    /// The table of a master boot record, with logical partitions.
    Mbr,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number as Linux counts: from 1, an MBR's logical ones from 5.
    pub number: u32,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it is for.
    pub kind: Kind,
    /// What tells it from all others.
    pub id: Identifier,
    /// Its name; only a GPT gives any.
    pub label: Option<String>,
}

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A GPT's partition type.
    Guid(Uuid),
    /// An MBR's partition type.
    Byte(u8),
}

impl Kind {
    /// The EFI system partition.
    pub const EFI_SYSTEM: Uuid = Uuid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
    /// The extended boot loader partition of the Boot Loader Specification.
    pub const EXTENDED_BOOT: Uuid = Uuid::from_u128(0xbc13c2ff_59e6_4262_a352_b275fd6f7172);
    /// The EFI system partition in an MBR.
    const EFI_SYSTEM_BYTE: u8 = 0xef;
    /// The extended boot loader partition in an MBR.
    const EXTENDED_BOOT_BYTE: u8 = 0xea;

    /// Whether this is an EFI system partition.
    pub fn is_efi_system(self) -> bool {
        self == Self::Guid(Self::EFI_SYSTEM) || self == Self::Byte(Self::EFI_SYSTEM_BYTE)
    }

    /// Whether this is an extended boot loader partition.
    pub fn is_extended_boot(self) -> bool {
        self == Self::Guid(Self::EXTENDED_BOOT) || self == Self::Byte(Self::EXTENDED_BOOT_BYTE)
    }
}

/// What tells a disk or a partition from all others; written as Linux's PARTUUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identifier {
    /// A GUID.
    Guid(Uuid),
    /// An MBR's disk signature.
    Signature(u32),
    /// An MBR's disk signature and a partition's number.
    Numbered(u32, u32),
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guid(guid) => write!(f, "{guid}"),
            Self::Signature(signature) => write!(f, "{signature:08x}"),
            Self::Numbered(signature, number) => write!(f, "{signature:08x}-{number:02x}"),
        }
    }
}

/// What is wrong with a table that could be read all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableProblem {
    /// The first copy of a GPT is damaged; the second was taken.
    FirstCopy(Damage),
    /// The second copy of a GPT is damaged.
    SecondCopy(Damage),
    /// This entry lies outside of the disk, or ends before it begins; it is left out.
    Entry(u32),
    /// A chain of logical partitions comes back to itself, or is too long; what follows is left out.
    EndlessChain,
}

impl fmt::Display for TableProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstCopy(damage) => {
                write!(f, "the GPT at the disk's beginning {damage}; the one at its end is used")
            }
            Self::SecondCopy(damage) => write!(f, "the GPT at the disk's end {damage}"),
            Self::Entry(number) => write!(f, "partition {number} is not on the disk"),
            Self::EndlessChain => f.write_str("the chain of logical partitions does not end"),
        }
    }
}

/// What is wrong with a copy of a GPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It does not begin with "EFI PART".
    Signature,
    /// A field holds what it cannot mean; the field's name and what it holds.
    Field(&'static str, u64),
    /// The header's checksum does not fit.
    HeaderChecksum,
    /// The entries' checksum does not fit.
    EntriesChecksum,
    /// It cannot be read.
    Unreadable(BlockError),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signature => f.write_str("has no signature"),
            Self::Field(field, found) => write!(f, "has {found:#x} as its {field}"),
            Self::HeaderChecksum => f.write_str("has a header that does not fit its checksum"),
            Self::EntriesChecksum => f.write_str("has entries that do not fit their checksum"),
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

impl From<BlockError> for Damage {
    fn from(error: BlockError) -> Self {
        Self::Unreadable(error)
    }
}

/// Why there are no partitions to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The disk cannot be read.
    Unreadable(BlockError),
    /// The disk has neither a GPT nor an MBR.
    NoTable,
    /// The disk says that it has a GPT, but neither copy is whole: what is wrong with the first, and the second.
    BothDamaged(Damage, Damage),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => error.fmt(f),
            Self::NoTable => f.write_str("the disk has no partition table, neither GPT nor MBR"),
            Self::BothDamaged(first, second) => {
                write!(f, "the GPT at the disk's beginning {first}, and the one at its end {second}")
            }
        }
    }
}

impl core::error::Error for TableError {}

impl From<BlockError> for TableError {
    fn from(error: BlockError) -> Self {
        Self::Unreadable(error)
    }
}

impl PartitionTable {
    /// Reads the table of `disk`.
    ///
    /// # Errors
    /// There is none, or none that could be trusted.
    pub async fn read(disk: &dyn BlockDevice) -> Result<Self, TableError> {
        let sector = match read_bytes(disk, 0, mbr::SECTOR).await {
            // A disk of less than a sector has no table.
            Err(BlockError::OutOfRange { .. }) => return Err(TableError::NoTable),
            other => other?,
        };
        match mbr::contents(&sector) {
            Some(mbr::Contents::Protective) => gpt::read(disk).await,
            // The sector that only protects may be gone while the table it protects is not.
            None => gpt::read(disk).await.map_err(|error| match error {
                TableError::BothDamaged(Damage::Signature, Damage::Signature) => TableError::NoTable,
                error => error,
            }),
            Some(mbr::Contents::Partitions) => mbr::read(disk, &sector).await,
        }
    }

    /// The partition that a manifest's word means: `3` for a number, `label:NAME`, or `uuid:ID`.
    ///
    /// # Errors
    /// None fits, or more than one, or it is no such word.
    pub fn find(&self, wanted: &str) -> Result<&Partition, NotFound> {
        let fits: Vec<&Partition> = match wanted.split_once(':') {
            None => {
                let number: u32 = wanted.parse().map_err(|_| NotFound::Syntax)?;
                self.partitions.iter().filter(|partition| partition.number == number).collect()
            }
            Some(("label", label)) => {
                self.partitions.iter().filter(|partition| partition.label.as_deref() == Some(label)).collect()
            }
            Some(("uuid", id)) => {
                let id = id.to_ascii_lowercase();
                let same = |partition: &&Partition| alloc::format!("{}", partition.id) == id;
                self.partitions.iter().filter(same).collect()
            }
            Some(_) => return Err(NotFound::Syntax),
        };
        match *fits {
            [] => Err(NotFound::None),
            [only] => Ok(only),
            _ => Err(NotFound::Several(fits.len())),
        }
    }
}

/// Why no partition is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFound {
    /// It is neither a number nor begins with `label:` or `uuid:`.
    Syntax,
    /// There is none.
    None,
    /// So many fit.
    Several(usize),
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax => f.write_str("expected a partition's number, `label:NAME` or `uuid:ID`"),
            Self::None => f.write_str("there is no such partition"),
            Self::Several(count) => write!(f, "{count} partitions are called so"),
        }
    }
}

impl core::error::Error for NotFound {}

#[cfg(test)]
mod tests;
