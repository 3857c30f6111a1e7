//! The machine as whoever started us describes it.

use crate::memory::read;
use crate::{multiboot, multiboot2, start_info};
use core::ops::Range;

/// By which protocol we were started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// PVH.
    Pvh,
    /// Multiboot 1.
    Multiboot,
    /// Multiboot 2.
    Multiboot2,
}

/// The machine as the loader describes it.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    loader: Loader,
    told: u64,
}

/// What a range of the memory map is for (E820 types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Free to use.
    Memory,
    /// Anything else, by its number.
    Other(u32),
}

/// A range of the memory map.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRange {
    /// Its first byte.
    pub base: u64,
    /// Behind its last byte.
    pub end: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// A file that was loaded with us.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Its first byte.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its command line.
    pub command_line: &'static str,
}

impl Machine {
    /// Takes what the loader left in EBX and in EAX.
    ///
    /// # Safety
    ///
    /// That is what it left there.
    pub(crate) unsafe fn from_loader(told: u64, magic: u32) -> Self {
        let loader = match magic {
            multiboot::MAGIC => Loader::Multiboot,
            multiboot2::MAGIC => Loader::Multiboot2,
            _ => {
                start_info::check(told);
                Loader::Pvh
            }
        };
        Self { loader, told }
    }

    /// Who started us.
    pub fn loader(&self) -> Loader {
        self.loader
    }

    /// Where what the loader tells lies, and what it points to as far as that is near.
    pub(crate) fn told(&self) -> Range<u64> {
        const NEAR: u64 = 64 << 10;
        let len = match self.loader {
            Loader::Pvh | Loader::Multiboot => NEAR,
            Loader::Multiboot2 => read::<u32>(self.told).into(),
        };
        self.told..self.told + len
    }

    /// Where the ACPI tables begin.
    pub fn rsdp(&self) -> u64 {
        match self.loader {
            Loader::Pvh => start_info::rsdp(self.told),
            Loader::Multiboot => multiboot::rsdp(),
            Loader::Multiboot2 => multiboot2::rsdp(self.told),
        }
    }

    /// The command line.
    pub fn command_line(&self) -> &'static str {
        match self.loader {
            Loader::Pvh => start_info::command_line(self.told),
            Loader::Multiboot => multiboot::command_line(self.told),
            Loader::Multiboot2 => multiboot2::command_line(self.told),
        }
    }

    /// What was loaded with us.
    pub fn modules(&self) -> impl Iterator<Item = Module> {
        let (loader, told) = (self.loader, self.told);
        (0..).map_while(move |number| match loader {
            Loader::Pvh => start_info::module(told, number),
            Loader::Multiboot => multiboot::module(told, number),
            Loader::Multiboot2 => multiboot2::module(told, number),
        })
    }

    /// The memory map.
    pub fn memory(&self) -> impl Iterator<Item = MemoryRange> {
        let (loader, told) = (self.loader, self.told);
        (0..).map_while(move |number| match loader {
            Loader::Pvh => start_info::memory(told, number),
            Loader::Multiboot => multiboot::memory(told, number),
            Loader::Multiboot2 => multiboot2::memory(told, number),
        })
    }
}

impl MemoryRange {
    /// The range that a map's entry at `entry` describes, as all three protocols have it.
    pub(crate) fn read(entry: u64) -> Self {
        let (base, len, kind): (u64, u64, u32) = (read(entry), read(entry + 8), read(entry + 16));
        let kind = if kind == 1 { MemoryKind::Memory } else { MemoryKind::Other(kind) };
        Self { base, end: base + len, kind }
    }
}

/// The text at `start` up to its NUL; none at zero.
pub(crate) fn text(start: u64) -> &'static str {
    if start == 0 {
        return "";
    }
    let len = (0..4096).take_while(|offset| read::<u8>(start + offset) != 0).count();
    // SAFETY: bytes that the loader wrote and that nothing changes.
    let bytes = unsafe { core::slice::from_raw_parts(start as *const u8, len) };
    core::str::from_utf8(bytes).unwrap_or("")
}
