//! Reading what firmware left in memory.
// Unsafe because physical memory is read as such.
#![allow(unsafe_code)]

use super::acpi;
use super::memory::Range;
use super::paging::{self, Cache};
use coreboot_config::{PhysicalMemory, Unreadable};

/// What the entry's page tables map.
const EARLY_MAPPED: Range = Range::new(0, 1 << 32);

/// Memory by copy, on the entry's page tables: before it is known what lies where.
pub struct EarlyMemory;

impl PhysicalMemory for EarlyMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let wanted = Range::with_len(address, buffer.len() as u64);
        if paging::started() || !EARLY_MAPPED.covers(wanted) {
            return Err(Unreadable { address, len: buffer.len() });
        }
        for (index, byte) in buffer.iter_mut().enumerate() {
            // Volatile, since address zero is a place like any other here.
            // SAFETY: every address below 4 GiB is mapped, and reading what is no memory reads all ones.
            *byte =
                unsafe { core::ptr::with_exposed_provenance::<u8>(address as usize + index).read_volatile() };
        }
        Ok(())
    }
}

/// Firmware's tables, mapped on request for reading.
pub struct FirmwareMemory;

impl acpi::Memory<'static> for FirmwareMemory {
    fn bytes(&self, at: u64, len: usize) -> Option<&'static [u8]> {
        paging::map_read_only(Range::with_len(at, len as u64), Cache::WriteBack).ok()
    }
}
