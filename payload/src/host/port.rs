//! Port I/O.
// Unsafe because IN and OUT are instructions of their own.
#![allow(unsafe_code)]

use core::arch::asm;

/// A device's run of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    base: u16,
    count: u16,
}

/// Ports through which a device could be told to write memory: the ISA DMA controllers and PCI configuration.
const REACH_MEMORY: [(u16, u16); 3] = [(0x00, 0x1f), (0xc0, 0xdf), (0xcf8, 0xcff)];

impl Ports {
    /// The `count` ports from `base` on; `None` past the last port, or where a port can reach memory.
    pub const fn new(base: u16, count: u16) -> Option<Self> {
        let Some(last) = base.checked_add(count.saturating_sub(1)) else { return None };
        let mut index = 0;
        while index < REACH_MEMORY.len() {
            let (first, end) = REACH_MEMORY[index];
            if base <= end && last >= first {
                return None;
            }
            index += 1;
        }
        Some(Self { base, count })
    }

    /// The port that resets the machine, which may be the chipset's among the PCI configuration ports.
    pub const fn reset_port(port: u16) -> Option<Self> {
        /// Reset control; a byte access there is no configuration access.
        const RESET_CONTROL: u16 = 0xcf9;
        if port == RESET_CONTROL { Some(Self { base: port, count: 1 }) } else { Self::new(port, 1) }
    }

    fn port(self, offset: u16) -> u16 {
        assert!(offset < self.count, "port {offset:#x} of {:#x} at {:#x}", self.count, self.base);
        self.base + offset
    }

    /// Reads a byte from the port `offset` behind the first.
    pub fn read_u8(self, offset: u16) -> u8 {
        let value;
        // SAFETY: `new` left out every port that reaches memory, so no Rust object can change.
        unsafe { asm!("in al, dx", out("al") value, in("dx") self.port(offset), options(nomem, nostack)) }
        value
    }

    /// Writes a byte to the port `offset` behind the first.
    pub fn write_u8(self, offset: u16, value: u8) {
        // SAFETY: as for `read_u8`.
        unsafe { asm!("out dx, al", in("al") value, in("dx") self.port(offset), options(nomem, nostack)) }
    }

    /// Reads two bytes.
    pub fn read_u16(self, offset: u16) -> u16 {
        let value;
        // SAFETY: as for `read_u8`.
        unsafe { asm!("in ax, dx", out("ax") value, in("dx") self.port(offset), options(nomem, nostack)) }
        value
    }

    /// Writes two bytes.
    pub fn write_u16(self, offset: u16, value: u16) {
        // SAFETY: as for `read_u8`.
        unsafe { asm!("out dx, ax", in("ax") value, in("dx") self.port(offset), options(nomem, nostack)) }
    }

    /// The ports of PCI's configuration space. What is written there moves devices' registers, and lets them write memory:
    /// to be given to nobody but PCI's own code.
    #[cfg(feature = "pci")]
    pub const fn pci_configuration() -> Self {
        Self { base: 0xcf8, count: 8 }
    }

    /// Writes four bytes.
    #[cfg(feature = "pci")]
    pub fn write_u32(self, offset: u16, value: u32) {
        // SAFETY: as for `read_u8`.
        unsafe { asm!("out dx, eax", in("eax") value, in("dx") self.port(offset), options(nomem, nostack)) }
    }

    /// Reads four bytes.
    pub fn read_u32(self, offset: u16) -> u32 {
        let value;
        // SAFETY: as for `read_u8`.
        unsafe { asm!("in eax, dx", out("eax") value, in("dx") self.port(offset), options(nomem, nostack)) }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_reach_memory_are_refused() {
        assert!(Ports::new(0x3f8, 8).is_some());
        assert!(Ports::new(0xcfc, 4).is_none());
        assert!(Ports::new(0xbf, 2).is_none());
        assert!(Ports::new(0xffff, 2).is_none());
        assert!(Ports::new(0xffff, 1).is_some());
    }
}
