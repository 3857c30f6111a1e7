//! Why the boot ends in the stage.

use core::fmt;

use coreboot_config::cbfs::{CbfsError, StreamError};
use coreboot_config::selfboot::SelfError;
use emulation_stage::cbmem::CbmemFull;
use emulation_stage::pci::OutOfAddresses;

/// What ends the boot.
#[derive(Debug)]
pub enum StageError {
    /// The machine is none that the stage knows.
    Machine,
    /// The emulator's memory map does not agree with its CMOS on where low memory ends.
    Memory {
        /// By the memory map.
        map: u64,
        /// By CMOS.
        cmos: u64,
    },
    /// The flash begins with no FMAP that gives its size.
    Flash,
    /// CBMEM is full.
    Cbmem(CbmemFull),
    /// PCI devices want more addresses than there are.
    Pci(OutOfAddresses),
    /// The CBFS or the payload in it.
    Cbfs(CbfsError),
    /// The payload's segment table.
    Payload(SelfError),
    /// A segment of the payload does not lie in RAM that is free.
    SegmentPlace {
        /// Its first physical address.
        start: u64,
        /// The one after its last.
        end: u64,
    },
    /// A segment of the payload cannot be decompressed.
    SegmentData {
        /// The physical address that it goes to.
        start: u64,
        /// What is wrong.
        error: StreamError,
    },
    /// The payload's entry point lies in none of its segments.
    Entry(u64),
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => {
                write!(f, "This machine is neither QEMU's nor Bochs's: its chipset is unknown here.")
            }
            Self::Memory { map, cmos } => {
                write!(f, "Low memory ends at {map:#x} by the memory map but at {cmos:#x} by CMOS.")
            }
            Self::Flash => write!(f, "The flash does not begin with an FMAP of its own size."),
            Self::Cbmem(error) => write!(f, "{error}"),
            Self::Pci(error) => write!(f, "{error}"),
            Self::Cbfs(error) => write!(f, "{error}"),
            Self::Payload(error) => write!(f, "{error}"),
            Self::SegmentPlace { start, end } => {
                write!(f, "payload: segment {start:#x}-{end:#x} does not lie in free RAM")
            }
            Self::SegmentData { start, error } => write!(f, "payload: segment at {start:#x}: {error}"),
            Self::Entry(entry) => write!(f, "payload: entry point {entry:#x} lies in none of its segments"),
        }
    }
}

impl From<CbmemFull> for StageError {
    fn from(error: CbmemFull) -> Self {
        Self::Cbmem(error)
    }
}

impl From<OutOfAddresses> for StageError {
    fn from(error: OutOfAddresses) -> Self {
        Self::Pci(error)
    }
}

impl From<CbfsError> for StageError {
    fn from(error: CbfsError) -> Self {
        Self::Cbfs(error)
    }
}

impl From<SelfError> for StageError {
    fn from(error: SelfError) -> Self {
        Self::Payload(error)
    }
}
