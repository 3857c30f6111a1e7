//! Memory begins and ends where the map says: every range of it keeps what is written to its ends, and what
//! lies behind the last one below 4 GiB does not.
#![no_std]
#![no_main]

use runtime::memory::{image_end, map, read, write};
use runtime::{MemoryKind, MemoryRange, println};

runtime::guest!(main);

const PATTERN: u64 = 0x0123_4567_89ab_cdef;
const FOUR_GIB: u64 = 1 << 32;
/// As high as the runtime's page tables reach.
const HIGHEST: u64 = 16 << 30;

fn main(machine: &runtime::Machine) {
    let mut total = 0;
    for MemoryRange { base, end, kind } in machine.memory() {
        println!("memory-end: {base:#x}..{end:#x} {kind:?}");
        if kind == MemoryKind::Memory {
            total += end - base;
            check_ends(base, end.min(HIGHEST));
        }
    }
    println!("memory-end: {total} bytes of memory");
    check_behind(machine);
}

fn check_ends(base: u64, end: u64) {
    // The guest itself, what its loader left, and the first page stay as they are.
    let start = if base < FOUR_GIB { base.max(image_end().next_multiple_of(8)) } else { base };
    if start + 16 > end {
        return;
    }
    for at in [start, end - 8] {
        map(at);
        keep(at);
    }
}

fn keep(at: u64) {
    let before: u64 = read(at);
    write(at, PATTERN ^ at);
    assert_eq!(read::<u64>(at), PATTERN ^ at, "what {at:#x} keeps");
    write(at, before);
}

/// The first page behind everything below the PCI window is no memory, nor any other memory's image.
fn check_behind(machine: &runtime::Machine) {
    const PCI_WINDOW: u64 = 0xb000_0000;
    let low = machine.memory().filter(|range| range.end <= PCI_WINDOW);
    let end = low.map(|range| range.end).max().expect("memory below 4 GiB");
    if end == PCI_WINDOW {
        println!("memory-end: memory reaches the PCI window");
        return;
    }
    let probe = image_end().next_multiple_of(0x1000);
    let before: u64 = read(probe);
    let found: u64 = read(end);
    println!("memory-end: behind {end:#x} reads {found:#x}");
    write(end, PATTERN);
    assert_eq!(read::<u64>(end), found, "a write to {end:#x}, where no memory is, was kept");
    assert_eq!(read::<u64>(probe), before, "a write to {end:#x} changed {probe:#x}");
}
