//! How a guest starts: what lies in its memory and in its CPU's registers before its first instruction.

pub mod acpi;
pub mod bios;
pub mod linux;
pub mod linux16;
pub mod memory_map;
pub mod multiboot;
pub mod pvh;

mod first_megabyte;
mod program;
#[cfg(test)]
mod testing;

pub use memory_map::MemoryMap;

use crate::cpu::CpuState;
use crate::memory::{GuestMemory, GuestPhys};
use acpi::AcpiError;
use alloc::vec::Vec;
use core::fmt;
use linux::{LinuxEntry, LinuxError};
use multiboot::MultibootError;
use pvh::PvhError;

/// What a guest is started from, whatever the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// The initial ramdisk, passed on as it is.
    pub ramdisk: Option<&'a [u8]>,
    /// What else goes with it. Linux's boot protocol has no room for any.
    pub modules: &'a [Module<'a>],
    /// The kernel's command line, without a NUL.
    pub bootargs: &'a str,
}

impl<'a> Images<'a> {
    /// Ramdisk and modules alike, the ramdisk first and without command line.
    pub fn all_modules(&self) -> impl Iterator<Item = Module<'a>> {
        let ramdisk = self.ramdisk.map(|image| Module { image, bootargs: "" });
        ramdisk.into_iter().chain(self.modules.iter().copied())
    }
}

/// A file that a kernel is started with.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Its bytes, passed on as they are.
    pub image: &'a [u8],
    /// Its command line, without a NUL.
    pub bootargs: &'a str,
}

/// How a guest's first instruction is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootProtocol {
    /// A Linux bzImage, by this entry, or else by the widest that it has.
    Linux(Option<LinuxEntry>),
    /// An ELF with a PVH entry.
    Pvh,
    /// A kernel with a header of this version of Multiboot.
    Multiboot(multiboot::Version),
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
    /// Its kernel has no such header, asks for what there is not, or does not fit.
    Multiboot(MultibootError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acpi(error) => error.fmt(f),
            Self::Linux(error) => error.fmt(f),
            Self::Pvh(error) => error.fmt(f),
            Self::Multiboot(error) => error.fmt(f),
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
        BootProtocol::Linux(wanted) => {
            start_linux(wanted, memory, map, images, rsdp).map_err(BootError::Linux)
        }
        BootProtocol::Pvh => pvh::load(memory, map, images, rsdp).map_err(BootError::Pvh),
        BootProtocol::Multiboot(version) => {
            multiboot::load(version, memory, map, images, rsdp).map_err(BootError::Multiboot)
        }
    }
}

fn start_linux(
    wanted: Option<LinuxEntry>,
    memory: &GuestMemory,
    map: &MemoryMap,
    images: &Images<'_>,
    rsdp: GuestPhys,
) -> Result<CpuState, LinuxError> {
    let entry = wanted.map_or_else(|| LinuxEntry::of(images.kernel), Ok)?;
    match entry {
        LinuxEntry::Bits16 => linux16::load(memory, map, images),
        LinuxEntry::Bits32 => linux::load(memory, map, images, rsdp, false),
        LinuxEntry::Bits64 => linux::load(memory, map, images, rsdp, true),
    }
}
