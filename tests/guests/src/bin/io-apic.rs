//! The IOAPIC: edges and levels, masks, remote request, ways to address, and kinds of delivery.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::apic::{self, register};
use runtime::interrupts::{count, handle};
use runtime::io_apic::{LEVEL, MASKED, REMOTE_REQUEST, redirect, redirection};
use runtime::pm_timer::Stopwatch;
use runtime::{cpu, io_apic, pic, pit, println, uart};

runtime::guest!(main);

const EDGE: u8 = 0x50;
const LEVELED: u8 = 0x60;
const LOWEST_PRIORITY: u32 = 1 << 8;
const LOGICAL: u32 = 1 << 11;

/// How many more times the level's handler leaves the reason as it is.
static LEAVE: AtomicU64 = AtomicU64::new(0);

fn main(_: &runtime::Machine) {
    apic::enable();
    registers();
    edges();
    addressing();
    levels();
    external();
}

fn registers() {
    let version = io_apic::read(1);
    let pins = (version >> 16 & 0xff) + 1;
    println!("io-apic: version {version:#x}");
    assert!(pins >= 24, "{pins} pins");
    for pin in 0..24 {
        assert_ne!(redirection(pin) & MASKED, 0, "pin {pin} is masked at first");
    }
    // Delivery status and remote request are not the guest's to write.
    redirect(23, MASKED | 0xafff);
    assert_eq!(redirection(23), MASKED | 0xafff, "a redirection entry");
    redirect(23, MASKED | REMOTE_REQUEST | 1 << 12);
    assert_eq!(redirection(23) & (REMOTE_REQUEST | 1 << 12), 0, "what a guest cannot write");
    redirect(23, MASKED);
}

/// One edge of the PIT's output.
fn pit_edge() {
    pit::start_once(20);
    while !pit::output() {}
    // On bare TCG the edge is on its way a little longer.
    let stopwatch = Stopwatch::start();
    while stopwatch.micros() < 200 {}
}

fn edges() {
    redirect(pit::PIN, EDGE.into());
    for round in 1..4 {
        pit_edge();
        cpu::take_interrupts();
        assert_eq!(count(EDGE), round, "interrupts after so many edges");
    }
    // On a masked pin it is lost.
    redirect(pit::PIN, MASKED | u32::from(EDGE));
    pit_edge();
    redirect(pit::PIN, EDGE.into());
    cpu::take_interrupts();
    assert_eq!(count(EDGE), 3, "interrupts after an edge on a masked pin");
    assert_eq!(redirection(pit::PIN) & REMOTE_REQUEST, 0, "remote request of an edge");
}

/// By the logical ID, and to the CPU of lowest priority.
fn addressing() {
    apic::write(register::LOGICAL_DESTINATION, 0x04 << 24);
    apic::write(register::DESTINATION_FORMAT, u32::MAX);
    let mut expected = count(EDGE);
    for (what, low, destination, comes) in [
        ("its logical ID", LOGICAL, 0x04_u32, true),
        ("a set that it is in", LOGICAL, 0x0c, true),
        ("a set that it is not in", LOGICAL, 0x0b, false),
        ("everybody", 0, 0xff, true),
        ("another", 0, 0x03, false),
        ("the lowest priority", LOWEST_PRIORITY, 0, true),
        ("the lowest priority of a set", LOWEST_PRIORITY | LOGICAL, 0x0c, true),
    ] {
        io_apic::write(0x11 + u32::from(pit::PIN) * 2, destination << 24);
        io_apic::write(0x10 + u32::from(pit::PIN) * 2, low | u32::from(EDGE));
        pit_edge();
        cpu::take_interrupts();
        expected += u64::from(comes);
        assert_eq!(count(EDGE), expected, "interrupts for {what}");
    }
    redirect(pit::PIN, MASKED);
}

/// The UART's request stays until its reason is read.
fn levels() {
    handle(LEVELED, |_| {
        assert!(apic::holds(register::TRIGGER_MODE, LEVELED), "the trigger mode of a level");
        assert_ne!(redirection(uart::IRQ) & REMOTE_REQUEST, 0, "remote request in the handler");
        if LEAVE.load(Relaxed) == 0 {
            uart::identify_interrupt();
        } else {
            LEAVE.fetch_sub(1, Relaxed);
        }
        apic::end_of_interrupt();
    });
    redirect(uart::IRQ, LEVEL | u32::from(LEVELED));
    LEAVE.store(2, Relaxed);
    uart::assert_interrupt();
    cpu::take_interrupts();
    assert_eq!(count(LEVELED), 3, "interrupts of a level that is left twice");
    assert_eq!(redirection(uart::IRQ) & REMOTE_REQUEST, 0, "remote request after it");
    // A level that was masked comes when the mask goes.
    redirect(uart::IRQ, MASKED | LEVEL | u32::from(LEVELED));
    uart::release_interrupt();
    uart::assert_interrupt();
    cpu::take_interrupts();
    assert_eq!(count(LEVELED), 3, "interrupts of a masked level");
    redirect(uart::IRQ, LEVEL | u32::from(LEVELED));
    cpu::take_interrupts();
    assert_eq!(count(LEVELED), 4, "interrupts after the mask went");
    // Taken but not ended, it does not come twice.
    uart::release_interrupt();
    uart::assert_interrupt();
    assert!(apic::holds(register::REQUESTED, LEVELED), "the request");
    assert_ne!(redirection(uart::IRQ) & REMOTE_REQUEST, 0, "remote request before the handler");
    uart::release_interrupt();
    cpu::take_interrupts();
    assert_eq!(count(LEVELED), 5, "interrupts of a level that went before its handler");
    uart::release_interrupt();
    redirect(uart::IRQ, MASKED);
}

/// A pin that has the 8259 pair name the vector.
fn external() {
    const PIC_BASE: u8 = 0x30;
    if cpu::is_bare_tcg() {
        println!("io-apic: bare TCG forgets external interrupts from pins");
        return;
    }
    pic::initialize(PIC_BASE);
    pic::listen(1 << uart::IRQ);
    handle(PIC_BASE + uart::IRQ, |_| {
        uart::identify_interrupt();
        pic::end_of_interrupt(uart::IRQ);
    });
    redirect(uart::IRQ, apic::EXTERNAL);
    uart::assert_interrupt();
    cpu::take_interrupts();
    assert_eq!(count(PIC_BASE + uart::IRQ), 1, "interrupts whose vector the 8259 pair named");
    uart::release_interrupt();
    redirect(uart::IRQ, MASKED);
}
