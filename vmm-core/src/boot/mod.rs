//! How a guest starts: what lies in its memory and in its CPU's registers before its first instruction.

pub mod acpi;
pub mod linux;
pub mod memory_map;
pub mod pvh;

mod first_megabyte;

pub use memory_map::MemoryMap;

use crate::cpu::CpuState;
use crate::memory::GuestMemory;
use acpi::AcpiError;
use alloc::vec::Vec;
use core::fmt;
use linux::LinuxError;
use pvh::PvhError;

/// What a guest is started from, whatever the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// The initial ramdisk, passed on as it is.
    pub ramdisk: Option<&'a [u8]>,
    /// The kernel's command line, without a NUL.
    pub bootargs: &'a str,
}

/// How a guest's first instruction is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootProtocol {
    /// A Linux bzImage.
    Linux,
    /// An ELF with a PVH entry.
    Pvh,
}

/// Why a guest's images cannot be started.
#[derive(Debug)]
pub enum BootError {
    /// Its ACPI tables have no room.
    Acpi(AcpiError),
    /// Its kernel is no Linux kernel, or does not fit.
    Linux(LinuxError),
    /// Its kernel is no ELF with a PVH entry, or does not fit.
    Pvh(PvhError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acpi(error) => error.fmt(f),
            Self::Linux(error) => error.fmt(f),
            Self::Pvh(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for BootError {}

/// Puts ACPI tables and images into `memory`, which is zero and laid out as `map` says, and gives the first
/// CPU's state.
pub fn load(
    protocol: BootProtocol,
    memory: &GuestMemory,
    map: &MemoryMap,
    vcpus: u32,
    images: &Images<'_>,
) -> Result<CpuState, BootError> {
    let apic_ids: Vec<u32> = (0..vcpus).collect();
    let rsdp = acpi::install(memory, map, &apic_ids).map_err(BootError::Acpi)?;
    match protocol {
        BootProtocol::Linux => linux::load(memory, map, images, rsdp).map_err(BootError::Linux),
        BootProtocol::Pvh => pvh::load(memory, map, images, rsdp).map_err(BootError::Pvh),
    }
}
