//! Ways to configuration space.

use crate::platform::Registers;
use alloc::sync::Arc;
use core::fmt;
use core::ops::RangeInclusive;
use spin::Mutex;

/// A function's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The segment group: which of several sets of buses.
    pub segment: u16,
    /// The bus.
    pub bus: u8,
    /// The device on it, 0 to 31.
    pub device: u8,
    /// The device's function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segment != 0 {
            write!(f, "{:04x}:", self.segment)?;
        }
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// A way to the configuration space of one segment's functions.
pub trait ConfigAccess: Send + Sync {
    /// The segment group.
    fn segment(&self) -> u16;
    /// The buses that can be reached.
    fn buses(&self) -> RangeInclusive<u8>;
    /// Reads the register of 32 bits at `offset`, a multiple of 4; all ones where nothing is, or out of reach.
    fn read(&self, at: Address, offset: u16) -> u32;
    /// Writes it.
    fn write(&self, at: Address, offset: u16, value: u32);
}

/// Configuration space in memory, 4 KiB a function (PCI Express 5.0, 7.2.2).
pub struct Ecam {
    segment: u16,
    buses: RangeInclusive<u8>,
    window: Arc<dyn Registers>,
}

impl Ecam {
    /// How many bytes of the window a bus has.
    pub const BUS: u64 = 1 << 20;

    /// By a window that begins with the first of `buses`.
    pub fn new(segment: u16, buses: RangeInclusive<u8>, window: Arc<dyn Registers>) -> Self {
        Self { segment, buses, window }
    }

    /// Where a register is in the window.
    fn place(&self, at: Address, offset: u16) -> Option<usize> {
        let bus = at.bus.checked_sub(*self.buses.start()).filter(|_| self.buses.contains(&at.bus))?;
        let inside = offset < 0x1000 && at.device < 32 && at.function < 8 && at.segment == self.segment;
        inside.then_some(
            usize::from(bus) << 20
                | usize::from(at.device) << 15
                | usize::from(at.function) << 12
                | usize::from(offset),
        )
    }
}

impl ConfigAccess for Ecam {
    fn segment(&self) -> u16 {
        self.segment
    }

    fn buses(&self) -> RangeInclusive<u8> {
        self.buses.clone()
    }

    fn read(&self, at: Address, offset: u16) -> u32 {
        self.place(at, offset).map_or(u32::MAX, |place| self.window.read_u32(place))
    }

    fn write(&self, at: Address, offset: u16, value: u32) {
        if let Some(place) = self.place(at, offset) {
            self.window.write_u32(place, value);
        }
    }
}

/// Configuration space by the ports 0xcf8 and 0xcfc: 256 bytes a function (PCI Local Bus 3.0, 3.2.2.3.2).
pub struct Ports {
    /// Addressing and accessing are two steps.
    ports: Mutex<Arc<dyn Registers>>,
}

impl Ports {
    /// The first port and how many there are.
    pub const PORTS: (u64, u64) = (0xcf8, 8);
    const ADDRESS: usize = 0;
    const DATA: usize = 4;
    /// In the address: the data port is configuration space.
    const ENABLED: u32 = 1 << 31;

    /// By these eight ports.
    pub fn new(ports: Arc<dyn Registers>) -> Self {
        Self { ports: Mutex::new(ports) }
    }

    /// What the address port is to say.
    fn selector(at: Address, offset: u16) -> Option<u32> {
        let inside = offset < 0x100 && at.device < 32 && at.function < 8 && at.segment == 0;
        inside.then_some(
            Self::ENABLED
                | u32::from(at.bus) << 16
                | u32::from(at.device) << 11
                | u32::from(at.function) << 8
                | u32::from(offset & !3),
        )
    }
}

impl ConfigAccess for Ports {
    fn segment(&self) -> u16 {
        0
    }

    fn buses(&self) -> RangeInclusive<u8> {
        0..=255
    }

    fn read(&self, at: Address, offset: u16) -> u32 {
        let Some(selector) = Self::selector(at, offset) else { return u32::MAX };
        let ports = self.ports.lock();
        ports.write_u32(Self::ADDRESS, selector);
        ports.read_u32(Self::DATA)
    }

    fn write(&self, at: Address, offset: u16, value: u32) {
        let Some(selector) = Self::selector(at, offset) else { return };
        let ports = self.ports.lock();
        ports.write_u32(Self::ADDRESS, selector);
        ports.write_u32(Self::DATA, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::RegisterFile;

    fn at(bus: u8, device: u8, function: u8) -> Address {
        Address { segment: 0, bus, device, function }
    }

    #[test]
    fn a_window_has_a_page_for_each_function() {
        let window = RegisterFile::new(2 << 20);
        window.write_u32((1 << 20) + (3 << 15) + (2 << 12) + 0x104, 0x1234_5678);
        let ecam = Ecam::new(0, 4..=5, window);
        assert_eq!(ecam.read(at(5, 3, 2), 0x104), 0x1234_5678);
        assert_eq!(ecam.read(at(3, 3, 2), 0x104), u32::MAX, "a bus below the window");
        assert_eq!(ecam.read(at(6, 3, 2), 0x104), u32::MAX, "a bus behind the window");
        assert_eq!(ecam.read(at(5, 3, 2), 0x1104), u32::MAX, "a register of the next function");
        assert_eq!(ecam.read(Address { segment: 1, ..at(5, 3, 2) }, 0x104), u32::MAX);
    }

    #[test]
    fn ports_are_told_the_place_first() {
        let ports = RegisterFile::new(8);
        ports.write_u32(4, 0xcafe);
        let access = Ports::new(ports.clone());
        assert_eq!(access.read(at(1, 2, 3), 0x40), 0xcafe);
        assert_eq!(ports.read_u32(0), 0x8001_1340);
        access.write(at(0, 31, 0), 0xfc, 7);
        assert_eq!((ports.read_u32(0), ports.read_u32(4)), (0x8000_f8fc, 7));
        assert_eq!(access.read(at(0, 0, 0), 0x100), u32::MAX, "extended space is not reached by ports");
    }
}
