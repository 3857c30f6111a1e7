//! MSI-X (PCI 3.0, 6.8.2): a function's interrupts as messages, each with an address and data of its own.

use super::Context;
use super::apic_message::ApicMessage;
use super::pci_config::{ConfigSpace, PciConfigError};
use crate::cpu::Width;
use alloc::vec;
use alloc::vec::Vec;

const CAPABILITY: u8 = 0x11;
/// Message control, behind the capability's header.
const CONTROL: u8 = 2;
const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;
/// The most vectors that a function can have.
const MOST_VECTORS: u16 = 2048;

/// Dwords of a table entry: address, data, control.
const ENTRY_WORDS: usize = 4;
const ADDRESS_LOW: usize = 0;
const CONTROL_WORD: usize = 3;
/// An entry's mask bit; its other control bits are zero.
const MASK: u32 = 1;

/// A function's MSI-X capability with its table and pending bits, which lie in one of its BARs.
pub struct Msix {
    /// The table, an entry behind the other.
    words: Vec<u32>,
    /// A bit for each vector.
    pending: Vec<u32>,
    /// Where in configuration space the capability is.
    capability: u8,
    /// Where in the BAR they are.
    table_at: u64,
    pending_at: u64,
    enabled: bool,
    masked: bool,
}

impl Msix {
    /// Gives the function `vectors` vectors (1 to 2048) by a capability in `config`, with the table and the pending
    /// bits in BAR `bar` at these offsets, which are multiples of 8.
    ///
    /// # Errors
    /// Configuration space is full.
    pub fn new(
        config: &mut ConfigSpace,
        vectors: u16,
        bar: u8,
        (table_at, pending_at): (u32, u32),
    ) -> Result<Self, PciConfigError> {
        let vectors = vectors.clamp(1, MOST_VECTORS);
        let mut body = Vec::with_capacity(10);
        body.extend(vectors.saturating_sub(1).to_le_bytes());
        for at in [table_at, pending_at] {
            body.extend((at & !7 | u32::from(bar)).to_le_bytes());
        }
        let capability = config.add_capability(CAPABILITY, &body, &(ENABLE | MASK_ALL).to_le_bytes())?;
        let mut words = vec![0; usize::from(vectors).saturating_mul(ENTRY_WORDS)];
        words.iter_mut().skip(CONTROL_WORD).step_by(ENTRY_WORDS).for_each(|control| *control = MASK);
        Ok(Self {
            words,
            // Read by quadwords too.
            pending: vec![0; usize::from(vectors).div_ceil(64).saturating_mul(2)],
            capability,
            table_at: u64::from(table_at & !7),
            pending_at: u64::from(pending_at & !7),
            enabled: false,
            masked: false,
        })
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        (self.words.len() / ENTRY_WORDS) as u16
    }

    /// Whether the guest has the function signal by messages.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The guest wrote the function's configuration space: what it unmasked with that is sent.
    pub fn config_written(&mut self, config: &ConfigSpace, ctx: &mut Context) {
        let control = u16::from_le_bytes(config.get(self.capability.wrapping_add(CONTROL)));
        (self.enabled, self.masked) = (control & ENABLE != 0, control & MASK_ALL != 0);
        if !self.enabled {
            self.pending.fill(0);
        } else if !self.masked {
            (0..self.vectors()).for_each(|vector| self.send_pending(vector, ctx));
        }
    }

    /// Signals `vector`: sends its message, or notes that it waits for being unmasked.
    pub fn signal(&mut self, vector: u16, ctx: &mut Context) {
        let Some(entry) = self.entry(vector).filter(|_| self.enabled) else { return };
        if self.masked || entry.masked {
            if let Some(word) = self.pending.get_mut(usize::from(vector >> 5)) {
                *word |= 1 << (vector & 31);
            }
        } else if let Some(message) = entry.message {
            ctx.apics.deliver(message);
        }
    }

    /// What the guest reads at `offset` of the BAR; `None` where neither table nor pending bits lie.
    pub fn read(&self, offset: u64, width: Width) -> Option<u64> {
        let (words, at) = if let Some(at) = within(offset, self.table_at, &self.words) {
            (&self.words, at)
        } else {
            (&self.pending, within(offset, self.pending_at, &self.pending)?)
        };
        let word = |n: usize| u64::from(words.get(n).copied().unwrap_or(0));
        let first = at / 4;
        let both = word(first.saturating_add(1)) << 32 | word(first);
        Some((both >> ((at & 3) << 3)) & width.mask())
    }

    /// The guest writes at `offset` of the BAR; `None` where neither table nor pending bits lie. Only aligned dwords
    /// and quadwords have a meaning.
    pub fn write(&mut self, offset: u64, width: Width, value: u64, ctx: &mut Context) -> Option<()> {
        let Some(at) = within(offset, self.table_at, &self.words) else {
            return within(offset, self.pending_at, &self.pending).map(drop);
        };
        let dwords = match width {
            Width::Dword => 1,
            Width::Qword => 2,
            _ => 0,
        };
        let first = at / 4;
        if at & 3 == 0 {
            for (n, value) in [value as u32, (value >> 32) as u32].into_iter().enumerate().take(dwords) {
                self.write_word(first.saturating_add(n), value, ctx);
            }
        }
        Some(())
    }

    fn write_word(&mut self, n: usize, value: u32, ctx: &mut Context) {
        let Some(word) = self.words.get_mut(n) else { return };
        *word = match n & (ENTRY_WORDS - 1) {
            ADDRESS_LOW => value & !3,
            CONTROL_WORD => value & MASK,
            _ => value,
        };
        if n & (ENTRY_WORDS - 1) == CONTROL_WORD && self.enabled && !self.masked {
            self.send_pending((n / ENTRY_WORDS) as u16, ctx);
        }
    }

    fn send_pending(&mut self, vector: u16, ctx: &mut Context) {
        let bit = 1 << (vector & 31);
        let waits = self.pending.get(usize::from(vector >> 5)).is_some_and(|word| word & bit != 0);
        let Some(entry) = self.entry(vector).filter(|entry| waits && !entry.masked) else { return };
        if let Some(word) = self.pending.get_mut(usize::from(vector >> 5)) {
            *word &= !bit;
        }
        if let Some(message) = entry.message {
            ctx.apics.deliver(message);
        }
    }

    fn entry(&self, vector: u16) -> Option<Entry> {
        let (entries, _) = self.words.as_chunks::<ENTRY_WORDS>();
        let [low, high, data, control] = *entries.get(usize::from(vector))?;
        let message = ApicMessage::from_msi(u64::from(high) << 32 | u64::from(low), data);
        Some(Entry { message, masked: control & MASK != 0 })
    }
}

/// A table entry as it is.
struct Entry {
    /// `None` where address and data mean nothing.
    message: Option<ApicMessage>,
    masked: bool,
}

/// Where within `words` from `base` on `offset` is.
fn within(offset: u64, base: u64, words: &[u32]) -> Option<usize> {
    let at = usize::try_from(offset.checked_sub(base)?).ok()?;
    (at / 4 < words.len()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::apic_message::{ApicBus, Destination};
    use crate::chipset::pci_config::PciIdentity;
    use crate::chipset::tests::with_bus;
    use core::cell::RefCell;

    /// Which vector went to whom.
    #[derive(Default)]
    struct Sent(RefCell<Vec<(Destination, u8)>>);

    impl ApicBus for Sent {
        fn deliver(&self, message: ApicMessage) -> bool {
            self.0.borrow_mut().push((message.destination, message.vector));
            true
        }
        fn set_intr(&self, _high: bool) {}
    }

    impl Sent {
        fn take(&self) -> Vec<(Destination, u8)> {
            self.0.take()
        }
    }

    struct Function {
        config: ConfigSpace,
        msix: Msix,
        sent: Sent,
    }

    impl Function {
        /// 33 vectors, the table from 0x2000 on, the pending bits from 0x3000 on.
        fn new() -> Self {
            let mut config = ConfigSpace::new(PciIdentity {
                vendor: 1,
                device: 2,
                class: 0x01_08_02,
                revision: 0,
                subsystem_vendor: 0,
                subsystem: 0,
            });
            let msix = Msix::new(&mut config, 33, 4, (0x2000, 0x3000)).unwrap();
            Self { config, msix, sent: Sent::default() }
        }

        fn control(&mut self, value: u16) {
            self.config.write(0x42, Width::Word, value.into());
            with_bus(&self.sent, |ctx| self.msix.config_written(&self.config, ctx));
        }

        fn write(&mut self, offset: u64, width: Width, value: u64) -> Option<()> {
            with_bus(&self.sent, |ctx| self.msix.write(offset, width, value, ctx))
        }

        fn signal(&mut self, vector: u16) -> Vec<(Destination, u8)> {
            with_bus(&self.sent, |ctx| self.msix.signal(vector, ctx));
            self.sent.take()
        }

        /// Vector `n` goes to local APIC 2 as 0x40 + `n`.
        fn aim(&mut self, n: u16, masked: bool) {
            let at = 0x2000 + u64::from(n) * 16;
            self.write(at, Width::Qword, 0xfee0_2003).unwrap();
            self.write(at + 8, Width::Dword, u64::from(0x40 + n)).unwrap();
            self.write(at + 12, Width::Dword, u64::from(masked) | 0xff00).unwrap();
        }
    }

    #[test]
    fn the_capability_says_where_everything_is() {
        let function = Function::new();
        assert_eq!(function.config.read(0x40, Width::Dword), 32 << 16 | 0x11);
        assert_eq!(function.config.read(0x44, Width::Dword), 0x2004);
        assert_eq!(function.config.read(0x48, Width::Dword), 0x3004);
        assert_eq!(function.msix.vectors(), 33);
        assert_eq!(function.msix.read(0x1ff8, Width::Dword), None);
        assert_eq!(function.msix.read(0x200c, Width::Dword), Some(1), "masked from the start");
        assert_eq!(function.msix.read(0x2000 + 33 * 16, Width::Dword), None);
        assert_eq!(function.msix.read(0x3004, Width::Dword), Some(0));
        assert_eq!(function.msix.read(0x3008, Width::Dword), None);
    }

    #[test]
    fn messages_go_where_the_guest_aims_them() {
        let mut function = Function::new();
        function.aim(32, false);
        assert_eq!(function.signal(32), [], "not enabled");
        function.control(0xffff);
        assert_eq!(function.config.read(0x42, Width::Word), 0xc020);
        function.control(0x8000);
        assert!(function.msix.is_enabled());
        assert_eq!(function.sent.take(), [], "what came before is forgotten");
        let expected = (Destination::Physical(2), 0x60);
        assert_eq!(function.signal(32), [expected]);
        assert_eq!(function.signal(33), [], "no such vector");
        assert_eq!(function.msix.read(0x2200, Width::Qword), Some(0xfee0_2000));
        assert_eq!(function.msix.read(0x220a, Width::Word), Some(0));
        assert_eq!(function.msix.read(0x220c, Width::Dword), Some(0), "only the mask bit is there");
        function.write(0x2204, Width::Dword, 1);
        assert_eq!(function.signal(32), [], "the address means nothing");
    }

    #[test]
    fn what_is_masked_waits() {
        let mut function = Function::new();
        (0..33).for_each(|n| function.aim(n, n == 5 || n == 32));
        function.control(0x8000);
        for n in [5, 32, 5] {
            assert_eq!(function.signal(n), []);
        }
        assert_eq!(function.msix.read(0x3000, Width::Qword), Some(1 << 32 | 1 << 5));
        function.write(0x3000, Width::Qword, 0).unwrap();
        assert_eq!(function.msix.read(0x3004, Width::Dword), Some(1), "read-only");
        function.aim(5, false);
        assert_eq!(function.sent.take(), [(Destination::Physical(2), 0x45)], "once");
        function.control(0xc000);
        assert_eq!(function.signal(7), []);
        function.aim(32, false);
        assert_eq!(function.sent.take(), []);
        function.control(0x8000);
        assert_eq!(
            function.sent.take(),
            [(Destination::Physical(2), 0x47), (Destination::Physical(2), 0x60)]
        );
        assert_eq!(function.msix.read(0x3000, Width::Qword), Some(0));
    }

    #[test]
    fn odd_accesses_change_nothing() {
        let mut function = Function::new();
        for (offset, width) in [(0x2000, Width::Byte), (0x2002, Width::Word), (0x2002, Width::Dword)] {
            assert_eq!(function.write(offset, width, u64::MAX), Some(()));
        }
        assert_eq!(function.msix.read(0x2000, Width::Qword), Some(0));
        let last = 0x2000 + 32 * 16 + 12;
        assert_eq!(function.write(last, Width::Qword, 0), Some(()), "half of it lies outside");
        assert_eq!(function.msix.read(last, Width::Qword), Some(0));
        assert_eq!(function.write(last + 4, Width::Dword, 0), None);
    }
}
