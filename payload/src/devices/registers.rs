//! Devices' registers as their drivers see them.

use crate::host::memory::Range;
use crate::host::mmio::Mmio;
use crate::host::paging::{Cache, map_device};
use crate::host::port::Ports;
use alloc::sync::Arc;
use drivers::platform::{Region, Registers, Space};

/// The registers at `region`; `None` where it is memory of ours, or no place for registers.
pub fn open(region: Region) -> Option<Arc<dyn Registers>> {
    match region.space {
        Space::Memory => {
            region.start.checked_add(region.len)?;
            let range = Range::with_len(region.start, region.len);
            Some(Arc::new(Window {
                memory: map_device(range, Cache::Uncached).ok()?,
                len: region.len as usize,
            }))
        }
        Space::Ports => {
            let (first, count) = (u16::try_from(region.start).ok()?, u16::try_from(region.len).ok()?);
            Some(Arc::new(PortRegisters { ports: Ports::new(first, count)?, len: count.into() }))
        }
    }
}

/// The ports of PCI's configuration space.
pub fn configuration_ports() -> Arc<dyn Registers> {
    Arc::new(PortRegisters { ports: Ports::pci_configuration(), len: 8 })
}

/// Registers in memory.
struct Window {
    memory: Mmio,
    len: usize,
}

/// Registers at ports.
struct PortRegisters {
    ports: Ports,
    len: usize,
}

/// Whether an access of `width` bytes at `offset` is one that the device has.
fn inside(offset: usize, width: usize, len: usize) -> bool {
    offset.is_multiple_of(width) && offset.checked_add(width).is_some_and(|end| end <= len)
}

macro_rules! window_access {
    ($read:ident, $write:ident, $int:ty) => {
        fn $read(&self, offset: usize) -> $int {
            if !inside(offset, size_of::<$int>(), self.len) {
                return <$int>::MAX;
            }
            self.memory.$read(offset as u64)
        }
        fn $write(&self, offset: usize, value: $int) {
            if inside(offset, size_of::<$int>(), self.len) {
                self.memory.$write(offset as u64, value);
            }
        }
    };
}

impl Registers for Window {
    fn len(&self) -> usize {
        self.len
    }

    window_access!(read_u8, write_u8, u8);
    window_access!(read_u16, write_u16, u16);
    window_access!(read_u32, write_u32, u32);
    window_access!(read_u64, write_u64, u64);
}

macro_rules! port_access {
    ($read:ident, $write:ident, $int:ty) => {
        fn $read(&self, offset: usize) -> $int {
            if !inside(offset, size_of::<$int>(), self.len) {
                return <$int>::MAX;
            }
            self.ports.$read(offset as u16)
        }
        fn $write(&self, offset: usize, value: $int) {
            if inside(offset, size_of::<$int>(), self.len) {
                self.ports.$write(offset as u16, value);
            }
        }
    };
}

impl Registers for PortRegisters {
    fn len(&self) -> usize {
        self.len
    }

    port_access!(read_u8, write_u8, u8);
    port_access!(read_u16, write_u16, u16);
    port_access!(read_u32, write_u32, u32);

    fn read_u64(&self, offset: usize) -> u64 {
        u64::from(self.read_u32(offset)) | u64::from(self.read_u32(offset + 4)) << 32
    }

    fn write_u64(&self, offset: usize, value: u64) {
        self.write_u32(offset, value as u32);
        self.write_u32(offset + 4, (value >> 32) as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_that_the_device_does_not_have_are_outside() {
        assert!(inside(0, 4, 4) && inside(12, 4, 16));
        assert!(!inside(13, 4, 32), "not aligned");
        assert!(!inside(4, 4, 6) && !inside(usize::MAX - 3, 4, 8));
    }
}
