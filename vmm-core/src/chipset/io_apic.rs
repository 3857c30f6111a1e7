//! The IOAPIC (82093AA, version 0x20 with an EOI register): 24 pins that become messages.
//!
//! A pin carries "asserted", not a voltage: the board inverts wherever the guest says that a wire is active
//! low, so polarity is a bit to store.

use super::apic_message::{ApicBus, ApicMessage, DeliveryMode, Destination, Trigger};
use super::layout::{IO_APIC_ID, IO_APIC_PINS};

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const FIRST_ENTRY: u8 = 0x10;

const VERSION_VALUE: u32 = 0x20 | (IO_APIC_PINS as u32).wrapping_sub(1) << 16;

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const LOGICAL: u64 = 1 << 11;
/// Vector, delivery mode, destination mode, polarity, trigger, mask, destination.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// The IOAPIC.
#[derive(Debug)]
pub(super) struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; IO_APIC_PINS as usize],
    /// The pins that are asserted.
    asserted: u32,
}

impl IoApic {
    pub(super) const fn new() -> Self {
        Self {
            select: 0,
            id: (IO_APIC_ID as u32) << 24,
            entries: [MASKED; IO_APIC_PINS as usize],
            asserted: 0,
        }
    }

    /// Asserts or releases `pin`; pins that do not exist have no wire.
    pub(super) fn set_pin(&mut self, pin: u8, asserted: bool, apics: &dyn ApicBus) {
        let Some(bit) = 1u32.checked_shl(u32::from(pin)) else { return };
        let rising = asserted && self.asserted & bit == 0;
        if !asserted {
            self.asserted &= !bit;
            return;
        }
        self.asserted |= bit;
        let Some(entry) = self.entries.get_mut(usize::from(pin)) else { return };
        if *entry & LEVEL != 0 {
            Self::send_level(entry, apics);
        } else if rising && *entry & MASKED == 0 {
            // An edge on a masked pin is lost (82093AA 3.2.4, bit 16).
            Self::send(*entry, Trigger::Edge, apics);
        }
    }

    /// Whether a change of `pin` could now lead to an interrupt.
    pub(super) fn listens(&self, pin: u8) -> bool {
        self.entries.get(usize::from(pin)).is_some_and(|entry| entry & MASKED == 0)
    }

    /// A local APIC served the level-triggered `vector`: what is still asserted interrupts again.
    pub(super) fn end_of_interrupt(&mut self, vector: u8, apics: &dyn ApicBus) {
        let mut pins = self.asserted;
        for entry in &mut self.entries {
            if *entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
                if pins & 1 != 0 {
                    Self::send_level(entry, apics);
                }
            }
            pins >>= 1;
        }
    }

    /// Reads the register at `offset` of the page.
    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => u32::from(self.select),
            WINDOW => match self.select {
                ID | ARBITRATION => self.id,
                VERSION => VERSION_VALUE,
                _ => self.selected_pin().and_then(|pin| self.entries.get(pin)).map_or(0, |entry| {
                    if self.select & 1 == 0 { *entry as u32 } else { (entry >> 32) as u32 }
                }),
            },
            _ => 0,
        }
    }

    /// Writes the register at `offset` of the page.
    pub(super) fn write(&mut self, offset: u64, value: u32, apics: &dyn ApicBus) {
        match offset {
            SELECT => self.select = value as u8,
            WINDOW if self.select == ID => self.id = value & 0x0f00_0000,
            WINDOW => self.write_entry(value, apics),
            EOI => self.end_of_interrupt(value as u8, apics),
            _ => {}
        }
    }

    fn selected_pin(&self) -> Option<usize> {
        self.select.checked_sub(FIRST_ENTRY).map(|half| usize::from(half >> 1))
    }

    fn write_entry(&mut self, value: u32, apics: &dyn ApicBus) {
        let Some(pin) = self.selected_pin() else { return };
        let Some(entry) = self.entries.get_mut(pin) else { return };
        let value = u64::from(value);
        let merged = if self.select & 1 == 0 {
            *entry & !0xffff_ffff | value
        } else {
            *entry & 0xffff_ffff | value << 32
        };
        *entry = merged & WRITABLE | *entry & REMOTE_IRR;
        if *entry & LEVEL == 0 {
            // Software clears a stuck remote IRR by going through edge mode.
            *entry &= !REMOTE_IRR;
        } else if self.asserted & 1u32.checked_shl(pin as u32).unwrap_or(0) != 0 {
            Self::send_level(entry, apics);
        }
    }

    /// Sends an asserted level pin's message, unless it is masked or the last one is still being served.
    fn send_level(entry: &mut u64, apics: &dyn ApicBus) {
        if *entry & (MASKED | REMOTE_IRR) == 0 && Self::send(*entry, Trigger::Level, apics) {
            *entry |= REMOTE_IRR;
        }
    }

    fn send(entry: u64, trigger: Trigger, apics: &dyn ApicBus) -> bool {
        let Some(delivery) = DeliveryMode::from_bits(entry as u32 >> 8) else { return false };
        // Only these two can be level-triggered.
        let trigger = match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => trigger,
            _ => Trigger::Edge,
        };
        let taken = apics.deliver(ApicMessage {
            destination: Destination::from_xapic((entry >> 56) as u8, entry & LOGICAL != 0),
            delivery,
            vector: entry as u8,
            trigger,
        });
        taken && trigger == Trigger::Level
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Bus(RefCell<Vec<ApicMessage>>);

    impl ApicBus for Bus {
        fn deliver(&self, message: ApicMessage) -> bool {
            self.0.borrow_mut().push(message);
            true
        }
        fn set_intr(&self, _high: bool) {}
    }

    impl Bus {
        fn vectors(&self) -> Vec<u8> {
            self.0.borrow_mut().drain(..).map(|message| message.vector).collect()
        }
    }

    fn write(io_apic: &mut IoApic, register: u8, value: u32, bus: &Bus) {
        io_apic.write(SELECT, u32::from(register), bus);
        io_apic.write(WINDOW, value, bus);
    }

    fn read(io_apic: &mut IoApic, register: u8) -> u32 {
        io_apic.write(SELECT, u32::from(register), &Bus::default());
        io_apic.read(WINDOW)
    }

    #[test]
    fn the_registers_read_as_the_data_sheet_says() {
        let (mut io_apic, bus) = (IoApic::new(), Bus::default());
        assert_eq!(read(&mut io_apic, 1), 0x0017_0020);
        assert_eq!(read(&mut io_apic, 0x10), 0x1_0000);
        assert_eq!(read(&mut io_apic, 0x40), 0, "no pin 24");
        write(&mut io_apic, 0, 0xffff_ffff, &bus);
        assert_eq!(read(&mut io_apic, 0), 0x0f00_0000);
        write(&mut io_apic, 0x3e, 0xffff_ffff, &bus);
        write(&mut io_apic, 0x3f, 0xffff_ffff, &bus);
        assert_eq!(read(&mut io_apic, 0x3e), 0x1_afff, "status and remote IRR are not the guest's");
        assert_eq!(read(&mut io_apic, 0x3f), 0xff00_0000);
    }

    #[test]
    fn an_edge_sends_once_and_is_lost_while_masked() {
        let (mut io_apic, bus) = (IoApic::new(), Bus::default());
        io_apic.set_pin(2, true, &bus);
        io_apic.set_pin(2, false, &bus);
        assert!(!io_apic.listens(2));
        write(&mut io_apic, 0x15, 3 << 24, &bus);
        write(&mut io_apic, 0x14, 0x0930, &bus);
        assert!(io_apic.listens(2) && !io_apic.listens(24));
        assert_eq!(bus.vectors(), []);
        io_apic.set_pin(2, true, &bus);
        io_apic.set_pin(2, true, &bus);
        let expected = ApicMessage {
            destination: Destination::Logical(3),
            delivery: DeliveryMode::LowestPriority,
            vector: 0x30,
            trigger: Trigger::Edge,
        };
        assert_eq!(*bus.0.borrow(), [expected]);
        io_apic.set_pin(2, false, &bus);
        io_apic.set_pin(2, true, &bus);
        assert_eq!(bus.vectors(), [0x30, 0x30]);
    }

    #[test]
    fn a_level_repeats_until_it_is_released() {
        let (mut io_apic, bus) = (IoApic::new(), Bus::default());
        io_apic.set_pin(9, true, &bus);
        write(&mut io_apic, 0x22, 0x8049, &bus);
        assert_eq!(bus.vectors(), [0x49], "unmasking an asserted level sends");
        assert_eq!(read(&mut io_apic, 0x22), 0xc049, "remote IRR");
        io_apic.set_pin(9, true, &bus);
        io_apic.end_of_interrupt(0x48, &bus);
        assert_eq!(bus.vectors(), []);
        io_apic.end_of_interrupt(0x49, &bus);
        assert_eq!(bus.vectors(), [0x49]);
        io_apic.set_pin(9, false, &bus);
        io_apic.write(EOI, 0x49, &bus);
        assert_eq!(bus.vectors(), []);
        assert_eq!(read(&mut io_apic, 0x22), 0x8049);
        io_apic.set_pin(9, true, &bus);
        assert_eq!(bus.vectors(), [0x49]);
        write(&mut io_apic, 0x22, 0x1_0049, &bus);
        assert_eq!(read(&mut io_apic, 0x22), 0x1_0049, "edge mode clears remote IRR");
    }

    proptest! {
        #[test]
        fn no_guest_can_confuse_it(
            steps in prop::collection::vec((0u8..6, any::<u8>(), any::<u32>()), 0..300),
        ) {
            let (mut io_apic, bus) = (IoApic::new(), Bus::default());
            for (action, at, value) in steps {
                match action {
                    0..=2 => write(&mut io_apic, at & 0x3f, value, &bus),
                    3 => io_apic.write(u64::from(at), value, &bus),
                    4 => io_apic.set_pin(at, value & 1 != 0, &bus),
                    _ => io_apic.end_of_interrupt(at, &bus),
                }
                io_apic.read(u64::from(at));
                for entry in io_apic.entries {
                    prop_assert!(entry & REMOTE_IRR == 0 || entry & LEVEL != 0);
                }
            }
        }
    }
}
