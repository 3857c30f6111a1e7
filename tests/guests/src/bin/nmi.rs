//! Non-maskable interrupts: they come with interrupts off, one at a time until IRET, not behind MOV SS, and wake
//! a halted CPU.
#![no_std]
#![no_main]
// Unsafe because the order of single instructions is the point.
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::interrupts::{Frame, count, handle};
use runtime::pm_timer::Stopwatch;
use runtime::{apic, cpu, io_apic, pit};

runtime::guest!(main);

const NMI: u8 = 2;
const BREAKPOINT: u8 = 3;
const VECTOR: u8 = 0x40;

/// How many more the handler sends to itself, and what it saw.
static TO_SEND: AtomicU64 = AtomicU64::new(0);
static NESTED: AtomicU64 = AtomicU64::new(0);
static INSIDE: AtomicU64 = AtomicU64::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);

fn main(machine: &runtime::Machine) {
    apic::enable();
    handle(NMI, on_nmi);
    with_interrupts_off();
    blocked_until_return();
    unblocked_by_any_return();
    not_behind_stack_switch();
    before_interrupts();
    ends_halt();
    if machine.command_line().ends_with("interrupts-off") {
        at_any_moment();
    }
    cpu::enable_interrupts();
    at_any_moment();
    io_apic::mask(pit::PIN);
}

fn on_nmi(frame: &mut Frame) {
    NESTED.fetch_max(INSIDE.fetch_add(1, Relaxed), Relaxed);
    RIP.store(frame.rip, Relaxed);
    if TO_SEND.load(Relaxed) > 0 {
        TO_SEND.fetch_sub(1, Relaxed);
        // Two, of which one can wait: the other is lost.
        apic::send_self_nmi();
        apic::send_self_nmi();
        // An exit of every kind is a chance to deliver it too early.
        cpu::cpuid(0, 0);
        cpu::write_port_u8(0x80, 0);
    }
    INSIDE.fetch_sub(1, Relaxed);
}

/// Runs `work` and gives how many came meanwhile.
fn during(work: impl FnOnce()) -> u64 {
    let before = count(NMI);
    work();
    count(NMI) - before
}

fn with_interrupts_off() {
    let came = during(|| {
        apic::send_self_nmi();
        cpu::work();
    });
    assert_eq!(came, 1, "NMIs from one self-IPI");
}

fn blocked_until_return() {
    TO_SEND.store(1, Relaxed);
    // The second is taken as the first returns, with no exit between: these are not instructions that exit.
    let came = during(|| {
        apic::send_self_nmi();
        cpu::work();
    });
    assert_eq!(came, 2, "one NMI, and one of two sent within it");
    TO_SEND.store(3, Relaxed);
    let came = during(|| {
        apic::send_self_nmi();
        cpu::work();
    });
    assert_eq!(came, 4, "an NMI in each of three NMIs");
    assert_eq!(NESTED.load(Relaxed), 0, "how deep NMIs came within NMIs");
}

/// The IRET of an exception within the handler unblocks too (SDM 6.7.1).
fn unblocked_by_any_return() {
    static WITHIN: AtomicU64 = AtomicU64::new(0);
    handle(BREAKPOINT, |_| ());
    handle(NMI, |_| {
        if WITHIN.fetch_add(1, Relaxed) == 0 {
            apic::send_self_nmi();
            cpu::work();
            assert_eq!(WITHIN.load(Relaxed), 1, "NMIs before any IRET");
            // SAFETY: its handler does nothing.
            unsafe { asm!("int3") }
            cpu::work();
            assert_eq!(WITHIN.load(Relaxed), 2, "NMIs after the IRET of an exception within the handler");
        }
    });
    let came = during(|| {
        apic::send_self_nmi();
        cpu::work();
    });
    assert_eq!(came, 2, "NMIs");
    handle(NMI, on_nmi);
}

/// MOV SS keeps even NMIs away for one instruction.
fn not_behind_stack_switch() {
    let (behind, end): (u64, u64);
    apic::write(apic::register::COMMAND_HIGH, 0);
    // SAFETY: SS gets the value that it has; the write is to the local APIC.
    unsafe {
        asm!(
            "mov {selector:e}, ss",
            "lea {behind}, [rip + 2f]",
            "lea {end}, [rip + 3f]",
            "mov ss, {selector:e}",
            "mov dword ptr [{command}], {nmi}",
            "2: nop",
            "3:",
            selector = out(reg) _,
            behind = out(reg) behind,
            end = out(reg) end,
            command = in(reg) apic::BASE + u64::from(apic::register::COMMAND_LOW),
            nmi = const apic::NMI,
        );
    }
    let rip = RIP.load(Relaxed);
    // The write may take a moment to come back as an NMI, but not less than none.
    assert!((behind..=end + 64).contains(&rip), "the NMI came at {rip:#x}, not from {behind:#x} on");
}

/// Of both, the NMI comes first, and the interrupt right after.
fn before_interrupts() {
    static ORDER: AtomicU64 = AtomicU64::new(0);
    handle(NMI, |_| ORDER.store(ORDER.load(Relaxed) << 8 | 1, Relaxed));
    handle(VECTOR, |_| {
        ORDER.store(ORDER.load(Relaxed) << 8 | 2, Relaxed);
        apic::end_of_interrupt();
    });
    apic::send_self(VECTOR);
    apic::send_self_nmi();
    cpu::enable_interrupts();
    cpu::work();
    cpu::disable_interrupts();
    assert_eq!(ORDER.load(Relaxed), 0x0102, "NMI (1), then interrupt (2)");
    handle(NMI, on_nmi);
}

/// The PIT's edges come as NMIs: many, since the first may come before HLT.
fn ends_halt() {
    io_apic::redirect(pit::PIN, apic::NMI);
    pit::start_periodic((pit::HERTZ / 500) as u16);
    for _ in 0..10 {
        let came = during(|| {
            // SAFETY: interrupts are off; an NMI ends it.
            unsafe { asm!("hlt", options(nostack)) }
        });
        assert!(came > 0, "HLT with interrupts off ended without an NMI");
    }
    // The last of them may still be on its way.
    io_apic::mask(pit::PIN);
    pit::start_once(1);
    while !pit::output() {}
    io_apic::redirect(pit::PIN, apic::NMI);
}

/// At moments of their own, into code that never exits: none before its time.
fn at_any_moment() {
    for round in 0..20 {
        let stopwatch = Stopwatch::start();
        while stopwatch.micros() < 1000 {}
        let (before, ticks, started) = (count(NMI), 200 + round * 17, Stopwatch::start());
        pit::start_once(ticks);
        let mut spins = 0_u64;
        while count(NMI) == before {
            cpu::work();
            spins += 1;
            assert!(!spins.is_multiple_of(100_000) || stopwatch.micros() < 2_000_000, "no NMI from the PIT");
        }
        let (passed, due) = (started.micros(), u64::from(ticks) * 1_000_000 / u64::from(pit::HERTZ));
        assert!(passed + 1 >= due, "the PIT's NMI came after {passed} of {due} us");
    }
}
