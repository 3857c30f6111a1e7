//! The I/O APICs: from a device's line to a vector on a CPU.

use crate::host::acpi::{Madt, Override, Polarity, Trigger};
use crate::host::memory::Range;
use crate::host::mmio::Mmio;
use crate::host::paging::{Cache, DeviceError, map_device};
use alloc::vec::Vec;
use core::fmt;
use spin::Mutex;

/// The register that selects another, and the one it is then seen in.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// The version register: the last pin's number is in bits 16 to 23.
const VERSION: u32 = 0x01;
/// The first pin's redirection entry, two registers each.
const REDIRECTION: u32 = 0x10;
/// Bits of a redirection entry.
const ACTIVE_LOW: u32 = 1 << 13;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

/// A line that leads to an I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// ISA's, as firmware says it is wired.
    Isa(u8),
    /// PCI's, that shares the number and the pin of one of ISA's.
    #[cfg_attr(not(feature = "pci"), allow(dead_code))]
    PciOnIsa(u8),
    /// PCI's at the pin with this global number.
    #[cfg_attr(not(feature = "pci"), allow(dead_code))]
    Pin(u32),
}

/// All I/O APICs, with the ISA interrupts' wiring.
pub struct IoApics {
    chips: Vec<Chip>,
    madt: Madt,
    /// The global interrupts that lead somewhere.
    routed: Mutex<Vec<u32>>,
}

/// One I/O APIC.
struct Chip {
    first_gsi: u32,
    pins: u32,
    /// Selecting and accessing are two steps.
    registers: Mutex<Mmio>,
}

/// Why an interrupt could not be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// No I/O APIC has a pin for this global interrupt.
    NoPin(u32),
    /// This global interrupt leads elsewhere already.
    Taken(u32),
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPin(gsi) => write!(f, "no I/O APIC has a pin for global interrupt {gsi}"),
            Self::Taken(gsi) => write!(f, "global interrupt {gsi} is already in use"),
        }
    }
}

impl core::error::Error for RouteError {}

impl Chip {
    fn read(&self, register: u32) -> u32 {
        let registers = self.registers.lock();
        registers.write_u32(SELECT, register);
        registers.read_u32(WINDOW)
    }

    fn write(&self, register: u32, value: u32) {
        let registers = self.registers.lock();
        registers.write_u32(SELECT, register);
        registers.write_u32(WINDOW, value);
    }
}

impl IoApics {
    /// Takes over all I/O APICs of `madt`, with every pin masked.
    pub fn start(madt: &Madt) -> Result<Self, DeviceError> {
        let mut chips = Vec::new();
        for chip in &madt.io_apics {
            let registers = Mutex::new(map_device(Range::with_len(chip.address, 0x20), Cache::Uncached)?);
            let mut chip = Chip { first_gsi: chip.first_gsi, pins: 0, registers };
            chip.pins = (chip.read(VERSION) >> 16 & 0xff) + 1;
            (0..chip.pins).for_each(|pin| chip.write(REDIRECTION + 2 * pin, MASKED));
            chips.push(chip);
        }
        Ok(Self { chips, madt: madt.clone(), routed: Mutex::default() })
    }

    /// Has the interrupt of `line` come as `vector` on the CPU whose APIC is `apic_id` (0 to 255).
    pub fn route(&self, line: Line, vector: u8, apic_id: u32) -> Result<(), RouteError> {
        let (gsi, polarity, trigger) = wiring(&self.madt, line);
        let bits = if polarity == Polarity::Low { ACTIVE_LOW } else { 0 }
            | if trigger == Trigger::Level { LEVEL } else { 0 };
        let pin = self
            .chips
            .iter()
            .find_map(|chip| Some((chip, gsi.checked_sub(chip.first_gsi).filter(|pin| *pin < chip.pins)?)));
        let (chip, pin) = pin.ok_or(RouteError::NoPin(gsi))?;
        let mut routed = self.routed.lock();
        if routed.contains(&gsi) {
            return Err(RouteError::Taken(gsi));
        }
        routed.push(gsi);
        // The destination first: the second write unmasks the pin.
        chip.write(REDIRECTION + 2 * pin + 1, apic_id << 24);
        chip.write(REDIRECTION + 2 * pin, bits | u32::from(vector));
        Ok(())
    }

    /// Lets no interrupt through any more that comes as `vector`.
    #[cfg(feature = "pci")]
    pub fn mask(&self, vector: u8) {
        for chip in &self.chips {
            for register in (0..chip.pins).map(|pin| REDIRECTION + 2 * pin) {
                let entry = chip.read(register);
                if entry & (MASKED | 0xff) == u32::from(vector) {
                    chip.write(register, entry | MASKED);
                }
            }
        }
    }
}

/// The global interrupt of a line, and how it says that there is one.
fn wiring(madt: &Madt, line: Line) -> (u32, Polarity, Trigger) {
    match line {
        Line::Isa(irq) => {
            let Override { gsi, polarity, trigger, .. } = madt.isa_interrupt(irq);
            (gsi, polarity, trigger)
        }
        // PCI's lines are low while there is an interrupt, unless firmware says how the board turns them.
        Line::PciOnIsa(irq) => match madt.isa_interrupt(irq) {
            Override { gsi, polarity, trigger: Trigger::Level, .. } => (gsi, polarity, Trigger::Level),
            Override { gsi, .. } => (gsi, Polarity::Low, Trigger::Level),
        },
        Line::Pin(gsi) => (gsi, Polarity::Low, Trigger::Level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wired_as_firmware_says_and_else_as_their_bus_has_it() {
        let overridden = |irq, gsi, polarity, trigger| Override { irq, gsi, polarity, trigger };
        let madt = Madt {
            local_apic: 0,
            cpus: Vec::new(),
            io_apics: Vec::new(),
            overrides: [
                overridden(0, 2, Polarity::High, Trigger::Edge),
                overridden(10, 10, Polarity::High, Trigger::Level),
            ]
            .into(),
        };
        for (line, expected) in [
            (Line::Isa(0), (2, Polarity::High, Trigger::Edge)),
            (Line::Isa(4), (4, Polarity::High, Trigger::Edge)),
            (Line::PciOnIsa(10), (10, Polarity::High, Trigger::Level)),
            (Line::PciOnIsa(11), (11, Polarity::Low, Trigger::Level)),
            (Line::Pin(17), (17, Polarity::Low, Trigger::Level)),
        ] {
            assert_eq!(wiring(&madt, line), expected, "{line:?}");
        }
    }
}
