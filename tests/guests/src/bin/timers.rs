//! Every timer interrupts, when it should: judged by the ACPI timer, a clock that interrupts nobody.
#![no_std]
#![no_main]

use runtime::interrupts::count;
use runtime::pm_timer::Stopwatch;
use runtime::{apic, cpu, io_apic, pit, println, rtc};

runtime::guest!(main);

const APIC_VECTOR: u8 = 0x40;
const PIT_VECTOR: u8 = 0x41;
const RTC_VECTOR: u8 = 0x42;

fn main(_: &runtime::Machine) {
    apic::enable();
    let apic_khz = local_apic_khz();
    one_shot(apic_khz);
    periodic(apic_khz);
    pit_periodic();
    pit_once();
    rtc_periodic();
    if cpu::cpuid(1, 0).ecx & 1 << 24 != 0 {
        tsc_deadline();
    } else {
        println!("timers: no TSC deadline here");
    }
}

/// Halts until `vector` has come `wanted` times, and gives the microseconds since `stopwatch` was started: before
/// the timer, so that no delay in between makes it look early.
fn wait(stopwatch: Stopwatch, vector: u8, wanted: u64, mut each: impl FnMut()) -> u64 {
    let first = count(vector);
    let mut seen = first;
    while seen < first + wanted {
        cpu::wait_for_interrupt();
        let now = count(vector);
        if now != seen {
            each();
        }
        seen = now;
    }
    stopwatch.micros()
}

/// Early is wrong; late may be the host's doing, unless it is far off.
fn check(what: &str, expected: u64, found: u64) {
    println!("timers: {what}: {found} us, expected {expected}");
    assert!(
        found >= (expected - expected / 20).saturating_sub(20),
        "{what}: {found} us, expected {expected}: too early"
    );
    assert!(found <= expected * 4 + 100_000, "{what}: {found} us, expected {expected}: too late");
}

/// The local APIC timer's frequency, by the ACPI timer.
fn local_apic_khz() -> u64 {
    apic::set_timer(APIC_VECTOR, apic::MASKED);
    apic::start_timer(u32::MAX);
    let stopwatch = Stopwatch::start();
    while stopwatch.micros() < 10_000 {}
    let counted = u32::MAX - apic::read(apic::register::CURRENT_COUNT);
    let khz = u64::from(counted) * 1000 / stopwatch.micros();
    apic::start_timer(0);
    assert_eq!(apic::read(apic::register::CURRENT_COUNT), 0, "a stopped timer's count");
    assert_eq!(count(APIC_VECTOR), 0, "interrupts from a masked timer");
    println!("timers: local APIC {khz} kHz");
    khz
}

fn one_shot(khz: u64) {
    apic::set_timer(APIC_VECTOR, 0);
    let stopwatch = Stopwatch::start();
    apic::start_timer((khz * 5) as u32);
    check("local APIC, once", 5_000, wait(stopwatch, APIC_VECTOR, 1, || {}));
    let seen = count(APIC_VECTOR);
    let stopwatch = Stopwatch::start();
    cpu::enable_interrupts();
    while stopwatch.micros() < 10_000 {}
    cpu::disable_interrupts();
    assert_eq!(count(APIC_VECTOR), seen, "interrupts after the one");
}

fn periodic(khz: u64) {
    apic::set_timer(APIC_VECTOR, apic::PERIODIC);
    let stopwatch = Stopwatch::start();
    apic::start_timer(khz as u32);
    check("local APIC, ten periods", 10_000, wait(stopwatch, APIC_VECTOR, 10, || {}));
    apic::start_timer(0);
}

fn tsc_deadline() {
    apic::set_timer(APIC_VECTOR, apic::TSC_DEADLINE);
    let (stopwatch, start) = (Stopwatch::start(), cpu::tsc());
    while stopwatch.micros() < 10_000 {}
    let per_milli = (cpu::tsc() - start) * 1000 / stopwatch.micros();
    println!("timers: TSC {per_milli} kHz");
    for millis in [1, 3, 0] {
        let stopwatch = Stopwatch::start();
        let deadline = cpu::tsc() + per_milli * millis;
        cpu::write_msr(apic::TSC_DEADLINE_MSR, deadline);
        let took = wait(stopwatch, APIC_VECTOR, 1, || {});
        assert!(cpu::tsc() >= deadline, "the interrupt came before its deadline");
        assert_eq!(cpu::read_msr(apic::TSC_DEADLINE_MSR), 0, "IA32_TSC_DEADLINE after the interrupt");
        check("TSC deadline", millis * 1000, took);
    }
}

fn pit_periodic() {
    io_apic::route(pit::PIN, PIT_VECTOR);
    let stopwatch = Stopwatch::start();
    pit::start_periodic((pit::HERTZ / 1000) as u16);
    check("PIT, ten periods", 10_000, wait(stopwatch, PIT_VECTOR, 10, || {}));
}

fn pit_once() {
    let stopwatch = Stopwatch::start();
    pit::start_once((pit::HERTZ / 200) as u16);
    // A period of before may still be pending.
    cpu::take_interrupts();
    check("PIT, once", 5_000, wait(stopwatch, PIT_VECTOR, 1, || {}));
    let seen = count(PIT_VECTOR);
    let stopwatch = Stopwatch::start();
    cpu::enable_interrupts();
    while stopwatch.micros() < 10_000 {}
    cpu::disable_interrupts();
    assert_eq!(count(PIT_VECTOR), seen, "interrupts after the one");
    io_apic::mask(pit::PIN);
}

fn rtc_periodic() {
    io_apic::route(rtc::PIN, RTC_VECTOR);
    rtc::start_periodic();
    // A period that ended before is told at once; the next comes when the clock's own time has it.
    cpu::take_interrupts();
    let mut reasons = rtc::acknowledge();
    let stopwatch = Stopwatch::start();
    let took = wait(stopwatch, RTC_VECTOR, 11, || reasons |= rtc::acknowledge());
    rtc::stop();
    io_apic::mask(rtc::PIN);
    assert_eq!(reasons & 0xc0, 0xc0, "the reasons in status C");
    check("RTC, ten of 1024 a second", 10 * 1_000_000 / 1024, took);
}
