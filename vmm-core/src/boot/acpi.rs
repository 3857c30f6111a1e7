//! The guest's ACPI tables (ACPI 6.5): what firmware on this board would say.
//!
//! Full hardware ACPI, not hardware-reduced, and enabled from the start: `SMI_CMD` is zero, so a guest has
//! nothing to switch.
//!
//! The AML in the DSDT is drawn up at build time (build.rs), with gaps for what differs between guests.

use super::memory_map::{ACPI_TABLES, MemoryMap};
use crate::chipset::layout;
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as RegisterSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// The DSDT's code, and its gaps' surroundings.
mod aml {
    include!(concat!(env!("OUT_DIR"), "/aml.rs"));
}

const OEM_ID: [u8; 6] = *b"PEERBT";
const OEM_TABLE_ID: [u8; 8] = *b"PEERBOOT";
const OEM_REVISION: u32 = 1;

/// A table header's length in bytes.
const HEADER_BYTES: u32 = 36;
/// What every table's address is a multiple of: the FACS demands it (ACPI 5.2.10).
const TABLE_ALIGNMENT: usize = 64;

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
                write!(f, "the guest's ACPI tables have {found} bytes, and there is room for {at_most}")
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

/// Writes the tables of a guest whose vCPUs have these local APIC IDs into its memory, and says where the
/// RSDP lies.
pub fn install(memory: &GuestMemory, map: &MemoryMap, apic_ids: &[u32]) -> Result<GuestPhys, AcpiError> {
    let base = ACPI_TABLES.start;
    let tables = build(base, map, apic_ids);
    let at_most = ACPI_TABLES.end.saturating_sub(base);
    if tables.len() as u64 > at_most {
        return Err(AcpiError::TooLong { found: tables.len(), at_most });
    }
    memory.write(GuestPhys::new(base), &tables)?;
    Ok(GuestPhys::new(base))
}

/// All tables as they lie in memory from `base` on, the RSDP first.
fn build(base: u64, map: &MemoryMap, apic_ids: &[u32]) -> Vec<u8> {
    let mut image = Image { base, bytes: vec![0; Rsdp::len()] };
    let facs = image.append(&FACS::new());
    let dsdt = image.append(&dsdt(map, apic_ids));
    let listed = [
        image.append(&fadt(facs, dsdt)),
        image.append(&madt(apic_ids)),
        image.append(&mcfg()),
        image.append(&waet()),
    ];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    listed.into_iter().for_each(|table| xsdt.add_entry(table));
    let xsdt = image.append(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    image.bytes.splice(..rsdp.len(), rsdp);
    image.bytes
}

/// Tables one behind the other.
struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and says where it lies.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(TABLE_ALIGNMENT), 0);
        let at = self.base.saturating_add(self.bytes.len() as u64);
        table.to_aml_bytes(&mut self.bytes);
        at
    }
}

fn table(signature: &[u8; 4], revision: u8) -> Sdt {
    Sdt::new(*signature, HEADER_BYTES, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

/// FADT flags beside the register blocks (ACPI table 5.10): no fixed sleep button, and RTC wake-up is not
/// among the fixed features. The power button is, so that a guest can be asked to shut down.
const FADT_FLAGS: [Flags; 5] =
    [Flags::Wbinvd, Flags::ProcC1, Flags::SlpButton, Flags::FixRtc, Flags::ResetRegSup];
/// IA-PC boot architecture (ACPI table 5.11): there are devices on ISA, and no VGA. No 8042 either.
const LEGACY_DEVICES: u16 = 1 << 0;
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// Longer than these, in microseconds, means that there is no C2 and no C3.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// The fixed ACPI description table: where power management answers.
fn fadt(facs: u64, dsdt: u64) -> impl Aml {
    let event = port_block(layout::PM1_EVENT_PORT, layout::PM1_EVENT_BYTES);
    let control = port_block(layout::PM1_CONTROL_PORT, layout::PM1_CONTROL_BYTES);
    let timer = port_block(layout::PM_TIMER_PORT, layout::PM_TIMER_BYTES);
    let gpe0 = port_block(layout::GPE0_PORT, layout::GPE0_BYTES);
    // Tables lie below 1 MiB, so their addresses fit the 32-bit fields; the FACS may be given only once.
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(layout::SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1_EVENT_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(layout::PM1_CONTROL_PORT).into();
    fadt.pm_tmr_blk = u32::from(layout::PM_TIMER_PORT).into();
    fadt.gpe0_blk = u32::from(layout::GPE0_PORT).into();
    fadt.pm1_evt_len = layout::PM1_EVENT_BYTES;
    fadt.pm1_cnt_len = layout::PM1_CONTROL_BYTES;
    fadt.pm_tmr_len = layout::PM_TIMER_BYTES;
    fadt.gpe0_blk_len = layout::GPE0_BYTES;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = layout::CMOS_CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.reset_reg = port_register(layout::RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.x_pm1a_evt_blk = event;
    fadt.x_pm1a_cnt_blk = control;
    fadt.x_pm_tmr_blk = timer;
    fadt.x_gpe0_blk = gpe0;
    let fadt = fadt.preferred_pm_profile(PmProfile::EnterpriseServer);
    FADT_FLAGS.into_iter().fold(fadt, FADTBuilder::flag).finalize()
}

/// A block of `bytes` ports, accessed as its registers' widths demand.
fn port_block(port: u16, bytes: u8) -> GAS {
    port_register(port, bytes.saturating_mul(8), AccessSize::Undefined)
}

fn port_register(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(RegisterSpace::SystemIo, bits, 0, access, port.into())
}

/// MADT structure types (ACPI table 5.21).
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;
/// MADT flag: there are two 8259s.
const PCAT_COMPAT: u32 = 1;
/// Local APIC flag: the CPU can be started.
const ENABLED: u32 = 1;
/// The first APIC ID that needs an x2APIC structure.
const FIRST_X2APIC_ID: u32 = 255;
/// Interrupt source flags (ACPI table 5.26): as the bus has it, or level and active high.
const CONFORMS: u16 = 0;
const LEVEL_HIGH: u16 = 0b1101;
/// Every CPU, in an NMI structure.
const ALL_CPUS: u32 = u32::MAX;
/// The local APIC pin that NMI reaches on a PC.
const NMI_LINT: u8 = 1;

/// The multiple APIC description table: CPUs, IOAPIC and how ISA interrupts reach it.
fn madt(apic_ids: &[u32]) -> Sdt {
    let mut entries = Vec::new();
    entries.dword(layout::LOCAL_APIC_BASE.get() as u32);
    entries.dword(PCAT_COMPAT);
    for (&id, uid) in apic_ids.iter().zip(0_u32..) {
        match (u8::try_from(id), u8::try_from(uid)) {
            (Ok(apic_id), Ok(uid)) if id < FIRST_X2APIC_ID => {
                entries.vec(&[LOCAL_APIC, 8, uid, apic_id]);
                entries.dword(ENABLED);
            }
            _ => {
                entries.vec(&[LOCAL_X2APIC, 16, 0, 0]);
                [id, ENABLED, uid].into_iter().for_each(|field| entries.dword(field));
            }
        }
    }
    entries.vec(&[IO_APIC, 12, layout::IO_APIC_ID, 0]);
    entries.dword(layout::IO_APIC_BASE.get() as u32);
    entries.dword(0);
    for (irq, pin, flags) in
        [(layout::PIT_IRQ, layout::PIT_PIN, CONFORMS), (layout::SCI_IRQ, layout::SCI_IRQ, LEVEL_HIGH)]
    {
        entries.vec(&[SOURCE_OVERRIDE, 10, 0, irq]);
        entries.dword(pin.into());
        entries.word(flags);
    }
    entries.vec(&[LOCAL_APIC_NMI, 6, ALL_CPUS as u8, CONFORMS as u8, 0, NMI_LINT]);
    if apic_ids.iter().any(|id| *id >= FIRST_X2APIC_ID) {
        entries.vec(&[LOCAL_X2APIC_NMI, 12, CONFORMS as u8, 0]);
        entries.dword(ALL_CPUS);
        entries.vec(&[NMI_LINT, 0, 0, 0]);
    }
    let mut madt = table(b"APIC", 5);
    madt.append_slice(&entries);
    madt
}

/// The memory-mapped configuration space.
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM_BASE.get(), 0, 0, layout::ECAM_LAST_BUS);
    mcfg
}

/// WAET flag: the power-management timer reads right at once.
const PM_TIMER_GOOD: u32 = 1 << 1;

/// What a guest need not work around, as Microsoft's WAET specification has it.
fn waet() -> Sdt {
    let mut waet = table(b"WAET", 1);
    waet.append_slice(&PM_TIMER_GOOD.to_le_bytes());
    waet
}

/// The differentiated system description table: devices that cannot be discovered otherwise.
fn dsdt(map: &MemoryMap, apic_ids: &[u32]) -> Sdt {
    let mut code = [aml::BOARD, &pci_windows(map)].concat();
    (0_u32..).zip(apic_ids).for_each(|(uid, _)| code.extend(processor(uid)));
    let mut dsdt = table(b"DSDT", 2);
    dsdt.append_slice(&code);
    dsdt
}

/// What the PCI host bridge passes on; the window above 4 GiB lies where the guest's memory leaves room.
fn pci_windows(map: &MemoryMap) -> Vec<u8> {
    let Some(window) = map.pci_memory_64() else { return aml::PCI_WINDOWS.to_vec() };
    let (last, len) = (window.end.saturating_sub(1), window.end.saturating_sub(window.start));
    let [head, tail] = aml::PCI_WINDOWS_WITH_64_BIT;
    const NO_TRANSLATION: u64 = 0;
    let range = [window.start, last, NO_TRANSLATION, len].map(u64::to_le_bytes);
    [head, range.as_flattened(), tail].concat()
}

/// A processor device; `uid` names it in the MADT.
fn processor(uid: u32) -> Vec<u8> {
    let [head, middle, tail] = aml::PROCESSOR;
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
    use crate::memory::{HeapBlock, Region};
    use alloc::boxed::Box;
    use std::process::Command;

    const BASE: u64 = ACPI_TABLES.start;

    fn map() -> MemoryMap {
        MemoryMap::new(256 << 20, 40).unwrap()
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
        assert!(at.is_multiple_of(TABLE_ALIGNMENT as u64));
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
        let image = build(BASE, &map(), &[0, 1]);
        let names: Vec<&str> = tables(&image).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG", "WAET", "FACS", "DSDT", "XSDT"]);
    }

    #[test]
    fn the_madt_lists_every_cpu_by_the_structure_its_id_needs() {
        let image = build(BASE, &map(), &[0, 2, 254, 255, 1000]);
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
        let image = build(BASE, &map(), &[0]);
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
        let block = HeapBlock::zeroed(2 << 20, 4096).unwrap();
        let memory = GuestMemory::new(vec![Region::new(GuestPhys::new(0), Box::new(block))]).unwrap();
        let ids: Vec<u32> = (0..4000).collect();
        assert_eq!(install(&memory, &map, &ids[..1000]), Ok(GuestPhys::new(BASE)));
        assert_eq!(memory.read_u64(GuestPhys::new(BASE)), Ok(u64::from_le_bytes(*b"RSD PTR ")));
        assert!(matches!(install(&memory, &map, &ids), Err(AcpiError::TooLong { .. })));
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
        let image = build(BASE, &map(), &[0, 1, 2, 300]);
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
