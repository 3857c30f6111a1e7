//! How a guest starts: what lies in its memory and in its CPU's registers before its first instruction.

pub mod acpi;
#[cfg(feature = "linux16")]
pub mod bios;
#[cfg(feature = "hermit")]
pub mod hermit;
pub mod linux;
#[cfg(feature = "linux16")]
pub mod linux16;
pub mod memory_map;
#[cfg(feature = "multiboot")]
pub mod multiboot;
#[cfg(feature = "pvh")]
pub mod pvh;

mod first_megabyte;
#[cfg(feature = "hermit")]
mod flat_tree;
#[cfg(any(feature = "pvh", feature = "multiboot", feature = "hermit"))]
mod program;
#[cfg(test)]
mod testing;

pub use memory_map::MemoryMap;

use crate::cpu::CpuState;
use crate::memory::{GuestMemory, GuestPhys};
use acpi::AcpiError;
use alloc::vec::Vec;
use core::fmt;
#[cfg(feature = "hermit")]
use hermit::HermitError;
use linux::{LinuxEntry, LinuxError};
#[cfg(feature = "multiboot")]
use multiboot::MultibootError;
#[cfg(feature = "pvh")]
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
    Multiboot(MultibootVersion),
    /// A Hermit kernel, by its own entry.
    Hermit,
}

/// Which of the two Multiboot specifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultibootVersion {
    /// Multiboot, of 1995.
    One,
    /// Multiboot2.
    Two,
}

impl fmt::Display for MultibootVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "Multiboot",
            Self::Two => "Multiboot2",
        })
    }
}

/// Why a guest's images cannot be started.
#[derive(Debug)]
pub enum BootError {
    /// Its ACPI tables have no room.
    Acpi(AcpiError),
    /// Its kernel is no Linux kernel, or does not fit.
    Linux(LinuxError),
    /// This build cannot start guests by this protocol.
    LeftOut(&'static str),
    /// Its kernel is no ELF with a PVH entry, or does not fit.
    #[cfg(feature = "pvh")]
    Pvh(PvhError),
    /// Its kernel has no such header, asks for what there is not, or does not fit.
    #[cfg(feature = "multiboot")]
    Multiboot(MultibootError),
    /// Its kernel is no Hermit kernel, or does not fit.
    #[cfg(feature = "hermit")]
    Hermit(HermitError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acpi(error) => error.fmt(f),
            Self::Linux(error) => error.fmt(f),
            Self::LeftOut(protocol) => {
                write!(f, "starting guests by {protocol} was left out of this payload")
            }
            #[cfg(feature = "pvh")]
            Self::Pvh(error) => error.fmt(f),
            #[cfg(feature = "multiboot")]
            Self::Multiboot(error) => error.fmt(f),
            #[cfg(feature = "hermit")]
            Self::Hermit(error) => error.fmt(f),
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
    watchdog: bool,
    images: &Images<'_>,
) -> Result<CpuState, BootError> {
    let apic_ids: Vec<u32> = (0..vcpus).collect();
    let rsdp = acpi::install(memory, map, &apic_ids, watchdog).map_err(BootError::Acpi)?;
    match protocol {
        BootProtocol::Linux(wanted) => start_linux(wanted, memory, map, images, rsdp),
        #[cfg(feature = "pvh")]
        BootProtocol::Pvh => pvh::load(memory, map, images, rsdp).map_err(BootError::Pvh),
        #[cfg(not(feature = "pvh"))]
        BootProtocol::Pvh => Err(BootError::LeftOut("PVH")),
        #[cfg(feature = "multiboot")]
        BootProtocol::Multiboot(version) => {
            multiboot::load(version, memory, map, images, rsdp).map_err(BootError::Multiboot)
        }
        #[cfg(not(feature = "multiboot"))]
        BootProtocol::Multiboot(_) => Err(BootError::LeftOut("Multiboot")),
        #[cfg(not(feature = "hermit"))]
        BootProtocol::Hermit => Err(BootError::LeftOut("Hermit's entry")),
        #[cfg(feature = "hermit")]
        BootProtocol::Hermit => hermit::load(memory, map, images, rsdp).map_err(BootError::Hermit),
    }
}

fn start_linux(
    wanted: Option<LinuxEntry>,
    memory: &GuestMemory,
    map: &MemoryMap,
    images: &Images<'_>,
    rsdp: GuestPhys,
) -> Result<CpuState, BootError> {
    let entry = match wanted {
        Some(entry) => entry,
        None => LinuxEntry::of(images.kernel).map_err(BootError::Linux)?,
    };
    let state = match entry {
        #[cfg(feature = "linux16")]
        LinuxEntry::Bits16 => linux16::load(memory, map, images),
        #[cfg(not(feature = "linux16"))]
        LinuxEntry::Bits16 => return Err(BootError::LeftOut("Linux's 16-bit entry")),
        LinuxEntry::Bits32 => linux::load(memory, map, images, rsdp, false),
        LinuxEntry::Bits64 => linux::load(memory, map, images, rsdp, true),
    };
    state.map_err(BootError::Linux)
}
