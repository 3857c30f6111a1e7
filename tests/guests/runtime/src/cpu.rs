//! Instructions that Rust has no word for. A guest owns its machine, so its functions count as safe although
//! many can crash it: that is what guests are for.

use crate::interrupts;
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

/// Whether the CPU says that Intel made it.
pub fn is_intel() -> bool {
    cpuid(0, 0).ebx == u32::from_le_bytes(*b"Genu")
}

/// Whether the CPU is one of QEMU's, which can do less than the manuals say.
pub fn is_tcg() -> bool {
    cpuid(0x8000_0002, 0).eax == u32::from_le_bytes(*b"QEMU")
}

/// Whether this is QEMU's own emulation with nothing between: its devices know less than the monitor's.
pub fn is_bare_tcg() -> bool {
    cpuid(0x4000_0000, 0).ebx == u32::from_le_bytes(*b"TCGT")
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

macro_rules! moves {
    ($($read:ident, $write:ident, $name:literal;)*) => {$(
        #[doc = concat!("Reads ", $name, ".")]
        #[inline(always)]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: ring 0.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) }
            value
        }

        #[doc = concat!("Writes ", $name, "; what it refuses faults, and `catch` sees it.")]
        #[inline(always)]
        pub fn $write(value: u64) {
            // SAFETY: ring 0; the guest knows what it does to itself.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) }
        }
    )*};
}

moves! {
    cr0, set_cr0, "cr0";
    cr2, set_cr2, "cr2";
    cr3, set_cr3, "cr3";
    cr4, set_cr4, "cr4";
    cr8, set_cr8, "cr8";
    dr0, set_dr0, "dr0";
    dr1, set_dr1, "dr1";
    dr2, set_dr2, "dr2";
    dr3, set_dr3, "dr3";
    dr6, set_dr6, "dr6";
    dr7, set_dr7, "dr7";
}

/// RDTSCP: the counter and TSC_AUX.
#[inline(always)]
pub fn tsc_and_aux() -> (u64, u32) {
    let (low, high, aux): (u32, u32, u32);
    // SAFETY: callers ask CPUID first.
    unsafe {
        asm!("rdtscp", out("eax") low, out("edx") high, out("ecx") aux, options(nomem, nostack, preserves_flags));
    }
    (u64::from(high) << 32 | u64::from(low), aux)
}

/// XGETBV of XCR0; CR4.OSXSAVE must be set.
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: faults without CR4.OSXSAVE, no more.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// XSETBV of the register with this index.
pub fn set_xcr(index: u32, value: u64) {
    // SAFETY: faults on what the CPU refuses, no more: the runtime uses no extended state.
    unsafe {
        asm!("xsetbv", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// RFLAGS.
pub fn flags() -> u64 {
    let value;
    // SAFETY: the stack is balanced.
    unsafe { asm!("pushfq", "pop {}", out(reg) value, options(preserves_flags)) }
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

/// Takes the interrupts that wait, and those on their way.
#[inline(always)]
pub fn take_interrupts() {
    enable_interrupts();
    work();
    disable_interrupts();
}

/// Some work that causes no exit: time enough for an interrupt that is on its way.
#[inline(always)]
pub fn work() {
    for round in 0..1000 {
        core::hint::black_box(round);
    }
}

/// Adds to a number that lies in two cache lines: a CPU locks its bus for that (SDM 9.1.2.2), and QEMU stops all
/// other CPUs.
pub fn lock_the_bus() {
    #[repr(align(64))]
    struct Lines(#[expect(dead_code, reason = "only assembly reaches it")] [u8; 128]);
    static mut LINES: Lines = Lines([0; 128]);
    let number = (&raw mut LINES).cast::<u8>().wrapping_add(62);
    // SAFETY: the number lies within `LINES`, which nothing else touches.
    unsafe { asm!("lock inc dword ptr [{}]", in(reg) number, options(nostack)) }
}

/// STI and HLT with nothing between, then CLI: waits for one interrupt that may already be pending.
#[inline(always)]
pub fn wait_for_interrupt() {
    // SAFETY: as for `enable_interrupts`.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Halts until `happened`, which interrupt handlers make true; interrupts are on afterwards.
pub fn wait_until(happened: impl Fn() -> bool) {
    // Asked with interrupts off, so that none comes between the answer and HLT.
    disable_interrupts();
    while !happened() {
        wait_for_interrupt();
    }
    enable_interrupts();
}

/// Runs `work` with interrupts off, and leaves them as they were.
pub fn without_interrupts<T>(work: impl FnOnce() -> T) -> T {
    let were_on = flags() & interrupts::flag::IF != 0;
    disable_interrupts();
    let result = work();
    if were_on {
        enable_interrupts();
    }
    result
}

/// CLI and HLT: nothing follows but a reset or the power switch.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: ring 0.
        unsafe { asm!("cli", "hlt", options(nostack)) }
    }
}
