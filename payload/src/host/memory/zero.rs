//! Zeroing pages quickly.
//!
//! A guest's memory is zeroed before every start, so this is a large part of a boot: stores of 32 bytes, past
//! the caches, where the CPU has AVX and the operating mode allows it; else the string instruction.
// Unsafe because it writes memory that no Rust object describes.
#![allow(unsafe_code)]

use super::map::PAGE;
use super::range::Range;
use core::arch::asm;
use core::arch::x86_64::{__cpuid, _xgetbv};

/// CPUID.1:ECX, AVX and OSXSAVE.
const AVX: u32 = 1 << 28;
const OSXSAVE: u32 = 1 << 27;
/// XCR0, the SSE and AVX state.
const XCR0_AVX: u64 = 0b110;

/// Sets all bytes of `range` to zero.
///
/// The vector register YMM0 is saved and restored: it may hold a guest's value.
///
/// # Safety
///
/// `range` is made of whole pages, mapped writable at their own address, to which no reference exists.
pub unsafe fn pages(range: Range) {
    debug_assert!(range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE));
    if range.is_empty() {
        return;
    }
    if avx() {
        // SAFETY: the caller's promise; `avx` says that the instructions may be used.
        unsafe { with_avx(range) }
    } else {
        // SAFETY: the caller's promise; the direction flag is clear as the ABI demands.
        unsafe {
            asm!("rep stosq", inout("rcx") range.len() / 8 => _, inout("rdi") range.start => _, in("rax") 0,
                options(nostack, preserves_flags));
        }
    }
}

/// Whether AVX is there and switched on.
fn avx() -> bool {
    let features = __cpuid(1).ecx;
    if features & (AVX | OSXSAVE) != AVX | OSXSAVE {
        return false;
    }
    // SAFETY: OSXSAVE says that XGETBV exists.
    let enabled = unsafe { xcr0() };
    enabled & XCR0_AVX == XCR0_AVX
}

/// XCR0.
///
/// # Safety
///
/// CR4.OSXSAVE is set.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: the caller's promise.
    unsafe { _xgetbv(0) }
}

/// # Safety
///
/// As for [`pages`]; AVX is switched on and `range` is not empty.
unsafe fn with_avx(range: Range) {
    let mut saved = [0_u8; 32];
    // SAFETY: the caller's promise; a page is a multiple of the 1024 bytes that one turn writes.
    unsafe {
        asm!(
            "vmovdqu [{saved}], ymm0",
            "vpxor xmm0, xmm0, xmm0",
            "2:",
            ".set stored, 0",
            ".rept 32",
            "vmovntdq [{at} + stored], ymm0",
            ".set stored, stored + 32",
            ".endr",
            "add {at}, 1024",
            "cmp {at}, {end}",
            "jne 2b",
            "sfence",
            "vmovdqu ymm0, [{saved}]",
            saved = in(reg) saved.as_mut_ptr(),
            at = inout(reg) range.start => _,
            end = in(reg) range.end,
            options(nostack),
        );
    }
}
