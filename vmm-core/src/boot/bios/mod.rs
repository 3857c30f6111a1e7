//! BIOS services for what starts in real mode: interrupt vectors, the data area, and INT 10h to 1Ah, whose
//! console is the guest's serial port.
//!
//! They are data that a boot protocol places into the guest: the guest runs them, with no more rights than any
//! other code of its own. What they say of the machine is what its other tables say.
// Unsafe because real-mode code exists in assembly only; nothing on this machine ever executes it.
#![allow(unsafe_code)]

use super::memory_map::{E820Entry, MemoryMap};
use crate::chipset::layout::BIOS_SERVICES;
use crate::cpu::CpuState;
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use alloc::vec::Vec;
use core::arch::global_asm;

/// Bytes of [`BIOS_SERVICES`].
const IMAGE_SIZE: usize = 0x1000;
/// The segment they run in.
const SEGMENT: u16 = 0xf000;

/// How many entries of a memory map fit.
const E820_ENTRIES: usize = 16;
const E820_ENTRY_SIZE: usize = 20;
/// Offset of the code behind [`Parameters`].
const START_OFFSET: usize = 16 + E820_ENTRIES * E820_ENTRY_SIZE;

global_asm!(
    include_str!("start.s"),
    include_str!("video.s"),
    include_str!("keyboard.s"),
    include_str!("clock.s"),
    include_str!("pci.s"),
    include_str!("system.s"),
    options(att_syntax, raw)
);

unsafe extern "C" {
    /// What the assembler made, with room for the parameters at its start.
    safe static bios_services: [u8; IMAGE_SIZE];
}

/// Where a real-mode program is entered, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealModeEntry {
    /// CS.
    pub segment: u16,
    /// IP.
    pub offset: u16,
    /// All other segment registers.
    pub data: u16,
    /// SP.
    pub stack: u16,
}

/// Puts the services into `memory`, which is laid out as `map` says, and gives the state of a CPU that starts
/// them; they go on to `entry`.
pub fn place(memory: &GuestMemory, map: &MemoryMap, entry: RealModeEntry) -> Result<CpuState, OutOfRange> {
    let mut image = parameters(map, entry);
    image.extend(bios_services.iter().skip(image.len()));
    memory.write(GuestPhys::new(BIOS_SERVICES.start), &image)?;
    let start = (BIOS_SERVICES.start & 0xffff).saturating_add(START_OFFSET as u64);
    Ok(CpuState::real_mode(SEGMENT, start as u16))
}

/// What start.s has at its start.
fn parameters(map: &MemoryMap, entry: RealModeEntry) -> Vec<u8> {
    let (below_16, above_16) = extended_memory(map.low_end());
    // The program that first asked, INT 15h AH = 88h, had room for no more.
    let at_most_63 = map.low_end().saturating_sub(MIB).min(63 * MIB) / KIB;
    let e820 = map.e820();
    let e820: Vec<&E820Entry> = e820.iter().take(E820_ENTRIES).collect();
    let RealModeEntry { segment, offset, data, stack } = entry;
    let words = [offset, segment, data, stack, at_most_63 as u16, below_16, above_16, e820.len() as u16];
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u16::to_le_bytes).collect();
    for E820Entry { base, len, kind } in e820 {
        bytes.extend([base.get(), *len].map(u64::to_le_bytes).as_flattened());
        bytes.extend((*kind as u32).to_le_bytes());
    }
    bytes.resize(START_OFFSET, 0);
    bytes
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What INT 15h AX = E801h says of memory that ends at `end`, which is at most 4 GiB: KiB from 1 MiB to 16 MiB,
/// and blocks of 64 KiB from there on.
const fn extended_memory(end: u64) -> (u16, u16) {
    const HOLE: u64 = 16 * MIB;
    let below = if end < HOLE { end } else { HOLE };
    ((below.saturating_sub(MIB) / KIB) as u16, (end.saturating_sub(HOLE) / (64 * KIB)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::machine;

    #[test]
    fn the_image_is_whole() {
        assert_eq!(BIOS_SERVICES.end - BIOS_SERVICES.start, IMAGE_SIZE as u64);
        assert!(bios_services[..START_OFFSET].iter().all(|byte| *byte == 0), "room for the parameters");
        assert_eq!(bios_services[START_OFFSET..START_OFFSET + 2], [0xfa, 0xfc], "CLI and CLD come first");
        let reset = &bios_services[IMAGE_SIZE - 16..];
        assert_eq!((reset[0], &reset[3..5], reset[14]), (0xea, &[0x00, 0xf0][..], 0xfc));
        assert_eq!(&reset[5..13], b"01/01/26");
    }

    #[test]
    fn the_parameters_say_what_the_map_says() {
        let (memory, map) = machine(32 * MIB);
        let entry = RealModeEntry { segment: 0x1020, offset: 3, data: 0x1000, stack: 0xe000 };
        let state = place(&memory, &map, entry).unwrap();
        let at = |offset| GuestPhys::new(BIOS_SERVICES.start + offset);
        let words: Vec<u16> = (0..8).map(|n| memory.read_u16(at(2 * n)).unwrap()).collect();
        assert_eq!(words, [3, 0x1020, 0x1000, 0xe000, 31 << 10, 15 << 10, 256, 4]);
        let third = 16 + 2 * 20;
        assert_eq!(memory.read_u64(at(third)), Ok(MIB));
        assert_eq!(memory.read_u64(at(third + 8)), Ok(31 * MIB));
        assert_eq!(memory.read_u32(at(third + 16)), Ok(1));
        let code = &state.segments[crate::cpu::SegmentRegister::Cs as usize];
        assert_eq!(code.base + state.registers.rip, BIOS_SERVICES.start + START_OFFSET as u64);
        assert_eq!(memory.read_u8(at(START_OFFSET as u64)), Ok(0xfa));
        assert_eq!(state.control.cr0 & 1, 0, "real mode");
    }

    #[test]
    fn old_ways_to_ask_for_memory_have_their_bounds() {
        assert_eq!(extended_memory(2 * MIB), (1 << 10, 0));
        assert_eq!(extended_memory(16 * MIB), (15 << 10, 0));
        assert_eq!(extended_memory(2048 * MIB), (15 << 10, (2032 << 4) as u16));
        let (_, map) = machine(2 * MIB);
        let entry = RealModeEntry { segment: 0, offset: 0, data: 0, stack: 0 };
        assert_eq!(parameters(&map, entry)[8..10], [0x00, 0x04]);
    }
}
