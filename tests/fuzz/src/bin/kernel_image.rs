//! Arbitrary bytes as a guest's kernel, by every boot protocol: what is accepted must start inside the guest's
//! memory.
#![no_main]

use std::sync::LazyLock;
use vmm_core::boot::multiboot::{self, Version};
use vmm_core::boot::{Images, MemoryMap, Module, linux, linux16, pvh};
use vmm_core::memory::{GuestMemory, GuestPhys, HeapBlock, Region};

const SIZE: usize = 8 << 20;
const RSDP: GuestPhys = GuestPhys::new(0xe_0000);

/// One for all runs: a fresh one would cost more than loading into it.
static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    let block = HeapBlock::zeroed(SIZE, 4096).expect("memory for a guest");
    GuestMemory::new(vec![Region::new(GuestPhys::new(0), Box::new(block))]).expect("one region")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let map = MemoryMap::new(SIZE as u64, 40).expect("a possible size");
    let modules = [Module { image: &[2; 100], bootargs: "module" }, Module { image: &[], bootargs: "" }];
    let images =
        Images { kernel: data, ramdisk: Some(&[1; 5000]), modules: &modules, bootargs: "console=ttyS0" };
    let states = [
        linux::load(&MEMORY, &map, &images, RSDP, true).ok(),
        linux::load(&MEMORY, &map, &images, RSDP, false).ok(),
        linux16::load(&MEMORY, &map, &images).ok(),
        pvh::load(&MEMORY, &map, &images, RSDP).ok(),
        multiboot::load(Version::One, &MEMORY, &map, &images, RSDP).ok(),
        multiboot::load(Version::Two, &MEMORY, &map, &images, RSDP).ok(),
    ];
    for state in states.into_iter().flatten() {
        assert!(state.registers.rip < SIZE as u64, "entry {:#x}", state.registers.rip);
    }
});
