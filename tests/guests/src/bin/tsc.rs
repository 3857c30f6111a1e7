//! The time-stamp counter never goes back, keeps its pace through exits and sleep, and is the guest's to set.
#![no_std]
#![no_main]

use runtime::pm_timer::Stopwatch;
use runtime::{apic, cpu, println};

runtime::guest!(main);

const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const TSC_AUX: u32 = 0xc000_0103;
const VECTOR: u8 = 0x40;

fn main(_: &runtime::Machine) {
    apic::enable();
    forward();
    pace();
    auxiliary();
    set();
}

/// Whatever lies between two readings.
fn forward() {
    let mut last = cpu::tsc();
    let mut check = |what: &str| {
        let now = cpu::tsc();
        assert!(now > last, "after {what} the counter went from {last} to {now}");
        last = now;
    };
    apic::set_timer(VECTOR, 0);
    for round in 0..2000 {
        check("nothing");
        cpu::cpuid(0, 0);
        check("CPUID");
        let told = cpu::read_msr(TSC);
        check("RDMSR");
        let now = cpu::tsc();
        assert!(now > told, "RDMSR told {told}, RDTSC then {now}");
        if round % 100 == 0 {
            apic::start_timer(100_000);
            cpu::wait_for_interrupt();
            check("HLT");
        }
    }
}

/// The same pace in a loop, in a loop of exits, and asleep: by the ACPI timer, as far as the machine lets us read
/// both at once.
fn pace() {
    let measure = |work: &dyn Fn()| {
        let best = (0..5).map(|_| {
            let (outer, start, inner) = (Stopwatch::start(), cpu::tsc(), Stopwatch::start());
            while inner.micros() < 20_000 {
                work();
            }
            let (short, ticks, long) = (inner.micros(), cpu::tsc() - start, outer.micros());
            (long - short, ticks * 2000 / (long + short))
        });
        best.min_by_key(|(doubt, _)| *doubt).map_or(0, |(_, khz)| khz)
    };
    apic::set_timer(VECTOR, 0);
    let awake = measure(&cpu::work);
    let exits = measure(&|| _ = cpu::cpuid(0, 0));
    let asleep = measure(&|| {
        apic::start_timer(2_000_000);
        cpu::wait_for_interrupt();
    });
    println!("tsc: {awake} kHz in a loop, {exits} in exits, {asleep} asleep");
    for (what, khz) in [("exits", exits), ("sleep", asleep)] {
        assert!(awake.abs_diff(khz) <= awake / 50, "{khz} kHz in {what}, {awake} in a loop");
    }
}

fn auxiliary() {
    if cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 == 0 {
        println!("tsc: no RDTSCP here");
        return;
    }
    cpu::write_msr(TSC_AUX, 0x8765_4321);
    let before = cpu::tsc();
    let (counter, aux) = cpu::tsc_and_aux();
    assert!(counter >= before, "RDTSCP after RDTSC");
    assert_eq!(aux, 0x8765_4321, "TSC_AUX by RDTSCP");
}

fn set() {
    if cpu::is_bare_tcg() {
        println!("tsc: bare TCG's counter cannot be set");
        return;
    }
    const SECOND: u64 = 1 << 32;
    for value in [1 << 50, 12345, 1 << 40] {
        cpu::write_msr(TSC, value);
        let now = cpu::tsc();
        assert!((value..value + SECOND).contains(&now), "set to {value}, the counter reads {now}");
        let told = cpu::read_msr(TSC);
        assert!((now..now + SECOND).contains(&told), "RDTSC says {now}, RDMSR {told}");
    }
    let extended = if cpu::cpuid(0, 0).eax >= 7 { cpu::cpuid(7, 0).ebx } else { 0 };
    if extended & 1 << 1 == 0 {
        return;
    }
    let adjust = cpu::read_msr(TSC_ADJUST);
    let before = cpu::tsc();
    cpu::write_msr(TSC_ADJUST, adjust + SECOND);
    let now = cpu::tsc();
    assert!((before + SECOND..before + 2 * SECOND).contains(&now), "adjusted from {before}, it reads {now}");
    cpu::write_msr(TSC_ADJUST, adjust);
    assert_eq!(cpu::read_msr(TSC_ADJUST), adjust, "IA32_TSC_ADJUST");
}
