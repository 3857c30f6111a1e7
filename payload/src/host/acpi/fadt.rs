//! The fixed ACPI description table: power management (ACPI 6.5, 5.2.9).

use super::bytes::Bytes;

/// RESET_REG_SUP: the reset register works.
const RESET_SUPPORTED: u32 = 1 << 10;
/// TMR_VAL_EXT: the timer has 32 bits, not 24.
const TIMER_32_BITS: u32 = 1 << 8;

/// Where a register lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// In physical memory.
    Memory,
    /// At a port.
    Port,
    /// In the configuration space of a function on bus 0.
    PciConfiguration,
}

/// A register (a generic address structure, ACPI 6.5, 5.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Which space `address` counts in.
    pub space: Space,
    /// The address.
    pub address: u64,
}

impl Register {
    /// The structure at `offset`, when it names a register in a space that we know.
    fn read(bytes: &[u8], offset: usize) -> Option<Self> {
        let space = match bytes.u8_at(offset)? {
            0 => Space::Memory,
            1 => Space::Port,
            2 => Space::PciConfiguration,
            _ => return None,
        };
        let address = bytes.u64_at(offset.checked_add(4)?)?;
        (address != 0).then_some(Self { space, address })
    }

    /// The register that the extended field at `extended` names, else the port at `legacy`.
    fn either(bytes: &[u8], extended: usize, legacy: usize) -> Option<Self> {
        Self::read(bytes, extended).or_else(|| {
            let port = bytes.u32_at(legacy).filter(|port| *port != 0)?;
            Some(Self { space: Space::Port, address: u64::from(port) })
        })
    }
}

/// What the FADT says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fadt {
    /// The DSDT's address.
    pub dsdt: u64,
    /// The PM timer, which counts 3.579545 MHz.
    pub pm_timer: Option<Register>,
    /// Whether the PM timer has 32 bits, not 24.
    pub pm_timer_32_bits: bool,
    /// PM1a_CNT, which puts the machine to sleep.
    pub pm1a_control: Option<Register>,
    /// PM1b_CNT, on the few machines that have one.
    pub pm1b_control: Option<Register>,
    /// The register that resets the machine, and the value that does it.
    pub reset: Option<(Register, u8)>,
}

impl Fadt {
    /// Reads a whole table; `None` where it is shorter than ACPI 1.0 has it.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let flags = bytes.u32_at(112)?;
        let reset = Register::read(bytes, 116).zip(bytes.u8_at(128));
        Some(Self {
            dsdt: bytes.u64_at(140).filter(|at| *at != 0).unwrap_or(u64::from(bytes.u32_at(40)?)),
            pm_timer: Register::either(bytes, 208, 76),
            pm_timer_32_bits: flags & TIMER_32_BITS != 0,
            pm1a_control: Register::either(bytes, 172, 64),
            pm1b_control: Register::either(bytes, 184, 68),
            reset: reset.filter(|_| flags & RESET_SUPPORTED != 0),
        })
    }
}
