//! What exits cost, in ticks of the time-stamp counter: under `-icount shift=0` and in Bochs those are instructions
//! of the host, the guest's own included. With a second CPU, which sleeps meanwhile, what interrupts between CPUs
//! cost too.
#![no_std]
#![no_main]

use core::hint::black_box;
use runtime::alarm::Alarm;
use runtime::interrupts::count;
use runtime::{apic, cpu, io_apic, memory, pit, println, smp};

runtime::guest!(main);

const LOOPS: u64 = 2_000;
const VECTOR: u8 = 0x40;
/// What the first CPU sends the second, and what that answers.
const QUESTION: u8 = 0x41;
const ANSWER: u8 = 0x42;

fn main(machine: &runtime::Machine) {
    apic::enable();
    let second = machine.command_line().contains("second");
    if second {
        smp::start(1, answer);
    }
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
    if second {
        report_exchange();
    }
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
    let alarm = Alarm::new(VECTOR);
    let (mut total, mut least) = (0, u64::MAX);
    for _ in 0..ROUNDS {
        let late = alarm.sleep(DELAY);
        (total, least) = (total + late, least.min(late));
    }
    println!("exit-cost: hlt to wake-up {} instructions (least {least})", total / ROUNDS);
}

/// The second CPU's work: it sleeps until it is asked, and answers.
fn answer() -> ! {
    let mut seen = count(QUESTION);
    loop {
        while count(QUESTION) == seen {
            cpu::wait_for_interrupt();
        }
        seen += 1;
        apic::send(0, ANSWER.into());
    }
}

/// From an interrupt to a CPU that sleeps to its answer: two interrupts, two wake-ups, and nothing else runs.
fn report_exchange() {
    const ROUNDS: u64 = 200;
    let (mut total, mut least) = (0, u64::MAX);
    for _ in 0..ROUNDS {
        let (seen, start) = (count(ANSWER), cpu::tsc());
        apic::send(1, QUESTION.into());
        while count(ANSWER) == seen {
            cpu::wait_for_interrupt();
        }
        let took = (cpu::tsc() - start) / 2;
        (total, least) = (total + took, least.min(took));
    }
    println!("exit-cost: interrupt to a CPU that sleeps {} instructions (least {least})", total / ROUNDS);
}
