//! The host-state area of a VMCS (SDM 25.5): where an exit brings the core back to.

use super::vmcs::{Current, field};
use core::arch::asm;
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::model_specific::Msr;

const IA32_PAT: u32 = 0x277;
const IA32_EFER: u32 = 0xc000_0080;
const IA32_FS_BASE: u32 = 0xc000_0100;
const IA32_GS_BASE: u32 = 0xc000_0101;

/// Selectors in the host-state area have neither privilege level nor table indicator.
const SELECTOR: u16 = !0b111;

macro_rules! read_register {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading the register at ring 0 has no effect.
        unsafe { asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags)) }
        value
    }};
}

/// Writes the state of the core this runs on; RSP and RIP follow with the entry.
///
/// An exit also sets the limits of GDTR and IDTR to 64 KiB and loads no LDT, which changes nothing for code
/// that uses what its tables hold.
pub fn write(current: &mut Current) {
    let (gdt, idt) = (sgdt(), sidt());
    let task_register: u16;
    // SAFETY: STR has no effect.
    unsafe { asm!("str {0:x}", out(reg) task_register, options(nomem, nostack, preserves_flags)) }
    // SAFETY: registers of every CPU with VT-x.
    let msr = |index| unsafe { Msr::new(index).read() };
    for (field, selector) in [
        (field::HOST_ES_SELECTOR, read_register!("es")),
        (field::HOST_CS_SELECTOR, read_register!("cs")),
        (field::HOST_SS_SELECTOR, read_register!("ss")),
        (field::HOST_DS_SELECTOR, read_register!("ds")),
        (field::HOST_FS_SELECTOR, read_register!("fs")),
        (field::HOST_GS_SELECTOR, read_register!("gs")),
        (field::HOST_TR_SELECTOR, u64::from(task_register)),
    ] {
        current.write(field, selector & u64::from(SELECTOR));
    }
    for (field, value) in [
        (field::HOST_CR0, read_register!("cr0")),
        (field::HOST_CR3, read_register!("cr3")),
        (field::HOST_CR4, read_register!("cr4")),
        (field::HOST_FS_BASE, msr(IA32_FS_BASE)),
        (field::HOST_GS_BASE, msr(IA32_GS_BASE)),
        (field::HOST_TR_BASE, task_state_base(gdt.base.as_u64(), task_register)),
        (field::HOST_GDTR_BASE, gdt.base.as_u64()),
        (field::HOST_IDTR_BASE, idt.base.as_u64()),
        (field::HOST_PAT, msr(IA32_PAT)),
        (field::HOST_EFER, msr(IA32_EFER)),
        // The monitor makes no SYSENTER.
        (field::HOST_SYSENTER_CS, 0),
        (field::HOST_SYSENTER_ESP, 0),
        (field::HOST_SYSENTER_EIP, 0),
    ] {
        current.write(field, value);
    }
}

/// The base in the 16-byte TSS descriptor that `selector` selects (SDM figure 8-4).
fn task_state_base(gdt: u64, selector: u16) -> u64 {
    let descriptor = gdt.wrapping_add(u64::from(selector & SELECTOR));
    // SAFETY: the task register was loaded from this descriptor of this core's table, which stays where it is
    // (the contract of `Core::enable`).
    let [low, high] =
        unsafe { core::ptr::with_exposed_provenance::<[u64; 2]>(descriptor as usize).read_unaligned() };
    base_of(low, high)
}

const fn base_of(low: u64, high: u64) -> u64 {
    (low >> 16) & 0xff_ffff | (low >> 32) & 0xff00_0000 | high << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_put_together() {
        assert_eq!(base_of(0xab00_89cd_ef01_0067, 0xffff_8765), 0xffff_8765_abcd_ef01);
    }
}
