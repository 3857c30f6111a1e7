//! The board's interrupt wires: each ISA interrupt ends at the 8259 pair and at an IOAPIC pin.

use super::apic_message::ApicBus;
use super::io_apic::IoApic;
use super::layout::{FIRST_PCI_PIN, PIT_IRQ, PIT_PIN};
use super::pic::PicPair;

/// Both interrupt controllers and the wires to them.
pub(super) struct Interrupts {
    pub(super) pic: PicPair,
    pub(super) io_apic: IoApic,
    /// ISA interrupts whose wires are high.
    lines: u16,
    /// PCI interrupts that are asserted: a bit for each IOAPIC pin from 16 on.
    pci: u8,
    /// What the local APICs know of the 8259 pair's output.
    intr: bool,
}

/// The IOAPIC pin of an ISA interrupt.
const fn pin(irq: u8) -> u8 {
    match irq {
        PIT_IRQ => PIT_PIN,
        irq => irq,
    }
}

impl Interrupts {
    pub(super) const fn new() -> Self {
        // The PIT's output is high until a guest has it count: that is no edge.
        let lines = 1 << PIT_IRQ;
        Self { pic: PicPair::new(), io_apic: IoApic::new(), lines, pci: 0, intr: false }
    }

    /// Sets the wire of `irq`, 0 to 15.
    pub(super) fn set(&mut self, irq: u8, high: bool, apics: &dyn ApicBus) {
        let bit = 1u16.checked_shl(u32::from(irq)).unwrap_or(0);
        if (self.lines & bit != 0) == high {
            return;
        }
        self.lines ^= bit;
        self.pic.set_irq(irq, high);
        self.io_apic.set_pin(pin(irq), high, apics);
        self.drive_intr(apics);
    }

    /// Says which PCI interrupts are asserted: a bit for each pin of the IOAPIC from 16 on. They end nowhere else.
    pub(super) fn set_pci(&mut self, asserted: u8, apics: &dyn ApicBus) {
        let changed = core::mem::replace(&mut self.pci, asserted) ^ asserted;
        for n in (0..8_u8).filter(|n| changed >> n & 1 != 0) {
            self.io_apic.set_pin(FIRST_PCI_PIN.saturating_add(n), asserted >> n & 1 != 0, apics);
        }
    }

    /// A rising edge, whatever the wire was before.
    pub(super) fn pulse(&mut self, irq: u8, apics: &dyn ApicBus) {
        self.set(irq, false, apics);
        self.set(irq, true, apics);
    }

    /// Whether an interrupt on `irq` could reach a vCPU: some controller does not mask it.
    pub(super) fn listens(&self, irq: u8) -> bool {
        self.pic.listens(irq) || self.io_apic.listens(pin(irq))
    }

    /// Tells the local APICs when the 8259 pair's output changed: after every access to the pair.
    pub(super) fn drive_intr(&mut self, apics: &dyn ApicBus) {
        let intr = self.pic.intr();
        if intr != self.intr {
            self.intr = intr;
            apics.set_intr(intr);
        }
    }
}
