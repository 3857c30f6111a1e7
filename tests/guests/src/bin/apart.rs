//! What the CPU holds for one guest is no other's: vector, debug and system registers keep their values while
//! guests of other seeds run on the same core.
#![no_std]
#![no_main]
// Unsafe because registers that Rust does not use are the point.
#![allow(unsafe_code)]

use core::arch::asm;
use runtime::pm_timer::Stopwatch;
use runtime::{apic, cpu, println};

runtime::guest!(main);

const CR4_OSXSAVE: u64 = 1 << 18;
/// As large as any CPU's states are today.
const AREA_SIZE: usize = 8192;
/// The legacy region's parts (SDM 13.4.1): eight x87 registers, sixteen of SSE.
const X87: usize = 32;
const SSE: usize = 160;
const HEADER: usize = 512;

#[repr(C, align(64))]
struct Area([u8; AREA_SIZE]);

/// A register of its own for each index, of this guest's seed.
struct Values(u64);

impl Values {
    fn get(&self, index: u64) -> u64 {
        (self.0 << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.0
    }

    /// A linear address in the upper half.
    fn address(&self, index: u64) -> u64 {
        self.get(index) | 0xffff_8000_0000_0000
    }
}

fn main(machine: &runtime::Machine) {
    const TIME: u64 = 300_000;
    // Where the command line is a file name first, the seed is its last word.
    let seed =
        machine.command_line().split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(1);
    let values = Values(seed);
    apic::enable();
    let states = choose_states(&values);
    set_registers(&values);
    let (mut wanted, mut found) = (Area([0; AREA_SIZE]), Area([0; AREA_SIZE]));
    fill(&mut wanted, states, &values);
    restore(&wanted, states);
    let stopwatch = Stopwatch::start();
    let mut rounds = 0;
    while stopwatch.micros() < TIME {
        save(&mut found, states);
        compare(&wanted, &found, states);
        check_registers(&values);
        match rounds % 3 {
            0 => cpu::work(),
            1 => _ = cpu::cpuid(0, 0),
            _ => sleep(),
        }
        rounds += 1;
    }
    println!("apart: seed {seed}, states {states:#x}, {rounds} rounds");
}

/// Half a millisecond in which the core is another's.
fn sleep() {
    apic::set_timer(0xf0, 0);
    apic::start_timer(500_000);
    let priority = cpu::cr8();
    cpu::set_cr8(0);
    cpu::wait_for_interrupt();
    cpu::set_cr8(priority);
}

/// XCR0: all that CPUID offers with one seed, less with another.
fn choose_states(values: &Values) -> u64 {
    if cpu::cpuid(1, 0).ecx & 1 << 26 == 0 {
        return 0;
    }
    cpu::set_cr4(cpu::cr4() | CR4_OSXSAVE);
    /// x87, SSE, AVX, AVX-512 and protection keys, whose every bit is kept.
    const PLAIN: u64 = 0x2e7;
    let leaf = cpu::cpuid(0xd, 0);
    let offered = (u64::from(leaf.eax) | u64::from(leaf.edx) << 32) & PLAIN;
    let states = if values.0.is_multiple_of(3) { offered & 3 } else { offered };
    cpu::set_xcr(0, states);
    states
}

/// What each state component covers in an area: from where, how long, and in pieces of how many bytes the first
/// so many of which count.
fn parts(states: u64) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let legacy = [(X87, 128, 16, 10), (SSE, 256, 16, 16)];
    let extended = (2..63).filter(move |component| states >> component & 1 != 0).map(|component| {
        let leaf = cpu::cpuid(0xd, component);
        // PKRU is four bytes of eight.
        let piece = if component == 9 { (8, 4) } else { (16, 16) };
        (leaf.ebx as usize, leaf.eax as usize, piece.0, piece.1)
    });
    legacy.into_iter().chain(extended)
}

fn fill(area: &mut Area, states: u64, values: &Values) {
    area.0[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    // All registers of the x87 in use, rounding of SSE by the seed.
    area.0[4] = 0xff;
    area.0[24..28].copy_from_slice(&(0x1f80 | (values.0 as u32 & 3) << 13).to_le_bytes());
    area.0[HEADER..HEADER + 8].copy_from_slice(&states.to_le_bytes());
    for (start, len, piece, counts) in parts(states) {
        for at in (start..start + len).filter(|at| (at - start) % piece < counts) {
            area.0[at] = values.get(at as u64) as u8;
        }
    }
}

fn compare(wanted: &Area, found: &Area, states: u64) {
    assert_eq!(found.0[24..28], wanted.0[24..28], "MXCSR");
    for (start, len, piece, counts) in parts(states) {
        for at in (start..start + len).filter(|at| (at - start) % piece < counts) {
            assert_eq!(found.0[at], wanted.0[at], "byte {at} of the saved state");
        }
    }
}

fn restore(area: &Area, states: u64) {
    let (low, high) = (states as u32, (states >> 32) as u32);
    // SAFETY: the area holds what was made for it; no Rust code uses these registers.
    unsafe {
        if states == 0 {
            asm!("fxrstor64 [{}]", in(reg) area);
        } else {
            asm!("xrstor64 [{}]", in(reg) area, in("eax") low, in("edx") high);
        }
    }
}

fn save(area: &mut Area, states: u64) {
    let (low, high) = (states as u32, (states >> 32) as u32);
    // SAFETY: the area is large enough.
    unsafe {
        if states == 0 {
            asm!("fxsave64 [{}]", in(reg) area);
        } else {
            asm!("xsave64 [{}]", in(reg) area, in("eax") low, in("edx") high);
        }
    }
}

/// SYSENTER's three, STAR, LSTAR, CSTAR, FMASK, FS, GS, KERNEL_GS_BASE, and TSC_AUX: their numbers, and what a
/// guest may write there.
fn model_specific(values: &Values) -> [(u32, u64); 11] {
    let rdtscp = cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 != 0;
    [
        (0x174, values.get(1) & 0xfff8),
        (0x175, values.address(2)),
        (0x176, values.address(3)),
        (0xc000_0081, values.get(4)),
        (0xc000_0082, values.address(5)),
        (0xc000_0083, values.address(6)),
        (0xc000_0084, values.get(7) & 0xffff_ffff),
        (0xc000_0100, values.address(8)),
        (0xc000_0101, values.address(9)),
        (0xc000_0102, values.address(10)),
        // Without it, STAR once more.
        if rdtscp { (0xc000_0103, values.get(11) & 0xffff_ffff) } else { (0xc000_0081, values.get(4)) },
    ]
}

fn set_registers(values: &Values) {
    for (index, value) in model_specific(values) {
        cpu::write_msr(index, value);
    }
    cpu::set_dr0(values.address(20));
    cpu::set_dr1(values.address(21));
    cpu::set_dr2(values.address(22));
    cpu::set_dr3(values.address(23));
    cpu::set_dr6(0xffff_0ff0 | values.0 & 0xf);
    cpu::set_cr2(values.address(24));
    cpu::set_cr8(values.0 & 7);
}

fn check_registers(values: &Values) {
    for (index, value) in model_specific(values) {
        assert_eq!(cpu::read_msr(index), value, "model-specific register {index:#x}");
    }
    let debug = [cpu::dr0(), cpu::dr1(), cpu::dr2(), cpu::dr3()];
    assert_eq!(debug, [20, 21, 22, 23].map(|index| values.address(index)), "DR0 to DR3");
    assert_eq!(cpu::dr6() & 0xf, values.0 & 0xf, "DR6");
    assert_eq!(cpu::cr2(), values.address(24), "CR2");
    assert_eq!(cpu::cr8(), values.0 & 7, "CR8");
    if model_specific(values)[10].0 == 0xc000_0103 {
        assert_eq!(u64::from(cpu::tsc_and_aux().1), values.get(11) & 0xffff_ffff, "TSC_AUX by RDTSCP");
    }
}
