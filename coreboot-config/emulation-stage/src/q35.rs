//! QEMU's q35: the MCH host bridge and the ICH9 LPC bridge, programmed as coreboot leaves them
//! (Intel 3 Series MCH and ICH9 datasheets for the registers).

use alloc::vec::Vec;
use core::ops::Range;

use emulation_stage::memory_map;
use emulation_stage::pci::{ConfigSpace, Function, VENDOR_DEVICE, Windows};

use crate::fw_cfg::FwCfg;
use crate::{physical, port};

const HOST_BRIDGE: Function = Function { bus: 0, device: 0, function: 0 };
const LPC_BRIDGE: Function = Function { bus: 0, device: 31, function: 0 };
const MCH_IDENTITY: u32 = 0x29C0_8086;

const CONFIG_ADDRESS: u16 = 0xCF8;
const CONFIG_DATA: u16 = 0xCFC;

/// Where configuration space is mapped: 256 buses of 1 MiB each.
const ECAM: Range<u64> = 0xB000_0000..0xC000_0000;
const PCIEXBAR: u16 = 0x60;
const PCIEXBAR_ENABLE: u32 = 1;

/// Programmable attribute maps: what 0xC0000 to 0xFFFFF is. PAM0's high half is for 0xF0000 and up; each other
/// byte is for two lower parts.
const PAM0_TO_3: u16 = 0x90;
const PAM4_TO_6: u16 = 0x94;
/// System management RAM control, the second byte of this register.
const SMRAM: u16 = 0x9C;
/// Closed, locked until reset; compatible SMRAM is at 0xA0000.
const SMRAM_LOCKED: u32 = 0x12;

const PMBASE: u16 = 0x40;
/// Where QEMU's FADT says that the power management registers are.
const PM_PORTS: u16 = 0x600;
const ACPI_CONTROL: u16 = 0x44;
const ACPI_ENABLE: u32 = 0x80;
const PM1_STATUS: u16 = 0x00;
const PM_TIMER: u16 = 0x08;
const PIRQ_A_TO_D: u16 = 0x60;
const PIRQ_E_TO_H: u16 = 0x68;
/// Interrupt lines of PIRQ A to D, and again of E to H.
const PIRQ_LINES: [u8; 4] = [10, 10, 11, 11];
const ROOT_COMPLEX_BASE: u16 = 0xF0;
const ROOT_COMPLEX: u32 = 0xFED1_C000;

/// Devices' memory: above ECAM, below the chipset's own registers.
const LOW_WINDOW: Range<u64> = 0xC000_0000..0xFE00_0000;
/// Ports above all that the chipset and QEMU answer themselves.
const IO_WINDOW: Range<u64> = 0x6000..0x1_0000;
const FOUR_GIB: u64 = 1 << 32;
/// Within what QEMU's processors address by default.
const HIGH_WINDOW_BYTES: u64 = 1 << 38;

/// The chipset, programmed.
pub struct Q35 {
    /// The configuration device that QEMU always gives this board.
    pub fw_cfg: FwCfg,
}

impl Q35 {
    /// The chipset, if this is the machine, brought to where PCI devices can be given addresses.
    pub fn start() -> Option<Self> {
        if Ports.read(HOST_BRIDGE, VENDOR_DEVICE) != MCH_IDENTITY {
            return None;
        }
        Ports.write(HOST_BRIDGE, PCIEXBAR + 4, 0);
        Ports.write(HOST_BRIDGE, PCIEXBAR, ECAM.start as u32 | PCIEXBAR_ENABLE);
        let mut config = Ecam;
        // RAM instead of flash at 0xC0000 to 0xFFFFF.
        let unused = config.read(HOST_BRIDGE, PAM0_TO_3) & 0x0000_000F;
        config.write(HOST_BRIDGE, PAM0_TO_3, unused | 0x3333_3330);
        let after = config.read(HOST_BRIDGE, PAM4_TO_6) & 0xFF00_0000;
        config.write(HOST_BRIDGE, PAM4_TO_6, after | 0x0033_3333);
        // No code of ours runs in system management mode, and nobody's shall.
        let smram = config.read(HOST_BRIDGE, SMRAM) & 0xFFFF_00FF;
        config.write(HOST_BRIDGE, SMRAM, smram | SMRAM_LOCKED << 8);

        config.write(LPC_BRIDGE, PMBASE, u32::from(PM_PORTS) | 1);
        config.write(LPC_BRIDGE, ACPI_CONTROL, ACPI_ENABLE);
        config.write(LPC_BRIDGE, ROOT_COMPLEX_BASE, ROOT_COMPLEX | 1);
        let lines = u32::from_le_bytes(PIRQ_LINES);
        config.write(LPC_BRIDGE, PIRQ_A_TO_D, lines);
        config.write(LPC_BRIDGE, PIRQ_E_TO_H, lines);
        // Status bits are cleared by writing ones.
        port::write_u16(PM_PORTS + PM1_STATUS, 0xFFFF);
        Some(Self { fw_cfg: FwCfg::find()? })
    }

    /// Configuration space.
    pub fn config(&self) -> Ecam {
        Ecam
    }

    /// All RAM, in ascending order.
    pub fn ram(&self) -> Vec<Range<u64>> {
        memory_map::ram_of_e820(&self.fw_cfg.read("etc/e820").unwrap_or_default())
    }

    /// What below 4 GiB is neither RAM nor to be given to devices, for the payload to know.
    pub fn reserved(&self) -> [Range<u64>; 1] {
        [ECAM]
    }

    /// Processors that run at power-on.
    pub fn processors(&self) -> u32 {
        u32::from(self.fw_cfg.processors())
    }

    /// Bus addresses for devices on a machine whose RAM ends at `ram_end`.
    pub fn windows(&self, ram_end: u64) -> Windows {
        let high = ram_end.max(FOUR_GIB).next_multiple_of(1 << 30);
        Windows { io: IO_WINDOW, low: LOW_WINDOW, high: high..HIGH_WINDOW_BYTES.max(high) }
    }

    /// The interrupt line of a pin (0 = INTA#) of a device on bus 0: slots take turns on PIRQ E to H, the
    /// southbridge's own devices (25 and up) use PIRQ A to D by pin.
    pub fn interrupt_line(device: u8, pin: u8) -> u8 {
        let turn = if device < 25 { device.wrapping_add(pin) } else { pin };
        PIRQ_LINES[usize::from(turn % 4)]
    }

    /// The interrupt lines that PCI uses, level-triggered, as a mask.
    pub fn level_lines() -> u16 {
        // 9 is ACPI's SCI.
        PIRQ_LINES.iter().fold(1 << 9, |mask, line| mask | 1 << line)
    }

    /// Reads ACPI's PM timer: 24 bits at 3.579545 MHz.
    pub fn timer() -> u32 {
        port::read_u32(PM_PORTS + PM_TIMER) & 0x00FF_FFFF
    }
}

/// Configuration space by ports 0xCF8 and 0xCFC, as long as it is not mapped.
struct Ports;

impl ConfigSpace for Ports {
    fn read(&mut self, function: Function, offset: u16) -> u32 {
        select(function, offset);
        port::read_u32(CONFIG_DATA)
    }

    fn write(&mut self, function: Function, offset: u16, value: u32) {
        select(function, offset);
        port::write_u32(CONFIG_DATA, value);
    }
}

fn select(f: Function, offset: u16) {
    let function = u32::from(f.bus) << 16 | u32::from(f.device) << 11 | u32::from(f.function) << 8;
    port::write_u32(CONFIG_ADDRESS, 1 << 31 | function | u32::from(offset & 0xFC));
}

/// Configuration space where PCIEXBAR maps it.
pub struct Ecam;

impl Ecam {
    fn address(f: Function, offset: u16) -> u64 {
        let function = u64::from(f.bus) << 20 | u64::from(f.device) << 15 | u64::from(f.function) << 12;
        ECAM.start + (function | u64::from(offset & 0xFFC))
    }
}

impl ConfigSpace for Ecam {
    fn read(&mut self, function: Function, offset: u16) -> u32 {
        physical::read_register(Self::address(function, offset))
    }

    fn write(&mut self, function: Function, offset: u16, value: u32) {
        physical::write_register(Self::address(function, offset), value);
    }
}
