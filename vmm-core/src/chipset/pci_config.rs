//! One PCI function's configuration space: 256 bytes of which the guest may change some.

use crate::cpu::Width;

const BYTES: usize = 256;

/// Configuration register offsets of a type 0 header (PCI 3.0, 6.1).
pub(super) mod register {
    pub const VENDOR: u8 = 0x00;
    pub const DEVICE: u8 = 0x02;
    pub const COMMAND: u8 = 0x04;
    pub const STATUS: u8 = 0x06;
    pub const REVISION: u8 = 0x08;
    pub const CLASS: u8 = 0x09;
    pub const HEADER_TYPE: u8 = 0x0e;
    pub const FIRST_BAR: u8 = 0x10;
    pub const SUBSYSTEM_VENDOR: u8 = 0x2c;
    pub const SUBSYSTEM: u8 = 0x2e;
    pub const CAPABILITIES: u8 = 0x34;
    pub const INTERRUPT_LINE: u8 = 0x3c;
    pub const INTERRUPT_PIN: u8 = 0x3d;
    pub const FIRST_CAPABILITY: u8 = 0x40;
}

const COMMAND_MEMORY: u8 = 1 << 1;
/// I/O, memory, bus master; INTx disable in the upper byte.
const COMMAND_WRITABLE: u16 = 1 << 10 | 0b111;
const STATUS_CAPABILITIES: u8 = 1 << 4;

const MULTI_FUNCTION: u8 = 1 << 7;

const BAR_64_BIT: u32 = 0b100;
const BAR_PREFETCHABLE: u32 = 0b1000;

/// Which function answers: bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress(u16);

impl PciAddress {
    /// The function at `bus`, `device` (0 to 31) and `function` (0 to 7); larger numbers wrap.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 0x1f) << 3 | function as u16 & 7)
    }

    /// Its device number.
    pub(super) const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 0x1f
    }

    /// The function whose configuration lies `offset` bytes into the ECAM window.
    pub(super) const fn from_ecam(offset: u64) -> Self {
        Self((offset >> 12) as u16)
    }

    /// The function that the configuration address register names.
    pub(super) const fn from_register(value: u32) -> Self {
        Self((value >> 8) as u16)
    }
}

impl core::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.0 >> 8, self.0 >> 3 & 0x1f, self.0 & 7)
    }
}

/// Who made a function and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciIdentity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class, subclass, programming interface: 0x0c_03_30 is an xHCI controller.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// A memory window a function asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarLayout {
    /// A power of two, at least 16.
    pub bytes: u64,
    /// Whether it may lie above 4 GiB, and so takes two BARs.
    pub wide: bool,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

/// A function's device-specific part does not fit its configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciConfigError {
    /// A BAR's number is above 5, taken, or its size is not a power of two of at least 16 bytes that the
    /// BAR's width can address.
    Bar(u8),
    /// A capability of so many bytes, with its two-byte header, is more than what is left.
    Capability(usize),
}

impl core::fmt::Display for PciConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Bar(n) => write!(
                f,
                "PCI BAR {n}: expected an unused one of 0 to 5 and a power of two of at least 16 bytes"
            ),
            Self::Capability(bytes) => {
                write!(f, "PCI capability of {bytes} bytes: the 256 bytes of configuration space are full")
            }
        }
    }
}

impl core::error::Error for PciConfigError {}

/// A function's configuration space, with a type 0 header.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    bars: [Option<BarLayout>; 6],
    /// Where the next capability goes, and the pointer that will name it.
    next_capability: u8,
    last_pointer: u8,
}

impl ConfigSpace {
    /// A function without BARs, capabilities or an interrupt.
    pub fn new(identity: PciIdentity) -> Self {
        let mut space = Self {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            bars: [None; 6],
            next_capability: register::FIRST_CAPABILITY,
            last_pointer: register::CAPABILITIES,
        };
        let [interface, subclass, class, _] = identity.class.to_le_bytes();
        space.set(register::VENDOR, &identity.vendor.to_le_bytes());
        space.set(register::DEVICE, &identity.device.to_le_bytes());
        space.set(register::REVISION, &[identity.revision]);
        space.set(register::CLASS, &[interface, subclass, class]);
        space.set(register::SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        space.set(register::SUBSYSTEM, &identity.subsystem.to_le_bytes());
        space.allow(register::COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(register::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Says that the device has other functions beside this one, which is function 0.
    #[must_use]
    pub fn multi_function(mut self) -> Self {
        self.set(register::HEADER_TYPE, &[MULTI_FUNCTION]);
        self
    }

    /// Gives the function an interrupt pin: 1 for INTA# to 4 for INTD#.
    #[must_use]
    pub fn with_interrupt_pin(mut self, pin: u8) -> Self {
        self.set(register::INTERRUPT_PIN, &[pin]);
        self
    }

    /// Adds BAR `n`, and `n` + 1 when it is wide.
    ///
    /// # Errors
    /// When the BAR is not to be had or its size is not possible.
    pub fn add_bar(&mut self, n: u8, layout: BarLayout) -> Result<(), PciConfigError> {
        let limit = if layout.wide { 1 << 63 } else { 1 << 31 };
        let last = if layout.wide { n.saturating_add(1) } else { n };
        let free = last < 6 && !self.bar_is_taken(n) && !self.bar_is_taken(last);
        if !free || !layout.bytes.is_power_of_two() || !(16..=limit).contains(&layout.bytes) {
            return Err(PciConfigError::Bar(n));
        }
        let at = bar_register(n);
        let address_bits = layout.bytes.wrapping_neg();
        let flags =
            if layout.wide { BAR_64_BIT } else { 0 } | if layout.prefetchable { BAR_PREFETCHABLE } else { 0 };
        self.set(at, &flags.to_le_bytes());
        self.allow(at, &(address_bits as u32).to_le_bytes());
        if layout.wide {
            self.allow(bar_register(last), &((address_bits >> 32) as u32).to_le_bytes());
        }
        if let Some(bar) = self.bars.get_mut(usize::from(n)) {
            *bar = Some(layout);
        }
        Ok(())
    }

    /// Adds the capability `id` with `body` behind its two-byte header, of which the guest may change the
    /// bits in `writable`. Returns the offset of its header.
    ///
    /// # Errors
    /// When there is no room left.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, PciConfigError> {
        let at = self.next_capability;
        let full = || PciConfigError::Capability(body.len());
        let end = usize::from(at).saturating_add(body.len()).saturating_add(2);
        // Capabilities are dword-aligned; an offset of zero means that nothing more fits.
        if at == 0 || end > BYTES {
            return Err(full());
        }
        self.set(at, &[id, 0]);
        self.set(at.wrapping_add(2), body);
        self.allow(at.wrapping_add(2), writable.get(..body.len()).unwrap_or(writable));
        self.set(self.last_pointer, &[at]);
        let [status] = self.get(register::STATUS);
        self.set(register::STATUS, &[status | STATUS_CAPABILITIES]);
        self.last_pointer = at.wrapping_add(1);
        self.next_capability = u8::try_from(end.next_multiple_of(4)).unwrap_or(0);
        Ok(at)
    }

    /// Sets bytes from `at` on, whatever the guest may do with them; those past the end are dropped.
    pub fn set(&mut self, at: u8, bytes: &[u8]) {
        for (byte, new) in self.bytes.iter_mut().skip(usize::from(at)).zip(bytes) {
            *byte = *new;
        }
    }

    /// Lets the guest change the bits that are set in `bits`, from byte `at` on.
    pub fn allow(&mut self, at: u8, bits: &[u8]) {
        for (mask, new) in self.writable.iter_mut().skip(usize::from(at)).zip(bits) {
            *mask = *new;
        }
    }

    /// The bytes from `at` on; those past the end read zero.
    pub fn get<const N: usize>(&self, at: u8) -> [u8; N] {
        let mut bytes = [0; N];
        for (byte, stored) in bytes.iter_mut().zip(self.bytes.iter().skip(usize::from(at))) {
            *byte = *stored;
        }
        bytes
    }

    /// Puts BAR `n` to `base`, as firmware does, and switches memory on.
    pub(super) fn place_bar(&mut self, n: u8, base: u32) {
        let at = bar_register(n);
        let flags = u32::from_le_bytes(self.get(at));
        self.set(at, &(flags | base).to_le_bytes());
        let [command] = self.get(register::COMMAND);
        self.set(register::COMMAND, &[command | COMMAND_MEMORY]);
    }

    /// What BAR `n` asks for, wherever it is; `None` where there is no such BAR.
    pub(super) fn bar_layout(&self, n: u8) -> Option<BarLayout> {
        *self.bars.get(usize::from(n))?
    }

    /// Where BAR `n` answers: `None` while the function's memory is off or there is no such BAR.
    pub fn bar(&self, n: u8) -> Option<(u64, BarLayout)> {
        let layout = (*self.bars.get(usize::from(n))?)?;
        let [command] = self.get(register::COMMAND);
        if command & COMMAND_MEMORY == 0 {
            return None;
        }
        let register = if layout.wide {
            u64::from_le_bytes(self.get(bar_register(n)))
        } else {
            u64::from(u32::from_le_bytes(self.get(bar_register(n))))
        };
        Some((register & layout.bytes.wrapping_neg(), layout))
    }

    /// Whether a write at `offset` may have moved a BAR, or switched memory on or off.
    pub(super) const fn moves_bars(offset: u16, width: Width) -> bool {
        let end = offset.wrapping_add(width.bytes() as u16);
        offset < 0x06 && end > 0x04 || offset < 0x28 && end > 0x10
    }

    /// What the guest reads at `offset`. There is no extended configuration space: all ones past 255.
    pub(super) fn read(&self, offset: u16, width: Width) -> u32 {
        let Ok(at) = u8::try_from(offset) else { return width.mask() as u32 };
        u32::from_le_bytes(self.get(at)) & width.mask() as u32
    }

    /// What the guest writes at `offset`, as far as it may.
    pub(super) fn write(&mut self, offset: u16, width: Width, value: u32) {
        let stored = self.bytes.iter_mut().zip(&self.writable).skip(usize::from(offset));
        let bytes = value.to_le_bytes().into_iter().take(width.bytes() as usize);
        for ((byte, writable), new) in stored.zip(bytes) {
            *byte = *byte & !writable | new & writable;
        }
    }

    fn bar_is_taken(&self, n: u8) -> bool {
        let bar = |n: u8| self.bars.get(usize::from(n)).copied().flatten();
        let upper_half = n.checked_sub(1).and_then(bar).is_some_and(|below| below.wide);
        bar(n).is_some() || upper_half
    }
}

const fn bar_register(n: u8) -> u8 {
    register::FIRST_BAR.wrapping_add(n.wrapping_mul(4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(PciIdentity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_00_02,
            revision: 1,
            subsystem_vendor: 0x1234,
            subsystem: 0x5678,
        })
    }

    #[test]
    fn the_header_says_who_it_is() {
        let space = space().multi_function().with_interrupt_pin(1);
        assert_eq!(space.read(0x00, Width::Dword), 0x1042_1af4);
        assert_eq!(space.read(0x08, Width::Dword), 0x0100_0201);
        assert_eq!(space.read(0x0e, Width::Byte), 0x80);
        assert_eq!(space.read(0x2c, Width::Dword), 0x5678_1234);
        assert_eq!(space.read(0x3d, Width::Byte), 1);
        assert_eq!(space.read(0x100, Width::Dword), 0xffff_ffff);
        assert_eq!(space.read(0xff, Width::Dword), 0, "past the end");
    }

    #[test]
    fn bars_tell_their_size_and_place() {
        let mut space = space();
        let small = BarLayout { bytes: 0x1000, wide: false, prefetchable: false };
        let large = BarLayout { bytes: 1 << 33, wide: true, prefetchable: true };
        space.add_bar(0, small).unwrap();
        space.add_bar(4, large).unwrap();
        for (n, layout) in [(0, small), (5, small), (5, large), (6, small), (1, large)] {
            let expected = if n == 1 { Ok(()) } else { Err(PciConfigError::Bar(n)) };
            assert_eq!(space.add_bar(n, layout), expected, "BAR {n}");
        }
        assert!(space.add_bar(3, BarLayout { bytes: 24, ..small }).is_err());
        assert!(space.add_bar(3, BarLayout { bytes: 1 << 32, ..small }).is_err());

        for offset in [0x10, 0x20, 0x24] {
            space.write(offset, Width::Dword, u32::MAX);
        }
        assert_eq!(space.read(0x10, Width::Dword), 0xffff_f000);
        assert_eq!(space.read(0x20, Width::Dword), 0x0000_000c);
        assert_eq!(space.read(0x24, Width::Dword), 0xffff_fffe);
        space.write(0x10, Width::Dword, 0xc000_0123);
        space.write(0x24, Width::Dword, 0x0000_0010);
        assert_eq!(space.bar(0), None, "memory is off");
        space.write(0x04, Width::Word, 0xffff);
        assert_eq!(space.read(0x04, Width::Word), 0x0407);
        assert_eq!(space.bar(0), Some((0xc000_0000, small)));
        assert_eq!(space.bar(4), Some((0x10_0000_0000, large)));
        assert_eq!(space.bar(5), None);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        assert_eq!(space.read(0x06, Width::Word), 0);
        let first = space.add_capability(0x11, &[0x03, 0, 1, 2, 3], &[0, 0xc0]).unwrap();
        let second = space.add_capability(0x09, &[0x10], &[]).unwrap();
        assert_eq!(space.read(0x34, Width::Byte), u32::from(first));
        assert_eq!(space.read(u16::from(first), Width::Word), u32::from(second) << 8 | 0x11);
        assert_eq!(space.read(u16::from(second), Width::Dword), 0x0010_0009);
        assert_eq!(space.read(0x06, Width::Word), 0x10);
        assert_eq!(second % 4, 0);
        space.write(u16::from(first) + 2, Width::Word, 0xffff);
        assert_eq!(space.read(u16::from(first) + 2, Width::Word), 0xc003);
        assert_eq!(space.add_capability(1, &[0; 200], &[]), Err(PciConfigError::Capability(200)));
        let rest = 256 - usize::from(second) - 4 - 2;
        space.add_capability(1, &vec![0; rest], &[]).unwrap();
        assert_eq!(space.add_capability(1, &[], &[]), Err(PciConfigError::Capability(0)));
    }

    proptest! {
        #[test]
        fn only_writable_bits_change(
            writes in prop::collection::vec((0u16..0x110, 0u32..3, any::<u32>()), 0..100),
        ) {
            let mut space = space();
            space.add_bar(0, BarLayout { bytes: 64, wide: true, prefetchable: false }).unwrap();
            let before = space.clone();
            for (offset, width, value) in writes {
                let width = Width::from_bytes(1 << width).unwrap();
                space.write(offset, width, value);
                prop_assert_eq!(u64::from(space.read(offset, width)) & !width.mask(), 0);
                space.bar(0);
            }
            for n in 0..BYTES {
                prop_assert_eq!((space.bytes[n] ^ before.bytes[n]) & !space.writable[n], 0);
            }
        }
    }
}
