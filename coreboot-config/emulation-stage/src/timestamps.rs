//! The CBMEM timestamp table.

use coreboot_config::timestamps::Header;

/// As many entries as coreboot leaves room for.
const ENTRIES: u16 = 192;

/// The table, in the memory that the payload finds it in.
pub struct Timestamps {
    memory: &'static mut [u8],
    header: Header,
}

impl Timestamps {
    /// Bytes that the table takes.
    pub const BYTES: u32 = 16 + 12 * ENTRIES as u32;

    /// An empty table in `memory`, whose stamps count from TSC value `base_time`.
    pub fn new(memory: &'static mut [u8], base_time: u64) -> Self {
        let header = Header { base_time, max_entries: ENTRIES, tick_freq_mhz: 0, num_entries: 0 };
        let mut table = Self { memory, header };
        table.write_header();
        table
    }

    /// Notes that step `id` was reached when the TSC read `tsc`.
    pub fn stamp_at(&mut self, id: u32, tsc: u64) {
        if let Some((offset, entry)) = self.header.append(id, tsc) {
            let start = offset as usize;
            if let Some(place) = self.memory.get_mut(start..start + entry.len()) {
                place.copy_from_slice(&entry);
                self.write_header();
            }
        }
    }

    /// Notes that step `id` is reached now.
    pub fn stamp(&mut self, id: u32) {
        self.stamp_at(id, now());
    }

    /// Says how fast stamps count, in MHz.
    pub fn set_frequency(&mut self, mhz: u16) {
        self.header.tick_freq_mhz = mhz;
        self.write_header();
    }

    fn write_header(&mut self) {
        let bytes = self.header.encode();
        if let Some(place) = self.memory.get_mut(..bytes.len()) {
            place.copy_from_slice(&bytes);
        }
    }
}

/// The time-stamp counter.
pub fn now() -> u64 {
    x86_64_tsc()
}

#[allow(unsafe_code)] // An intrinsic that is unsafe by declaration only.
fn x86_64_tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and the stage runs in ring 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}
