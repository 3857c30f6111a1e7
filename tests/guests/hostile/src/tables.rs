//! Page tables that loop or lie elsewhere, and code where there is none.

use core::arch::asm;
use runtime::interrupts::{self, GateKind, catch, set_gate};
use runtime::memory::{self, LARGE_PAGE};
use runtime::{Machine, apic, cpu, io_apic};

/// A page of the guest's memory that nothing uses.
const PAGE: u64 = 0x60_0000;
const PRESENT_AND_WRITABLE: u64 = 3;

/// The root is every table below itself; device accesses, port strings and code are found through it.
pub fn looping(_: &Machine, _: &str) {
    let root = memory::root();
    // From this entry on the root stands for each lower table.
    memory::write(root + 511 * 8, root | PRESENT_AND_WRITABLE);
    memory::write(root + 510 * 8, PAGE | PRESENT_AND_WRITABLE);
    for slot in 0..512 {
        memory::write(PAGE + slot * 8, PAGE | PRESENT_AND_WRITABLE | (slot & 1) << 7);
    }
    cpu::set_cr3(root);
    for slot in 0..512_u64 {
        for upper in [510_u64, 511] {
            let address = 0xffff << 48 | upper << 39 | slot << 30 | slot << 21 | slot << 12;
            catch(|| {
                memory::read::<u64>(address);
            });
            if upper == 510 {
                // SAFETY: what it may overwrite is a page of tables that are to be odd.
                catch(|| unsafe {
                    asm!("rep insb", in("dx") 0x80_u16, inout("rdi") address => _, inout("rcx") 16_u64 => _);
                });
            }
            // SAFETY: `catch` takes up the pieces.
            catch(|| unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) });
        }
    }
}

/// Tables where there is no memory: nothing can be fetched, no exception delivered.
pub fn nowhere(_: &Machine, _: &str) {
    cpu::set_cr3(0x4000_0000_0000 & physical_mask());
}

/// Tables in a device.
pub fn device(_: &Machine, _: &str) {
    // SAFETY: nothing is left to come back to.
    unsafe { asm!("mov cr3, {}", "2: jmp 2b", in(reg) apic::BASE, options(noreturn)) }
}

fn physical_mask() -> u64 {
    (1 << (cpu::cpuid(0x8000_0008, 0).eax & 0xff)) - 1
}

/// PAE's four pointers where there is no memory, and where they have reserved bits.
pub fn pae(_: &Machine, _: &str) {
    // Bits 1, 2 and 5 to 8 of a pointer are reserved.
    (0..4).for_each(|slot| memory::write(PAGE + slot * 8, PAGE | 0x1e7));
    // 32-bit code would find pieces of 64-bit gates, and handlers that are not its own.
    interrupts::load(0, 0);
    // SAFETY: nothing is left to come back to: 32-bit code, paging off, long mode off, paging on with these.
    unsafe {
        asm!(
            "push 0x40", "lea {address}, [rip + 2f]", "push {address}", "retfq",
            ".code32",
            "2: mov eax, cr0", "and eax, 0x7fffffff", "mov cr0, eax",
            "mov ecx, 0xc0000080", "rdmsr", "and eax, 0xfffffeff", "wrmsr",
            "mov eax, 0x80000000", "mov cr3, eax",
            "mov eax, cr0", "or eax, 0x80000000", "mov cr0, eax",
            "mov eax, 0x600000", "mov cr3, eax",
            "3: jmp 3b",
            ".code64",
            address = in(reg) 0_u64, options(noreturn)
        )
    }
}

/// Runs code in device memory and at its borders.
pub fn device_code(_: &Machine, _: &str) {
    (0..32).for_each(|vector| set_gate(vector, GateKind::OwnStack));
    for base in [apic::BASE, io_apic::BASE, 0xb000_0000, 0xfed0_0000, 0xffff_f000, 0x8000_0000] {
        for offset in [0, 1, 0x20, 0xff, 0x300, 0xffb, 0xfff] {
            let address = base + offset;
            // SAFETY: `catch` takes up the pieces.
            catch(|| unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) });
        }
    }
    // Instructions that cross from memory into nothing.
    let edge = LARGE_PAGE * 8;
    for head in [[0x48_u8, 0x8b, 0x04], [0x0f, 0xa2, 0xf3], [0xf3, 0x0f, 0x30], [0x66, 0xf3, 0x6e]] {
        for length in 1..=3 {
            let start = edge - length;
            (start..)
                .zip(head)
                .take(length as usize)
                .for_each(|(address, byte)| memory::write(address, byte));
            // SAFETY: `catch` takes up the pieces.
            catch(|| unsafe { asm!("call {}", in(reg) start, clobber_abi("C")) });
        }
    }
}
