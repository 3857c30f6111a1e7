//! What this CPU's VT-x can do: the capability MSRs (SDM volume 3, appendix A).

use crate::cpu::Unsupported;
use x86_64::registers::model_specific::Msr;

const IA32_VMX_BASIC: u32 = 0x480;
const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;
const IA32_VMX_EXIT_CTLS: u32 = 0x483;
const IA32_VMX_ENTRY_CTLS: u32 = 0x484;
const IA32_VMX_MISC: u32 = 0x485;
const IA32_VMX_CR0_FIXED0: u32 = 0x486;
const IA32_VMX_CR0_FIXED1: u32 = 0x487;
const IA32_VMX_CR4_FIXED0: u32 = 0x488;
const IA32_VMX_CR4_FIXED1: u32 = 0x489;
const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;
const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;
const IA32_VMX_TRUE_PINBASED_CTLS: u32 = 0x48d;
const IA32_VMX_TRUE_PROCBASED_CTLS: u32 = 0x48e;
const IA32_VMX_TRUE_EXIT_CTLS: u32 = 0x48f;
const IA32_VMX_TRUE_ENTRY_CTLS: u32 = 0x490;

/// IA32_VMX_BASIC: the TRUE variants exist.
const BASIC_TRUE_CONTROLS: u64 = 1 << 55;
/// Of the primary controls: there are secondary ones.
const SECONDARY_CONTROLS: u32 = 1 << 31;
/// Of the secondary controls: EPT, VPID.
const EPT_OR_VPID: u32 = 1 << 1 | 1 << 5;

/// IA32_FEATURE_CONTROL: whether firmware lets VMXON be used (SDM 24.7).
pub mod feature_control {
    use super::Unsupported;

    /// The register's index.
    pub const INDEX: u32 = 0x3a;
    const LOCK: u64 = 1 << 0;
    const VMXON_OUTSIDE_SMX: u64 = 1 << 2;

    /// What must be written before VMXON works: nothing where firmware has switched it on. The register can
    /// be written once; firmware that left it open left the choice to us.
    pub fn to_write(found: u64) -> Result<Option<u64>, Unsupported> {
        match (found & LOCK != 0, found & VMXON_OUTSIDE_SMX != 0) {
            (true, true) => Ok(None),
            (true, false) => Err(Unsupported::VmxLockedOff),
            (false, _) => Ok(Some(found | LOCK | VMXON_OUTSIDE_SMX)),
        }
    }
}

/// Which bits of a control field may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Bits that must be one.
    pub required: u32,
    /// Bits that may be one.
    pub possible: u32,
}

impl Allowed {
    const fn from_msr(value: u64) -> Self {
        Self { required: value as u32, possible: (value >> 32) as u32 }
    }
}

/// Bits of a control register that VMX operation fixes (SDM A.7, A.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Bits that must be one.
    pub ones: u64,
    /// Bits that may be one.
    pub possible: u64,
}

/// The capability MSRs' content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// Pin-based VM-execution controls.
    pub pin: Allowed,
    /// Primary processor-based VM-execution controls.
    pub primary: Allowed,
    /// Secondary processor-based VM-execution controls.
    pub secondary: Allowed,
    /// VM-exit controls.
    pub exit: Allowed,
    /// VM-entry controls.
    pub entry: Allowed,
    /// CR0 in VMX operation.
    pub cr0: Fixed,
    /// CR4 in VMX operation.
    pub cr4: Fixed,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
    /// IA32_VMX_MISC.
    pub misc: u64,
}

impl Capabilities {
    /// Asks the CPU this runs on.
    ///
    /// # Safety
    ///
    /// Ring 0, and CPUID shows VMX.
    pub unsafe fn read() -> Self {
        // SAFETY: every register read here exists where CPUID shows VMX, the last ones where the ones before
        // say so (SDM appendix A).
        let msr = |index| unsafe { Msr::new(index).read() };
        let basic = msr(IA32_VMX_BASIC);
        let true_controls = basic & BASIC_TRUE_CONTROLS != 0;
        let controls = |plain, exact| Allowed::from_msr(msr(if true_controls { exact } else { plain }));
        let primary = controls(IA32_VMX_PROCBASED_CTLS, IA32_VMX_TRUE_PROCBASED_CTLS);
        let secondary = if primary.possible & SECONDARY_CONTROLS != 0 {
            Allowed::from_msr(msr(IA32_VMX_PROCBASED_CTLS2))
        } else {
            Allowed::default()
        };
        let ept_vpid = if secondary.possible & EPT_OR_VPID != 0 { msr(IA32_VMX_EPT_VPID_CAP) } else { 0 };
        Self {
            basic,
            pin: controls(IA32_VMX_PINBASED_CTLS, IA32_VMX_TRUE_PINBASED_CTLS),
            primary,
            secondary,
            exit: controls(IA32_VMX_EXIT_CTLS, IA32_VMX_TRUE_EXIT_CTLS),
            entry: controls(IA32_VMX_ENTRY_CTLS, IA32_VMX_TRUE_ENTRY_CTLS),
            cr0: Fixed { ones: msr(IA32_VMX_CR0_FIXED0), possible: msr(IA32_VMX_CR0_FIXED1) },
            cr4: Fixed { ones: msr(IA32_VMX_CR4_FIXED0), possible: msr(IA32_VMX_CR4_FIXED1) },
            ept_vpid,
            misc: msr(IA32_VMX_MISC),
        }
    }

    /// What a VMCS and the VMXON region begin with.
    pub const fn revision(&self) -> u32 {
        self.basic as u32 & 0x7fff_ffff
    }

    /// The preemption timer counts once when this bit of the TSC changes (SDM A.6).
    pub const fn preemption_timer_shift(&self) -> u32 {
        self.misc as u32 & 0x1f
    }

    const fn ept_vpid_bit(&self, bit: u32) -> bool {
        self.ept_vpid.wrapping_shr(bit) & 1 != 0
    }

    /// EPT of four levels.
    pub const fn ept_four_levels(&self) -> bool {
        self.ept_vpid_bit(6)
    }

    /// The tables themselves may be cached, write-back.
    pub const fn ept_write_back(&self) -> bool {
        self.ept_vpid_bit(14)
    }

    /// 2 MiB pages in EPT.
    pub const fn ept_large_pages(&self) -> bool {
        self.ept_vpid_bit(16)
    }

    /// 1 GiB pages in EPT.
    pub const fn ept_gigabyte_pages(&self) -> bool {
        self.ept_vpid_bit(17)
    }

    /// INVEPT, for all EPTs at once.
    pub const fn invept(&self) -> bool {
        self.ept_vpid_bit(20) && self.ept_vpid_bit(26)
    }

    /// INVEPT for one EPT.
    pub const fn invept_single(&self) -> bool {
        self.ept_vpid_bit(25)
    }

    /// INVVPID, for all VPIDs at once.
    pub const fn invvpid(&self) -> bool {
        self.ept_vpid_bit(32) && self.ept_vpid_bit(42)
    }

    /// INVVPID for one VPID.
    pub const fn invvpid_single(&self) -> bool {
        self.ept_vpid_bit(41)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_has_three_answers() {
        assert_eq!(feature_control::to_write(0), Ok(Some(0b101)), "left open: ours to switch on");
        assert_eq!(feature_control::to_write(0b101), Ok(None), "locked, on");
        assert_eq!(feature_control::to_write(0b001), Err(Unsupported::VmxLockedOff), "locked, off");
        assert_eq!(
            feature_control::to_write(0b011),
            Err(Unsupported::VmxLockedOff),
            "inside SMX only is not for us"
        );
        assert_eq!(feature_control::to_write(1 << 20), Ok(Some(1 << 20 | 0b101)), "other bits stay");
    }
}
