//! The multiple APIC description table: CPUs and interrupt controllers (ACPI 6.5, 5.2.12).

use super::bytes::Bytes;
use alloc::vec::Vec;

/// A CPU that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its APIC's number.
    pub apic_id: u32,
    /// Whether it is there now; others may only be plugged in later.
    pub enabled: bool,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its registers.
    pub address: u64,
    /// The global interrupt number of its first pin.
    pub first_gsi: u32,
}

/// When a line means an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// While or when it goes high.
    High,
    /// While or when it goes low.
    Low,
}

/// Whether a line's change or its state means an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Its change.
    Edge,
    /// Its state.
    Level,
}

/// An ISA interrupt that is wired otherwise than one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The ISA interrupt, 0 to 15.
    pub irq: u8,
    /// The global interrupt it arrives at.
    pub gsi: u32,
    /// Its polarity.
    pub polarity: Polarity,
    /// Its trigger mode.
    pub trigger: Trigger,
}

/// What the MADT says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Madt {
    /// The LAPICs' registers.
    pub local_apic: u64,
    /// All CPUs.
    pub cpus: Vec<Cpu>,
    /// All I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// All overrides.
    pub overrides: Vec<Override>,
}

impl Madt {
    /// Reads a whole table; entries that are cut short end the list.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut madt = Self {
            local_apic: u64::from(bytes.u32_at(36)?),
            cpus: Vec::new(),
            io_apics: Vec::new(),
            overrides: Vec::new(),
        };
        let mut rest = bytes.get(44..)?;
        while let Some(len) = rest.u8_at(1).filter(|len| *len >= 2) {
            let Some((entry, after)) = rest.split_at_checked(usize::from(len)) else { break };
            // An entry shorter than its kind must be tells nothing.
            let _ = madt.take(entry);
            rest = after;
        }
        Some(madt)
    }

    fn take(&mut self, entry: &[u8]) -> Option<()> {
        match entry.u8_at(0)? {
            0 => self.cpu(u32::from(entry.u8_at(3)?), entry.u32_at(4)?),
            1 => self
                .io_apics
                .push(IoApic { address: u64::from(entry.u32_at(4)?), first_gsi: entry.u32_at(8)? }),
            2 => {
                let flags = entry.u16_at(8)?;
                // Zero: as ISA has it, high and edge.
                self.overrides.push(Override {
                    irq: entry.u8_at(3)?,
                    gsi: entry.u32_at(4)?,
                    polarity: if flags & 3 == 3 { Polarity::Low } else { Polarity::High },
                    trigger: if flags >> 2 & 3 == 3 { Trigger::Level } else { Trigger::Edge },
                });
            }
            5 => self.local_apic = entry.u64_at(4)?,
            9 => self.cpu(entry.u32_at(4)?, entry.u32_at(8)?),
            _ => {}
        }
        Some(())
    }

    /// Adds a CPU; flag bit 0 says it is enabled, bit 1 that it could be.
    fn cpu(&mut self, apic_id: u32, flags: u32) {
        if flags & 3 != 0 {
            self.cpus.push(Cpu { apic_id, enabled: flags & 1 != 0 });
        }
    }

    /// Where ISA interrupt `irq` arrives, and how.
    pub fn isa_interrupt(&self, irq: u8) -> Override {
        let plain = Override { irq, gsi: u32::from(irq), polarity: Polarity::High, trigger: Trigger::Edge };
        self.overrides.iter().find(|entry| entry.irq == irq).copied().unwrap_or(plain)
    }
}
