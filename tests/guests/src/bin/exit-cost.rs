//! What exits cost, in ticks of the time-stamp counter: under `-icount shift=0` those are instructions of the
//! host, the guest's own included.
#![no_std]
#![no_main]

use core::hint::black_box;
use runtime::interrupts::count;
use runtime::pm_timer::Stopwatch;
use runtime::{apic, cpu, io_apic, memory, pit, println};

runtime::guest!(main);

const LOOPS: u64 = 2_000;
const VECTOR: u8 = 0x40;

fn main(_: &runtime::Machine) {
    apic::enable();
    report("cpuid", || {
        black_box(cpu::cpuid(0, 0));
    });
    report("rdmsr", || {
        black_box(cpu::read_msr(apic::APIC_BASE_MSR));
    });
    report("port write, nothing there", || cpu::write_port_u8(0x80, 0));
    report("port read, PIT", || {
        black_box(cpu::read_port_u8(pit::PORT));
    });
    report("mmio read, IOAPIC", || {
        black_box(memory::read::<u32>(io_apic::BASE));
    });
    report("mmio write, IOAPIC", || memory::write(io_apic::BASE, 0_u32));
    report("mmio read, local APIC", || {
        black_box(memory::read::<u32>(apic::BASE + u64::from(apic::register::VERSION)));
    });
    report("mmio write, local APIC", || {
        memory::write(apic::BASE + u64::from(apic::register::TASK_PRIORITY), 0_u32)
    });
    report_wake_up();
    if cpu::cpuid(1, 0).ecx & 1 << 21 != 0 {
        apic::enable_x2apic();
        report("rdmsr, x2APIC", || {
            black_box(cpu::read_msr(0x803));
        });
        report("wrmsr, x2APIC", || cpu::write_msr(0x808, 0));
    }
}

/// Prints what `operation` costs beyond a loop without it: on average, and the cheapest batch.
fn report(what: &str, operation: impl Fn()) {
    // What happens only once, such as a first touch of a page, is nobody's cost.
    operation();
    let empty = ticks(|| ());
    let batches = [0; 8].map(|_| ticks(&operation).saturating_sub(empty));
    let average = batches.iter().sum::<u64>() / 8 / LOOPS;
    let least = batches.iter().min().copied().unwrap_or(0) / LOOPS;
    println!("exit-cost: {what} {average} instructions (least {least})");
}

#[inline(always)]
fn ticks(operation: impl Fn()) -> u64 {
    let start = cpu::tsc();
    for round in 0..LOOPS {
        black_box(round);
        operation();
    }
    cpu::tsc() - start
}

/// From the moment a timer ends a HLT to the instruction after it, the handler included.
fn report_wake_up() {
    const ROUNDS: u64 = 50;
    const DELAY: u64 = 200;
    let deadline_mode = cpu::cpuid(1, 0).ecx & 1 << 24 != 0;
    let (apic_khz, tsc_khz) = frequencies();
    apic::set_timer(VECTOR, if deadline_mode { apic::TSC_DEADLINE } else { 0 });
    let (mut total, mut least) = (0, u64::MAX);
    for _ in 0..ROUNDS {
        let deadline = cpu::tsc() + tsc_khz * DELAY / 1000;
        if deadline_mode {
            cpu::write_msr(apic::TSC_DEADLINE_MSR, deadline);
        } else {
            apic::start_timer((apic_khz * DELAY / 1000) as u32);
        }
        let seen = count(VECTOR);
        while count(VECTOR) == seen {
            cpu::wait_for_interrupt();
        }
        let late = cpu::tsc().saturating_sub(deadline);
        (total, least) = (total + late, least.min(late));
    }
    println!("exit-cost: hlt to wake-up {} instructions (least {least})", total / ROUNDS);
}

/// Of the local APIC's timer and the time-stamp counter, in kHz.
fn frequencies() -> (u64, u64) {
    apic::set_timer(VECTOR, apic::MASKED);
    apic::start_timer(u32::MAX);
    let (stopwatch, start) = (Stopwatch::start(), cpu::tsc());
    while stopwatch.micros() < 5_000 {}
    let counted = u64::from(u32::MAX - apic::read(apic::register::CURRENT_COUNT));
    let (ticks, micros) = (cpu::tsc() - start, stopwatch.micros());
    apic::start_timer(0);
    (counted * 1000 / micros, ticks * 1000 / micros)
}
