//! QEMU's q35: the MCH host bridge and the ICH9 LPC bridge, programmed as coreboot leaves them
//! (Intel 3 Series MCH and ICH9 datasheets for the registers).

use alloc::vec;
use core::ops::Range;

use emulation_stage::memory_map;
use emulation_stage::pci::{ConfigSpace, Function};

use crate::chipset::{self, Chipset, HOST_BRIDGE};
use crate::config_space::ConfigAccess;
use crate::fw_cfg::FwCfg;
use crate::pm;

/// Vendor and device of the host bridge.
pub const HOST_BRIDGE_IDENTITY: u32 = 0x29C0_8086;

const LPC_BRIDGE: Function = Function { bus: 0, device: 31, function: 0 };

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
const ACPI_CONTROL: u16 = 0x44;
const ACPI_ENABLE: u32 = 0x80;
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

/// Programs the chipset; `None` without the configuration device that QEMU always gives this board.
pub fn start() -> Option<Chipset> {
    let mut ports = ConfigAccess::Ports;
    ports.write(HOST_BRIDGE, PCIEXBAR + 4, 0);
    ports.write(HOST_BRIDGE, PCIEXBAR, ECAM.start as u32 | PCIEXBAR_ENABLE);
    let mut config = ConfigAccess::Memory(ECAM.start);
    // RAM instead of flash at 0xC0000 to 0xFFFFF.
    let unused = config.read(HOST_BRIDGE, PAM0_TO_3) & 0x0000_000F;
    config.write(HOST_BRIDGE, PAM0_TO_3, unused | 0x3333_3330);
    let after = config.read(HOST_BRIDGE, PAM4_TO_6) & 0xFF00_0000;
    config.write(HOST_BRIDGE, PAM4_TO_6, after | 0x0033_3333);
    // No code of ours runs in system management mode, and nobody's shall.
    let smram = config.read(HOST_BRIDGE, SMRAM) & 0xFFFF_00FF;
    config.write(HOST_BRIDGE, SMRAM, smram | SMRAM_LOCKED << 8);

    config.write(LPC_BRIDGE, PMBASE, u32::from(pm::PORTS) | 1);
    config.write(LPC_BRIDGE, ACPI_CONTROL, ACPI_ENABLE);
    config.write(LPC_BRIDGE, ROOT_COMPLEX_BASE, ROOT_COMPLEX | 1);
    let lines = u32::from_le_bytes(PIRQ_LINES);
    config.write(LPC_BRIDGE, PIRQ_A_TO_D, lines);
    config.write(LPC_BRIDGE, PIRQ_E_TO_H, lines);
    pm::forget_events();

    let fw_cfg = FwCfg::find()?;
    Some(Chipset {
        board: "QEMU x86 q35/ich9",
        config,
        ram: memory_map::ram_of_e820(&fw_cfg.read("etc/e820").unwrap_or_default()),
        reserved: vec![ECAM],
        processors: Some(fw_cfg.processors().into()),
        io_window: IO_WINDOW,
        low_window: LOW_WINDOW,
        interrupt_line,
        level_lines: chipset::level_lines(&PIRQ_LINES),
        fw_cfg: Some(fw_cfg),
    })
}

/// Slots take turns on PIRQ E to H, the southbridge's own devices (25 and up) use PIRQ A to D by pin.
fn interrupt_line(device: u8, pin: u8) -> u8 {
    let turn = if device < 25 { device.wrapping_add(pin) } else { pin };
    PIRQ_LINES[usize::from(turn % 4)]
}
