//! Faults arrive with the vector, error code and CR2 that the manual gives them, from the CPU and from what the
//! monitor emulates alike.
#![no_std]
#![no_main]
// Unsafe because instructions that fault are the point.
#![allow(unsafe_code)]

use core::arch::asm;
use runtime::interrupts::{Fault, catch};
use runtime::memory::{LARGE_PAGE, NO_EXECUTE, map, map_read_only, read, unmap, write};
use runtime::{cpu, println};

runtime::guest!(main);

/// Exception vectors (SDM table 6-1).
const DIVIDE_ERROR: u8 = 0;
const BREAKPOINT: u8 = 3;
const INVALID_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

/// Page-fault error code bits (SDM figure 4-12).
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 4;

/// A page of memory that nothing else uses.
const PAGE: u64 = 0x80_0000;

/// Runs one statement of assembly that faults.
macro_rules! faulting {
    ($($code:tt)*) => {
        // SAFETY: the fault is caught, and nothing behind it runs.
        catch(|| unsafe { asm!($($code)*) })
    };
}

fn main(_: &runtime::Machine) {
    processor_faults();
    page_faults();
    emulated_faults();
    interrupted_emulation();
}

fn expect(what: &str, fault: Option<Fault>, vector: u8, error_code: u64) -> Fault {
    let Some(fault) = fault else { panic!("{what}: no fault, expected vector {vector}") };
    println!("exceptions: {what}: vector {}, error code {:#x}", fault.vector, fault.error_code);
    assert_eq!((fault.vector, fault.error_code), (vector, error_code), "{what}");
    fault
}

fn processor_faults() {
    expect("UD2", faulting!("ud2"), INVALID_OPCODE, 0);
    expect(
        "division by zero",
        faulting!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _),
        DIVIDE_ERROR,
        0,
    );
    expect("INT3", faulting!("int3"), BREAKPOINT, 0);
    expect(
        "a selector past the table",
        faulting!("mov ds, {0:e}", in(reg) 0x4321),
        GENERAL_PROTECTION,
        0x4320,
    );
    let non_canonical = 0x8000_0000_0000_u64;
    expect(
        "a non-canonical address",
        faulting!("mov {0}, [{0}]", inout(reg) non_canonical => _),
        GENERAL_PROTECTION,
        0,
    );
}

fn page_faults() {
    let inside = PAGE + 0x1234;
    let touch = |at: u64| {
        catch(move || {
            read::<u8>(at);
        })
    };
    let store = |at: u64| catch(move || write(at, 0xc3_u8));
    unmap(PAGE);
    let fault = expect("a read of an absent page", touch(inside), PAGE_FAULT, 0);
    assert_eq!(fault.cr2, inside, "CR2");
    let fault = expect("a write to an absent page", store(inside + 1), PAGE_FAULT, WRITE);
    assert_eq!(fault.cr2, inside + 1, "CR2");
    map(PAGE);
    assert_eq!(store(inside), None, "a write to a page mapped again");
    map_read_only(PAGE, 0);
    let fault = expect("a write to a read-only page", store(inside), PAGE_FAULT, PRESENT | WRITE);
    assert_eq!(fault.cr2, inside, "CR2");
    map_read_only(PAGE, NO_EXECUTE);
    let fault = expect(
        "a fetch from a page of data",
        faulting!("call {}", in(reg) inside, clobber_abi("C")),
        PAGE_FAULT,
        PRESENT | FETCH,
    );
    assert_eq!((fault.cr2, fault.rip), (inside, inside), "CR2 and RIP");
    map(PAGE);
    // An access across the end of the page faults at the first byte of the next.
    unmap(PAGE + LARGE_PAGE);
    let across = PAGE + LARGE_PAGE - 3;
    let fault =
        expect("a read across the end", faulting!("mov {0}, [{0}]", inout(reg) across => _), PAGE_FAULT, 0);
    assert_eq!(fault.cr2, PAGE + LARGE_PAGE, "CR2");
    map(PAGE + LARGE_PAGE);
}

/// What the monitor answers, not the CPU.
fn emulated_faults() {
    // QEMU's own emulation reads unknown registers as zero and ignores writes, unlike any CPU.
    if cpu::is_bare_tcg() {
        println!("exceptions: bare TCG knows every model-specific register");
    } else {
        unknown_registers();
    }
    const OSXSAVE: u32 = 1 << 27;
    assert_eq!(cpu::cpuid(1, 0).ecx & OSXSAVE, 0, "OSXSAVE before CR4.OSXSAVE");
    expect(
        "XSETBV without CR4.OSXSAVE",
        faulting!("xsetbv", in("ecx") 0, in("eax") 1, in("edx") 0),
        INVALID_OPCODE,
        0,
    );
}

fn unknown_registers() {
    const NOWHERE: u32 = 0x1234_5678;
    let read = catch(|| {
        cpu::read_msr(NOWHERE);
    });
    expect("RDMSR of an unknown register", read, GENERAL_PROTECTION, 0);
    let write = catch(|| cpu::write_msr(NOWHERE, 0));
    expect("WRMSR to an unknown register", write, GENERAL_PROTECTION, 0);
    const EFER: u32 = 0xc000_0080;
    let reserved = cpu::read_msr(EFER) | 1 << 63;
    let write = catch(move || cpu::write_msr(EFER, reserved));
    expect("a reserved bit of EFER", write, GENERAL_PROTECTION, 0);
}

/// A string instruction to a device's register whose source page is absent: the fault is the page's.
fn interrupted_emulation() {
    unmap(PAGE);
    let fault = expect(
        "OUTSB from an absent page",
        faulting!("rep outsb", inout("rsi") PAGE + 8 => _, inout("ecx") 4 => _, in("dx") runtime::DEBUG_PORT),
        PAGE_FAULT,
        0,
    );
    assert_eq!(fault.cr2, PAGE + 8, "CR2");
    let fault = expect(
        "MOVSD from an absent page to the local APIC",
        faulting!("movsd", inout("rsi") PAGE + 16 => _, inout("rdi") runtime::apic::BASE + 0x80 => _),
        PAGE_FAULT,
        0,
    );
    assert_eq!(fault.cr2, PAGE + 16, "CR2");
    map(PAGE);
}
