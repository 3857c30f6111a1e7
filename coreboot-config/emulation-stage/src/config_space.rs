//! PCI configuration space, by ports and where a chipset maps it.

use emulation_stage::pci::{ConfigSpace, Function};

use crate::{physical, port};

const CONFIG_ADDRESS: u16 = 0xCF8;
const CONFIG_DATA: u16 = 0xCFC;

/// How configuration space is reached.
#[derive(Clone, Copy)]
pub enum ConfigAccess {
    /// By ports 0xCF8 and 0xCFC.
    Ports,
    /// At this physical address, 1 MiB for each bus (ECAM).
    Memory(u64),
}

impl ConfigSpace for ConfigAccess {
    fn read(&mut self, function: Function, offset: u16) -> u32 {
        match self {
            Self::Ports => {
                select(function, offset);
                port::read_u32(CONFIG_DATA)
            }
            Self::Memory(base) => physical::read_register(ecam(*base, function, offset)),
        }
    }

    fn write(&mut self, function: Function, offset: u16, value: u32) {
        match self {
            Self::Ports => {
                select(function, offset);
                port::write_u32(CONFIG_DATA, value);
            }
            Self::Memory(base) => physical::write_register(ecam(*base, function, offset), value),
        }
    }
}

fn select(f: Function, offset: u16) {
    let function = u32::from(f.bus) << 16 | u32::from(f.device) << 11 | u32::from(f.function) << 8;
    port::write_u32(CONFIG_ADDRESS, 1 << 31 | function | u32::from(offset & 0xFC));
}

fn ecam(base: u64, f: Function, offset: u16) -> u64 {
    let function = u64::from(f.bus) << 20 | u64::from(f.device) << 15 | u64::from(f.function) << 12;
    base + (function | u64::from(offset & 0xFFC))
}
