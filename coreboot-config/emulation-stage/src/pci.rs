//! PCI enumeration: bus numbers for bridges, bus addresses for every base address register.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// A function on a PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// Access to configuration space, in aligned 32-bit registers.
pub trait ConfigSpace {
    /// Reads the register at `offset`, all ones where no function answers.
    fn read(&mut self, function: Function, offset: u16) -> u32;
    /// Writes the register at `offset`.
    fn write(&mut self, function: Function, offset: u16, value: u32);
}

/// Identity of a function: vendor in the low half, device in the high half.
pub const VENDOR_DEVICE: u16 = 0x00;
const COMMAND: u16 = 0x04;
const COMMAND_IO: u32 = 1 << 0;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;
const CLASS: u16 = 0x08;
const HEADER: u16 = 0x0C;
const FIRST_BAR: u16 = 0x10;
const BUS_NUMBERS: u16 = 0x18;
const BRIDGE_IO: u16 = 0x1C;
const BRIDGE_MEMORY: u16 = 0x20;
const BRIDGE_PREFETCHABLE: u16 = 0x24;
const BRIDGE_PREFETCHABLE_BASE_HIGH: u16 = 0x28;
const BRIDGE_PREFETCHABLE_LIMIT_HIGH: u16 = 0x2C;
const BRIDGE_IO_HIGH: u16 = 0x30;
/// Interrupt line in bits 7:0, interrupt pin in bits 15:8 (1 = INTA#).
pub const INTERRUPT: u16 = 0x3C;
const ROM_BAR_DEVICE: u16 = 0x30;
const ROM_BAR_BRIDGE: u16 = 0x38;

/// A bridge forwards I/O in units of 4 KiB and memory in units of 1 MiB (PCI-to-PCI Bridge Specification 3.2.5).
const BRIDGE_IO_UNIT: u64 = 0x1000;
const BRIDGE_MEMORY_UNIT: u64 = 0x10_0000;
/// From this size on, a 64-bit BAR goes above 4 GiB: below, there is under 1 GiB for everybody.
const HIGH_FROM: u64 = 256 << 20;

/// Where an address is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Low,
    /// Memory above 4 GiB.
    High,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Space::Io => "I/O ports",
            Space::Low => "memory below 4 GiB",
            Space::High => "memory above 4 GiB",
        })
    }
}

/// The bus addresses that may be given out.
#[derive(Clone, Debug)]
pub struct Windows {
    /// I/O ports, within 64 KiB.
    pub io: Range<u64>,
    /// Memory below 4 GiB.
    pub low: Range<u64>,
    /// Memory above 4 GiB.
    pub high: Range<u64>,
}

impl Windows {
    fn of(&self, space: Space) -> &Range<u64> {
        match space {
            Space::Io => &self.io,
            Space::Low => &self.low,
            Space::High => &self.high,
        }
    }
}

/// A base address register, or the expansion ROM's.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Offset in configuration space.
    pub offset: u16,
    /// Bytes, a power of two.
    pub size: u64,
    /// Bus address; 0 until one is assigned.
    pub address: u64,
    space: Space,
    wide: bool,
}

/// A function that answered, and what lies behind it if it is a bridge.
#[derive(Clone, Debug)]
pub struct Device {
    /// Where it is.
    pub function: Function,
    /// Vendor in the low half, device in the high half.
    pub identity: u32,
    /// Class code, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Its base address registers.
    pub bars: Vec<Bar>,
    /// Functions on its secondary bus.
    pub children: Vec<Device>,
    bridge: bool,
}

/// Why devices could not be given addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfAddresses {
    /// What ran out.
    pub space: Space,
    /// Bytes asked for.
    pub wanted: u64,
    /// Bytes there are.
    pub available: u64,
}

impl fmt::Display for OutOfAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OutOfAddresses { space, wanted, available } = self;
        write!(f, "PCI devices want {wanted:#x} bytes of {space}, the machine has {available:#x}")
    }
}

/// Finds every function, gives bridges their bus numbers, and measures base address registers.
pub fn enumerate(config: &mut impl ConfigSpace) -> Vec<Device> {
    let mut last_bus = 0;
    scan_bus(config, 0, &mut last_bus)
}

fn scan_bus(config: &mut impl ConfigSpace, bus: u8, last_bus: &mut u8) -> Vec<Device> {
    let mut devices = Vec::new();
    for device in 0..32 {
        for function in 0..8 {
            let function = Function { bus, device, function };
            let identity = config.read(function, VENDOR_DEVICE);
            if identity == u32::MAX || identity == 0 {
                if function.function == 0 {
                    break;
                }
                continue;
            }
            let header = config.read(function, HEADER) >> 16 & 0xFF;
            devices.push(scan_function(config, function, identity, header & 0x7F == 1, last_bus));
            if function.function == 0 && header & 0x80 == 0 {
                break;
            }
        }
    }
    devices
}

fn scan_function(
    config: &mut impl ConfigSpace,
    function: Function,
    identity: u32,
    bridge: bool,
    last_bus: &mut u8,
) -> Device {
    // Addresses are measured by writing all ones: nothing may decode them meanwhile.
    let command = config.read(function, COMMAND) & 0xFFFF;
    config.write(function, COMMAND, command & !(COMMAND_IO | COMMAND_MEMORY));
    let (bars, rom) = if bridge { (2, ROM_BAR_BRIDGE) } else { (6, ROM_BAR_DEVICE) };
    let mut device = Device {
        function,
        identity,
        class: config.read(function, CLASS) >> 8,
        bars: measure_bars(config, function, bars),
        children: Vec::new(),
        bridge,
    };
    config.write(function, rom, 0xFFFF_F800);
    let mask = config.read(function, rom) & 0xFFFF_F800;
    config.write(function, rom, 0);
    if mask != 0 {
        let size = u64::from(mask.wrapping_neg());
        device.bars.push(Bar { offset: rom, size, address: 0, space: Space::Low, wide: false });
    }
    if bridge && *last_bus < u8::MAX {
        *last_bus += 1;
        let secondary = *last_bus;
        let numbers = u32::from(function.bus) | u32::from(secondary) << 8;
        config.write(function, BUS_NUMBERS, numbers | 0xFF << 16);
        device.children = scan_bus(config, secondary, last_bus);
        config.write(function, BUS_NUMBERS, numbers | u32::from(*last_bus) << 16);
    }
    device
}

fn measure_bars(config: &mut impl ConfigSpace, function: Function, count: u16) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut index = 0;
    while index < count {
        let offset = FIRST_BAR + 4 * index;
        index += 1;
        config.write(function, offset, u32::MAX);
        let ones = config.read(function, offset);
        config.write(function, offset, 0);
        if ones == 0 || ones == u32::MAX {
            continue;
        }
        if ones & 1 != 0 {
            // A device may leave the upper half unwired: ports have 16 bits.
            let size = u64::from((ones & 0xFFFC | 0xFFFF_0000).wrapping_neg());
            bars.push(Bar { offset, size, address: 0, space: Space::Io, wide: false });
            continue;
        }
        let wide = ones & 0b110 == 0b100;
        let mut mask = u64::from(ones & !0xF) | 0xFFFF_FFFF << 32;
        if wide {
            config.write(function, offset + 4, u32::MAX);
            mask = u64::from(ones & !0xF) | u64::from(config.read(function, offset + 4)) << 32;
            config.write(function, offset + 4, 0);
            index += 1;
        }
        let size = mask.wrapping_neg();
        let prefetchable = ones & 0b1000 != 0;
        let high = wide && size >= HIGH_FROM && (prefetchable || function.bus == 0);
        let space = if high { Space::High } else { Space::Low };
        bars.push(Bar { offset, size, address: 0, space, wide });
    }
    bars
}

/// Gives every base address register a bus address, opens bridges for what lies behind them, and lets every
/// function answer to its addresses, as coreboot does.
pub fn assign(
    config: &mut impl ConfigSpace,
    devices: &mut [Device],
    windows: &Windows,
) -> Result<(), OutOfAddresses> {
    for space in [Space::Io, Space::Low, Space::High] {
        let window = windows.of(space);
        let wanted = extent(devices, space, window.start).saturating_sub(window.start);
        let available = window.end.saturating_sub(window.start);
        if wanted > available {
            return Err(OutOfAddresses { space, wanted, available });
        }
        place(config, devices, space, window.start);
    }
    enable(config, devices);
    Ok(())
}

/// Something that needs an aligned range: a register of `device`, or all that lies behind it.
struct Need {
    device: usize,
    bar: Option<usize>,
    size: u64,
    align: u64,
}

/// What the devices of one bus need in `space`, the most strictly aligned first.
fn needs(devices: &[Device], space: Space) -> Vec<Need> {
    let mut needs: Vec<Need> = Vec::new();
    let mut insert = |need: Need| {
        let after = needs.iter().take_while(|other| other.align >= need.align).count();
        needs.insert(after, need);
    };
    for (index, device) in devices.iter().enumerate() {
        for (bar, register) in device.bars.iter().enumerate().filter(|(_, register)| register.space == space)
        {
            insert(Need { device: index, bar: Some(bar), size: register.size, align: register.size });
        }
        let behind = self::needs(&device.children, space);
        if let Some(align) = behind.iter().map(|need| need.align).max() {
            let unit = if space == Space::Io { BRIDGE_IO_UNIT } else { BRIDGE_MEMORY_UNIT };
            let align = align.max(unit);
            let size = extent(&device.children, space, 0).next_multiple_of(unit);
            insert(Need { device: index, bar: None, size, align });
        }
    }
    needs
}

/// The end of the range that `devices` take in `space` when it starts at `start`.
fn extent(devices: &[Device], space: Space, start: u64) -> u64 {
    needs(devices, space).iter().fold(start, |next, need| next.next_multiple_of(need.align) + need.size)
}

fn place(config: &mut impl ConfigSpace, devices: &mut [Device], space: Space, start: u64) {
    let mut next = start;
    for need in needs(devices, space) {
        let base = next.next_multiple_of(need.align);
        next = base + need.size;
        let device = &mut devices[need.device];
        match need.bar {
            Some(bar) => {
                let function = device.function;
                let bar = &mut device.bars[bar];
                bar.address = base;
                config.write(function, bar.offset, base as u32);
                if bar.wide {
                    config.write(function, bar.offset + 4, (base >> 32) as u32);
                }
            }
            None => {
                open_bridge(config, device.function, space, base..next);
                place(config, &mut device.children, space, base);
            }
        }
    }
    for device in devices.iter_mut().filter(|device| device.bridge) {
        if needs(&device.children, space).is_empty() {
            close_bridge(config, device.function, space);
            place(config, &mut device.children, space, 0);
        }
    }
}

fn open_bridge(config: &mut impl ConfigSpace, bridge: Function, space: Space, range: Range<u64>) {
    let (base, last) = (range.start, range.end - 1);
    match space {
        Space::Io => {
            // The upper half of this register is the secondary status: writing ones there clears errors.
            let window = (base >> 8 & 0xF0) as u32 | (last & 0xF000) as u32;
            config.write(bridge, BRIDGE_IO, window);
            config.write(bridge, BRIDGE_IO_HIGH, 0);
        }
        Space::Low => config.write(bridge, BRIDGE_MEMORY, memory_window(base, last)),
        Space::High => {
            config.write(bridge, BRIDGE_PREFETCHABLE, memory_window(base, last));
            config.write(bridge, BRIDGE_PREFETCHABLE_BASE_HIGH, (base >> 32) as u32);
            config.write(bridge, BRIDGE_PREFETCHABLE_LIMIT_HIGH, (last >> 32) as u32);
        }
    }
}

/// A window whose base lies above its limit forwards nothing.
fn close_bridge(config: &mut impl ConfigSpace, bridge: Function, space: Space) {
    match space {
        Space::Io => {
            config.write(bridge, BRIDGE_IO, 0x00F0);
            config.write(bridge, BRIDGE_IO_HIGH, 0);
        }
        Space::Low => config.write(bridge, BRIDGE_MEMORY, 0x0000_FFF0),
        Space::High => {
            config.write(bridge, BRIDGE_PREFETCHABLE, 0x0000_FFF0);
            config.write(bridge, BRIDGE_PREFETCHABLE_BASE_HIGH, 0);
            config.write(bridge, BRIDGE_PREFETCHABLE_LIMIT_HIGH, 0);
        }
    }
}

/// Base in bits 15:4, limit in bits 31:20, both in units of 1 MiB.
fn memory_window(base: u64, last: u64) -> u32 {
    (base as u32 >> 16 & 0xFFF0) | (last as u32 & 0xFFF0_0000)
}

fn enable(config: &mut impl ConfigSpace, devices: &[Device]) {
    for device in devices {
        let mut command = config.read(device.function, COMMAND) & 0xFFFF;
        for bar in &device.bars {
            command |= if bar.space == Space::Io { COMMAND_IO } else { COMMAND_MEMORY };
        }
        if device.bridge {
            command |= COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER;
        }
        config.write(device.function, COMMAND, command);
        enable(config, &device.children);
    }
}

/// Tells every function with an interrupt pin its interrupt line, which `line_of` knows for a root bus device
/// number and pin (0 = INTA#). Behind bridges pins turn with the device number (Bridge Specification 9.1).
pub fn assign_interrupt_lines(
    config: &mut impl ConfigSpace,
    devices: &[Device],
    line_of: &impl Fn(u8, u8) -> u8,
) {
    for device in devices {
        let register = config.read(device.function, INTERRUPT);
        let pin = (register >> 8) as u8;
        let number = device.function.device;
        if (1..=4).contains(&pin) {
            let line = line_of(number, pin - 1);
            config.write(device.function, INTERRUPT, register & !0xFF | u32::from(line));
        }
        let behind = |child: u8, pin: u8| line_of(number, child.wrapping_add(pin) % 4);
        assign_interrupt_lines_behind(config, &device.children, &behind);
    }
}

// A separate name, with a trait object: closures within closures would have no end of types.
fn assign_interrupt_lines_behind(
    config: &mut impl ConfigSpace,
    devices: &[Device],
    line_of: &dyn Fn(u8, u8) -> u8,
) {
    assign_interrupt_lines(config, devices, &|device, pin| line_of(device, pin));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Configuration space that keeps what is written under a mask of writable bits.
    #[derive(Default)]
    struct FakeBus {
        registers: BTreeMap<(u8, u8, u8, u16), (u32, u32)>,
        /// (primary bus, device) of bridges.
        bridges: Vec<Function>,
    }

    impl FakeBus {
        fn add(&mut self, bus: u8, device: u8, bars: &[(u16, u32, u32)], bridge: bool) -> Function {
            let function = Function { bus, device, function: 0 };
            let mut set = |offset, value, writable| {
                self.registers.insert((bus, device, 0, offset), (value, writable));
            };
            set(VENDOR_DEVICE, 0x1111_1234, 0);
            set(COMMAND, 0, 0xFFFF);
            set(CLASS, 0x0604_0000, 0);
            set(HEADER, if bridge { 0x0001_0000 } else { 0 }, 0);
            set(INTERRUPT, 0x0100, 0xFF);
            for &(offset, fixed, writable) in bars {
                set(offset, fixed, writable);
            }
            if bridge {
                set(BUS_NUMBERS, 0, u32::MAX);
                for offset in [0x1C, 0x20, 0x24, 0x28, 0x2C] {
                    set(offset, 0, u32::MAX);
                }
                self.bridges.push(function);
            }
            function
        }

        fn reachable(&self, bus: u8) -> bool {
            bus == 0
                || self.bridges.iter().any(|bridge| {
                    let numbers = self.registers[&(bridge.bus, bridge.device, 0, BUS_NUMBERS)].0;
                    (numbers >> 8 & 0xFF) as u8 == bus && self.reachable(bridge.bus)
                })
        }
    }

    impl ConfigSpace for FakeBus {
        fn read(&mut self, f: Function, offset: u16) -> u32 {
            if !self.reachable(f.bus) {
                return u32::MAX;
            }
            let known = self.registers.contains_key(&(f.bus, f.device, f.function, 0));
            let value = self.registers.get(&(f.bus, f.device, f.function, offset)).map(|r| r.0);
            value.unwrap_or(if known { 0 } else { u32::MAX })
        }

        fn write(&mut self, f: Function, offset: u16, value: u32) {
            if let Some((old, writable)) = self.registers.get_mut(&(f.bus, f.device, f.function, offset)) {
                *old = *old & !*writable | value & *writable;
            }
        }
    }

    const WINDOWS: Windows = Windows {
        io: 0x6000..0x1_0000,
        low: 0xC000_0000..0xFE00_0000,
        high: 0x80_0000_0000..0x100_0000_0000,
    };

    #[test]
    fn every_bar_gets_its_own_aligned_place() {
        let mut bus = FakeBus::default();
        bus.add(0, 1, &[(0x10, 8, 0xFF00_0000), (0x18, 0, 0xFFFF_F000), (0x30, 0, 0xFFFF_0001)], false);
        bus.add(0, 2, &[(0x10, 0, 0xFFFE_0000), (0x18, 1, 0xFFFF_FFE0)], false);
        bus.add(0, 3, &[(0x20, 12, 0xFFFF_C000), (0x24, 0, 0xFFFF_FFFF)], false);
        let mut devices = enumerate(&mut bus);
        assign(&mut bus, &mut devices, &WINDOWS).unwrap();
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for bar in devices.iter().flat_map(|device| &device.bars) {
            assert_eq!(bar.address % bar.size, 0, "{bar:x?}");
            let window = WINDOWS.of(bar.space);
            assert!(bar.address >= window.start && bar.address + bar.size <= window.end, "{bar:x?}");
            assert!(taken.iter().all(|&(a, b)| bar.address >= b || bar.address + bar.size <= a));
            taken.push((bar.address, bar.address + bar.size));
        }
        assert_eq!(taken.len(), 6);
        assert_eq!(devices[0].bars[0].size, 0x0100_0000);
        assert_eq!(devices[1].bars[1].size, 0x20);
        let read =
            |bus: &mut FakeBus, device, offset| bus.read(Function { bus: 0, device, function: 0 }, offset);
        assert_eq!(read(&mut bus, 1, 0x10), devices[0].bars[0].address as u32 | 8);
        assert_eq!(read(&mut bus, 1, COMMAND), 2);
        assert_eq!(read(&mut bus, 2, COMMAND), 3);
    }

    #[test]
    fn huge_wide_bars_go_above_4_gib() {
        let mut bus = FakeBus::default();
        let function = bus.add(0, 4, &[(0x10, 12, 0), (0x14, 0, 0xFFFF_FFF8)], false);
        let mut devices = enumerate(&mut bus);
        assert_eq!(devices[0].bars[0].size, 32 << 30);
        assign(&mut bus, &mut devices, &WINDOWS).unwrap();
        assert_eq!(bus.read(function, 0x14), 0x80);
    }

    #[test]
    fn bridges_are_numbered_and_opened_for_what_is_behind() {
        let mut bus = FakeBus::default();
        let outer = bus.add(0, 5, &[], true);
        let inner = bus.add(1, 0, &[], true);
        let leaf = bus.add(2, 3, &[(0x10, 0, 0xFFFF_F000), (0x14, 1, 0xFFFF_FF80)], false);
        let empty = bus.add(0, 6, &[], true);
        let mut devices = enumerate(&mut bus);
        assert_eq!(bus.read(outer, BUS_NUMBERS), 0x0002_0100);
        assert_eq!(bus.read(inner, BUS_NUMBERS), 0x0002_0201);
        assert_eq!(bus.read(empty, BUS_NUMBERS), 0x0003_0300);
        assign(&mut bus, &mut devices, &WINDOWS).unwrap();
        assert_eq!(bus.read(leaf, 0x10), 0xC000_0000);
        assert_eq!(bus.read(leaf, 0x14), 0x6001);
        for bridge in [outer, inner] {
            assert_eq!(bus.read(bridge, BRIDGE_MEMORY), 0xC000_C000);
            assert_eq!(bus.read(bridge, BRIDGE_IO), 0x6060);
            assert_eq!(bus.read(bridge, BRIDGE_PREFETCHABLE), 0xFFF0);
            assert_eq!(bus.read(bridge, COMMAND), 7);
        }
        assert_eq!(bus.read(empty, BRIDGE_MEMORY), 0xFFF0);
        assert_eq!(bus.read(empty, BRIDGE_IO), 0xF0);
    }

    #[test]
    fn interrupt_pins_turn_behind_bridges() {
        let mut bus = FakeBus::default();
        bus.add(0, 5, &[], true);
        let leaf = bus.add(1, 3, &[], false);
        let devices = enumerate(&mut bus);
        assign_interrupt_lines(&mut bus, &devices, &|device, pin| device * 10 + pin);
        assert_eq!(bus.read(leaf, INTERRUPT) & 0xFF, 53);
    }

    #[test]
    fn too_many_addresses_are_refused() {
        let mut bus = FakeBus::default();
        for device in 0..3 {
            bus.add(0, device, &[(0x10, 0, 0xC000_0000)], false);
        }
        let mut devices = enumerate(&mut bus);
        let error = assign(&mut bus, &mut devices, &WINDOWS).unwrap_err();
        assert_eq!(error.space, Space::Low);
        assert_eq!(error.wanted, 3 << 30);
    }
}
