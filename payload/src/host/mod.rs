//! This machine: its CPU, memory, time, interrupts and firmware.
// Unsafe because starting memory promises what the memory map cannot prove.
#![allow(unsafe_code)]

pub mod acpi;
pub mod apic;
pub mod cpu;
mod descriptors;
#[cfg(feature = "pci")]
pub mod dma;
#[cfg(feature = "guest-virtio")]
pub mod entropy;
pub mod exceptions;
pub mod heap;
mod image;
pub mod interrupts;
pub mod lock;
pub mod memory;
pub mod mmio;
mod mtrr;
pub mod paging;
pub mod physical;
pub mod port;
pub mod power;
pub mod rtc;
pub mod smp;
pub mod stacks;
pub mod time;

use alloc::boxed::Box;
use vmm_core::cpu::{Core, Unsupported};

use memory::{FrameAllocator, MemoryMap, PAGE, Record};

/// New page tables and their frames must be reachable on the entry's.
const EARLY_LIMIT: u64 = 1 << 32;

/// Makes the CPU ours: descriptor tables, exceptions, and the small heap inside the image.
pub fn start_cpu() {
    cpu::start_boot_cpu();
    heap::start_early();
}

/// Starts the heap, the frame allocator and our own page tables from firmware's memory records. Returns the
/// allocator of all RAM that is free.
pub fn start_memory(records: &[Record]) -> &'static FrameAllocator {
    let mut map = MemoryMap::new(records.iter().copied(), &[image::range()]);
    let heap = map.free.take(heap::SIZE, PAGE, EARLY_LIMIT).unwrap_or_else(|| {
        panic!("no {} MiB of memory in one piece below 4 GiB for the heap", heap::SIZE >> 20);
    });
    // SAFETY: firmware says the range is RAM, nobody else was given it, and both the entry's page tables and
    // the ones built below map it.
    unsafe { heap::start(heap) };
    // SAFETY: `free` is RAM by firmware's word, less everything of ours; what it gives before our page tables
    // are in use lies below 4 GiB, which the entry's map.
    let frames = Box::leak(Box::new(unsafe { FrameAllocator::new(core::mem::take(&mut map.free)) }));
    smp::set_start_up_page(map.start_up_page());
    paging::start(&map, frames).unwrap_or_else(|error| panic!("page tables: {error}"));
    frames
}

/// Switches virtualization on for the CPU this runs on; called once on each.
pub fn enable_virtualization() -> Result<Core, Unsupported> {
    // SAFETY: ring 0, identity-mapped; this CPU's descriptor tables are its own for good, and the boot calls
    // this once a CPU.
    unsafe { Core::enable() }
}
