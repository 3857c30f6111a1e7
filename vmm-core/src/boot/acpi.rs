//! The guest's ACPI tables (ACPI 6.5): what firmware on this board would say.
//!
//! Full hardware ACPI, not hardware-reduced, and enabled from the start: `SMI_CMD` is zero, so a guest has
//! nothing to switch.
//!
//! The tables are drawn up at build time (build/), with gaps for what differs between guests.

use super::memory_map::MemoryMap;
use crate::chipset::layout::ACPI_TABLES;
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use drawn_up::{DSDT_AT, MADT_AT, XSDT_AT};

/// The tables and their pieces, from build time.
mod drawn_up {
    include!(concat!(env!("OUT_DIR"), "/acpi.rs"));
}

/// Why a guest's tables cannot be put into its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// They are longer than their room; only a great many vCPUs can do that.
    TooLong {
        /// Their length in bytes.
        found: usize,
        /// The room's.
        at_most: u64,
    },
    /// The guest has no memory there.
    Memory(OutOfRange),
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { found, at_most } => {
                write!(f, "an ACPI table of the guest has {found} bytes, and there is room for {at_most}")
            }
            Self::Memory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for AcpiError {}

impl From<OutOfRange> for AcpiError {
    fn from(error: OutOfRange) -> Self {
        Self::Memory(error)
    }
}

/// Writes the tables of a guest whose vCPUs have these local APIC IDs, and that has a watchdog timer or not, into its
/// memory, and says where the RSDP lies.
pub fn install(
    memory: &GuestMemory,
    map: &MemoryMap,
    apic_ids: &[u32],
    watchdog: bool,
) -> Result<GuestPhys, AcpiError> {
    let start = GuestPhys::new(ACPI_TABLES.start);
    memory.write(start, drawn_up::FIXED)?;
    write_table(memory, XSDT_AT..DSDT_AT, xsdt(watchdog))?;
    write_table(memory, DSDT_AT..MADT_AT, dsdt(map, apic_ids))?;
    write_table(memory, MADT_AT..ACPI_TABLES.end, madt(apic_ids))?;
    Ok(start)
}

/// Writes a table that lacks only its length and checksum (ACPI 5.2.6) to its room.
fn write_table(memory: &GuestMemory, room: Range<u64>, mut table: Vec<u8>) -> Result<(), AcpiError> {
    let (found, at_most) = (table.len(), room.end.saturating_sub(room.start));
    if found as u64 > at_most {
        return Err(AcpiError::TooLong { found, at_most });
    }
    if let Some(length) = table.get_mut(4..8) {
        length.copy_from_slice(&(found as u32).to_le_bytes());
    }
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = table.get_mut(9) {
        *checksum = sum.wrapping_neg();
    }
    Ok(memory.write(GuestPhys::new(room.start), &table)?)
}

/// MADT structure types (ACPI table 5.21).
const LOCAL_APIC: u8 = 0;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;
/// Local APIC flag: the CPU can be started.
const ENABLED: u8 = 1;
/// The first APIC ID that needs an x2APIC structure.
const FIRST_X2APIC_ID: u32 = 255;
/// How NMI reaches the CPUs with an x2APIC structure: all of them at LINT1, as on a PC.
const X2APIC_NMI: [u8; 12] = [LOCAL_X2APIC_NMI, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0];

/// The table of tables.
fn xsdt(watchdog: bool) -> Vec<u8> {
    const ENTRY: usize = size_of::<u64>();
    let all = drawn_up::XSDT.len();
    let len = if watchdog { all } else { all.saturating_sub(ENTRY) };
    drawn_up::XSDT.iter().copied().take(len).collect()
}

/// The multiple APIC description table: CPUs, IOAPIC and how ISA interrupts reach it.
fn madt(apic_ids: &[u32]) -> Vec<u8> {
    let mut madt = drawn_up::MADT.to_vec();
    for (&id, uid) in apic_ids.iter().zip(0_u32..) {
        match (u8::try_from(id), u8::try_from(uid)) {
            (Ok(apic_id), Ok(uid)) if id < FIRST_X2APIC_ID => {
                madt.extend_from_slice(&[LOCAL_APIC, 8, uid, apic_id, ENABLED, 0, 0, 0]);
            }
            _ => {
                madt.extend_from_slice(&[LOCAL_X2APIC, 16, 0, 0]);
                madt.extend_from_slice([id, ENABLED.into(), uid].map(u32::to_le_bytes).as_flattened());
            }
        }
    }
    madt.extend_from_slice(drawn_up::INTERRUPT_SOURCES);
    if apic_ids.iter().any(|id| *id >= FIRST_X2APIC_ID) {
        madt.extend_from_slice(&X2APIC_NMI);
    }
    madt
}

/// The differentiated system description table: devices that cannot be discovered otherwise.
fn dsdt(map: &MemoryMap, apic_ids: &[u32]) -> Vec<u8> {
    let mut dsdt = [drawn_up::DSDT, &pci_windows(map)].concat();
    (0_u32..).zip(apic_ids).for_each(|(uid, _)| dsdt.extend(processor(uid)));
    dsdt
}

/// What the PCI host bridge passes on; the window above 4 GiB lies where the guest's memory leaves room.
fn pci_windows(map: &MemoryMap) -> Vec<u8> {
    let Some(window) = map.pci_memory_64() else { return drawn_up::PCI_WINDOWS.to_vec() };
    let (last, len) = (window.end.saturating_sub(1), window.end.saturating_sub(window.start));
    let [head, tail] = drawn_up::PCI_WINDOWS_WITH_64_BIT;
    const NO_TRANSLATION: u64 = 0;
    let range = [window.start, last, NO_TRANSLATION, len].map(u64::to_le_bytes);
    [head, range.as_flattened(), tail].concat()
}

/// A processor device; `uid` names it in the MADT.
fn processor(uid: u32) -> Vec<u8> {
    let [head, middle, tail] = drawn_up::PROCESSOR;
    let name = [8_u32, 4, 0].map(|shift| hex_digit(uid.wrapping_shr(shift)));
    [head, &name, middle, &uid.to_le_bytes(), tail].concat()
}

/// The lowest four bits as names in AML have them.
fn hex_digit(number: u32) -> u8 {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    DIGITS.get(number as usize & 0xf).copied().unwrap_or(b'0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::layout;
    use crate::memory::{HeapBlock, Region};
    use alloc::boxed::Box;
    use alloc::vec;
    use std::process::Command;

    const BASE: u64 = ACPI_TABLES.start;

    fn memory() -> GuestMemory {
        let block = HeapBlock::zeroed(2 << 20, 4096).unwrap();
        GuestMemory::new(vec![Region::new(GuestPhys::new(0), Box::new(block))]).unwrap()
    }

    /// The tables of a guest with these CPUs and a watchdog, as they lie in its memory.
    fn build(apic_ids: &[u32]) -> Vec<u8> {
        build_with(apic_ids, true)
    }

    fn build_with(apic_ids: &[u32], watchdog: bool) -> Vec<u8> {
        let (memory, map) = (memory(), MemoryMap::new(256 << 20, 40).unwrap());
        assert_eq!(install(&memory, &map, apic_ids, watchdog), Ok(GuestPhys::new(BASE)));
        let mut image = vec![0; (ACPI_TABLES.end - BASE) as usize];
        memory.read(GuestPhys::new(BASE), &mut image).unwrap();
        image
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
    }
    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
    }
    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at guest-physical `at`, its checksum checked.
    fn table_at(image: &[u8], at: u64) -> &[u8] {
        let table = &image[(at - BASE) as usize..];
        let table = &table[..u32_at(table, 4) as usize];
        assert!(at.is_multiple_of(64));
        if &table[..4] != b"FACS" {
            assert_eq!(sum(table), 0, "{}", core::str::from_utf8(&table[..4]).unwrap());
        }
        table
    }

    /// Every table by its signature, found as a guest finds it.
    fn tables(image: &[u8]) -> Vec<(&str, &[u8])> {
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
        let xsdt = table_at(image, u64_at(image, 24));
        let mut tables: Vec<&[u8]> =
            xsdt[36..].chunks(8).map(|entry| table_at(image, u64_at(entry, 0))).collect();
        let fadt = tables.iter().find(|table| &table[..4] == b"FACP").unwrap();
        let (facs, dsdt) = (u32_at(fadt, 36), u32_at(fadt, 40));
        assert_eq!(u64_at(fadt, 140), u64::from(dsdt));
        tables.extend([table_at(image, facs.into()), table_at(image, dsdt.into()), xsdt]);
        tables.into_iter().map(|table| (core::str::from_utf8(&table[..4]).unwrap(), table)).collect()
    }

    fn find<'a>(image: &'a [u8], signature: &str) -> &'a [u8] {
        tables(image).into_iter().find(|(name, _)| *name == signature).unwrap().1
    }

    #[test]
    fn a_guest_finds_every_table() {
        let image = build(&[0, 1]);
        let names: Vec<&str> = tables(&image).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG", "WAET", "WDAT", "FACS", "DSDT", "XSDT"]);
        let without = build_with(&[0, 1], false);
        let names: Vec<&str> = tables(&without).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG", "WAET", "FACS", "DSDT", "XSDT"]);
    }

    #[test]
    fn the_madt_lists_every_cpu_by_the_structure_its_id_needs() {
        let image = build(&[0, 2, 254, 255, 1000]);
        let mut rest = &find(&image, "APIC")[44..];
        let mut found = Vec::new();
        while let [kind, len, ..] = *rest {
            match kind {
                LOCAL_APIC => found.push((u32::from(rest[2]), u32::from(rest[3]))),
                LOCAL_X2APIC => found.push((u32_at(rest, 12), u32_at(rest, 4))),
                _ => {}
            }
            rest = &rest[len.into()..];
        }
        assert_eq!(found, [(0, 0), (1, 2), (2, 254), (3, 255), (4, 1000)]);
    }

    #[test]
    fn the_fadt_says_what_the_board_does() {
        let image = build(&[0]);
        let fadt = find(&image, "FACP");
        let flags = u32_at(fadt, 112);
        assert_eq!(flags & (1 << 20), 0, "hardware-reduced");
        assert_ne!(flags & (1 << 10), 0, "reset register");
        assert_eq!(flags & (1 << 4), 0, "fixed power button");
        assert_eq!(u32_at(fadt, 48), 0, "SMI_CMD: ACPI is on from the start");
        for (old, len, extended) in [(56, 88, 148), (64, 89, 172), (76, 91, 208), (80, 92, 220)] {
            assert_eq!(u64::from(u32_at(fadt, old)), u64_at(fadt, extended + 4));
            assert_eq!(fadt[extended], 1, "ports");
            assert_eq!(fadt[len] * 8, fadt[extended + 1], "block width");
        }
        assert_eq!(u64_at(fadt, 120), u64::from(layout::RESET_PORT));
    }

    #[test]
    fn too_many_cpus_are_an_error() {
        let map = MemoryMap::new(2 << 20, 40).unwrap();
        let memory = memory();
        let ids: Vec<u32> = (0..4000).collect();
        assert_eq!(install(&memory, &map, &ids[..1000], false), Ok(GuestPhys::new(BASE)));
        assert_eq!(memory.read_u64(GuestPhys::new(BASE)), Ok(u64::from_le_bytes(*b"RSD PTR ")));
        assert!(matches!(install(&memory, &map, &ids, false), Err(AcpiError::TooLong { .. })));
    }

    /// What ACPICA, the interpreter inside Linux, makes of the tables (package acpica-tools).
    #[test]
    fn iasl_reads_every_table_and_compiles_it_again_without_a_remark() {
        let directory = std::env::temp_dir().join(format!("acpi-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let iasl = |arguments: &[&str]| {
            let output = Command::new("iasl").args(arguments).current_dir(&directory).output();
            let output = output.expect("iasl runs (package acpica-tools)");
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), std::string::String::from_utf8_lossy(&text).into_owned())
        };
        let image = build(&[0, 1, 2, 300]);
        for (name, bytes) in tables(&image) {
            std::fs::write(directory.join(format!("{name}.dat")), bytes).unwrap();
            let (read, text) = iasl(&["-d", &format!("{name}.dat")]);
            let complaint =
                ["Error", "Warning", "Invalid", "Unknown"].iter().find(|word| text.contains(**word));
            assert!(read && complaint.is_none(), "{name}: {text}");
            let (compiled, text) = iasl(&[&format!("{name}.dsl")]);
            assert!(compiled && text.contains(" 0 Errors, 0 Warnings"), "{name}: {text}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
