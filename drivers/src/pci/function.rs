//! A function: who it is, where its registers are, and what it may do.

use super::access::{Address, ConfigAccess};
use super::class::Class;
use super::interrupts::State;
use crate::driver::Error;
use crate::platform::{Platform, Region, Registers, Space};
use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::Mutex;

/// Registers of all functions, and the first of a device's base address registers (PCI Local Bus 3.0, 6.1).
mod register {
    pub const IDENTITY: u16 = 0x00;
    pub const COMMAND: u16 = 0x04;
    pub const CLASS: u16 = 0x08;
    pub const HEADER: u16 = 0x0c;
    pub const BARS: u16 = 0x10;
    pub const BUSES: u16 = 0x18;
    pub const SUBSYSTEM: u16 = 0x2c;
    pub const CAPABILITIES: u16 = 0x34;
    pub const INTERRUPT: u16 = 0x3c;
}

/// Bits of the command register, and of the status register in its upper half.
mod command {
    pub const PORTS: u32 = 1 << 0;
    pub const MEMORY: u32 = 1 << 1;
    pub const BUS_MASTER: u32 = 1 << 2;
    pub const NO_LINE_INTERRUPT: u32 = 1 << 10;
    pub const HAS_CAPABILITIES: u32 = 1 << 20;
    /// Writing ones to the status register clears its bits.
    pub const ALL: u32 = 0xffff;
}

/// More capabilities than this do not fit into 192 bytes, 4 bytes each.
const MOST_CAPABILITIES: usize = 48;
/// Where capabilities begin.
const FIRST_CAPABILITY: u16 = 0x40;
/// The PCI Express capability, and the types of port in bits 20 to 23 of it that a link begins at: a root's, and a
/// switch's downward ones (PCI Express 5.0, 7.5.3.2).
const EXPRESS: u8 = 0x10;
const ROOT_PORT: u32 = 4;
const DOWNSTREAM_PORT: u32 = 6;

/// What a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The maker.
    pub vendor: u16,
    /// The maker's number for it.
    pub device: u16,
    /// The maker and number of the card or board; zero for bridges.
    pub subsystem: (u16, u16),
    /// Its revision.
    pub revision: u8,
    /// Its class.
    pub class: Class,
}

/// A capability's number, and where it lies in configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its number.
    pub id: u8,
    /// The offset of its first register, a multiple of 4.
    pub offset: u16,
}

/// What kind of header a function has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    Device,
    Bridge { secondary: u8 },
    Other,
}

/// A function of a device on PCI.
pub struct Function {
    config: Arc<dyn ConfigAccess>,
    address: Address,
    identity: Identity,
    header: Header,
    multi: bool,
    /// Registers are changed by reading and writing; and what became of its interrupts.
    pub(super) state: Mutex<State>,
}

impl Function {
    /// The function at `at`, if there is one.
    pub(super) fn find(config: &Arc<dyn ConfigAccess>, at: Address) -> Option<Self> {
        let read = |offset| config.read(at, offset);
        let identity = read(register::IDENTITY);
        // All ones: nobody answered. Zero: some bridges say so while a device starts.
        if identity & 0xffff == 0xffff || identity == 0 {
            return None;
        }
        let [revision, interface, sub, base] = read(register::CLASS).to_le_bytes();
        let kind = (read(register::HEADER) >> 16) as u8;
        let (header, subsystem) = match kind & 0x7f {
            0 => (Header::Device, read(register::SUBSYSTEM)),
            1 => (Header::Bridge { secondary: (read(register::BUSES) >> 8) as u8 }, 0),
            _ => (Header::Other, 0),
        };
        let halves = |word: u32| (word as u16, (word >> 16) as u16);
        let (vendor, device) = halves(identity);
        let class = Class { base, sub, interface };
        Some(Self {
            config: Arc::clone(config),
            address: at,
            identity: Identity { vendor, device, subsystem: halves(subsystem), revision, class },
            header,
            multi: kind & 0x80 != 0,
            state: Mutex::default(),
        })
    }

    /// Where it is.
    pub const fn address(&self) -> Address {
        self.address
    }

    /// What it is.
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// The device may have more functions.
    pub(super) const fn has_more(&self) -> bool {
        self.multi
    }

    /// The bus behind it, for a bridge.
    pub(super) const fn bridge_to(&self) -> Option<u8> {
        match self.header {
            Header::Bridge { secondary } => Some(secondary),
            _ => None,
        }
    }

    /// Whether one device at most is behind this bridge, as at the end of a link of PCI Express.
    pub(super) fn is_link(&self) -> bool {
        self.capability(EXPRESS).is_some_and(|capability| {
            let port = self.read(capability.offset) >> 20 & 0xf;
            port == ROOT_PORT || port == DOWNSTREAM_PORT
        })
    }

    /// The register of 32 bits at `offset`, a multiple of 4; ones where the device is gone.
    pub fn read(&self, offset: u16) -> u32 {
        self.config.read(self.address, offset)
    }

    /// Writes it.
    pub fn write(&self, offset: u16, value: u32) {
        self.config.write(self.address, offset, value);
    }

    /// Changes bits of the command register.
    fn command(&self, clear: u32, set: u32) {
        let before = self.read(register::COMMAND) & command::ALL;
        let after = before & !clear | set;
        if after != before {
            self.write(register::COMMAND, after);
        }
    }

    /// Has it neither write nor read memory, nor raise a line: what a device is that no driver owns. Bridges
    /// stay as they are, for others' memory accesses go through them.
    pub fn quiet(&self) {
        if self.header == Header::Device {
            self.command(command::BUS_MASTER, command::NO_LINE_INTERRUPT);
        }
    }

    /// Lets it answer at its addresses and ports.
    pub fn decode(&self) {
        self.command(0, command::PORTS | command::MEMORY);
    }

    /// Lets it read and write memory too, which interrupting by messages is. To be called once the device was reset:
    /// what it was at before it may have left in the middle.
    pub fn enable(&self) {
        self.command(0, command::PORTS | command::MEMORY | command::BUS_MASTER);
    }

    /// Whether it may raise its interrupt line.
    pub(super) fn let_line_interrupt(&self, may: bool) {
        let bit = command::NO_LINE_INTERRUPT;
        if may { self.command(bit, 0) } else { self.command(0, bit) }
    }

    /// The number that firmware left of where its interrupt line leads, if it has one.
    pub fn interrupt_line(&self) -> Option<u8> {
        let [line, pin, ..] = self.read(register::INTERRUPT).to_le_bytes();
        ((1..=4).contains(&pin) && line != 0xff && line != 0).then_some(line)
    }

    /// Its capabilities in the order of its list; a list that is no list ends where that shows.
    pub fn capabilities(&self) -> Vec<Capability> {
        let mut all: Vec<Capability> = Vec::new();
        if self.header == Header::Other || self.read(register::COMMAND) & command::HAS_CAPABILITIES == 0 {
            return all;
        }
        let mut next = self.read(register::CAPABILITIES) as u8;
        while all.len() < MOST_CAPABILITIES {
            let offset = u16::from(next & !3);
            if offset < FIRST_CAPABILITY || all.iter().any(|seen| seen.offset == offset) {
                break;
            }
            let [id, after, ..] = self.read(offset).to_le_bytes();
            if id == 0xff {
                break;
            }
            all.push(Capability { id, offset });
            next = after;
        }
        all
    }

    /// The first capability of this number.
    pub fn capability(&self, id: u8) -> Option<Capability> {
        self.capabilities().into_iter().find(|capability| capability.id == id)
    }

    /// Where the registers at base address register `number`, 0 to 5, are; `None` where there are none, or firmware
    /// gave them no address. Its size is found with the function's decoders off, so nobody may be using it
    /// meanwhile.
    pub fn bar(&self, number: u8) -> Option<Region> {
        /// In a base address register: it is of ports; 64-bit memory; what is not address.
        const PORTS: u32 = 1;
        const TYPE: u32 = 0b110;
        const WIDE: u32 = 0b100;
        const MEMORY_FLAGS: u32 = 0xf;
        const PORT_FLAGS: u32 = 0x3;

        if self.header != Header::Device || number > 5 {
            return None;
        }
        let _alone = self.state.lock();
        let offset = register::BARS.checked_add(u16::from(number).checked_mul(4)?)?;
        let low = self.read(offset);
        let (space, flags) =
            if low & PORTS != 0 { (Space::Ports, PORT_FLAGS) } else { (Space::Memory, MEMORY_FLAGS) };
        let upper =
            (space == Space::Memory && low & TYPE == WIDE && number < 5).then(|| offset.saturating_add(4));
        let high = upper.map_or(0, |upper| self.read(upper));

        let before = self.read(register::COMMAND) & command::ALL;
        self.write(register::COMMAND, before & !(command::PORTS | command::MEMORY));
        let low_size = self.measure(offset, low);
        // The upper half of one with 32 bits counts as address, so that its size has an end.
        let high_size = upper.map_or(u32::MAX, |upper| self.measure(upper, high));
        self.write(register::COMMAND, before);

        let start = u64::from(high) << 32 | u64::from(low & !flags);
        let mut mask = u64::from(high_size) << 32 | u64::from(low_size & !flags);
        if space == Space::Ports {
            // Devices may leave the upper half of a port's address out.
            mask |= 0xffff_0000;
        }
        let len = (!mask).checked_add(1)?;
        let end = start.checked_add(len)?;
        let limit = if space == Space::Ports { 1 << 16 } else { u64::MAX };
        let plausible = low_size & !flags != 0 || high_size != u32::MAX;
        (plausible && start != 0 && start.is_multiple_of(len) && end <= limit).then_some(Region {
            space,
            start,
            len,
        })
    }

    /// Which bits of a base address register stay as written.
    fn measure(&self, offset: u16, value: u32) -> u32 {
        self.write(offset, u32::MAX);
        let size = self.read(offset);
        self.write(offset, value);
        size
    }

    /// The registers at base address register `number`.
    ///
    /// # Errors
    /// [`Error::NoRegisters`].
    pub fn registers(&self, platform: &dyn Platform, number: u8) -> Result<Arc<dyn Registers>, Error> {
        self.bar(number).and_then(|region| platform.registers(region)).ok_or(Error::NoRegisters(number))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Configuration, FakeFunction, at};
    use super::*;

    fn only(function: FakeFunction) -> (Arc<Configuration>, Function) {
        let configuration = Configuration::new();
        configuration.add(at(0, 1, 0), function);
        let access: Arc<dyn ConfigAccess> = configuration.clone();
        let found = Function::find(&access, at(0, 1, 0)).unwrap();
        (configuration, found)
    }

    fn disk() -> FakeFunction {
        FakeFunction::device(0x1af4, 0x1042, [0x01, 0x00, 0x00])
    }

    #[test]
    fn base_addresses_are_firmwares_and_sizes_the_devices() {
        let (configuration, function) = only(
            disk()
                .command(0x0007)
                .bar(0, 0xc001, 0xffff_ff80)
                .bar(1, 0xfebd_1000, 0xffff_f000)
                .bar(2, 0x0000_000c, 0xffff_c000)
                .bar(3, 0x0000_0008, 0xffff_ffff)
                .bar(4, 0, 0xffff_f000),
        );
        assert_eq!(function.bar(0), Some(Region { space: Space::Ports, start: 0xc000, len: 0x80 }));
        assert_eq!(function.bar(1), Some(Region { space: Space::Memory, start: 0xfebd_1000, len: 0x1000 }));
        assert_eq!(function.bar(2), Some(Region { space: Space::Memory, start: 0x8_0000_0000, len: 0x4000 }));
        assert_eq!(function.bar(4), None, "no address was given");
        assert_eq!(function.bar(5), None, "it has none");
        assert_eq!(configuration.command(at(0, 1, 0)), 0x0007, "as before");
        assert_eq!(configuration.sized_while_decoding(), 0);
    }

    #[test]
    fn capabilities_are_listed_until_the_list_is_none() {
        let (_, function) =
            only(disk().capability(0x40, 0x11, 0x50).capability(0x50, 0x09, 0x60).capability(
                0x60, 0x09, 0x50, // back into the list
            ));
        let offsets: Vec<u16> = function.capabilities().iter().map(|capability| capability.offset).collect();
        assert_eq!(offsets, [0x40, 0x50, 0x60]);
        assert_eq!(function.capability(0x09), Some(Capability { id: 0x09, offset: 0x50 }));
        assert_eq!(function.capability(0x05), None);
    }

    #[test]
    fn a_device_that_is_gone_has_nothing() {
        let (configuration, function) =
            only(disk().bar(1, 0xfebd_1000, 0xffff_f000).capability(0x40, 0x11, 0));
        configuration.remove(at(0, 1, 0));
        assert_eq!(function.bar(1), None);
        assert_eq!(function.capabilities(), []);
        assert_eq!(function.interrupt_line(), None);
    }
}
