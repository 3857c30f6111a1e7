//! The local APIC's registers keep what may be written, in memory and as MSRs; they move where IA32_APIC_BASE says, and
//! go where it says so.
#![no_std]
#![no_main]

use runtime::apic::{self, APIC_BASE_MSR, BASE, ENABLED, register};
use runtime::interrupts::{catch, count, handle};
use runtime::{cpu, memory, println};

runtime::guest!(main);

const VECTOR: u8 = 0x61;
const ELSEWHERE: u64 = 0xfed1_0000;
const BOOTSTRAP: u64 = 1 << 8;
const X2APIC: u64 = 1 << 10;
const PERFORMANCE_COUNTER: u32 = 0x340;

fn main(_: &runtime::Machine) {
    apic::enable();
    kept_in_memory();
    if cpu::is_bare_tcg() {
        println!("apic-modes: bare TCG's local APIC stays where it is");
        return;
    }
    elsewhere();
    nowhere();
    kept_in_x2apic_mode();
    back_to_memory();
}

fn at(base: u64, register: u32) -> u32 {
    memory::read(base + u64::from(register))
}

/// What is written, and what is then read: the same in both modes.
const KEPT: [(&str, u32, u32, u32); 11] = [
    ("the task priority", register::TASK_PRIORITY, 0xab, 0xab),
    ("the spurious vector", register::SPURIOUS, 0x1f0, 0x1f0),
    ("the timer's vector", register::TIMER, apic::PERIODIC | 0xef, apic::PERIODIC | 0xef),
    ("a masked timer", register::TIMER, apic::MASKED, apic::MASKED),
    ("the performance counter's vector", PERFORMANCE_COUNTER, apic::MASKED | 0x4fe, apic::MASKED | 0x4fe),
    ("LINT0", register::LINT0, apic::MASKED | 0xa700, apic::MASKED | 0xa700),
    ("LINT1", register::LINT1, apic::MASKED | 0x31, apic::MASKED | 0x31),
    ("the error vector", register::ERROR, apic::MASKED | 0xfe, apic::MASKED | 0xfe),
    ("the divider", register::DIVIDE, 0b1010, 0b1010),
    ("the initial count", register::INITIAL_COUNT, 0xffff_fff0, 0xffff_fff0),
    ("a stopped timer's count", register::INITIAL_COUNT, 0, 0),
];

fn kept() {
    for (name, register, written, expected) in KEPT {
        apic::write(register, written);
        assert_eq!(apic::read(register), expected, "{name}");
    }
    apic::write(register::TASK_PRIORITY, 0);
    // Two at once: nothing of one is lost with the other.
    apic::send_self(VECTOR);
    assert!(apic::holds(register::REQUESTED, VECTOR), "{VECTOR:#x} requested");
    assert_eq!(apic::read(register::COMMAND_LOW) & 0xc_00ff, 1 << 18 | u32::from(VECTOR), "the command");
    apic::write(register::ERROR, apic::MASKED | 0xfd);
    assert!(apic::holds(register::REQUESTED, VECTOR), "{VECTOR:#x} requested, after another write");
    let before = count(VECTOR);
    cpu::take_interrupts();
    assert_eq!(count(VECTOR), before + 1, "interrupts");
}

fn kept_in_memory() {
    kept();
    apic::write(register::LOGICAL_DESTINATION, u32::MAX);
    assert_eq!(apic::read(register::LOGICAL_DESTINATION), 0xff00_0000, "the logical destination");
    apic::write(register::DESTINATION_FORMAT, 0);
    assert_eq!(apic::read(register::DESTINATION_FORMAT), 0x0fff_ffff, "the destination format");
    apic::write(register::DESTINATION_FORMAT, u32::MAX);
    apic::write(register::COMMAND_HIGH, 0x0300_0000);
    assert_eq!(apic::read(register::COMMAND_HIGH), 0x0300_0000, "the command's destination");
    assert_eq!(apic::read(register::ID) >> 24, 0, "the ID");
    // The reserved bits of a local vector are nobody's; what may not be written stays as it is.
    if !cpu::is_bare_tcg() {
        apic::write(register::ERROR, u32::MAX);
        assert_eq!(apic::read(register::ERROR), apic::MASKED | 0xff, "the error vector's own bits");
        let version = apic::read(register::VERSION);
        apic::write(register::VERSION, 0);
        assert_eq!(apic::read(register::VERSION), version, "the version");
    }
}

/// Another page has the registers now, and the old one nothing.
fn elsewhere() {
    cpu::write_msr(APIC_BASE_MSR, ELSEWHERE | ENABLED);
    assert_eq!(cpu::read_msr(APIC_BASE_MSR), ELSEWHERE | ENABLED | BOOTSTRAP, "IA32_APIC_BASE");
    assert_eq!(at(BASE, register::VERSION), u32::MAX, "where they were");
    memory::write(BASE + u64::from(register::TASK_PRIORITY), 0x20_u32);
    assert_eq!(at(ELSEWHERE, register::TASK_PRIORITY), 0, "the task priority");
    assert_eq!(at(ELSEWHERE, register::SPURIOUS), 0x1f0, "the spurious vector, elsewhere");
    handle(VECTOR, |_| memory::write(ELSEWHERE + u64::from(register::END_OF_INTERRUPT), 0_u32));
    for _ in 0..2 {
        let before = count(VECTOR);
        memory::write(ELSEWHERE + u64::from(register::COMMAND_LOW), 1_u32 << 18 | u32::from(VECTOR));
        cpu::take_interrupts();
        assert_eq!(count(VECTOR), before + 1, "interrupts by the registers elsewhere");
    }
    cpu::write_msr(APIC_BASE_MSR, BASE | ENABLED);
    assert_eq!(at(ELSEWHERE, register::VERSION), u32::MAX, "where they were for a while");
    assert_eq!(at(BASE, register::SPURIOUS), 0x1f0, "the spurious vector, back");
    handle(VECTOR, |_| apic::end_of_interrupt());
}

/// Without a local APIC there is nothing, and it comes back as after a reset.
fn nowhere() {
    cpu::write_msr(APIC_BASE_MSR, BASE);
    assert_eq!(cpu::cpuid(1, 0).edx & 1 << 9, 0, "CPUID's local APIC");
    assert_eq!(at(BASE, register::VERSION), u32::MAX, "where it was");
    cpu::write_msr(APIC_BASE_MSR, BASE | ENABLED);
    assert_ne!(cpu::cpuid(1, 0).edx & 1 << 9, 0, "CPUID's local APIC");
    assert_eq!(at(BASE, register::SPURIOUS), 0xff, "the spurious vector after a reset");
    assert_eq!(at(BASE, register::TIMER), apic::MASKED, "the timer after a reset");
    // Switched off by software, it takes nothing, not even from itself.
    apic::send_self(VECTOR);
    assert!(!apic::holds(register::REQUESTED, VECTOR), "{VECTOR:#x} while it is off");
    apic::enable();
}

fn kept_in_x2apic_mode() {
    if cpu::cpuid(1, 0).ecx & 1 << 21 == 0 {
        println!("apic-modes: no x2APIC here");
        return;
    }
    apic::enable_x2apic();
    assert_eq!(at(BASE, register::VERSION), u32::MAX, "in memory in x2APIC mode");
    kept();
    assert_eq!(cpu::read_msr(0x802), 0, "the ID");
    assert_eq!(cpu::read_msr(0x80d), 1, "the logical ID");
    cpu::write_msr(0x830, 5 << 32 | 1 << 18 | u64::from(VECTOR));
    assert_eq!(cpu::read_msr(0x830) & !(1 << 12), 5 << 32 | 1 << 18 | u64::from(VECTOR), "the command");
    let before = count(VECTOR);
    cpu::take_interrupts();
    assert_eq!(count(VECTOR), before + 1, "interrupts by a command of 64 bits");
    for index in [0x800, 0x809, 0x80b, 0x80c, 0x80e, 0x829, 0x831, 0x83a, 0x83f, 0x840, 0x8ff] {
        let fault = catch(|| {
            cpu::read_msr(index);
        });
        assert_eq!(fault.map(|fault| fault.vector), Some(13), "RDMSR of {index:#x}");
    }
    for (index, value) in [(0x808, 0x100), (0x80b, 1), (0x80d, 0), (0x810, 0), (0x828, 1), (0x839, 0)] {
        let fault = catch(|| cpu::write_msr(index, value));
        assert_eq!(fault.map(|fault| fault.vector), Some(13), "WRMSR of {value:#x} to {index:#x}");
    }
    let fault = catch(|| cpu::write_msr(APIC_BASE_MSR, BASE | ENABLED));
    assert_eq!(fault.map(|fault| fault.vector), Some(13), "from x2APIC mode to xAPIC mode");
    // A vector that is none is an error, and nothing else.
    cpu::write_msr(0x83f, 5);
    cpu::write_msr(0x828, 0);
    assert_ne!(cpu::read_msr(0x828) & 0x60, 0, "errors after a self-IPI of 5");
}

fn back_to_memory() {
    cpu::write_msr(APIC_BASE_MSR, BASE);
    let fault = catch(|| cpu::write_msr(APIC_BASE_MSR, BASE | ENABLED | X2APIC));
    assert_eq!(fault.map(|fault| fault.vector), Some(13), "from off to x2APIC mode");
    cpu::write_msr(APIC_BASE_MSR, BASE | ENABLED);
    apic::leave_x2apic();
    apic::enable();
    kept_in_memory();
}
