//! What the tests of several boot protocols need.

use super::MemoryMap;
use crate::memory::{GuestMemory, GuestPhys, HeapBlock, Region};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

/// A guest's memory of so many bytes, zeroed, and its map.
pub fn machine(size: u64) -> (GuestMemory, MemoryMap) {
    let map = MemoryMap::new(size, 40).unwrap();
    let regions = map.regions().map(|request| {
        let block = HeapBlock::zeroed(request.len as usize, 4096).unwrap();
        Region::new(request.base, Box::new(block))
    });
    (GuestMemory::new(regions.collect()).unwrap(), map)
}

/// A copy of `len` bytes from `at`.
pub fn bytes(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(GuestPhys::new(at), &mut bytes).unwrap();
    bytes
}
