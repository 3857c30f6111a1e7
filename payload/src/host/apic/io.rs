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

/// All I/O APICs, with the ISA interrupts' wiring.
pub struct IoApics {
    chips: Vec<Chip>,
    madt: Madt,
}

/// One I/O APIC.
struct Chip {
    first_gsi: u32,
    pins: u32,
    /// Selecting and accessing are two steps.
    registers: Mutex<Mmio>,
}

/// No I/O APIC has a pin for this global interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPin(pub u32);

impl fmt::Display for NoPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no I/O APIC has a pin for global interrupt {}", self.0)
    }
}

impl core::error::Error for NoPin {}

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
        Ok(Self { chips, madt: madt.clone() })
    }

    /// Has ISA interrupt `irq` come as `vector` on the CPU whose APIC is `apic_id` (0 to 255).
    pub fn route_isa(&self, irq: u8, vector: u8, apic_id: u32) -> Result<(), NoPin> {
        let Override { gsi, polarity, trigger, .. } = self.madt.isa_interrupt(irq);
        let wiring = if polarity == Polarity::Low { ACTIVE_LOW } else { 0 }
            | if trigger == Trigger::Level { LEVEL } else { 0 };
        for chip in &self.chips {
            if let Some(pin) = gsi.checked_sub(chip.first_gsi).filter(|pin| *pin < chip.pins) {
                // The destination first: the second write unmasks the pin.
                chip.write(REDIRECTION + 2 * pin + 1, apic_id << 24);
                chip.write(REDIRECTION + 2 * pin, wiring | u32::from(vector));
                return Ok(());
            }
        }
        Err(NoPin(gsi))
    }
}
