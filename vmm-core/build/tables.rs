//! The tables that are the same for every guest, and what the MADT holds beside CPUs (ACPI 6.5, chapter 5).

use crate::layout;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as RegisterSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

const OEM_ID: [u8; 6] = *b"PEERBT";
const OEM_TABLE_ID: [u8; 8] = *b"PEERBOOT";
const OEM_REVISION: u32 = 1;

/// A table header's length in bytes.
const HEADER_BYTES: u32 = 36;
/// What every table's address is a multiple of: the FACS demands it (ACPI 5.2.10).
const TABLE_ALIGNMENT: usize = 64;
/// The XSDT's length with its five entries.
const XSDT_BYTES: usize = HEADER_BYTES as usize + 5 * 8;

/// Tables one behind the other, from where a guest's tables begin.
pub struct Image {
    pub bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and says where it lies.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        let at = self.end();
        table.to_aml_bytes(&mut self.bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(TABLE_ALIGNMENT), 0);
        at
    }

    /// Where the next table would lie.
    pub fn end(&self) -> u64 {
        layout::ACPI_TABLES.start + self.bytes.len() as u64
    }
}

/// All tables of one length for every guest, the RSDP first, with an empty room for the XSDT; where that is, and
/// what belongs there but for length and checksum. Its last entry is the WDAT, which only guests with a watchdog are
/// to see. The DSDT is to lie right behind the tables, the MADT at `madt`.
pub fn tables(madt: u64) -> (Image, u64, Vec<u8>) {
    let mut image = Image { bytes: vec![0; Rsdp::len().next_multiple_of(TABLE_ALIGNMENT)] };
    let (facs, mcfg, waet) = (image.append(&FACS::new()), image.append(&mcfg()), image.append(&waet()));
    let wdat = image.append(&wdat());
    let fadt_at = image.end() + padded(XSDT_BYTES);
    let entries = [fadt_at, madt, mcfg, waet, wdat].map(u64::to_le_bytes);
    let unsealed = head(b"XSDT", 1, entries.as_flattened());
    assert_eq!(unsealed.len(), XSDT_BYTES);
    let xsdt = image.end();
    image.bytes.resize(image.bytes.len() + padded(XSDT_BYTES) as usize, 0);
    let dsdt = fadt_at + padded(FADT::len());
    assert_eq!(image.append(&fadt(facs, dsdt)), fadt_at);
    assert_eq!(image.end(), dsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    (image, xsdt, unsealed)
}

/// The room that a table takes.
fn padded(len: usize) -> u64 {
    len.next_multiple_of(TABLE_ALIGNMENT) as u64
}

/// The first bytes of a table that goes on with `content`, with neither length nor checksum.
pub fn head(signature: &[u8; 4], revision: u8, content: &[u8]) -> Vec<u8> {
    let mut table = table(signature, revision).as_slice().to_vec();
    table[4..8].fill(0);
    table[9] = 0;
    table.extend_from_slice(content);
    table
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
pub fn fadt(facs: u64, dsdt: u64) -> impl Aml {
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

/// The memory-mapped configuration space.
pub fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM_BASE.get(), 0, 0, layout::ECAM_LAST_BUS);
    mcfg
}

/// WAET flag: the power-management timer reads right at once.
const PM_TIMER_GOOD: u32 = 1 << 1;

/// What a guest need not work around, as Microsoft's WAET specification has it.
pub fn waet() -> Sdt {
    let mut waet = table(b"WAET", 1);
    waet.append_slice(&PM_TIMER_GOOD.to_le_bytes());
    waet
}

/// Actions of the WDAT: what a driver may want of the watchdog timer.
mod watchdog_action {
    pub const FEED: u8 = 0x01;
    pub const GET_COUNT: u8 = 0x04;
    pub const SET_COUNT: u8 = 0x06;
    pub const IS_RUNNING: u8 = 0x08;
    pub const START: u8 = 0x09;
    pub const IS_STOPPED: u8 = 0x0a;
    pub const STOP: u8 = 0x0b;
}

/// Instructions of the WDAT: whether the register has this value; what it holds; write this value; write a count.
const HAS_VALUE: u8 = 0;
const READ_COUNT: u8 = 1;
const WRITE_VALUE: u8 = 2;
const WRITE_COUNT: u8 = 3;
/// WDAT flag: the timer can be used.
const WATCHDOG_ENABLED: u8 = 1 << 0;
/// The length of what comes between the WDAT's header and its instructions.
const WATCHDOG_HEADER_BYTES: u32 = 32;

/// The watchdog timer, as Microsoft's "Hardware Watchdog Timers Design Specification" has it.
pub fn wdat() -> Sdt {
    use layout::{WATCHDOG_CONTROL, WATCHDOG_COUNT, WATCHDOG_FEED, WATCHDOG_LONGEST, WATCHDOG_PERIOD};
    let instructions = [
        (watchdog_action::FEED, WRITE_VALUE, WATCHDOG_FEED, 1, 1),
        (watchdog_action::GET_COUNT, READ_COUNT, WATCHDOG_COUNT, 0, WATCHDOG_LONGEST),
        (watchdog_action::SET_COUNT, WRITE_COUNT, WATCHDOG_COUNT, 0, WATCHDOG_LONGEST),
        (watchdog_action::IS_RUNNING, HAS_VALUE, WATCHDOG_CONTROL, 1, 1),
        (watchdog_action::START, WRITE_VALUE, WATCHDOG_CONTROL, 1, 1),
        (watchdog_action::IS_STOPPED, HAS_VALUE, WATCHDOG_CONTROL, 0, 1),
        (watchdog_action::STOP, WRITE_VALUE, WATCHDOG_CONTROL, 0, 1),
    ];
    let mut content = Vec::new();
    content.dword(WATCHDOG_HEADER_BYTES);
    // No PCI device: segment, bus, device and function are all ones in a byte each; four bytes are reserved.
    content.vec(&[0xff, 0, 0xff, 0xff, 0xff, 0, 0, 0]);
    content.dword(WATCHDOG_PERIOD);
    content.dword(WATCHDOG_LONGEST);
    const SHORTEST: u32 = 1;
    content.dword(SHORTEST);
    content.vec(&[WATCHDOG_ENABLED, 0, 0, 0]);
    content.dword(instructions.len() as u32);
    for (action, instruction, register, value, mask) in instructions {
        content.vec(&[action, instruction, 0, 0]);
        port_register(layout::WATCHDOG_PORT + register, 32, AccessSize::DwordAccess)
            .to_aml_bytes(&mut content);
        content.dword(value);
        content.dword(mask);
    }
    let mut wdat = table(b"WDAT", 1);
    wdat.append_slice(&content);
    wdat
}

/// MADT structure types (ACPI table 5.21).
const IO_APIC: u8 = 1;
const SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
/// MADT flag: there are two 8259s.
const PCAT_COMPAT: u32 = 1;
/// Interrupt source flags (ACPI table 5.26): as the bus has it, or level and active high.
const CONFORMS: u16 = 0;
const LEVEL_HIGH: u16 = 0b1101;
/// Every CPU, in an NMI structure.
const ALL_CPUS: u8 = 0xff;
/// The local APIC pin that NMI reaches on a PC.
const NMI_LINT: u8 = 1;

/// What the MADT says before the CPUs.
pub fn madt_head() -> Vec<u8> {
    let mut content = Vec::new();
    content.dword(layout::LOCAL_APIC_BASE.get() as u32);
    content.dword(PCAT_COMPAT);
    head(b"APIC", 5, &content)
}

/// The MADT's IOAPIC, how ISA interrupts reach it, and how NMI reaches the CPUs.
pub fn interrupt_sources() -> Vec<u8> {
    let mut entries = vec![IO_APIC, 12, layout::IO_APIC_ID, 0];
    entries.dword(layout::IO_APIC_BASE.get() as u32);
    entries.dword(0);
    for (irq, pin, flags) in
        [(layout::PIT_IRQ, layout::PIT_PIN, CONFORMS), (layout::SCI_IRQ, layout::SCI_IRQ, LEVEL_HIGH)]
    {
        entries.vec(&[SOURCE_OVERRIDE, 10, 0, irq]);
        entries.dword(pin.into());
        entries.word(flags);
    }
    entries.vec(&[LOCAL_APIC_NMI, 6, ALL_CPUS, CONFORMS as u8, 0, NMI_LINT]);
    entries
}
