//! A local APIC's registers where the CPU itself works on them while the guest runs (SDM chapter 30).

use crate::memory::{GuestPhys, HostPhys};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

/// Where a CPU has its local APIC after RESET (SDM 11.4.1).
pub const APIC_BASE: GuestPhys = GuestPhys::new(0xfee0_0000);

/// The register page, laid out as a guest sees it in memory. The CPU changes it while the guest runs, and only
/// then.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct ApicPage([AtomicU32; 1024]);

impl ApicPage {
    /// The task-priority register's place.
    pub const TPR: u32 = 0x80;
    /// The in-service register's, of eight words sixteen bytes apart.
    pub const ISR: u32 = 0x100;
    /// The interrupt-request register's, likewise.
    pub const IRR: u32 = 0x200;

    /// A page of zeros.
    pub fn new() -> Arc<Self> {
        Arc::new(Self([const { AtomicU32::new(0) }; 1024]))
    }

    /// Where it lies: the monitor runs identity-mapped.
    pub fn address(&self) -> HostPhys {
        HostPhys::new(core::ptr::from_ref(self).expose_provenance() as u64)
    }

    /// The four bytes at `offset`, a multiple of four below 4096.
    pub fn read(&self, offset: u32) -> u32 {
        self.0.get((offset >> 2) as usize).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Sets them.
    pub fn write(&self, offset: u32, value: u32) {
        if let Some(word) = self.0.get((offset >> 2) as usize) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// How a guest reaches the registers of its local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicAccess {
    /// In memory, at [`APIC_BASE`].
    Memory,
    /// As the MSRs of x2APIC mode.
    Msrs,
}

/// What the CPU is to do of a local APIC's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicLoan {
    /// How the guest reaches the registers.
    pub access: ApicAccess,
    /// The highest vector requested, 0 for none.
    pub requested: u8,
    /// The highest vector in service, 0 for none.
    pub in_service: u8,
    /// The vectors whose end is to be told, by [`super::Exit::EndOfInterrupt`]: a bit each.
    pub told: [u64; 4],
}
