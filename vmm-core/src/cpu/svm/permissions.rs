//! The I/O and MSR permission maps (APM 15.10, 15.11): everything exits but the registers that VMLOAD,
//! VMSAVE and VMRUN keep apart for each guest.

use crate::cpu::{HostFeatures, SystemMsr};
use crate::memory::HostPhys;
use alloc::boxed::Box;

const IA32_PRED_CMD: u32 = 0x49;

/// Both maps; one pair serves every guest of a core.
#[repr(C, align(4096))]
pub struct PermissionMaps {
    /// A bit a port, set: exit.
    io: [u8; 0x3000],
    /// Two bits an MSR: exit on read, exit on write.
    msr: [u8; 0x2000],
}

/// What a guest may do to an MSR without an exit.
#[derive(Clone, Copy)]
enum Allow {
    Write,
    Both,
}

impl PermissionMaps {
    /// Maps for a CPU with these features.
    pub fn new(features: &HostFeatures) -> Box<Self> {
        let mut maps = Box::new(Self { io: [0xff; 0x3000], msr: [0xff; 0x2000] });
        if features.ibpb {
            maps.allow(IA32_PRED_CMD, Allow::Write);
        }
        for msr in [
            SystemMsr::SysenterCs,
            SystemMsr::SysenterEsp,
            SystemMsr::SysenterEip,
            SystemMsr::Star,
            SystemMsr::Lstar,
            SystemMsr::Cstar,
            SystemMsr::Sfmask,
            SystemMsr::FsBase,
            SystemMsr::GsBase,
            SystemMsr::KernelGsBase,
        ] {
            maps.allow(msr.index(), Allow::Both);
        }
        if features.rdtscp {
            maps.allow(SystemMsr::TscAux.index(), Allow::Both);
        }
        maps
    }

    /// Where the I/O permission map lies.
    pub fn io_base(&self) -> HostPhys {
        HostPhys::new(self.io.as_ptr().expose_provenance() as u64)
    }

    /// Where the MSR permission map lies.
    pub fn msr_base(&self) -> HostPhys {
        HostPhys::new(self.msr.as_ptr().expose_provenance() as u64)
    }

    fn allow(&mut self, msr: u32, allow: Allow) {
        // Three ranges of 8192 registers each, 2 KiB of map a range.
        let range = match msr & !0x1fff {
            0 => 0_usize,
            0xc000_0000 => 0x800,
            0xc001_0000 => 0x1000,
            _ => return,
        };
        let index = (msr & 0x1fff) as usize;
        let shift = (index & 3) << 1;
        let bits: u8 = match allow {
            Allow::Write => 0b10,
            Allow::Both => 0b11,
        };
        if let Some(byte) = self.msr.get_mut(range | (index >> 2)) {
            *byte &= !(bits << shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_allowed_passes() {
        let maps = PermissionMaps::new(&HostFeatures { rdtscp: true, ..Default::default() });
        assert!(maps.io.iter().all(|byte| *byte == 0xff));
        let clear: u32 = maps.msr.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(clear, 2 * 11);
        assert_eq!(maps.msr[0x10 / 4], 0xff, "IA32_TSC exits: QEMU 7.2 reads it as zero in a guest");
        assert_eq!(maps.msr[0x800 + 0x82 / 4] & 0b11 << 4, 0, "LSTAR is the guest's own");
        assert_eq!(maps.msr[0x800 + 0x80 / 4] & 0b11, 0b11, "EFER exits: it shows SVME");
    }
}
