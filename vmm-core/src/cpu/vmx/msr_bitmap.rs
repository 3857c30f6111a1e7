//! The MSR bitmap (SDM 25.6.9): everything exits but the registers that the VMCS and `unswitched` keep apart
//! for each guest.

use super::unswitched::PASSED_THROUGH;
use crate::cpu::{HostFeatures, SystemMsr};
use crate::memory::HostPhys;
use alloc::boxed::Box;
use core::ops::RangeInclusive;

const IA32_TSC: u32 = 0x10;
const IA32_PRED_CMD: u32 = 0x49;

/// A bit an MSR, set: exit. Reads of the low and high range, then writes of both, 1 KiB each.
#[repr(C, align(4096))]
pub struct MsrBitmap([u8; 0x1000]);

const READS: usize = 0;
const WRITES: usize = 0x800;

impl MsrBitmap {
    /// The bitmap for a CPU with these features.
    pub fn new(features: &HostFeatures) -> Box<Self> {
        let mut bitmap = Box::new(Self([0xff; 0x1000]));
        // The offset is added to it.
        bitmap.allow(READS, IA32_TSC);
        if features.ibpb {
            bitmap.allow(WRITES, IA32_PRED_CMD);
        }
        let in_vmcs = [
            SystemMsr::SysenterCs.index(),
            SystemMsr::SysenterEsp.index(),
            SystemMsr::SysenterEip.index(),
            SystemMsr::FsBase.index(),
            SystemMsr::GsBase.index(),
        ];
        let tsc_aux = features.rdtscp.then_some(SystemMsr::TscAux.index());
        for msr in in_vmcs.into_iter().chain(PASSED_THROUGH).chain(tsc_aux) {
            bitmap.allow(READS, msr);
            bitmap.allow(WRITES, msr);
        }
        bitmap
    }

    /// The same, but for the registers of an x2APIC that the CPU answers for by itself: all that can be read but
    /// the timer's current count and the processor priority, and of those written the ones that concern nobody else.
    pub fn with_x2apic(features: &HostFeatures) -> Box<Self> {
        const READABLE: [RangeInclusive<u32>; 8] = [
            0x802..=0x803, // ID, version
            0x808..=0x808, // TPR
            0x80d..=0x80d, // LDR
            0x80f..=0x828, // SVR, ISR, TMR, IRR, ESR
            0x830..=0x830, // ICR
            0x832..=0x837, // LVT
            0x838..=0x838, // initial count
            0x83e..=0x83e, // divide configuration
        ];
        /// TPR, EOI, self-IPI.
        const WRITABLE: [u32; 3] = [0x808, 0x80b, 0x83f];
        let mut bitmap = Self::new(features);
        READABLE.into_iter().flatten().for_each(|msr| bitmap.allow(READS, msr));
        WRITABLE.into_iter().for_each(|msr| bitmap.allow(WRITES, msr));
        bitmap
    }

    /// Where it lies.
    pub fn address(&self) -> HostPhys {
        HostPhys::new(self.0.as_ptr().expose_provenance() as u64)
    }

    fn allow(&mut self, half: usize, msr: u32) {
        let range = match msr & !0x1fff {
            0 => 0_usize,
            0xc000_0000 => 0x400,
            _ => return,
        };
        let index = (msr & 0x1fff) as usize;
        if let Some(byte) = self.0.get_mut(half | range | (index >> 3)) {
            *byte &= !(1 << (index & 7));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_x2apic_keeps_its_commands_and_its_clock() {
        let bitmap = MsrBitmap::with_x2apic(&HostFeatures::default());
        let exits = |half: usize, msr: usize| bitmap.0[half + msr / 8] & 1 << (msr % 8) != 0;
        for msr in [0x800, 0x801, 0x804, 0x809, 0x80a, 0x80b, 0x80e, 0x829, 0x831, 0x839, 0x83f, 0x840] {
            assert!(exits(READS, msr), "{msr:#x}");
        }
        for msr in 0x800..0x900 {
            assert_eq!(exits(WRITES, msr), ![0x808, 0x80b, 0x83f].contains(&msr), "{msr:#x}");
        }
        assert!(!exits(READS, 0x810) && !exits(READS, 0x827) && !exits(READS, 0x838));
    }

    #[test]
    fn only_what_is_allowed_passes() {
        let bitmap = MsrBitmap::new(&HostFeatures { rdtscp: true, ..Default::default() });
        let clear: u32 = bitmap.0.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(clear, 1 + 2 * 11);
        assert_eq!(bitmap.0[2], !1, "IA32_TSC is read without an exit");
        assert_eq!(bitmap.0[0x800 + 2], 0xff, "and not written");
        assert_eq!(bitmap.0[0x400 + 0x82 / 8] & 1 << 2, 0, "LSTAR is the guest's own, to read");
        assert_eq!(bitmap.0[0xc00 + 0x82 / 8] & 1 << 2, 0, "and to write");
        assert_eq!(bitmap.0[0xc00 + 0x80 / 8] & 1, 1, "EFER exits");
    }
}
