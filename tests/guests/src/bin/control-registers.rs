//! Control registers read as they were written, change what they are to change, and refuse what CPUID does not
//! offer.
#![no_std]
#![no_main]
// Unsafe because instructions that fault are the point.
#![allow(unsafe_code)]

use core::arch::asm;
use runtime::interrupts::{catch, run_user};
use runtime::memory::{LARGE_PAGE, allow_user, map, map_read_only, map_to, read, write};
use runtime::{cpu, println};

runtime::guest!(main);

const DEVICE_NOT_AVAILABLE: u8 = 7;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_CD: u64 = 1 << 30;
const CR4_TSD: u64 = 1 << 2;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_VMXE: u64 = 1 << 13;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const GLOBAL: u64 = 1 << 8;

/// Pages of memory that nothing else uses.
const PAGE: u64 = 0x80_0000;
const OTHER_PAGE: u64 = PAGE + LARGE_PAGE;

fn main(_: &runtime::Machine) {
    task_switched();
    write_protect();
    caches();
    translations();
    supervisor_protection();
    time_stamp_disable();
    impossible_values();
    extended_state();
}

fn task_switched() {
    let old = cpu::cr0();
    for bits in [CR0_MP, CR0_NE, CR0_MP | CR0_NE, 0] {
        cpu::set_cr0(old & !(CR0_MP | CR0_NE) | bits);
        assert_eq!(cpu::cr0() & (CR0_MP | CR0_NE), bits, "MP and NE of CR0");
    }
    cpu::set_cr0(old);
    let status: u64;
    // SAFETY: sets CR0.TS, then reads CR0 the short way, then clears TS again.
    unsafe {
        asm!("smsw {0:r}", "or {0:e}, 8", "lmsw {0:x}", "smsw {0:r}", out(reg) status);
    }
    assert_eq!(status & CR0_TS, CR0_TS, "CR0.TS after LMSW");
    assert_eq!(cpu::cr0() & CR0_TS, CR0_TS, "CR0.TS");
    // SAFETY: it faults.
    let fault = catch(|| unsafe { asm!("fninit") }).map(|fault| fault.vector);
    assert_eq!(fault, Some(DEVICE_NOT_AVAILABLE), "FNINIT with CR0.TS");
    // SAFETY: the FPU is nobody's.
    let fault = catch(|| unsafe { asm!("clts", "fninit") });
    assert_eq!(fault, None, "FNINIT after CLTS");
    cpu::set_cr0(old | CR0_EM);
    // SAFETY: it faults.
    let fault = catch(|| unsafe { asm!("fninit") }).map(|fault| fault.vector);
    assert_eq!(fault, Some(DEVICE_NOT_AVAILABLE), "FNINIT with CR0.EM");
    cpu::set_cr0(old);
}

fn write_protect() {
    map_read_only(PAGE, 0);
    cpu::set_cr0(cpu::cr0() & !CR0_WP);
    let store = catch(|| write(PAGE, 1_u32));
    // The monitor's own write on the guest's behalf follows the same bit.
    let copy = || {
        // SAFETY: from the IOAPIC's first register to a page of memory.
        catch(|| unsafe { asm!("movsd", inout("rsi") runtime::io_apic::BASE => _, inout("rdi") PAGE => _) })
    };
    let copied = copy();
    cpu::set_cr0(cpu::cr0() | CR0_WP);
    assert_eq!((store, copied), (None, None), "writes to a read-only page without CR0.WP");
    let fault = copy().map(|fault| (fault.vector, fault.error_code));
    assert_eq!(fault, Some((PAGE_FAULT, 0b11)), "MOVS to a read-only page with CR0.WP");
    map(PAGE);
}

fn caches() {
    let old = cpu::cr0();
    cpu::set_cr0(old | CR0_CD);
    assert_eq!(cpu::cr0() & CR0_CD, CR0_CD, "CR0.CD");
    write(PAGE, 0x55_u64);
    // SAFETY: writes caches back.
    unsafe { asm!("wbinvd") }
    assert_eq!(read::<u64>(PAGE), 0x55, "memory with caches off");
    cpu::set_cr0(old);
    assert_eq!(cpu::cr0(), old, "CR0 as before");
}

/// A change of CR3 or CR4.PGE drops what INVLPG would.
fn translations() {
    const WINDOW: u64 = 0x4000_0000;
    write(PAGE, 1_u64);
    write(OTHER_PAGE, 2_u64);
    let switches: [(&str, fn()); 2] = [
        ("MOV to CR3", || cpu::set_cr3(cpu::cr3())),
        ("CR4.PGE", || {
            cpu::set_cr4(cpu::cr4() ^ CR4_PGE);
            cpu::set_cr4(cpu::cr4() ^ CR4_PGE);
        }),
    ];
    for (what, switch) in switches {
        map_to(WINDOW, PAGE);
        assert_eq!(read::<u64>(WINDOW), 1, "{what}: the first page");
        runtime::memory::map_to_quietly(WINDOW, OTHER_PAGE, if what.contains("PGE") { GLOBAL } else { 0 });
        switch();
        assert_eq!(read::<u64>(WINDOW), 2, "{what}: the second page");
    }
    map(WINDOW);
}

/// SMEP and SMAP, where CPUID offers them.
fn supervisor_protection() {
    const RET: u8 = 0xc3;
    let features = if cpu::cpuid(0, 0).eax >= 7 { cpu::cpuid(7, 0).ebx } else { 0 };
    write(PAGE, RET);
    allow_user(PAGE);
    // SAFETY: a RET lies there.
    let call = || catch(|| unsafe { asm!("call {}", in(reg) PAGE, clobber_abi("C")) });
    assert_eq!(call(), None, "a call into the user's page");
    for (name, offered, bit) in
        [("SMEP", features >> 7 & 1, CR4_SMEP), ("SMAP", features >> 20 & 1, CR4_SMAP)]
    {
        if offered == 0 {
            println!("control-registers: no {name} here");
            continue;
        }
        cpu::set_cr4(cpu::cr4() | bit);
        let (call, load) = (call(), catch(|| _ = read::<u8>(PAGE)));
        cpu::set_cr4(cpu::cr4() & !bit);
        let wanted = (bit == CR4_SMEP).then_some((PAGE_FAULT, 0b1_0001));
        assert_eq!(call.map(|fault| (fault.vector, fault.error_code)), wanted, "{name}: a call");
        let wanted = (bit == CR4_SMAP).then_some((PAGE_FAULT, 0b1));
        assert_eq!(load.map(|fault| (fault.vector, fault.error_code)), wanted, "{name}: a read");
    }
    map(PAGE);
}

fn time_stamp_disable() {
    extern "C" fn read_counter() {
        cpu::tsc();
    }
    assert_eq!(run_user(0, read_counter), None, "RDTSC of the user");
    cpu::set_cr4(cpu::cr4() | CR4_TSD);
    cpu::tsc();
    let fault = run_user(0, read_counter).map(|fault| fault.vector);
    cpu::set_cr4(cpu::cr4() & !CR4_TSD);
    assert_eq!(fault, Some(GENERAL_PROTECTION), "RDTSC of the user with CR4.TSD");
}

/// Values that no CPU takes change nothing, whether they fault (as they should) or not (QEMU).
fn impossible_values() {
    let (cr0, cr4) = (cpu::cr0(), cpu::cr4());
    let refused = |what: &str, fault: Option<runtime::interrupts::Fault>| {
        assert!(
            fault.is_none_or(|f| (f.vector, f.error_code) == (GENERAL_PROTECTION, 0)),
            "{what}: {fault:?}"
        );
    };
    refused("an upper bit of CR0", catch(|| cpu::set_cr0(cr0 | 1 << 40)));
    assert_eq!(cpu::cr0(), cr0, "CR0 after an upper bit");
    // QEMU's CPUs, which are AMD's, stop for good at some of these.
    if cpu::is_intel() {
        for (what, value) in [
            ("CR4.VMXE without VT-x", cr4 | CR4_VMXE),
            ("an upper bit of CR4", cr4 | 1 << 50),
            ("long mode without CR4.PAE", cr4 & !CR4_PAE),
        ] {
            refused(what, catch(|| cpu::set_cr4(value)));
            assert_eq!(cpu::cr4(), cr4, "CR4 after {what}");
        }
    }
    const EFER: u32 = 0xc000_0080;
    let efer = cpu::read_msr(EFER);
    if !cpu::is_bare_tcg() {
        let fault = catch(|| cpu::write_msr(EFER, efer & !(1 << 8))).map(|fault| fault.vector);
        assert_eq!(fault, Some(GENERAL_PROTECTION), "EFER.LME cleared with paging on");
        assert_eq!(cpu::read_msr(EFER), efer, "EFER");
    }
}

/// XCR0 takes what CPUID offers, in whole groups.
fn extended_state() {
    const OSXSAVE: u64 = 1 << 18;
    const GROUPS: u64 = 0b111 << 5;
    if cpu::cpuid(1, 0).ecx & 1 << 26 == 0 {
        println!("control-registers: no XSAVE here");
        return;
    }
    cpu::set_cr4(cpu::cr4() | OSXSAVE);
    assert_ne!(cpu::cpuid(1, 0).ecx & 1 << 27, 0, "OSXSAVE in CPUID");
    let leaf = cpu::cpuid(0xd, 0);
    let offered = u64::from(leaf.eax) | u64::from(leaf.edx) << 32;
    assert_eq!(cpu::xcr0(), 1, "XCR0 at first");
    for value in [1, 3, offered & 7, offered] {
        cpu::set_xcr(0, value);
        assert_eq!(cpu::xcr0(), value, "XCR0");
    }
    assert_eq!(cpu::cpuid(0xd, 0).ebx, leaf.ecx, "the size of all states in use");
    cpu::set_xcr(0, 1);
    assert!(cpu::cpuid(0xd, 0).ebx <= leaf.ecx, "the size of the states in use");
    let mut wrong = [0, 2, 1 << 63 | 1, 1 | 4, 1 | GROUPS, 7 | 1 << 5];
    wrong[5] |= offered & GROUPS & 1 << 6;
    for value in wrong {
        let fault = catch(|| cpu::set_xcr(0, value)).map(|fault| (fault.vector, fault.error_code));
        if fault.is_none() && cpu::is_bare_tcg() {
            continue;
        }
        assert_eq!(fault, Some((GENERAL_PROTECTION, 0)), "XCR0 = {value:#x}");
    }
    let fault = catch(|| cpu::set_xcr(1, 1)).map(|fault| fault.vector);
    assert_eq!(fault, Some(GENERAL_PROTECTION), "XCR1");
    cpu::set_xcr(0, 1);
}
