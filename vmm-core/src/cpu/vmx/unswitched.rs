//! Registers that belong to a guest and that neither VM entry nor the shared context switches: CR2, DR6, and
//! the MSRs of SYSCALL and SWAPGS. The monitor uses none of them, so they stay in the hardware from attach to
//! detach.

use crate::cpu::SystemMsr;
use core::arch::asm;
use x86_64::registers::model_specific::Msr;

/// The MSRs among them, which guests reach without an exit.
pub const PASSED_THROUGH: [u32; 5] = [
    SystemMsr::Star.index(),
    SystemMsr::Lstar.index(),
    SystemMsr::Cstar.index(),
    SystemMsr::Sfmask.index(),
    SystemMsr::KernelGsBase.index(),
];

const DR6_AT_RESET: u64 = 0xffff_0ff0;

/// The registers of one virtual CPU, while they are not in the hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unswitched {
    msrs: [u64; 5],
    cr2: u64,
    dr6: u64,
    attached: bool,
}

impl Unswitched {
    /// The state after INIT, but for CR2.
    pub const fn new(cr2: u64) -> Self {
        Self { msrs: [0; 5], cr2, dr6: DR6_AT_RESET, attached: false }
    }

    /// Brings the registers into the hardware.
    pub fn attach(&mut self) {
        self.attached = true;
        self.set_cr2(self.cr2);
        self.set_dr6(self.dr6);
        for (index, value) in PASSED_THROUGH.into_iter().zip(self.msrs) {
            // SAFETY: a register of every 64-bit CPU, with a value that it held before, or that was checked.
            unsafe { Msr::new(index).write(value) }
        }
    }

    /// Takes them out again.
    pub fn detach(&mut self) {
        (self.cr2, self.dr6) = (self.cr2(), self.dr6());
        for (index, value) in PASSED_THROUGH.into_iter().zip(&mut self.msrs) {
            // SAFETY: a register of every 64-bit CPU.
            *value = unsafe { Msr::new(index).read() };
        }
        self.attached = false;
    }

    /// The address of the last page fault.
    pub fn cr2(&self) -> u64 {
        let mut value = self.cr2;
        if self.attached {
            // SAFETY: reading CR2 at ring 0 has no effect.
            unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
        }
        value
    }

    /// Sets it.
    pub fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
        if self.attached {
            // SAFETY: CR2 only holds what a page fault left there, and the monitor takes none.
            unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) }
        }
    }

    /// What the last debug exceptions were about.
    pub fn dr6(&self) -> u64 {
        let mut value = self.dr6;
        if self.attached {
            // SAFETY: reading DR6 at ring 0 has no effect; DR7.GD is clear since the exit.
            unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) }
        }
        value
    }

    /// Sets it; the high half is reserved.
    pub fn set_dr6(&mut self, value: u64) {
        self.dr6 = value & 0xffff_ffff;
        if self.attached {
            // SAFETY: DR6 only records; its high half is zero here, as it must be.
            unsafe { asm!("mov dr6, {}", in(reg) self.dr6, options(nomem, nostack, preserves_flags)) }
        }
    }

    /// One of the MSRs; `None` for any other.
    pub fn msr(&self, msr: SystemMsr) -> Option<u64> {
        let place = PASSED_THROUGH.iter().position(|index| *index == msr.index())?;
        if self.attached {
            // SAFETY: a register of every 64-bit CPU.
            return Some(unsafe { Msr::new(msr.index()).read() });
        }
        self.msrs.get(place).copied()
    }

    /// Sets one of the MSRs to a checked value; false for any other.
    pub fn set_msr(&mut self, msr: SystemMsr, value: u64) -> bool {
        let Some(place) = PASSED_THROUGH.iter().position(|index| *index == msr.index()) else { return false };
        // The high half of SFMASK is reserved.
        let value = if msr == SystemMsr::Sfmask { value & 0xffff_ffff } else { value };
        if let Some(kept) = self.msrs.get_mut(place) {
            *kept = value;
        }
        if self.attached {
            // SAFETY: as for the read; the caller checked that an address is canonical.
            unsafe { Msr::new(msr.index()).write(value) }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detached_registers_are_kept() {
        let mut registers = Unswitched::new(0x1234);
        assert_eq!((registers.cr2(), registers.dr6()), (0x1234, DR6_AT_RESET));
        assert!(registers.set_msr(SystemMsr::Lstar, 0xffff_8000_0000_0000));
        assert!(registers.set_msr(SystemMsr::Sfmask, u64::MAX));
        assert_eq!(registers.msr(SystemMsr::Lstar), Some(0xffff_8000_0000_0000));
        assert_eq!(registers.msr(SystemMsr::Sfmask), Some(0xffff_ffff));
        assert_eq!(registers.msr(SystemMsr::Efer), None);
        assert!(!registers.set_msr(SystemMsr::Efer, 0));
    }
}
