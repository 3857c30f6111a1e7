//! ACPI tables for emulators that bring none: processors, interrupt controllers and power management, as on the
//! board that such an emulator imitates. Devices are PCI's, and name themselves (ACPI 6.5, chapter 5).

use acpi_tables::aml::{Name, Package, Path, ZERO};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use alloc::vec;
use alloc::vec::Vec;

const OEM_ID: [u8; 6] = *b"PEERBT";
const OEM_TABLE_ID: [u8; 8] = *b"EMULATED";
const OEM_REVISION: u32 = 1;
/// Bytes of the header that every table but RSDP and FACS starts with.
const HEADER_BYTES: u32 = 36;
/// The FACS demands it (ACPI 6.5, 5.2.10).
const TABLE_ALIGNMENT: usize = 64;

/// What the tables tell of.
#[derive(Clone, Copy, Debug)]
pub struct Board<'a> {
    /// The processors' local APICs' numbers.
    pub apic_ids: &'a [u8],
    /// The IOAPIC's number.
    pub io_apic_id: u8,
    /// Where the PIIX4's power management registers are.
    pub pm_ports: u16,
    /// The interrupt line of ACPI's events.
    pub sci: u8,
}

/// All tables, as they are to lie in memory.
#[derive(Clone, Debug)]
pub struct Tables {
    /// The tables, one behind the other.
    pub bytes: Vec<u8>,
    /// The root pointer that leads to them.
    pub rsdp: Vec<u8>,
}

/// Makes the tables for physical address `base`, a multiple of 64 below 4 GiB.
pub fn build(base: u64, board: &Board<'_>) -> Tables {
    let mut bytes = Vec::new();
    let mut append = |table: &dyn Aml| {
        bytes.resize(bytes.len().next_multiple_of(TABLE_ALIGNMENT), 0);
        let address = base + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        address
    };
    let facs = append(&FACS::new());
    let dsdt = append(&dsdt());
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(append(&fadt(board, facs, dsdt)));
    xsdt.add_entry(append(&madt(board)));
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, append(&xsdt)).to_aml_bytes(&mut rsdp);
    Tables { bytes, rsdp }
}

fn table(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(signature, HEADER_BYTES, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

/// The one thing that has to be code: `\_S5`, switched off. The PIIX4's number for it is 0.
fn dsdt() -> Sdt {
    let mut code = Vec::new();
    let package = Package::new(vec![&ZERO, &ZERO, &ZERO, &ZERO]);
    Name::new(Path::new("\\_S5_"), &package).to_aml_bytes(&mut code);
    let mut dsdt = table(*b"DSDT", 2);
    dsdt.append_slice(&code);
    dsdt
}

/// Longer than these, in microseconds, means that there is no C2 and no C3.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
/// IA-PC boot architecture: there are devices on ISA, and a keyboard controller (ACPI 6.5, 5.2.9.3).
const LEGACY_DEVICES_AND_8042: u16 = 0b11;
/// The chipset's reset control register, and what resets everything.
const RESET_PORT: u16 = 0xCF9;
const RESET_VALUE: u8 = 0x06;
/// CMOS index of the century, as on PCs.
const CENTURY: u8 = 0x32;

/// Power management: no SMI command, since ACPI mode is on from the start.
fn fadt(board: &Board<'_>, facs: u64, dsdt: u64) -> impl Aml {
    let [event, control, timer] = [0x00, 0x04, 0x08].map(|offset| board.pm_ports + offset);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(board.sci).into();
    fadt.pm1a_evt_blk = u32::from(event).into();
    fadt.pm1a_cnt_blk = u32::from(control).into();
    fadt.pm_tmr_blk = u32::from(timer).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = ports(event, 32, AccessSize::Undefined);
    fadt.x_pm1a_cnt_blk = ports(control, 16, AccessSize::Undefined);
    fadt.x_pm_tmr_blk = ports(timer, 32, AccessSize::Undefined);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = LEGACY_DEVICES_AND_8042.into();
    fadt.reset_reg = ports(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    let fadt = fadt.preferred_pm_profile(PmProfile::Desktop);
    let flags = [Flags::Wbinvd, Flags::ProcC1, Flags::SlpButton, Flags::FixRtc, Flags::ResetRegSup];
    flags.into_iter().fold(fadt, FADTBuilder::flag).finalize()
}

fn ports(first: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, first.into())
}

/// MADT structure types (ACPI 6.5, table 5.21).
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
/// MADT flag: there are two 8259s.
const PCAT_COMPAT: u32 = 1;
/// Local APIC flag: the processor can be started.
const ENABLED: u32 = 1;
const LOCAL_APIC_BASE: u32 = 0xFEE0_0000;
const IO_APIC_BASE: u32 = 0xFEC0_0000;
/// Interrupt source flags (ACPI 6.5, table 5.26): as the bus has it, or level and active high.
const CONFORMS: u16 = 0;
const LEVEL_HIGH: u16 = 0b1101;
/// The PIT's interrupt arrives at this pin of the IOAPIC.
const PIT_PIN: u32 = 2;
const ALL_PROCESSORS: u8 = 0xFF;
/// The local APIC pin that NMI reaches on a PC.
const NMI_LINT: u8 = 1;

/// Processors, the IOAPIC, and which interrupts reach it in another way than ISA's.
fn madt(board: &Board<'_>) -> Sdt {
    let mut entries = Vec::new();
    entries.dword(LOCAL_APIC_BASE);
    entries.dword(PCAT_COMPAT);
    for (number, id) in (0_u8..).zip(board.apic_ids) {
        entries.vec(&[LOCAL_APIC, 8, number, *id]);
        entries.dword(ENABLED);
    }
    entries.vec(&[IO_APIC, 12, board.io_apic_id, 0]);
    entries.dword(IO_APIC_BASE);
    entries.dword(0);
    for (line, pin, flags) in [(0, PIT_PIN, CONFORMS), (board.sci, board.sci.into(), LEVEL_HIGH)] {
        entries.vec(&[SOURCE_OVERRIDE, 10, 0, line]);
        entries.dword(pin);
        entries.word(flags);
    }
    entries.vec(&[LOCAL_APIC_NMI, 6, ALL_PROCESSORS, CONFORMS as u8, 0, NMI_LINT]);
    let mut madt = table(*b"APIC", 4);
    madt.append_slice(&entries);
    madt
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x3FF0_0000;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
    }

    /// The table at physical `address`, whose bytes sum to zero.
    fn table_at(tables: &Tables, address: u64) -> &[u8] {
        let from = (address - BASE) as usize;
        let table = &tables.bytes[from..from + word(&tables.bytes, from + 4) as usize];
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        table
    }

    #[test]
    fn the_root_leads_to_every_table() {
        let board = Board { apic_ids: &[0, 1], io_apic_id: 2, pm_ports: 0x600, sci: 9 };
        let tables = build(BASE, &board);
        assert!(tables.rsdp.starts_with(b"RSD PTR ") && tables.rsdp[15] == 2);
        let xsdt = table_at(&tables, word(&tables.rsdp, 24));
        let fadt = table_at(&tables, word(xsdt, 36));
        assert!(fadt.starts_with(b"FACP"));
        assert_eq!((word(fadt, 64), word(fadt, 76), word(fadt, 48)), (0x604, 0x608, 0));
        assert!(table_at(&tables, word(fadt, 40)).ends_with(b"\x08\\_S5_\x12\x06\x04\0\0\0\0"));
        let facs = (word(fadt, 36) - BASE) as usize;
        assert!(tables.bytes[facs..].starts_with(b"FACS"));
        let madt = table_at(&tables, word(xsdt, 44));
        assert!(madt.starts_with(b"APIC"));
        assert_eq!(madt[44..60], [0, 8, 0, 0, 1, 0, 0, 0, 0, 8, 1, 1, 1, 0, 0, 0]);
        assert_eq!(madt[60..64], [1, 12, 2, 0]);
    }
}
