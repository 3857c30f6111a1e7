//! The chipset, whichever this emulator has.

use alloc::vec::Vec;
use core::ops::Range;

use emulation_stage::pci::{ConfigSpace, Function, VENDOR_DEVICE, Windows};

use crate::config_space::ConfigAccess;
use crate::fw_cfg::FwCfg;
use crate::{i440fx, q35};

/// Every chipset's host bridge.
pub const HOST_BRIDGE: Function = Function { bus: 0, device: 0, function: 0 };

const FOUR_GIB: u64 = 1 << 32;
/// Within what emulated processors address by default.
const HIGH_WINDOW_BYTES: u64 = 1 << 38;

/// A chipset, programmed, and the machine around it as the emulator describes it.
pub struct Chipset {
    /// The board's name in the coreboot table; coreboot's own where it has the board.
    pub board: &'static str,
    /// Configuration space.
    pub config: ConfigAccess,
    /// QEMU's configuration device; other emulators have none.
    pub fw_cfg: Option<FwCfg>,
    /// All RAM, in ascending order.
    pub ram: Vec<Range<u64>>,
    /// What below 4 GiB is neither RAM nor to be given to devices, for the payload to know.
    pub reserved: Vec<Range<u64>>,
    /// Processors that run at power-on, where that can be known.
    pub processors: Option<u32>,
    /// Ports that devices may have.
    pub io_window: Range<u64>,
    /// Memory below 4 GiB that devices may have.
    pub low_window: Range<u64>,
    /// The interrupt line of a pin (0 = INTA#) of a device on bus 0.
    pub interrupt_line: fn(u8, u8) -> u8,
    /// The interrupt lines that PCI and ACPI use, level-triggered, as a mask.
    pub level_lines: u16,
}

impl Chipset {
    /// The chipset, brought to where PCI devices can be given addresses; `None` where it is none that the stage
    /// knows, which its host bridge's identity tells.
    pub fn start() -> Option<Self> {
        match ConfigAccess::Ports.read(HOST_BRIDGE, VENDOR_DEVICE) {
            q35::HOST_BRIDGE_IDENTITY => q35::start(),
            i440fx::HOST_BRIDGE_IDENTITY => Some(i440fx::start()),
            _ => None,
        }
    }

    /// Bus addresses for devices.
    pub fn windows(&self) -> Windows {
        let ram_end = self.ram.last().map_or(0, |range| range.end);
        let high = ram_end.max(FOUR_GIB).next_multiple_of(1 << 30);
        let (io, low) = (self.io_window.clone(), self.low_window.clone());
        Windows { io, low, high: high..HIGH_WINDOW_BYTES.max(high) }
    }
}

/// The mask of `lines` and of ACPI's SCI.
pub fn level_lines(lines: &[u8]) -> u16 {
    lines.iter().fold(1 << SCI, |mask, line| mask | 1 << line)
}

/// The interrupt line of ACPI events.
pub const SCI: u8 = 9;
