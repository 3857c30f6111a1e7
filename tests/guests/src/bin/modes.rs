//! The same work in every mode that a CPU has, from real mode to five levels of page tables: CPUID, ports,
//! strings, model-specific registers, a device in memory, software and hardware interrupts, HLT, and exceptions.
#![no_std]
#![no_main]
// Unsafe because the CPU's modes are the point.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::ptr::copy_nonoverlapping;
use runtime::descriptors;
use runtime::interrupts::{self, GateKind, handle, set_gate};
use runtime::memory::{self, read, write};
use runtime::{apic, cpu, println};

runtime::guest!(main);

/// What the code in low memory finds and leaves there: see `result`.
const RESULTS: u64 = 0x7000;
/// Where that code is copied to, and where its tables lie.
const CODE: u64 = 0x8000;
const TWO_LEVELS: u64 = 0x1000;
const TWO_LEVELS_TABLE: u64 = 0x2000;
const PAE: u64 = 0x3000;
const PAE_FIRST: u64 = 0x4000;
const MARKED_PAGE: u64 = 0x5000;
const TASK: u64 = 0x5800;
const PAE_SECOND: u64 = 0xb000;
const PAE_TABLE: u64 = 0xc000;
const PAE_LAST: u64 = 0xd000;
const FIVE_LEVELS: u64 = 0xe000;

/// Where only page tables lead to `MARKED_PAGE`.
const WINDOW: u64 = 0x4000_0000;
const MARK: u32 = 0x5ca1_ab1e;

/// Results by their offset.
mod result {
    pub const VENDOR: u64 = 0x00;
    pub const PORT: u64 = 0x04;
    pub const REGISTER: u64 = 0x08;
    pub const DEVICE: u64 = 0x0c;
    pub const PORT_AFTER_STRING: u64 = 0x10;
    pub const SOFTWARE_INTERRUPTS: u64 = 0x20;
    pub const INTERRUPTS: u64 = 0x24;
    pub const WAKE_UPS: u64 = 0x28;
    pub const INVALID_OPCODES: u64 = 0x2c;
    pub const PROTECTION_FAULTS: u64 = 0x30;
    pub const ERROR_CODE: u64 = 0x34;
    /// How long the instruction is that raises #GP.
    pub const SKIP: u64 = 0x38;
    pub const WINDOW: u64 = 0x3c;
    pub const STRING: u64 = 0x100;
}

/// The vectors of the work's interrupts.
const SOFTWARE: u8 = 0x60;
const HARDWARE: u8 = 0x61;
const TIMER: u8 = 0x62;
const INVALID_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
/// A selector that leads past the table.
const BAD_SELECTOR: u32 = 0x4320;

/// A mode, by the number that the code knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Real = 0,
    Protected16 = 1,
    Protected32 = 2,
    TwoLevels = 3,
    PhysicalAddressExtension = 4,
    Compatibility = 5,
    Long = 6,
    FiveLevels = 7,
    Virtual8086 = 8,
}

global_asm!(include_str!("modes/low.s"), options(att_syntax));

unsafe extern "C" {
    static low_code: u8;
    static low_code_end: u8;
    fn run_low(mode: u64, root: u64);
}

fn main(machine: &runtime::Machine) {
    apic::enable();
    apic::set_timer(TIMER, 0);
    prepare();
    // Apart, as one of Bochs's CPUs has all modes but this one.
    if machine.command_line().ends_with("virtual-8086") {
        run(Mode::Virtual8086);
        return check_virtual_8086();
    }
    for mode in [
        Mode::Real,
        Mode::Protected16,
        Mode::Protected32,
        Mode::TwoLevels,
        Mode::PhysicalAddressExtension,
        Mode::Compatibility,
        Mode::Long,
        Mode::FiveLevels,
    ] {
        let features = if cpu::cpuid(0, 0).eax >= 7 { cpu::cpuid(7, 0).ecx } else { 0 };
        if mode == Mode::FiveLevels && features & 1 << 16 == 0 {
            println!("modes: no five levels of page tables here");
            continue;
        }
        run(mode);
        check(mode);
    }
}

/// Copies the code, makes tables, and has the interrupts of 64-bit mode leave the same results as the code's own.
fn prepare() {
    // SAFETY: both are the code's own labels; nothing else lies in low memory that is still needed.
    unsafe {
        let (from, to) = (&raw const low_code, &raw const low_code_end);
        let len = to.offset_from_unsigned(from);
        assert!(len < 0x2000, "the code in low memory has {len} bytes");
        copy_nonoverlapping(from, CODE as *mut u8, len);
    }
    make_tables();
    handle(SOFTWARE, |_| count(result::SOFTWARE_INTERRUPTS));
    handle(HARDWARE, |_| {
        count(result::INTERRUPTS);
        apic::end_of_interrupt();
    });
    handle(TIMER, |_| {
        count(result::WAKE_UPS);
        apic::end_of_interrupt();
    });
    handle(INVALID_OPCODE, |frame| {
        count(result::INVALID_OPCODES);
        frame.rip += 2;
    });
    handle(GENERAL_PROTECTION, |frame| {
        count(result::PROTECTION_FAULTS);
        write(RESULTS + result::ERROR_CODE, frame.error_code as u32);
        frame.rip += u64::from(read::<u32>(RESULTS + result::SKIP));
    });
    set_gate(SOFTWARE, GateKind::User);
}

fn count(result: u64) {
    write(RESULTS + result, read::<u32>(RESULTS + result) + 1);
}

fn make_tables() {
    const PRESENT: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    for page in [
        TWO_LEVELS,
        TWO_LEVELS_TABLE,
        PAE,
        PAE_FIRST,
        MARKED_PAGE,
        PAE_SECOND,
        PAE_TABLE,
        PAE_LAST,
        FIVE_LEVELS,
    ] {
        (0..512).for_each(|word| write(page + word * 8, 0_u64));
    }
    write(MARKED_PAGE, MARK);
    // 4 MiB pages for the first and for the APICs, a table for the window.
    let two_levels = |index: u64, value: u64| write(TWO_LEVELS + index * 4, value as u32);
    two_levels(0, LARGE | PRESENT);
    two_levels(0xfec0_0000 >> 22, 0xfec0_0000 | LARGE | PRESENT);
    two_levels(WINDOW >> 22, TWO_LEVELS_TABLE | PRESENT);
    write(TWO_LEVELS_TABLE, (MARKED_PAGE | PRESENT) as u32);
    // The same in 2 MiB pages.
    for (index, directory) in [(0, PAE_FIRST), (1, PAE_SECOND), (3, PAE_LAST)] {
        write(PAE + index * 8, directory | 1);
    }
    for page in 0..2 {
        write(PAE_FIRST + page * 8, page << 21 | LARGE | PRESENT);
        let device = 0xfec0_0000 + (page << 21);
        write(PAE_LAST + (device >> 21 & 511) * 8, device | LARGE | PRESENT);
    }
    write(PAE_SECOND, PAE_TABLE | PRESENT);
    write(PAE_TABLE, MARKED_PAGE | PRESENT);
    write(FIVE_LEVELS, memory::root() | PRESENT);
    // A 32-bit task-state segment: the kernel's stack, and an I/O permission bitmap that allows port 21h alone.
    (0..32).for_each(|word| write(TASK + word * 8, 0_u64));
    write(TASK + 4, 0x6800_u32);
    write(TASK + 8, 0x10_u32);
    write(TASK + 102, 104_u16);
    (0..33).for_each(|byte| write(TASK + 104 + byte, if byte == 4 { !0b10_u8 } else { 0xff }));
}

fn run(mode: Mode) {
    (0..0x80).for_each(|word| write(RESULTS + word * 4, 0_u32));
    write(RESULTS + result::SKIP, 2_u32);
    // SAFETY: the code comes back with all that a function keeps.
    unsafe { run_low(mode as u64, memory::root()) }
    descriptors::install();
    interrupts::reload();
}

fn expect(mode: Mode, what: &str, offset: u64, expected: u32) {
    let found: u32 = read(RESULTS + offset);
    assert_eq!(found, expected, "{mode:?}: {what}");
}

fn check(mode: Mode) {
    expect(mode, "CPUID", result::VENDOR, cpu::cpuid(0, 0).ebx);
    expect(mode, "IN", result::PORT, 0x5a);
    expect(mode, "RDMSR", result::REGISTER, cpu::read_msr(apic::APIC_BASE_MSR) as u32);
    expect(mode, "a device in memory", result::DEVICE, apic::read(apic::register::VERSION));
    expect(mode, "IN after REP OUTSB", result::PORT_AFTER_STRING, 0x34);
    expect(mode, "INT n", result::SOFTWARE_INTERRUPTS, 1);
    expect(mode, "interrupts", result::INTERRUPTS, 1);
    expect(mode, "interrupts that ended HLT", result::WAKE_UPS, 1);
    expect(mode, "#UD", result::INVALID_OPCODES, 1);
    expect(mode, "#GP", result::PROTECTION_FAULTS, 1);
    let error_code = if mode == Mode::Real { 0 } else { BAD_SELECTOR };
    expect(mode, "the error code of #GP", result::ERROR_CODE, error_code);
    cpu::write_port_u32(0xcf8, 0x8000_0000);
    let identity = cpu::read_port_u32(0xcfc);
    expect(mode, "REP INSD, the first", result::STRING, identity);
    expect(mode, "REP INSD, the second", result::STRING + 4, identity);
    expect(mode, "behind REP INSD", result::STRING + 8, 0);
    if matches!(mode, Mode::TwoLevels | Mode::PhysicalAddressExtension) {
        expect(mode, "a page that only page tables lead to", result::WINDOW, MARK);
    }
    println!("modes: {mode:?}");
}

fn check_virtual_8086() {
    let mode = Mode::Virtual8086;
    expect(mode, "CPUID", result::VENDOR, cpu::cpuid(0, 0).ebx);
    expect(mode, "IN from a port that the bitmap allows", result::PORT, 0x5a);
    expect(mode, "REP INSB from it", result::STRING, 0x005a_5a5a);
    expect(mode, "INT n", result::SOFTWARE_INTERRUPTS, 1);
    expect(mode, "interrupts", result::WAKE_UPS, 1);
    expect(mode, "#UD", result::INVALID_OPCODES, 1);
    // IN from another port, RDMSR, HLT, MOV to CR0.
    expect(mode, "#GP", result::PROTECTION_FAULTS, 4);
    expect(mode, "the error code of #GP", result::ERROR_CODE, 0);
    println!("modes: {mode:?}");
}
