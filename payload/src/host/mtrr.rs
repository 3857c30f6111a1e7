//! Memory type range registers: which memory is cached how, as firmware set them. All CPUs must have the same
//! (SDM 3, 12.11.8).
// Unsafe because caches are switched off and on.
#![allow(unsafe_code)]

use super::cpu;
use alloc::vec::Vec;
use core::arch::asm;
use spin::Once;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3};

/// IA32_MTRRCAP, and the bit that says that there are fixed ranges; the number of variable ones is in bits 0 to 7.
const CAPABILITIES: u32 = 0xfe;
const FIXED: u64 = 1 << 8;
/// The fixed ranges' registers.
const FIXED_RANGES: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// The first variable range's base; its mask follows, then the next range.
const VARIABLE_RANGES: u32 = 0x200;
/// IA32_MTRR_DEF_TYPE, and the bit that switches all of them on.
const DEFAULT_TYPE: u32 = 0x2ff;
const ENABLED: u64 = 1 << 11;
/// CPUID.1:EDX, the registers are there.
const MTRR: u32 = 1 << 12;

/// The boot CPU's registers, [`DEFAULT_TYPE`] last.
static BOOT_CPUS: Once<Vec<(u32, u64)>> = Once::new();

/// Notes how the boot CPU's registers stand.
pub fn note() {
    BOOT_CPUS.call_once(|| {
        if cpu::cpuid(1, 0)[3] & MTRR == 0 {
            return Vec::new();
        }
        let capabilities = cpu::read_msr(CAPABILITIES);
        let fixed = FIXED_RANGES.into_iter().filter(|_| capabilities & FIXED != 0);
        let variable = VARIABLE_RANGES..VARIABLE_RANGES + 2 * (capabilities as u32 & 0xff);
        let all = fixed.chain(variable).chain([DEFAULT_TYPE]);
        all.map(|register| (register, cpu::read_msr(register))).collect()
    });
}

/// Gives the CPU this runs on the noted values; whether it had others.
pub fn adopt() -> bool {
    let Some((last, others)) = BOOT_CPUS.get().and_then(|all| all.split_last()) else { return false };
    if others.iter().chain([last]).all(|(register, value)| cpu::read_msr(*register) == *value) {
        return false;
    }
    let cr0 = Cr0::read();
    // SAFETY: the boot CPU has the same registers, and runs with these values. While they change, nothing is
    // cached (SDM 3, 12.11.7.2), and no interrupt comes.
    unsafe {
        Cr0::write((cr0 | Cr0Flags::CACHE_DISABLE) & !Cr0Flags::NOT_WRITE_THROUGH);
        forget_caches();
        cpu::write_msr(DEFAULT_TYPE, cpu::read_msr(DEFAULT_TYPE) & !ENABLED);
        others.iter().for_each(|(register, value)| cpu::write_msr(*register, *value));
        cpu::write_msr(last.0, last.1);
        forget_caches();
        Cr0::write(cr0);
    }
    true
}

/// Writes the caches back and empties them, and those of translations.
fn forget_caches() {
    // SAFETY: memory is afterwards as the caches had it, and translations are what the tables say.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
    let (root, flags) = Cr3::read();
    // SAFETY: the tables in use.
    unsafe { Cr3::write(root, flags) };
}
