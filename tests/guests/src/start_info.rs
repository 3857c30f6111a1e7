//! What a PVH guest is told (xen/include/public/arch-x86/hvm/start_info.h).

use crate::memory::read;

const MAGIC: u32 = 0x336e_c578;

/// The machine as the loader describes it.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    start_info: u64,
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

impl Machine {
    /// Takes the start info at `start_info`.
    ///
    /// # Safety
    ///
    /// What a PVH loader passed in EBX.
    pub(crate) unsafe fn from_start_info(start_info: u64) -> Self {
        assert_eq!(read::<u32>(start_info), MAGIC, "the start info's magic");
        assert!(read::<u32>(start_info + 4) >= 1, "a start info without memory map");
        Self { start_info }
    }

    /// Where the ACPI tables begin.
    pub fn rsdp(&self) -> u64 {
        read(self.start_info + 32)
    }

    /// The command line.
    pub fn command_line(&self) -> &'static str {
        let start: u64 = read(self.start_info + 24);
        if start == 0 {
            return "";
        }
        let len = (0..4096).take_while(|offset| read::<u8>(start + offset) != 0).count();
        // SAFETY: bytes that the loader wrote and that nothing changes.
        let bytes = unsafe { core::slice::from_raw_parts(start as *const u8, len) };
        core::str::from_utf8(bytes).unwrap_or("")
    }

    /// Where each module lies, and its length.
    pub fn modules(&self) -> impl Iterator<Item = (u64, u64)> {
        let (list, count): (u64, u32) = (read(self.start_info + 16), read(self.start_info + 12));
        (0..u64::from(count)).map(move |number| {
            let entry = list + number * 32;
            (read(entry), read(entry + 8))
        })
    }

    /// The memory map.
    pub fn memory(&self) -> impl Iterator<Item = MemoryRange> {
        let (list, count): (u64, u32) = (read(self.start_info + 40), read(self.start_info + 48));
        (0..u64::from(count)).map(move |number| {
            let entry = list + number * 24;
            let (base, len, kind): (u64, u64, u32) = (read(entry), read(entry + 8), read(entry + 16));
            let kind = if kind == 1 { MemoryKind::Memory } else { MemoryKind::Other(kind) };
            MemoryRange { base, end: base + len, kind }
        })
    }
}
