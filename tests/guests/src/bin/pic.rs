//! The 8259 pair: vectors, masks, priority, cascade, edges and levels; through the local APIC's LINT0 and, where
//! that is switched off, straight to the CPU.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::interrupts::{Frame, count, handle};
use runtime::pm_timer::Stopwatch;
use runtime::{apic, cpu, pic, pit, println, rtc, uart};

runtime::guest!(main);

const BASE: u8 = 0x30;
const PIT: u8 = 0;
const UART: u8 = uart::IRQ;
const RTC: u8 = 8;

/// The interrupts served, the last lowest; 0xf marks a handler's end.
static ORDER: AtomicU64 = AtomicU64::new(0);
/// Whether the handler of the UART's lets others in before its end.
static NESTS: AtomicU64 = AtomicU64::new(0);

fn main(_: &runtime::Machine) {
    apic::enable();
    apic::write(apic::register::LINT0, apic::EXTERNAL);
    pic::initialize(BASE);
    for irq in 0..16 {
        handle(BASE + irq, serve);
    }
    timer();
    masks();
    priority();
    levels();
    slave();
    not_through_a_masked_lint0();
    if cpu::is_bare_tcg() {
        println!("pic: bare TCG never switches its local APIC off");
    } else {
        without_local_apic();
    }
}

fn serve(frame: &mut Frame) {
    let irq = frame.vector as u8 - BASE;
    ORDER.store(ORDER.load(Relaxed) << 4 | u64::from(irq), Relaxed);
    assert_eq!(pic::in_service() >> irq & 1, 1, "interrupt {irq} in service in its handler");
    match irq {
        UART => {
            if NESTS.load(Relaxed) != 0 {
                cpu::take_interrupts();
            }
            uart::identify_interrupt();
            ORDER.store(ORDER.load(Relaxed) << 4 | 0xf, Relaxed);
        }
        RTC => _ = rtc::acknowledge(),
        _ => {}
    }
    pic::end_of_interrupt(irq);
    assert_eq!(pic::in_service() >> irq & 1, 0, "interrupt {irq} in service after its end");
}

fn served() -> u64 {
    ORDER.swap(0, Relaxed)
}

/// Halts until `vector` has come, for two seconds at most.
fn wait_for(irq: u8) {
    let (before, stopwatch) = (count(BASE + irq), Stopwatch::start());
    while count(BASE + irq) == before {
        assert!(stopwatch.micros() < 2_000_000, "interrupt {irq} does not come");
        cpu::take_interrupts();
    }
}

/// An edge of the PIT's output wakes the CPU.
fn timer() {
    pic::listen(1 << PIT);
    pit::start_periodic((pit::HERTZ / 500) as u16);
    let before = count(BASE + PIT);
    while count(BASE + PIT) < before + 5 {
        cpu::wait_for_interrupt();
    }
    pit::start_once(u16::MAX);
    pic::listen(0);
    cpu::take_interrupts();
    served();
}

/// A masked request waits; unmasked it comes.
fn masks() {
    uart::assert_interrupt();
    cpu::take_interrupts();
    assert_eq!(served(), 0, "interrupts with all masked");
    assert_eq!(pic::requested() & 1 << UART, 1 << UART, "the request of a masked interrupt");
    pic::listen(1 << UART);
    cpu::take_interrupts();
    assert_eq!(served(), 0x4f, "interrupts after unmasking");
    uart::release_interrupt();
    // One that goes before it is served may come as the spurious interrupt 7 or not at all; QEMU's comes.
    uart::assert_interrupt();
    uart::release_interrupt();
    cpu::take_interrupts();
    let came = served();
    assert!([0, 7, 0x4f].contains(&came), "interrupts after a request that went: {came:#x}");
}

/// Of two the lower number comes first, and interrupts the higher one's handler; not the other way round.
fn priority() {
    pic::listen(1 << PIT | 1 << UART);
    uart::assert_interrupt();
    pit_edge();
    cpu::take_interrupts();
    assert_eq!(served(), 0x04f, "the order of PIT (0) and UART (4)");
    uart::release_interrupt();

    NESTS.store(1, Relaxed);
    uart::assert_interrupt();
    pic::listen(1 << UART);
    pit_edge();
    // The handler lets in what is above it: the PIT, once it is unmasked.
    handle(BASE + UART, |frame| {
        pic::listen(1 << PIT | 1 << UART);
        serve(frame);
    });
    cpu::take_interrupts();
    assert_eq!(served(), 0x40f, "the PIT within the UART's handler");
    NESTS.store(0, Relaxed);
    handle(BASE + UART, serve);
    uart::release_interrupt();
}

/// One edge of the PIT's output, which is requested when this returns.
fn pit_edge() {
    pit::start_once(20);
    let stopwatch = Stopwatch::start();
    while pic::requested() & 1 << PIT == 0 {
        assert!(stopwatch.micros() < 2_000_000, "no edge from the PIT");
    }
}

/// A level interrupts as long as it is there, an edge once.
fn levels() {
    pic::listen(1 << UART);
    for (levels, least) in [(1 << UART, 3), (0, 1)] {
        pic::set_levels(levels);
        uart::release_interrupt();
        // This handler ends it without doing anything about the reason.
        handle(BASE + UART, |_| {
            if count(BASE + UART) - FIRST.load(Relaxed) >= 3 {
                uart::release_interrupt();
            }
            pic::end_of_interrupt(UART);
        });
        FIRST.store(count(BASE + UART), Relaxed);
        uart::assert_interrupt();
        cpu::take_interrupts();
        let came = count(BASE + UART) - FIRST.load(Relaxed);
        assert_eq!(came, least, "interrupts with levels {levels:#x}");
        uart::release_interrupt();
        handle(BASE + UART, serve);
    }
    served();
}

static FIRST: AtomicU64 = AtomicU64::new(0);

/// The slave's come through the master's third input.
fn slave() {
    pic::listen(1 << RTC);
    rtc::start_periodic();
    for _ in 0..3 {
        wait_for(RTC);
    }
    rtc::stop();
    cpu::take_interrupts();
    pic::listen(0);
    served();
}

fn not_through_a_masked_lint0() {
    apic::write(apic::register::LINT0, apic::EXTERNAL | apic::MASKED);
    pic::listen(1 << UART);
    uart::assert_interrupt();
    cpu::take_interrupts();
    assert_eq!(served(), 0, "interrupts through a masked LINT0");
    // And as a fixed interrupt the vector is the local APIC's, once for each time that the wire rises.
    const FIXED: u8 = 0x70;
    uart::release_interrupt();
    pic::initialize(BASE);
    pic::listen(1 << UART);
    apic::write(apic::register::LINT0, FIXED.into());
    uart::assert_interrupt();
    cpu::take_interrupts();
    let came = (count(FIXED), served());
    // Bare TCG lets the 8259 pair's through as well.
    assert!(came == (1, 0) || cpu::is_bare_tcg(), "interrupts through a fixed LINT0: {came:?}");
    uart::release_interrupt();
    apic::write(apic::register::LINT0, apic::EXTERNAL);
    pic::initialize(BASE);
}

fn without_local_apic() {
    let base = cpu::read_msr(apic::APIC_BASE_MSR);
    cpu::write_msr(apic::APIC_BASE_MSR, base & !apic::ENABLED);
    assert_eq!(cpu::cpuid(1, 0).edx & 1 << 9, 0, "CPUID's APIC bit with the local APIC off");
    pic::listen(1 << UART);
    uart::assert_interrupt();
    cpu::take_interrupts();
    assert_eq!(served(), 0x4f, "interrupts without local APIC");
    uart::release_interrupt();
    pit::start_periodic((pit::HERTZ / 500) as u16);
    pic::listen(1 << PIT);
    let before = count(BASE + PIT);
    while count(BASE + PIT) < before + 3 {
        cpu::wait_for_interrupt();
    }
    pic::listen(0);
    cpu::write_msr(apic::APIC_BASE_MSR, base);
    assert_ne!(cpu::cpuid(1, 0).edx & 1 << 9, 0, "CPUID's APIC bit with it on again");
}
