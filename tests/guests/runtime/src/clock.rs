//! What time it is, how long the guest has run, and sleep: by the hypervisor's clock (kvmclock) where it has one,
//! else by the time-stamp counter and the real-time clock.

use crate::calendar::DateTime;
use crate::pm_timer::Stopwatch;
use crate::{apic, cpu, interrupts, rtc};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;

const SECOND: u64 = 1_000_000_000;
/// The vector that ends sleep.
const VECTOR: u8 = 0x2f;
/// How long frequencies are measured, in microseconds.
const MEASURED: u64 = 20_000;
/// The longest that the timer is armed for; sleep arms it again.
const LONGEST: u64 = SECOND;

/// KVM's registers (Linux: Documentation/virt/kvm/x86/msr.rst).
const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// KVM's features: both registers are there.
const KVM_CLOCK: u32 = 1 << 3;

/// Where the hypervisor says how to get nanoseconds from the counter. It may lie anywhere within one page.
#[repr(C, align(64))]
struct Record {
    version: AtomicU32,
    reserved: AtomicU32,
    /// The counter's value at `nanos`.
    ticks: AtomicU64,
    nanos: AtomicU64,
    multiplier: AtomicU32,
    /// An exponent in the lowest byte: of two, signed.
    shift: AtomicU32,
}

/// Without a hypervisor's clock we fill it in ourselves.
static RECORD: Record = Record {
    version: AtomicU32::new(0),
    reserved: AtomicU32::new(0),
    ticks: AtomicU64::new(0),
    nanos: AtomicU64::new(0),
    multiplier: AtomicU32::new(0),
    shift: AtomicU32::new(0),
};

/// The clock's reading when the guest started.
static START: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds since 1970 at the clock's zero.
static EPOCH: AtomicU64 = AtomicU64::new(0);
/// How fast the local APIC's timer counts, in Hz.
static TIMER_HERTZ: AtomicU64 = AtomicU64::new(0);

/// The date and the time of day.
pub fn now() -> DateTime {
    DateTime::from_unix((EPOCH.load(Relaxed) + nanos()) / SECOND)
}

/// The time since the guest started.
pub fn uptime() -> Duration {
    Duration::from_nanos(nanos() - START.load(Relaxed))
}

/// Halts the CPU, but for interrupts and their handlers, for so long.
pub fn sleep(time: Duration) {
    let end = uptime() + time;
    loop {
        let left = end.saturating_sub(uptime());
        if left.is_zero() {
            return apic::start_timer(0);
        }
        let left = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX).min(LONGEST);
        let ticks = u128::from(left) * u128::from(TIMER_HERTZ.load(Relaxed)) / u128::from(SECOND);
        let before = interrupts::count(VECTOR);
        apic::start_timer(ticks as u32 + 1);
        cpu::wait_until(|| interrupts::count(VECTOR) != before);
    }
}

/// Finds the clocks; the local APIC is on.
pub(crate) fn install() {
    if has_kvm_clock() {
        cpu::write_msr(KVM_SYSTEM_TIME, &raw const RECORD as u64 | 1);
        EPOCH.store(kvm_epoch(), Relaxed);
    } else {
        measure_counter();
        EPOCH.store(rtc::now().to_unix() * SECOND - nanos(), Relaxed);
    }
    START.store(nanos(), Relaxed);
    measure_timer();
}

/// What the clock reads, in nanoseconds since its zero.
fn nanos() -> u64 {
    loop {
        let version = RECORD.version.load(Relaxed);
        let (ticks, nanos) = (RECORD.ticks.load(Relaxed), RECORD.nanos.load(Relaxed));
        let (multiplier, shift) = (RECORD.multiplier.load(Relaxed), RECORD.shift.load(Relaxed) as i8);
        // Odd or another one: the hypervisor was writing.
        if version & 1 != 0 || version != RECORD.version.load(Relaxed) {
            continue;
        }
        let passed = u128::from(cpu::tsc().saturating_sub(ticks));
        let scaled = if shift < 0 { passed >> shift.unsigned_abs() } else { passed << shift };
        return nanos + ((scaled * u128::from(multiplier)) >> 32) as u64;
    }
}

fn has_kvm_clock() -> bool {
    let mut bases = (0x4000_0000..0x4001_0000_u32).step_by(0x100);
    let base = bases.find(|base| {
        let signature = cpu::cpuid(*base, 0);
        [signature.ebx, signature.ecx, signature.edx].map(u32::to_le_bytes).as_flattened()
            == b"KVMKVMKVM\0\0\0"
    });
    cpu::cpuid(1, 0).ecx >> 31 != 0 && base.is_some_and(|base| cpu::cpuid(base + 1, 0).eax & KVM_CLOCK != 0)
}

/// Nanoseconds since 1970 at the zero of KVM's clock.
fn kvm_epoch() -> u64 {
    /// A version, seconds, nanoseconds.
    static WALL_CLOCK: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];
    cpu::write_msr(KVM_WALL_CLOCK, &raw const WALL_CLOCK as u64);
    let [_, seconds, nanos] = WALL_CLOCK.each_ref().map(|field| u64::from(field.load(Relaxed)));
    seconds * SECOND + nanos
}

/// Fills in the record: the counter's zero is the clock's.
fn measure_counter() {
    let (stopwatch, start) = (Stopwatch::start(), cpu::tsc());
    while stopwatch.micros() < MEASURED {}
    let (ticks, micros) = (cpu::tsc() - start, stopwatch.micros());
    // A multiplier of 32 bits: of ticks of at most a nanosecond each.
    let hertz = u128::from(ticks) * 1_000_000 / u128::from(micros);
    let mut shift = 0_u32;
    while hertz << shift < u128::from(SECOND) + 1 {
        shift += 1;
    }
    RECORD.shift.store(shift, Relaxed);
    RECORD.multiplier.store(((u128::from(SECOND) << 32) / (hertz << shift)) as u32, Relaxed);
}

fn measure_timer() {
    apic::set_timer(VECTOR, 0);
    let start = nanos();
    apic::start_timer(u32::MAX);
    while nanos() - start < MEASURED * 1000 {}
    let (counted, took) = (u32::MAX - apic::read(apic::register::CURRENT_COUNT), nanos() - start);
    apic::start_timer(0);
    TIMER_HERTZ.store(u64::from(counted) * SECOND / took, Relaxed);
}
