//! The coreboot table: what coreboot tells its payload about the machine.
//!
//! A table is a header ("LBIO") and records of a tag, a size and a body. Reading and writing share one
//! definition of every record, [`Record`].

mod builder;
mod checksum;
mod header;
mod record;
mod types;

pub use builder::TableBuilder;
pub use checksum::internet_checksum;
pub use record::{PointerTag, Record, RecordError, RecordFault, StringTag};
pub use types::{
    BoardConfig, BootMediaParams, CbmemEntry, Channel, ConsoleKind, Framebuffer, Mainboard, MemoryKind,
    MemoryRange, Serial, SerialKind,
};

use alloc::{vec, vec::Vec};
use core::fmt;

use crate::{PhysicalMemory, Unreadable};
use header::{HEADER_LEN, Header};

/// Where tables and forwarders begin: at multiples of this many bytes.
pub const TABLE_ALIGNMENT: u64 = 16;
/// The most bytes of records that a table may have. Real ones have about one KiB.
pub const MAX_TABLE_LEN: u32 = 1 << 20;

/// Where a table or a forwarder lies when nobody says where: the first page, then the BIOS segment.
const SCANNED: [core::ops::Range<u64>; 2] = [0..0x1000, 0xf_0000..0x10_0000];
/// coreboot needs one forwarder; a circle of them must end.
const MAX_FORWARDS: usize = 4;

/// A coreboot table, read from memory.
#[derive(Clone, Debug)]
pub struct CorebootTable {
    address: u64,
    records: Vec<Record>,
    problems: Vec<RecordError>,
}

/// Why there is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// No place that was searched holds one.
    NotFound,
    /// The table's memory cannot be read.
    Unreadable(Unreadable),
    /// Nothing at this address says "LBIO".
    NoSignature(u64),
    /// The header at `address` says that it or its records are longer or shorter than they can be.
    Length {
        /// Where the table lies.
        address: u64,
        /// Length in bytes by the header's account.
        found: u32,
        /// The least it can be.
        least: u32,
        /// The most it can be.
        most: u32,
    },
    /// A checksum is wrong.
    Checksum {
        /// Where the table lies.
        address: u64,
        /// "header" or "table".
        part: &'static str,
        /// What the header says.
        found: u32,
        /// What the bytes add up to.
        expected: u32,
    },
    /// Forwarders lead on and on, last to this address.
    TooManyForwards(u64),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no coreboot table in low memory"),
            Self::Unreadable(error) => write!(f, "coreboot table: {error}"),
            Self::NoSignature(address) => write!(f, "no coreboot table at {address:#x}"),
            Self::Length { address, found, least, most } => write!(
                f,
                "coreboot table at {address:#x}: found a length of {found} bytes, expected {least} to {most}"
            ),
            Self::Checksum { address, part, found, expected } => write!(
                f,
                "coreboot table at {address:#x}: found {part} checksum {found:#06x}, expected {expected:#06x}"
            ),
            Self::TooManyForwards(address) => {
                write!(
                    f,
                    "coreboot table forwarders go on beyond {address:#x}, expected at most {MAX_FORWARDS}"
                )
            }
        }
    }
}

impl core::error::Error for TableError {}

impl From<Unreadable> for TableError {
    fn from(error: Unreadable) -> Self {
        Self::Unreadable(error)
    }
}

impl CorebootTable {
    /// Finds the table: at `entry_pointer`, where the payload was given one, else by scanning low memory.
    /// When neither leads to a table, the error is the first that a place with a signature gave.
    pub fn find(
        memory: &(impl PhysicalMemory + ?Sized),
        entry_pointer: Option<u64>,
    ) -> Result<Self, TableError> {
        let mut first_error = None;
        let scanned = SCANNED.into_iter().flat_map(|range| range.step_by(TABLE_ALIGNMENT as usize));
        for address in entry_pointer.into_iter().chain(scanned) {
            match Self::read(memory, address) {
                Ok(table) => return Ok(table),
                Err(TableError::NoSignature(_) | TableError::Unreadable(_))
                    if Some(address) != entry_pointer => {}
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or(TableError::NotFound))
    }

    /// Reads the table at `address`, or the one that forwarders there lead to.
    pub fn read(memory: &(impl PhysicalMemory + ?Sized), address: u64) -> Result<Self, TableError> {
        let mut address = address;
        for _ in 0..=MAX_FORWARDS {
            let table = Self::read_one(memory, address)?;
            match table.records.iter().find_map(Record::forward) {
                Some(next) => address = next,
                None => return Ok(table),
            }
        }
        Err(TableError::TooManyForwards(address))
    }

    fn read_one(memory: &(impl PhysicalMemory + ?Sized), address: u64) -> Result<Self, TableError> {
        let mut header = [0; HEADER_LEN];
        memory.read(address, &mut header)?;
        let header = Header::check(&header, address)?;
        let mut records = vec![0; header.table_bytes as usize];
        let first = address.saturating_add(HEADER_LEN as u64);
        memory.read(first, &mut records)?;
        header.check_records(&records, address)?;
        let (records, problems) = record::parse_all(&records, header.table_entries);
        Ok(Self { address, records, problems })
    }

    /// The physical address of the table's header.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// All records of known tags, in the table's order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The records that could not be read, each of which is left out.
    pub fn problems(&self) -> &[RecordError] {
        &self.problems
    }

    /// The memory map: all ranges of all MEMORY records, in the table's order.
    pub fn memory_ranges(&self) -> impl Iterator<Item = MemoryRange> {
        self.records
            .iter()
            .flat_map(|record| match record {
                Record::Memory(ranges) => ranges.as_slice(),
                _ => &[],
            })
            .copied()
    }

    /// Board vendor and part.
    pub fn mainboard(&self) -> Option<&Mainboard> {
        self.find_record(|record| match record {
            Record::Mainboard(mainboard) => Some(mainboard),
            _ => None,
        })
    }

    /// The UART that coreboot logs to.
    pub fn serial(&self) -> Option<Serial> {
        self.find_record(|record| match record {
            Record::Serial(serial) => Some(*serial),
            _ => None,
        })
    }

    /// What kinds of console coreboot uses.
    pub fn consoles(&self) -> impl Iterator<Item = ConsoleKind> {
        self.records.iter().filter_map(|record| match record {
            Record::Console(kind) => Some(*kind),
            _ => None,
        })
    }

    /// The linear framebuffer, where coreboot set one up.
    pub fn framebuffer(&self) -> Option<Framebuffer> {
        self.find_record(|record| match record {
            Record::Framebuffer(framebuffer) => Some(*framebuffer),
            _ => None,
        })
    }

    /// coreboot's version.
    pub fn version(&self) -> Option<&str> {
        self.string(StringTag::Version)
    }

    /// One of coreboot's build strings.
    pub fn string(&self, tag: StringTag) -> Option<&str> {
        self.find_record(|record| match record {
            Record::String(found, text) if *found == tag => Some(text.as_str()),
            _ => None,
        })
    }

    /// The physical address of the CBMEM timestamp table.
    pub fn timestamps(&self) -> Option<u64> {
        self.pointer(PointerTag::Timestamps)
    }

    /// The physical address of the CBMEM console.
    pub fn cbmem_console(&self) -> Option<u64> {
        self.pointer(PointerTag::CbmemConsole)
    }

    /// The physical address of the ACPI global NVS area.
    pub fn acpi_gnvs(&self) -> Option<u64> {
        self.pointer(PointerTag::AcpiGnvs)
    }

    /// The physical address of coreboot's copy of the FMAP.
    pub fn fmap(&self) -> Option<u64> {
        self.pointer(PointerTag::Fmap)
    }

    /// The physical address of the ACPI root pointer.
    pub fn acpi_rsdp(&self) -> Option<u64> {
        self.pointer(PointerTag::AcpiRsdp)
    }

    /// Where FMAP and CBFS lie in the flash.
    pub fn boot_media(&self) -> Option<BootMediaParams> {
        self.find_record(|record| match record {
            Record::BootMediaParams(params) => Some(*params),
            _ => None,
        })
    }

    /// The board's configuration straps.
    pub fn board_config(&self) -> Option<BoardConfig> {
        self.find_record(|record| match record {
            Record::BoardConfig(config) => Some(*config),
            _ => None,
        })
    }

    /// All areas of CBMEM.
    pub fn cbmem_entries(&self) -> impl Iterator<Item = CbmemEntry> {
        self.records.iter().filter_map(|record| match record {
            Record::CbmemEntry(entry) => Some(*entry),
            _ => None,
        })
    }

    /// Why the machine was started; 0 is a normal boot.
    pub fn boot_mode(&self) -> Option<u32> {
        self.find_record(|record| match record {
            Record::BootMode(mode) => Some(*mode),
            _ => None,
        })
    }

    fn pointer(&self, tag: PointerTag) -> Option<u64> {
        self.find_record(|record| match record {
            Record::Pointer(found, address) if *found == tag => Some(*address),
            _ => None,
        })
    }

    fn find_record<'a, T>(&'a self, pick: impl Fn(&'a Record) -> Option<T>) -> Option<T> {
        self.records.iter().find_map(pick)
    }
}

#[cfg(test)]
mod tests;
