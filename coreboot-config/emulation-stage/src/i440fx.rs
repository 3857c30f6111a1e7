//! Bochs's chipset, which is also that of QEMU's pc: the i440FX host bridge and the PIIX3 and PIIX4 southbridges
//! in one, programmed as coreboot leaves them (Intel 82441FX and 82371AB datasheets for the registers).

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use emulation_stage::memory_map;
use emulation_stage::pci::{ConfigSpace, Function};

use crate::chipset::{self, Chipset, HOST_BRIDGE};
use crate::config_space::ConfigAccess;
use crate::fw_cfg::FwCfg;
use crate::{cmos, pm};

/// Vendor and device of the host bridge.
pub const HOST_BRIDGE_IDENTITY: u32 = 0x1237_8086;

/// Where Bochs puts files into RAM, for payloads that want them (`optramimage1`); up to the end of low memory.
pub const FILES: u32 = 0x0200_0000;

const ISA_BRIDGE: Function = Function { bus: 0, device: 1, function: 0 };
const POWER_MANAGEMENT: Function = Function { bus: 0, device: 1, function: 3 };

/// Programmable attribute maps: what 0xC0000 to 0xFFFFF is. The second byte of the first register is for 0xF0000
/// and up; each later one is for two lower parts. The first byte is about DRAM timing.
const PAM0_TO_2: u16 = 0x58;
const PAM3_TO_6: u16 = 0x5C;
/// System management RAM control, the third byte of this register.
const SMRAM: u16 = 0x70;
/// Closed, locked until reset; compatible SMRAM is at 0xA0000.
const SMRAM_LOCKED: u32 = 0x12;

const PIRQ_A_TO_D: u16 = 0x60;
const PIRQ_LINES: [u8; 4] = [10, 10, 11, 11];
const PMBASE: u16 = 0x40;
const PM_MISCELLANEOUS: u16 = 0x80;
const PM_PORTS_ENABLE: u32 = 1;

/// RAM ends at or below 0xE0000000.
const LOW_WINDOW: Range<u64> = 0xE000_0000..0xFE00_0000;
/// Ports above all that the chipset and QEMU answer themselves.
const IO_WINDOW: Range<u64> = 0xC000..0x1_0000;

/// Programs the chipset.
pub fn start() -> Chipset {
    let mut config = ConfigAccess::Ports;
    // RAM instead of flash at 0xC0000 to 0xFFFFF.
    let timing = config.read(HOST_BRIDGE, PAM0_TO_2) & 0x0000_0FFF;
    config.write(HOST_BRIDGE, PAM0_TO_2, timing | 0x3333_3000);
    config.write(HOST_BRIDGE, PAM3_TO_6, 0x3333_3333);
    // No code of ours runs in system management mode, and nobody's shall.
    let smram = config.read(HOST_BRIDGE, SMRAM) & 0xFF00_FFFF;
    config.write(HOST_BRIDGE, SMRAM, smram | SMRAM_LOCKED << 16);

    config.write(ISA_BRIDGE, PIRQ_A_TO_D, u32::from_le_bytes(PIRQ_LINES));
    config.write(POWER_MANAGEMENT, PMBASE, u32::from(pm::PORTS) | 1);
    let miscellaneous = config.read(POWER_MANAGEMENT, PM_MISCELLANEOUS);
    config.write(POWER_MANAGEMENT, PM_MISCELLANEOUS, miscellaneous | PM_PORTS_ENABLE);
    pm::forget_events();
    pm::enable_sci();

    let fw_cfg = FwCfg::find();
    Chipset {
        board: match fw_cfg {
            Some(_) => "QEMU x86 i440fx/piix4",
            None => "Bochs i440fx/piix4",
        },
        config,
        ram: ram(fw_cfg.as_ref()),
        reserved: vec![],
        // Bochs tells nobody.
        processors: fw_cfg.as_ref().map(|fw_cfg| fw_cfg.processors().into()),
        io_window: IO_WINDOW,
        low_window: LOW_WINDOW,
        interrupt_line,
        level_lines: chipset::level_lines(&PIRQ_LINES),
        fw_cfg,
    }
}

fn ram(fw_cfg: Option<&FwCfg>) -> Vec<Range<u64>> {
    match fw_cfg.and_then(|fw_cfg| fw_cfg.read("etc/e820")) {
        Some(map) => memory_map::ram_of_e820(&map),
        None => cmos::ram().collect(),
    }
}

/// Slots take turns on PIRQ A to D.
fn interrupt_line(device: u8, pin: u8) -> u8 {
    PIRQ_LINES[usize::from(device.wrapping_sub(1).wrapping_add(pin) % 4)]
}
