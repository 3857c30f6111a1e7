//! The local APIC decides who interrupts whom: by vector, task priority and what is in service; in both of its
//! modes.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::apic::{self, holds, read, register, send_self, write};
use runtime::interrupts::{Frame, catch, handle};
use runtime::{cpu, println};

runtime::guest!(main);

/// The vectors served, a byte each, the last lowest; bit 7 of a second entry marks its end.
static ORDER: AtomicU64 = AtomicU64::new(0);

fn main(_: &runtime::Machine) {
    apic::enable();
    for vector in [0x31, 0x32, 0x41, 0x51, 0x61] {
        handle(vector, serve);
    }
    in_either_mode();
    task_priority_has_sixteen_classes();
    illegal_vectors();
    if cpu::cpuid(1, 0).ecx & 1 << 21 == 0 {
        println!("interrupt-priority: no x2APIC here");
        return;
    }
    apic::enable_x2apic();
    in_either_mode();
    x2apic_self_interrupt();
}

fn in_either_mode() {
    highest_first();
    higher_interrupts_lower();
    task_priority_holds_back();
    end_in_order();
}

fn note(what: u8) {
    ORDER.store(ORDER.load(Relaxed) << 8 | u64::from(what), Relaxed);
}

fn serve(frame: &mut Frame) {
    let vector = frame.vector as u8;
    note(vector);
    assert!(holds(register::IN_SERVICE, vector), "{vector:#x} in service in its handler");
    assert!(!holds(register::REQUESTED, vector), "{vector:#x} still requested in its handler");
    if vector == 0x41 {
        assert_eq!(read(register::PROCESSOR_PRIORITY), 0x40, "processor priority with 0x41 in service");
        send_self(0x32);
        send_self(0x51);
        cpu::take_interrupts();
        assert!(holds(register::REQUESTED, 0x32), "a lower vector waits");
        note(0);
    }
    apic::end_of_interrupt();
}

fn served(expected: u64, what: &str) {
    cpu::take_interrupts();
    assert_eq!(ORDER.swap(0, Relaxed), expected, "{what}: the order of service");
}

fn highest_first() {
    for vector in [0x31, 0x61, 0x32, 0x51, 0x61] {
        send_self(vector);
        assert!(holds(register::REQUESTED, vector), "{vector:#x} requested");
    }
    served(0x6151_3231, "each once, highest first");
}

fn higher_interrupts_lower() {
    send_self(0x41);
    // 0x51 comes within 0x41, 0x32 after it.
    served(0x4151_0032, "sent within 0x41");
}

fn task_priority_holds_back() {
    write(register::TASK_PRIORITY, 0x45);
    assert_eq!(read(register::TASK_PRIORITY), 0x45, "the task priority's low bits");
    assert_eq!(cpu::cr8(), 4, "CR8 after a write to the task-priority register");
    assert_eq!(read(register::PROCESSOR_PRIORITY), 0x45, "processor priority with nothing in service");
    for vector in [0x32, 0x51, 0x41] {
        send_self(vector);
    }
    // 0x41 is no higher than class 4, and holds back.
    cpu::take_interrupts();
    assert_eq!(ORDER.swap(0, Relaxed), 0x51, "above task priority 0x45");
    cpu::set_cr8(3);
    assert_eq!(read(register::TASK_PRIORITY), 0x30, "the task priority after a write to CR8");
    cpu::take_interrupts();
    assert_eq!(ORDER.swap(0, Relaxed), 0x0041_5100, "above task priority 3");
    // With interrupts on, lowering CR8 is what lets it in, and nothing else.
    cpu::enable_interrupts();
    cpu::set_cr8(2);
    cpu::work();
    cpu::disable_interrupts();
    assert_eq!(ORDER.swap(0, Relaxed), 0x32, "above task priority 2");
    cpu::set_cr8(0);
}

/// One end of interrupt ends the highest in service.
fn end_in_order() {
    handle(0x51, |_| {
        apic::end_of_interrupt();
        assert!(holds(register::IN_SERVICE, 0x31), "0x31 after the end of 0x51");
    });
    handle(0x31, |_| {
        send_self(0x51);
        cpu::take_interrupts();
        assert!(holds(register::IN_SERVICE, 0x31) && !holds(register::IN_SERVICE, 0x51), "after 0x51");
        apic::end_of_interrupt();
        assert!(!holds(register::IN_SERVICE, 0x31), "after its end");
    });
    send_self(0x31);
    cpu::take_interrupts();
    // With nothing in service it does nothing.
    apic::end_of_interrupt();
    assert_eq!(read(register::PROCESSOR_PRIORITY), 0, "processor priority with nothing in service");
    handle(0x51, serve);
    handle(0x31, serve);
}

fn task_priority_has_sixteen_classes() {
    for class in 0..16 {
        cpu::set_cr8(class);
        assert_eq!(cpu::cr8(), class, "CR8");
        assert_eq!(u64::from(read(register::TASK_PRIORITY)), class << 4, "the task priority");
    }
    cpu::set_cr8(0);
    // QEMU's CPUs only drop the bit.
    if let Some(fault) = catch(|| cpu::set_cr8(16)) {
        assert_eq!((fault.vector, fault.error_code), (13, 0), "CR8 = 16");
    }
    cpu::set_cr8(0);
}

/// Vectors 0 to 15 are no interrupts: the error register says so.
fn illegal_vectors() {
    write(register::ERROR_STATUS, 0);
    write(register::ERROR_STATUS, 0);
    assert_eq!(read(register::ERROR_STATUS), 0, "errors before");
    send_self(0x05);
    write(register::ERROR_STATUS, 0);
    let errors = read(register::ERROR_STATUS);
    let noticed = errors & 0x60 != 0;
    assert!(noticed || cpu::is_bare_tcg(), "errors after a vector of 5: {errors:#x}");
    cpu::take_interrupts();
    assert_eq!(ORDER.load(Relaxed), 0, "interrupts");
}

fn x2apic_self_interrupt() {
    cpu::write_msr(0x83f, 0x61);
    served(0x61, "the self-IPI register");
    let fault = catch(|| {
        cpu::read_msr(0x83f);
    });
    assert_eq!(fault.map(|fault| fault.vector), Some(13), "RDMSR of the self-IPI register");
    let fault = catch(|| cpu::write_msr(0x80b, 1));
    assert_eq!(fault.map(|fault| fault.vector), Some(13), "an end of interrupt that is not zero");
    let fault = catch(|| cpu::write_msr(0x802, 1));
    assert_eq!(fault.map(|fault| fault.vector), Some(13), "a write to the ID");
}
