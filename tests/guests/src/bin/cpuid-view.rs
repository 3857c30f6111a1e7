//! Dumps CPUID, a line a leaf, for comparison with another machine's; checks that leaves agree.
#![no_std]
#![no_main]

use runtime::cpu::{CpuidResult, cpuid};
use runtime::println;

runtime::guest!(main);

const HYPERVISOR_BIT: u32 = 1 << 31;

fn main(_: &runtime::Machine) {
    dump(0..=cpuid(0, 0).eax);
    if cpuid(1, 0).ecx & HYPERVISOR_BIT != 0 {
        // Ranges follow each other in steps of 0x100; one without a signature ends them.
        for base in (0x4000_0000_u32..0x4001_0000).step_by(0x100) {
            let CpuidResult { eax: last, ebx: signature, .. } = cpuid(base, 0);
            if signature == 0 || last < base {
                break;
            }
            dump(base..=last.min(base + 0xff));
        }
    }
    dump(0x8000_0000..=cpuid(0x8000_0000, 0).eax);
    check();
}

fn dump(leaves: core::ops::RangeInclusive<u32>) {
    for leaf in leaves {
        for subleaf in 0..subleaves(leaf) {
            let CpuidResult { eax, ebx, ecx, edx } = cpuid(leaf, subleaf);
            if eax | ebx | ecx | edx != 0 {
                println!("cpuid {leaf:08x}.{subleaf:02}: {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}");
            }
        }
    }
}

fn subleaves(leaf: u32) -> u32 {
    match leaf {
        4 | 0x8000_001d => 8,
        7 | 0xb => 3,
        0xd => 64,
        _ => 1,
    }
}

fn check() {
    let (basic, extended) = (cpuid(0, 0), cpuid(0x8000_0000, 0));
    assert_eq!(extended.eax >> 16, 0x8000, "the extended range's last leaf");
    let local_apic = cpuid(1, 0).ebx >> 24;
    assert_eq!(local_apic, runtime::apic::read(runtime::apic::register::ID) >> 24, "the APIC's ID");
    if basic.eax >= 0xb && cpuid(0xb, 0).ebx != 0 {
        assert_eq!(cpuid(0xb, 0).edx & 0xff, local_apic, "the x2APIC's ID");
    }
}
