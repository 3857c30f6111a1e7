//! Each of the instructions that save vector state, and that CPUID offers, saves what XRSTOR brings back.
#![no_std]
#![no_main]
// Unsafe because registers are filled behind the compiler's back.
#![allow(unsafe_code)]

use core::arch::asm;
use runtime::{cpu, println};

runtime::guest!(main);

/// CPUID leaf 1, ECX.
const XSAVE: u32 = 1 << 26;
/// CR4: SSE instructions, and XSAVE with its like.
const OSFXSR: u64 = 1 << 9;
const OSXSAVE: u64 = 1 << 18;
/// XCR0: AVX state, and the three of AVX-512.
const AVX: u64 = 1 << 2;
const AVX512: u64 = 0b111 << 5;

/// Memory as XSAVE wants it.
#[repr(C, align(64))]
struct Aligned<const SIZE: usize>([u8; SIZE]);

/// The vector registers with 32 bytes each, or with 64.
type Registers = Aligned<2048>;

/// A way to save a state: its name, its bit in CPUID's leaf 0xD, subleaf 1, EAX, and the instruction.
struct Way {
    name: &'static str,
    bit: u32,
    save: unsafe fn(&mut Aligned<4096>, u64),
}

/// A function with this instruction.
macro_rules! saving {
    ($instruction:literal) => {{
        /// # Safety
        /// CR4.OSXSAVE is set, and the states fit.
        unsafe fn save(area: &mut Aligned<4096>, states: u64) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(concat!($instruction, " [{}]"), in(reg) area.0.as_mut_ptr(), in("eax") states as u32,
                    in("edx") (states >> 32) as u32, options(nostack));
            }
        }
        save
    }};
}

fn main(_: &runtime::Machine) {
    if cpu::cpuid(1, 0).ecx & XSAVE == 0 {
        return println!("vector-state: no XSAVE here");
    }
    cpu::set_cr4(cpu::cr4() | OSFXSR | OSXSAVE);
    let leaf = cpu::cpuid(0xd, 0);
    let offered = u64::from(leaf.eax) | u64::from(leaf.edx) << 32;
    if offered & AVX == 0 {
        return println!("vector-state: no AVX here");
    }
    cpu::set_xcr(0, offered);
    let variants = cpu::cpuid(0xd, 1).eax;
    let ways = [
        Way { name: "XSAVE", bit: 0, save: saving!("xsave64") },
        Way { name: "XSAVEOPT", bit: 1, save: saving!("xsaveopt64") },
        Way { name: "XSAVEC", bit: 2, save: saving!("xsavec64") },
    ];
    for Way { name, bit, save } in ways {
        if variants & bit != bit {
            println!("vector-state: no {name} here");
            continue;
        }
        let (mut area, mut found) = (Aligned([0; 4096]), Aligned([0; 2048]));
        let mut expected = Aligned([0; 2048]);
        (0_u8..).zip(&mut expected.0).for_each(|(n, byte)| *byte = n.wrapping_mul(29) ^ bit as u8);
        // SAFETY: XCR0 has what CPUID offers, the largest states take less than 4096 bytes, and the compiler keeps
        // nothing in vector registers.
        unsafe {
            if offered & AVX512 == AVX512 {
                load_zmm(&expected);
                save(&mut area, offered);
                load_zmm(&found);
                restore(&area, offered);
                store_zmm(&mut found);
            } else {
                load_ymm(&expected);
                save(&mut area, offered);
                load_ymm(&found);
                restore(&area, offered);
                store_ymm(&mut found);
                found.0[512..].copy_from_slice(&expected.0[512..]);
            }
        }
        let wrong = expected.0.iter().zip(&found.0).position(|(expected, found)| expected != found);
        assert_eq!(wrong, None, "the first byte that {name} has lost");
        println!("vector-state: {name} loses nothing");
    }
    cpu::set_xcr(0, 1);
}

/// # Safety
/// CR4.OSXSAVE is set, and an instruction that saves has written the area.
unsafe fn restore(area: &Aligned<4096>, states: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) area.0.as_ptr(), in("eax") states as u32, in("edx") (states >> 32) as u32,
            options(nostack));
    }
}

/// # Safety
/// AVX is on.
unsafe fn load_ymm(from: &Registers) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "vmovdqu ymm\\n, [{0} + 32*\\n]", ".endr",
            in(reg) from.0.as_ptr(), options(nostack, preserves_flags));
    }
}

/// # Safety
/// AVX is on.
unsafe fn store_ymm(to: &mut Registers) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "vmovdqu [{0} + 32*\\n], ymm\\n", ".endr",
            in(reg) to.0.as_mut_ptr(), options(nostack, preserves_flags));
    }
}

/// # Safety
/// AVX-512 is on.
unsafe fn load_zmm(from: &Registers) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "vmovdqu64 zmm\\n, [{0} + 64*\\n]", ".endr",
            in(reg) from.0.as_ptr(), options(nostack, preserves_flags));
    }
}

/// # Safety
/// AVX-512 is on.
unsafe fn store_zmm(to: &mut Registers) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "vmovdqu64 [{0} + 64*\\n], zmm\\n", ".endr",
            in(reg) to.0.as_mut_ptr(), options(nostack, preserves_flags));
    }
}
