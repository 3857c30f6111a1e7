//! Physical memory, which the stage's page tables show at its own address up to 4 GiB.
#![allow(unsafe_code)] // Firmware makes references out of addresses: nobody gave it memory before.

use crate::reset;

/// The bytes at physical `address`.
///
/// # Safety
/// The range is RAM or flash below 4 GiB and nothing else refers to it for as long as the result lives, unless
/// neither writes to it.
pub unsafe fn bytes(address: u64, length: usize) -> &'static mut [u8] {
    // SAFETY: identity-mapped; the rest is the caller's promise.
    unsafe { core::slice::from_raw_parts_mut(address as *mut u8, length) }
}

/// Reads a 32-bit device register at physical `address`.
pub fn read_register(address: u64) -> u32 {
    // SAFETY: callers name device registers, which are no Rust object's memory.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes a 32-bit device register at physical `address`.
pub fn write_register(address: u64, value: u32) {
    // SAFETY: as in `read_register`.
    unsafe { (address as *mut u32).write_volatile(value) }
}

/// The physical address of something in the stage's own image, stack or heap.
pub fn address_of<T: ?Sized>(object: *const T) -> u64 {
    let address = object.cast::<u8>() as u64;
    match address.checked_sub(reset::virtual_base()) {
        Some(offset) => reset::physical_base() + offset,
        None => address,
    }
}
