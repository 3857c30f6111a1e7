//! What a guest could learn from what the CPU remembers of others, and how that is cleared before it runs.
//!
//! Branch predictors are flushed where another guest comes in (see [`Context`](crate::cpu::context::Context)),
//! and the return predictor is refilled at every exit (see `enter`).

use ::core::arch::x86_64::{__cpuid, __cpuid_count};
use x86_64::registers::model_specific::Msr;

const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
const IA32_FLUSH_CMD: u32 = 0x10b;
const L1D_FLUSH: u64 = 1 << 0;

/// CPUID leaf 7, EDX.
mod enumerated {
    pub const MD_CLEAR: u32 = 1 << 10;
    pub const L1D_FLUSH: u32 = 1 << 28;
    pub const ARCH_CAPABILITIES: u32 = 1 << 29;
}

/// IA32_ARCH_CAPABILITIES (SDM table 2-2).
mod capability {
    /// Not open to rogue data cache load, nor to the L1 terminal fault.
    pub const RDCL_NO: u64 = 1 << 0;
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    /// Not open to microarchitectural data sampling.
    pub const MDS_NO: u64 = 1 << 5;
    /// VERW also clears fill buffers: it is needed against stale MMIO data.
    pub const FB_CLEAR: u64 = 1 << 17;
    /// VERW also clears vector and floating-point register files.
    pub const RFDS_CLEAR: u64 = 1 << 28;
}

/// What must be cleared before a guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hygiene {
    /// The level-1 data cache, by IA32_FLUSH_CMD.
    pub flush_l1d: bool,
    /// The CPU's internal buffers, by VERW.
    pub clear_buffers: bool,
}

impl Hygiene {
    /// Asks the CPU this runs on.
    pub fn detect() -> Self {
        let edx = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
        let capabilities = if edx & enumerated::ARCH_CAPABILITIES != 0 {
            // SAFETY: CPUID says that the register exists; this runs at ring 0, as VMXON soon must.
            unsafe { Msr::new(IA32_ARCH_CAPABILITIES).read() }
        } else {
            0
        };
        Self::new(edx, capabilities)
    }

    const fn new(leaf7_edx: u32, capabilities: u64) -> Self {
        use capability::{FB_CLEAR, MDS_NO, RDCL_NO, RFDS_CLEAR, SKIP_L1DFL_VMENTRY};
        let sampled = leaf7_edx & enumerated::MD_CLEAR != 0 && capabilities & MDS_NO == 0;
        Self {
            flush_l1d: leaf7_edx & enumerated::L1D_FLUSH != 0
                && capabilities & (RDCL_NO | SKIP_L1DFL_VMENTRY) == 0,
            clear_buffers: sampled || capabilities & (FB_CLEAR | RFDS_CLEAR) != 0,
        }
    }

    /// Flushes the level-1 data cache where that is needed.
    pub fn flush_l1d(self) {
        if self.flush_l1d {
            // SAFETY: `flush_l1d` is set only where CPUID shows the register; it discards no modified data.
            unsafe { Msr::new(IA32_FLUSH_CMD).write(L1D_FLUSH) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_says_it_is_safe_is_believed() {
        let all = enumerated::MD_CLEAR | enumerated::L1D_FLUSH;
        assert_eq!(Hygiene::new(all, 0), Hygiene { flush_l1d: true, clear_buffers: true });
        assert_eq!(Hygiene::new(0, 0), Hygiene::default(), "without microcode there is nothing to use");
        let safe = capability::RDCL_NO | capability::MDS_NO;
        assert_eq!(Hygiene::new(all, safe), Hygiene::default());
        assert!(!Hygiene::new(all, capability::SKIP_L1DFL_VMENTRY).flush_l1d);
        assert!(Hygiene::new(all, safe | capability::FB_CLEAR).clear_buffers);
    }
}
