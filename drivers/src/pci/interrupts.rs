//! Having a function interrupt: by MSI-X, MSI or a line, in this order.

use super::function::{Capability, Function};
use crate::platform::{Message, Platform, Region, Trigger, Vector};
use alloc::vec::Vec;
use core::fmt;

/// Capability numbers.
const MSI: u8 = 0x05;
const MSI_X: u8 = 0x11;

/// How a function interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Not at all: it is looked at from time to time while it has something to do.
    #[default]
    Polled,
    /// By a PCI line with this number. Where the line leads is firmware's word only, so it is looked at too.
    Line(u8),
    /// By ISA's lines, whose wiring is known.
    Isa,
    /// By messages.
    Msi,
    /// By messages, each with an address and meaning of its own.
    MsiX,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Polled => f.write_str("polled"),
            Self::Line(line) => write!(f, "INTx (IRQ {line}) and polled"),
            Self::Isa => f.write_str("ISA interrupts"),
            Self::Msi => f.write_str("MSI"),
            Self::MsiX => f.write_str("MSI-X"),
        }
    }
}

/// What interrupts a driver got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupts {
    /// How they come.
    pub kind: Kind,
    /// How many different ones: source `n` is one of `0..count`. None where it is polled.
    pub count: usize,
}

/// What became of a function's interrupts.
#[derive(Default)]
pub(super) struct State {
    kind: Kind,
    /// By source.
    vectors: Vec<Vector>,
}

impl Function {
    /// Has the function interrupt: source `n` at core `cores[n]`, as far as it can. With MSI-X there are as many
    /// sources as it has and the machine has vectors for; with others, one. To be called once, by the driver that
    /// starts it.
    pub fn start_interrupts(&self, platform: &dyn Platform, cores: &[usize]) -> Interrupts {
        self.let_line_interrupt(false);
        let by_messages = self
            .capability(MSI_X)
            .and_then(|capability| self.start_msi_x(platform, capability, cores))
            .or_else(|| {
                self.capability(MSI).and_then(|capability| self.start_msi(platform, capability, cores))
            });
        if let Some((kind, vectors)) = by_messages {
            return self.note(kind, vectors);
        }
        let line = self.interrupt_line();
        match line.and_then(|line| Some((line, platform.line_interrupt(line, Trigger::Level)?))) {
            Some((line, vector)) => {
                self.let_line_interrupt(true);
                self.note(Kind::Line(line), [vector].into())
            }
            None => self.note(Kind::Polled, Vec::new()),
        }
    }

    /// Has the function interrupt by these lines of ISA, one source each, as IDE controllers do. Polled where one
    /// leads nowhere.
    pub fn start_isa_interrupts(&self, platform: &dyn Platform, lines: &[u8]) -> Interrupts {
        let vectors: Option<Vec<Vector>> =
            lines.iter().map(|line| platform.line_interrupt(*line, Trigger::Edge)).collect();
        self.let_line_interrupt(true);
        match vectors {
            Some(vectors) => self.note(Kind::Isa, vectors),
            None => self.note(Kind::Polled, Vec::new()),
        }
    }

    fn note(&self, kind: Kind, vectors: Vec<Vector>) -> Interrupts {
        let count = vectors.len();
        *self.state.lock() = State { kind, vectors };
        Interrupts { kind, count }
    }

    /// How it interrupts.
    pub fn interrupt_kind(&self) -> Kind {
        self.state.lock().kind
    }

    /// The vectors that its interrupts come on, by source.
    pub fn vectors(&self) -> Vec<Vector> {
        self.state.lock().vectors.clone()
    }

    /// Has it neither access memory nor interrupt any more, in whatever way: where a driver could not start it.
    pub fn stop(&self) {
        self.quiet();
        if let Some(capability) = self.capability(MSI_X) {
            self.change_control(capability, MSI_X_ENABLED, 0);
        }
        if let Some(capability) = self.capability(MSI) {
            self.change_control(capability, MSI_ENABLED, 0);
        }
    }

    /// Changes bits in the first register of a capability, whose lower half cannot be written.
    fn change_control(&self, capability: Capability, clear: u32, set: u32) {
        let before = self.read(capability.offset);
        self.write(capability.offset, before & !clear | set);
    }

    /// Programs the table of messages (PCI Local Bus 3.0, 6.8.2).
    fn start_msi_x(
        &self,
        platform: &dyn Platform,
        capability: Capability,
        cores: &[usize],
    ) -> Option<(Kind, Vec<Vector>)> {
        /// A table entry has four registers: the address in two, the data, and whether it is masked.
        const ENTRY: usize = 16;

        let control = self.read(capability.offset);
        let entries = (control >> 16 & 0x7ff) as usize;
        let wanted = cores.len().min(entries.saturating_add(1));
        let place = self.read(capability.offset.checked_add(4)?);
        let bar = self.bar((place & 7) as u8)?;
        let (offset, len) = (u64::from(place & !7), wanted.checked_mul(ENTRY)? as u64);
        if offset.checked_add(len)? > bar.len {
            return None;
        }
        let region = Region { start: bar.start.checked_add(offset)?, len, ..bar };
        let table = platform.registers(region)?;
        let messages: Vec<(Vector, Message)> =
            cores.iter().take(wanted).map_while(|core| platform.message_interrupt(*core)).collect();
        if messages.is_empty() {
            return None;
        }
        // The table may only be written while it can be reached; nothing comes of it before all is in place.
        self.decode();
        self.change_control(capability, 0, MSI_X_ENABLED | MSI_X_MASKED);
        for (index, (_, message)) in messages.iter().enumerate() {
            let at = index.saturating_mul(ENTRY);
            table.write_u32(at, message.address as u32);
            table.write_u32(at.saturating_add(4), (message.address >> 32) as u32);
            table.write_u32(at.saturating_add(8), message.data);
            table.write_u32(at.saturating_add(12), 0);
        }
        self.change_control(capability, MSI_X_MASKED, MSI_X_ENABLED);
        // A device that is gone takes nothing.
        let taken = self.read(capability.offset) & (MSI_X_ENABLED | MSI_X_MASKED) == MSI_X_ENABLED;
        taken.then(|| (Kind::MsiX, messages.iter().map(|(vector, _)| *vector).collect()))
    }

    /// Programs one message (PCI Local Bus 3.0, 6.8.1).
    fn start_msi(
        &self,
        platform: &dyn Platform,
        capability: Capability,
        cores: &[usize],
    ) -> Option<(Kind, Vec<Vector>)> {
        /// In the control register: how many messages are on, and that addresses have 64 bits and messages masks.
        const COUNT: u32 = 0b111 << 20;
        const WIDE: u32 = 1 << 23;
        const MASKS: u32 = 1 << 24;

        let control = self.read(capability.offset);
        let (vector, message) = platform.message_interrupt(*cores.first()?)?;
        let at = |offset: u16| capability.offset.saturating_add(offset);
        self.write(at(4), message.address as u32);
        let data = if control & WIDE != 0 {
            self.write(at(8), (message.address >> 32) as u32);
            at(12)
        } else {
            at(8)
        };
        // The upper half is reserved, or extended data that nobody switched on.
        self.write(data, message.data & 0xffff);
        if control & MASKS != 0 {
            self.write(data.saturating_add(4), 0);
        }
        self.change_control(capability, COUNT, MSI_ENABLED);
        let taken = self.read(capability.offset) & MSI_ENABLED != 0;
        (taken && self.read(at(4)) == message.address as u32).then(|| (Kind::Msi, [vector].into()))
    }
}

/// In the control registers, which are the upper halves of the capabilities' first.
const MSI_ENABLED: u32 = 1 << 16;
const MSI_X_MASKED: u32 = 1 << 30;
const MSI_X_ENABLED: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::super::access::ConfigAccess;
    use super::super::fake::{Configuration, FakeFunction, at};
    use super::*;
    use crate::platform::{Registers, Space};
    use crate::testing::{FakePlatform, RegisterFile};
    use alloc::sync::Arc;

    /// The only function of a machine.
    fn only(function: FakeFunction) -> (Arc<Configuration>, Function) {
        let configuration = Configuration::new();
        configuration.add(at(0, 1, 0), function.command(0x0007));
        let access: Arc<dyn ConfigAccess> = configuration.clone();
        let function = Function::find(&access, at(0, 1, 0)).unwrap();
        function.quiet();
        (configuration, function)
    }

    fn disk() -> FakeFunction {
        FakeFunction::device(0x1af4, 0x1042, [0x01, 0x00, 0x00])
    }

    /// One with three messages, whose table lies behind 0x2000 at BAR 1.
    fn with_msi_x() -> FakeFunction {
        disk()
            .bar(1, 0xfebd_0000, 0xffff_c000)
            .capability(0x40, MSI, 0x60)
            .capability(0x60, MSI_X, 0)
            .word(0x64, 0x2000 | 1)
            .control(0x60, 2)
    }

    fn table(platform: &FakePlatform) -> Arc<RegisterFile> {
        let table = RegisterFile::new(48);
        platform.put(Region { space: Space::Memory, start: 0xfebd_2000, len: 48 }, table.clone());
        table
    }

    #[test]
    fn messages_go_to_the_cores_that_were_asked_for() {
        let platform = FakePlatform::new();
        let table = table(&platform);
        let (configuration, function) = only(with_msi_x());
        let interrupts = function.start_interrupts(&*platform, &[0, 1, 2, 3]);
        assert_eq!(interrupts, Interrupts { kind: Kind::MsiX, count: 3 });
        let vector = |core, number| Vector { core, number };
        assert_eq!(function.vectors(), [vector(0, 0x50), vector(1, 0x51), vector(2, 0x52)]);
        for core in 0..3 {
            let words: Vec<u32> = (0..4).map(|word| table.read_u32(core * 16 + word * 4)).collect();
            assert_eq!(words, [0xfee0_0000 + ((core as u32) << 12), 0, 0x50 + core as u32, 0]);
        }
        assert_eq!(configuration.word(at(0, 1, 0), 0x60) >> 30, 0b10, "on, and not masked");
        assert_eq!(configuration.command(at(0, 1, 0)), 0x0403, "no line");
        function.stop();
        assert_eq!(configuration.word(at(0, 1, 0), 0x60) >> 31, 0);
        assert_eq!(configuration.command(at(0, 1, 0)), 0x0403);
    }

    #[test]
    fn a_table_out_of_bounds_leaves_one_message() {
        let platform = FakePlatform::new();
        let (configuration, function) = only(with_msi_x().word(0x64, 0x4000 | 1).control(0x40, 0x80));
        let interrupts = function.start_interrupts(&*platform, &[0, 1]);
        assert_eq!(interrupts, Interrupts { kind: Kind::Msi, count: 1 });
        let words: Vec<u32> = (0..4).map(|word| configuration.word(at(0, 1, 0), 0x40 + word * 4)).collect();
        assert_eq!(words[1..], [0xfee0_0000, 0, 0x50]);
        assert_eq!(words[0] >> 16, 0x81);
    }

    #[test]
    fn a_line_is_used_where_there_are_no_messages() {
        let platform = FakePlatform::new();
        let (configuration, function) = only(disk().word(0x3c, 0x010b));
        let interrupts = function.start_interrupts(&*platform, &[0, 1]);
        assert_eq!(interrupts, Interrupts { kind: Kind::Line(11), count: 1 });
        assert_eq!(function.vectors(), [Vector { core: 0, number: 0x3b }]);
        assert_eq!(configuration.command(at(0, 1, 0)) & 0x400, 0, "it may raise its line");
    }

    #[test]
    fn a_line_that_nobody_knows_is_not_waited_for() {
        let platform = FakePlatform::new();
        let (configuration, function) = only(disk().word(0x3c, 0x01ff));
        let interrupts = function.start_interrupts(&*platform, &[0]);
        assert_eq!(interrupts, Interrupts { kind: Kind::Polled, count: 0 });
        assert_eq!(configuration.command(at(0, 1, 0)) & 0x400, 0x400);
    }

    #[test]
    fn a_device_that_is_gone_is_polled() {
        let platform = FakePlatform::new();
        table(&platform);
        let (configuration, function) = only(with_msi_x());
        configuration.remove(at(0, 1, 0));
        assert_eq!(function.start_interrupts(&*platform, &[0]).kind, Kind::Polled);
    }
}
