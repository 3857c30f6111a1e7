//! Model-specific registers: those that a guest has keep what is written as the manual says, and any other
//! raises #GP, whoever made the CPU.
#![no_std]
#![no_main]

use runtime::interrupts::{Fault, catch};
use runtime::{apic, cpu, println};

runtime::guest!(main);

const GENERAL_PROTECTION: u8 = 13;
const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;

fn main(_: &runtime::Machine) {
    kept();
    refused();
    if cpu::is_bare_tcg() {
        println!("msr-view: bare TCG knows every model-specific register");
        return;
    }
    hidden();
    sweep();
}

fn read(index: u32) -> Result<u64, Fault> {
    let mut value = 0;
    match catch(|| value = cpu::read_msr(index)) {
        None => Ok(value),
        Some(fault) => Err(fault),
    }
}

fn is_refused(fault: Option<Fault>) -> bool {
    fault.is_some_and(|fault| (fault.vector, fault.error_code) == (GENERAL_PROTECTION, 0))
}

/// Registers of the CPU's own: every bit of these values comes back.
fn kept() {
    const CANONICAL: u64 = 0xffff_8765_4321_0123;
    for (name, index, value) in [
        ("SYSENTER_CS", 0x174, 0x10),
        ("SYSENTER_ESP", 0x175, CANONICAL),
        ("SYSENTER_EIP", 0x176, CANONICAL + 1),
        ("PAT", 0x277, 0x0001_0406_0506_0700),
        ("STAR", 0xc000_0081, 0x0123_4567_89ab_cdef),
        ("LSTAR", 0xc000_0082, CANONICAL + 2),
        ("CSTAR", 0xc000_0083, CANONICAL + 3),
        ("FMASK", 0xc000_0084, 0x4_7700),
        ("FS_BASE", FS_BASE, CANONICAL + 4),
        ("GS_BASE", 0xc000_0101, CANONICAL + 5),
        ("KERNEL_GS_BASE", 0xc000_0102, CANONICAL + 6),
        ("TSC_AUX", 0xc000_0103, 0x1234_5678),
    ] {
        if index == 0xc000_0103 && cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 == 0 {
            continue;
        }
        let before = cpu::read_msr(index);
        cpu::write_msr(index, value);
        assert_eq!(cpu::read_msr(index), value, "{name}");
        cpu::write_msr(index, before);
        assert_eq!(cpu::read_msr(index), before, "{name}, written back");
    }
    let base = cpu::read_msr(apic::APIC_BASE_MSR);
    assert_eq!(base, apic::BASE | 1 << 11 | 1 << 8, "IA32_APIC_BASE: on, of the bootstrap processor");
    assert_eq!(cpu::read_msr(EFER) & 0xd00, 0xd00, "EFER: LME, LMA and NXE");
}

/// Values that these registers never take.
fn refused() {
    const NOT_CANONICAL: u64 = 0x0123_8000_0000_0000;
    let wrong = [
        ("LSTAR", 0xc000_0082, NOT_CANONICAL),
        ("FS_BASE", FS_BASE, NOT_CANONICAL),
        ("KERNEL_GS_BASE", 0xc000_0102, NOT_CANONICAL),
        ("PAT", 0x277, 0x02),
        ("EFER with a bit of nobody's", EFER, 0xd00 | 1 << 9),
        ("EFER.SVME", EFER, 0xd00 | 1 << 12),
        ("EFER.LMSLE", EFER, 0xd00 | 1 << 13),
        ("EFER.FFXSR", EFER, 0xd00 | 1 << 14),
        ("EFER.TCE", EFER, 0xd00 | 1 << 15),
        ("EFER.MCOMMIT", EFER, 0xd00 | 1 << 17),
        ("EFER.INTWB", EFER, 0xd00 | 1 << 18),
        ("EFER.UAIE", EFER, 0xd00 | 1 << 20),
        ("EFER.AIBRSE", EFER, 0xd00 | 1 << 21),
        ("IA32_APIC_BASE", apic::APIC_BASE_MSR, apic::BASE | 1 << 11 | 1),
        ("SYSENTER_EIP", 0x176, NOT_CANONICAL),
    ];
    for (name, index, value) in wrong {
        let before = cpu::read_msr(index);
        let fault = catch(|| cpu::write_msr(index, value));
        if cpu::is_tcg() && fault.is_none() && (index != EFER || cpu::is_bare_tcg()) {
            // QEMU's CPUs take what is not canonical, and make it so or not; and drop what EFER does not have.
            cpu::write_msr(index, before);
            continue;
        }
        assert!(is_refused(fault), "{name} = {value:#x}: {fault:?}");
        assert_eq!(cpu::read_msr(index), before, "{name} after a wrong value");
    }
}

/// What belongs to the machine, not to a guest.
fn hidden() {
    for (name, index) in [
        ("IA32_FEATURE_CONTROL", 0x3a),
        ("IA32_SMBASE", 0x9e),
        ("IA32_VMX_BASIC", 0x480),
        ("IA32_VMX_EPT_VPID_CAP", 0x48c),
        ("IA32_PERF_STATUS", 0x198),
        ("IA32_THERM_STATUS", 0x19c),
        ("RAPL_POWER_UNIT", 0x606),
        ("PACKAGE_ENERGY", 0x611),
        ("IA32_PMC0", 0xc1),
        ("IA32_PERFEVTSEL0", 0x186),
        ("VM_CR", 0xc001_0114),
        ("VM_HSAVE_PA", 0xc001_0117),
        ("SMM_BASE", 0xc001_0111),
        ("an x2APIC register in xAPIC mode", 0x802),
        ("a number of nobody's", 0x1234_5678),
        ("a number below those of AMD", 0xbfff_ffff),
        ("the last number", 0xffff_ffff),
    ] {
        let found = read(index);
        assert!(is_refused(found.err()), "RDMSR of {name}: {found:?}");
        let fault = catch(|| cpu::write_msr(index, 0));
        assert!(is_refused(fault), "WRMSR to {name}: {fault:?}");
    }
}

/// Every register of the ranges that CPUs use answers, or refuses properly; and few answer.
fn sweep() {
    let ranges = [
        0..0x2000,
        0x4000_0000..0x4000_0100,
        0x4b56_4d00..0x4b56_4d10,
        0xc000_0000..0xc000_0200,
        0xc001_0000..0xc001_0200,
    ];
    let mut known = 0;
    for range in ranges {
        for index in range {
            match read(index) {
                Ok(_) => known += 1,
                Err(fault) => {
                    let found = (fault.vector, fault.error_code);
                    assert_eq!(found, (GENERAL_PROTECTION, 0), "RDMSR of {index:#x}");
                }
            }
        }
    }
    println!("msr-view: {known} registers answer");
    assert!((15..120).contains(&known), "registers that answer: {known}");
}
