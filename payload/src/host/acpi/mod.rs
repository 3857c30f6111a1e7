//! What firmware's ACPI tables say of the machine (ACPI 6.5, chapter 5).
//!
//! A table that is damaged is left out and named among the problems; nothing here can panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod bytes;
mod fadt;
mod madt;
mod sleep;

pub use fadt::{Fadt, Register, Space};
pub use madt::{Madt, Override, Polarity, Trigger};
pub use sleep::SleepType;

use alloc::vec::Vec;
use bytes::{Bytes, sums_to_zero};
use core::fmt;

/// The header that every table but the RSDP begins with.
const HEADER: usize = 36;
/// No table is longer than this, in bytes; a length beyond it is damage.
const LONGEST: usize = 4 << 20;
/// Where a BIOS leaves the RSDP, on a 16-byte boundary (ACPI 5.2.5.1).
const BIOS_AREA: (u64, usize) = (0xe_0000, 0x2_0000);

/// Where tables are read from.
pub trait Memory<'a> {
    /// The `len` bytes at physical address `at`, if they can be read.
    fn bytes(&self, at: u64, len: usize) -> Option<&'a [u8]>;
}

/// A table's four-letter name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature(pub [u8; 4]);

/// The names of several tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signatures(pub Vec<Signature>);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Display for Signatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(index, signature)| {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{signature}")
        })
    }
}

/// What is wrong with a table; it is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The table at this address cannot be read, or its length makes no sense.
    Unreadable {
        /// Where the table was said to be.
        at: u64,
    },
    /// The table's bytes do not add up to zero.
    Checksum {
        /// Its name.
        table: Signature,
        /// Its address.
        at: u64,
    },
    /// A field that the table must have lies behind its end.
    Short {
        /// Its name.
        table: Signature,
        /// Its address.
        at: u64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { at } => write!(f, "no ACPI table can be read at {at:#x}"),
            Self::Checksum { table, at } => {
                write!(f, "ACPI table {table} at {at:#x} has a wrong checksum and is skipped")
            }
            Self::Short { table, at } => {
                write!(f, "ACPI table {table} at {at:#x} is too short and is skipped")
            }
        }
    }
}

impl core::error::Error for Problem {}

/// A window of PCI configuration space in memory (ECAM).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Where bus 0 of the segment would begin.
    pub base: u64,
    /// The PCI segment group.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
}

/// What the tables say; a part is missing where its table is missing or damaged.
#[derive(Clone, Debug, Default)]
pub struct Acpi {
    /// CPUs and interrupt controllers.
    pub madt: Option<Madt>,
    /// Power management.
    pub fadt: Option<Fadt>,
    /// What to write into PM1_CNT to power off.
    pub power_off: Option<SleepType>,
    /// PCI configuration windows.
    pub ecam: Vec<Ecam>,
    /// The HPET's registers.
    pub hpet: Option<u64>,
    /// The names of all tables that were found whole.
    pub tables: Signatures,
    /// What was skipped, and why.
    pub problems: Vec<Problem>,
}

impl Acpi {
    /// Reads the tables that the RSDP at `rsdp` leads to.
    pub fn read<'a>(memory: &dyn Memory<'a>, rsdp: u64) -> Result<Self, Problem> {
        let root = root_table(memory, rsdp)?;
        let mut acpi = Self::default();
        for at in root.entries(memory)? {
            match table(memory, at) {
                Ok((signature, bytes)) => {
                    acpi.tables.0.push(signature);
                    if acpi.take(memory, signature, bytes).is_none() {
                        acpi.problems.push(Problem::Short { table: signature, at });
                    }
                }
                Err(problem) => acpi.problems.push(problem),
            }
        }
        Ok(acpi)
    }

    /// Takes what we need out of a table; `None` where it is too short for it.
    fn take<'a>(&mut self, memory: &dyn Memory<'a>, signature: Signature, bytes: &'a [u8]) -> Option<()> {
        match &signature.0 {
            b"APIC" => self.madt = Some(Madt::read(bytes)?),
            b"FACP" => {
                let fadt = Fadt::read(bytes)?;
                match table(memory, fadt.dsdt) {
                    Ok((_, dsdt)) => self.power_off = sleep::soft_off(dsdt),
                    Err(problem) => self.problems.push(problem),
                }
                self.fadt = Some(fadt);
            }
            b"MCFG" => self.ecam = ecam_windows(bytes),
            // The base address is a generic address structure at 40 (HPET specification, 3.2.4).
            b"HPET" => self.hpet = Some(bytes.u64_at(44)?).filter(|at| *at != 0),
            _ => {}
        }
        Some(())
    }
}

/// The RSDT or XSDT.
struct Root {
    at: u64,
    /// Four or eight.
    entry_bytes: usize,
}

impl Root {
    fn entries<'a>(&self, memory: &dyn Memory<'a>) -> Result<impl Iterator<Item = u64> + use<'a>, Problem> {
        let (_, bytes) = table(memory, self.at)?;
        let entry_bytes = self.entry_bytes;
        let entries = bytes.get(HEADER..).unwrap_or_default().chunks_exact(entry_bytes);
        Ok(entries.filter_map(move |entry| {
            if entry_bytes == 8 { entry.u64_at(0) } else { entry.u32_at(0).map(u64::from) }
        }))
    }
}

/// The root table that the RSDP at `at` names: the XSDT where there is one.
fn root_table<'a>(memory: &dyn Memory<'a>, at: u64) -> Result<Root, Problem> {
    let bytes = memory.bytes(at, 20).ok_or(Problem::Unreadable { at })?;
    let signature = Signature(*b"RSDP");
    if !bytes.starts_with(b"RSD PTR ") {
        return Err(Problem::Unreadable { at });
    }
    if !sums_to_zero(bytes) {
        return Err(Problem::Checksum { table: signature, at });
    }
    let short = Problem::Short { table: signature, at };
    let xsdt = memory.bytes(at, 36).filter(|long| bytes.u8_at(15) >= Some(2) && sums_to_zero(long));
    match xsdt.and_then(|long| long.u64_at(24)).filter(|xsdt| *xsdt != 0) {
        Some(at) => Ok(Root { at, entry_bytes: 8 }),
        None => Ok(Root { at: u64::from(bytes.u32_at(16).ok_or(short)?), entry_bytes: 4 }),
    }
}

/// The whole table at `at`, its checksum found right.
fn table<'a>(memory: &dyn Memory<'a>, at: u64) -> Result<(Signature, &'a [u8]), Problem> {
    let unreadable = Problem::Unreadable { at };
    let header = memory.bytes(at, HEADER).ok_or(unreadable)?;
    let signature = Signature(*header.first_chunk().ok_or(unreadable)?);
    let len = header.u32_at(4).ok_or(unreadable)? as usize;
    if !(HEADER..=LONGEST).contains(&len) {
        return Err(unreadable);
    }
    let bytes = memory.bytes(at, len).ok_or(unreadable)?;
    if sums_to_zero(bytes) { Ok((signature, bytes)) } else { Err(Problem::Checksum { table: signature, at }) }
}

/// The windows of an MCFG (PCI Firmware Specification, 4.1.2).
fn ecam_windows(bytes: &[u8]) -> Vec<Ecam> {
    let entries = bytes.get(44..).unwrap_or_default().chunks_exact(16);
    let window = |entry: &[u8]| {
        Some(Ecam {
            base: entry.u64_at(0)?,
            segment: entry.u16_at(8)?,
            first_bus: entry.u8_at(10)?,
            last_bus: entry.u8_at(11)?,
        })
    };
    entries.filter_map(window).collect()
}

/// Looks for an RSDP where a BIOS leaves it, for firmware that does not say where it is.
pub fn find_rsdp<'a>(memory: &dyn Memory<'a>) -> Option<u64> {
    let (start, len) = BIOS_AREA;
    let area = memory.bytes(start, len)?;
    let index = area.chunks_exact(16).position(|chunk| chunk.starts_with(b"RSD PTR "))?;
    start.checked_add((index as u64).checked_mul(16)?)
}

#[cfg(test)]
mod tests;
