//! Instructions that Rust has no word for. A guest owns its machine, so its functions count as safe although
//! many can crash it: that is what guests are for.

use core::arch::asm;
pub use core::arch::x86_64::CpuidResult;
use core::arch::x86_64::{__cpuid_count, _rdtsc};

macro_rules! ports {
    ($read:ident, $write:ident, $int:ty, $register:tt) => {
        #[doc = concat!("IN of a `", stringify!($int), "`.")]
        #[inline(always)]
        pub fn $read(port: u16) -> $int {
            let value;
            // SAFETY: the guest owns its ports.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                    options(nomem, nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("OUT of a `", stringify!($int), "`.")]
        #[inline(always)]
        pub fn $write(port: u16, value: $int) {
            // SAFETY: the guest owns its ports.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nomem, nostack, preserves_flags));
            }
        }
    };
}

ports!(read_port_u8, write_port_u8, u8, "al");
ports!(read_port_u16, write_port_u16, u16, "ax");
ports!(read_port_u32, write_port_u32, u32, "eax");

/// CPUID.
#[inline(always)]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// RDTSC.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: every 64-bit CPU has it.
    unsafe { _rdtsc() }
}

/// RDMSR.
#[inline(always)]
pub fn read_msr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: ring 0; an unknown register faults, and `catch` sees it.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
#[inline(always)]
pub fn write_msr(index: u32, value: u64) {
    // SAFETY: ring 0; the guest knows what it does to itself.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// CR2, the address of the last page fault.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: ring 0.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// STI.
pub fn enable_interrupts() {
    // SAFETY: the interrupt table is installed before any guest runs.
    unsafe { asm!("sti", options(nostack)) }
}

/// CLI.
pub fn disable_interrupts() {
    // SAFETY: ring 0.
    unsafe { asm!("cli", options(nostack)) }
}

/// STI and HLT with nothing between, then CLI: waits for one interrupt that may already be pending.
#[inline(always)]
pub fn wait_for_interrupt() {
    // SAFETY: as for `enable_interrupts`.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Takes the interrupts that wait.
pub fn take_interrupts() {
    // After STI one more instruction comes first.
    // SAFETY: as for `enable_interrupts`.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) }
}

/// CLI and HLT: nothing follows but a reset or the power switch.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: ring 0.
        unsafe { asm!("cli", "hlt", options(nostack)) }
    }
}
