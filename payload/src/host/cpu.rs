//! This CPU: its identity, its registers that nobody else touches, and what belongs to it alone.
// Unsafe because of instructions that read and write the CPU's own state.
#![allow(unsafe_code)]

use super::descriptors::Descriptors;
use super::stacks::{BOOT_STACKS, CpuStacks};
use super::{apic, interrupts};
use alloc::vec::Vec;
use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use spin::Once;
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::xcontrol::{XCr0, XCr0Flags};

/// What each CPU has for itself. Its GS base points at it.
pub struct PerCpu {
    /// The address of this very structure, so that one GS-relative load finds it.
    this: AtomicUsize,
    number: AtomicUsize,
    apic_id: AtomicU32,
    descriptors: Descriptors,
    /// Its stacks.
    pub stacks: &'static CpuStacks,
    /// The LAPIC timer's deadline in nanoseconds, [`NOT_ARMED`] where there is none.
    pub timer_deadline: AtomicU64,
    /// Whether it is telling what its machine check is about, and must not be stopped before it did.
    pub tells_machine_check: AtomicBool,
}

/// The value of [`PerCpu::timer_deadline`] while the timer does not run.
pub const NOT_ARMED: u64 = u64::MAX;

static BOOT_CPU: Once<PerCpu> = Once::new();
/// All CPUs that run, by number, once it is known which do.
static RUNNING: Once<Vec<&'static PerCpu>> = Once::new();

/// IA32_GS_BASE (SDM 4, table 2-2).
const GS_BASE: u32 = 0xc000_0101;

/// The features of CPUs that this one has and we use.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// XSAVE and XCR0 (CPUID.1:ECX.26).
    pub xsave: bool,
    /// The APIC timer's TSC-deadline mode (CPUID.1:ECX.24).
    pub tsc_deadline: bool,
    /// Pages of 1 GiB (CPUID.80000001:EDX.26).
    pub gigabyte_pages: bool,
    /// Machine-check exceptions and their banks (CPUID.1:EDX.7 and 14).
    pub machine_check: bool,
    /// A time-stamp counter that neither stops nor changes its speed (CPUID.80000007:EDX.8).
    pub invariant_tsc: bool,
    /// An APIC with 32-bit numbers (CPUID.1:ECX.21).
    pub x2apic: bool,
    smep: bool,
    smap: bool,
    umip: bool,
}

impl Features {
    /// Asks the CPU.
    pub fn read() -> Self {
        let basic = cpuid(1, 0);
        let structured = cpuid(7, 0);
        let extended = cpuid(0x8000_0001, 0);
        let bit = |register: u32, bit: u32| register & (1 << bit) != 0;
        Self {
            xsave: bit(basic[2], 26),
            tsc_deadline: bit(basic[2], 24),
            gigabyte_pages: bit(extended[3], 26),
            machine_check: bit(basic[3], 7) && bit(basic[3], 14),
            invariant_tsc: bit(cpuid(0x8000_0007, 0)[3], 8),
            x2apic: bit(basic[2], 21),
            smep: bit(structured[1], 7),
            smap: bit(structured[1], 20),
            umip: bit(structured[2], 2),
        }
    }
}

/// EAX, EBX, ECX and EDX of a CPUID leaf; zeros where the CPU has no such leaf.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let range = leaf & 0xffff_0000;
    let highest = __cpuid_count(range, 0).eax;
    // Only the basic range must exist; a CPU answers for others with a number outside of them.
    if leaf > highest || highest & 0xffff_0000 != range {
        return [0; 4];
    }
    let answer = __cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// Reads a model-specific register that this CPU is known to have.
pub fn read_msr(index: u32) -> u64 {
    // SAFETY: reading changes nothing; an unknown register would end in an exception report.
    unsafe { x86_64::registers::model_specific::Msr::new(index).read() }
}

/// Writes a model-specific register.
///
/// # Safety
///
/// The CPU has the register, and the value breaks nothing that Rust code relies on.
pub unsafe fn write_msr(index: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { x86_64::registers::model_specific::Msr::new(index).write(value) }
}

/// The time-stamp counter, read after everything before and before everything after.
pub fn tsc_in_order() -> u64 {
    // SAFETY: as for `tsc`; the fences order it (SDM 2B, RDTSC).
    unsafe {
        core::arch::x86_64::_mm_lfence();
        let now = core::arch::x86_64::_rdtsc();
        core::arch::x86_64::_mm_lfence();
        now
    }
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is there on every CPU with long mode, and reads nothing but a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

impl PerCpu {
    /// For the CPU that will run on `stacks`.
    pub fn new(number: usize, stacks: &'static CpuStacks) -> Self {
        Self {
            this: AtomicUsize::new(0),
            number: AtomicUsize::new(number),
            apic_id: AtomicU32::new(0),
            descriptors: Descriptors::new(stacks),
            stacks,
            timer_deadline: AtomicU64::new(NOT_ARMED),
            tells_machine_check: AtomicBool::new(false),
        }
    }

    /// Its number: 0 for the boot CPU. Those of the others are preliminary until [`set_running`].
    pub fn number(&self) -> usize {
        self.number.load(Ordering::Relaxed)
    }

    /// Its APIC's number.
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }

    /// Notes its APIC's number.
    pub fn set_apic_id(&self, apic_id: u32) {
        self.apic_id.store(apic_id, Ordering::Relaxed);
    }

    /// Makes this what the CPU we run on has for itself, with descriptor tables, exceptions reported, and control
    /// registers set.
    pub fn load(&'static self) {
        self.descriptors.load();
        let address = core::ptr::from_ref(self).expose_provenance();
        self.this.store(address, Ordering::Relaxed);
        // SAFETY: nothing uses GS but `this` and `identity`, which find this address there.
        unsafe { write_msr(GS_BASE, address as u64) }
        interrupts::load();
        switch_on(Features::read());
    }
}

/// Makes the CPU we run on the boot CPU.
pub fn start_boot_cpu() {
    BOOT_CPU.call_once(|| PerCpu::new(0, &BOOT_STACKS)).load();
}

/// What the CPU we run on has for itself.
pub fn this() -> &'static PerCpu {
    // SAFETY: `PerCpu::load` ran first of all on this CPU and put the address of a static there.
    unsafe { &*core::ptr::with_exposed_provenance(identity()) }
}

/// A number that no other CPU has, from the first on; never zero.
#[cfg(target_os = "none")]
pub fn identity() -> usize {
    let address;
    // SAFETY: `PerCpu::load` ran first of all on this CPU.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) address, const core::mem::offset_of!(PerCpu, this),
            options(nostack, preserves_flags, readonly));
    }
    address
}

/// In tests every thread stands for a CPU.
#[cfg(not(target_os = "none"))]
pub fn identity() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    std::thread_local!(static IDENTITY: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    IDENTITY.with(|identity| *identity)
}

/// Numbers the CPUs that run: 0 is this one, the boot CPU; `others` follow in the order of their APICs' numbers,
/// so that a number means the same CPU after every boot.
pub fn set_running(others: Vec<&'static PerCpu>) {
    let boot = this();
    boot.set_apic_id(apic::local::id());
    let mut all = Vec::with_capacity(others.len() + 1);
    for cpu in others {
        all.insert(all.partition_point(|before: &&PerCpu| before.apic_id() < cpu.apic_id()), cpu);
    }
    all.insert(0, boot);
    all.iter().enumerate().for_each(|(number, cpu)| cpu.number.store(number, Ordering::Relaxed));
    RUNNING.call_once(|| all);
}

/// All CPUs that run, by number; none before it is known which do.
pub fn running() -> &'static [&'static PerCpu] {
    RUNNING.get().map_or(&[], Vec::as_slice)
}

/// Switches on what protects us, and the vector state that guests are given.
fn switch_on(features: Features) {
    let mut flags = Cr4::read() | Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE;
    flags.set(Cr4Flags::OSXSAVE, features.xsave);
    flags.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, features.smep);
    flags.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, features.smap);
    flags.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, features.umip);
    flags.set(Cr4Flags::MACHINE_CHECK_EXCEPTION, features.machine_check);
    // SAFETY: each bit is one that the CPU has; none changes what existing translations mean, since no page
    // is the user's.
    unsafe { Cr4::write(flags) };
    if features.xsave {
        let supported = XCr0Flags::from_bits_truncate(u64::from(cpuid(0xd, 0)[0]));
        let wanted = XCr0Flags::X87 | XCr0Flags::SSE | XCr0Flags::AVX;
        // SAFETY: OSXSAVE is on; X87 and SSE are always supported, AVX only with SSE.
        unsafe { XCr0::write((supported & wanted) | XCr0Flags::X87 | XCr0Flags::SSE) };
    }
}

/// Stops this CPU for ever.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off only a non-maskable one wakes it, and then it halts again.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
