//! A physical core with AMD-V switched on.

use super::permissions::PermissionMaps;
use super::vmcb::Vmcb;
use crate::cpu::Unsupported;
use crate::cpu::context::{self, HostFeatures};
use crate::cpu::tags::{Flush, Tag, Tags};
use crate::memory::{HostPhys, PageSize};
use ::core::arch::asm;
use ::core::arch::x86_64::__cpuid;
use ::core::fmt;
use alloc::boxed::Box;
use alloc::sync::Arc;
use x86_64::registers::model_specific::{Efer, EferFlags, Msr};

const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// CPUID 8000_000A, EDX: what this AMD-V can do.
mod feature {
    pub const NESTED_PAGING: u32 = 1 << 0;
    pub const NEXT_RIP_SAVE: u32 = 1 << 3;
    pub const FLUSH_BY_ASID: u32 = 1 << 6;
    pub const PAUSE_FILTER: u32 = 1 << 10;
    pub const PAUSE_FILTER_THRESHOLD: u32 = 1 << 12;
    pub const VIRTUAL_SPEC_CTRL: u32 = 1 << 20;
}

/// What this core's AMD-V can do beyond what we ask of every one.
#[derive(Clone, Copy)]
pub struct SvmFeatures {
    bits: u32,
    tcg: bool,
}

impl SvmFeatures {
    /// The exit tells where the intercepted instruction ends.
    pub fn next_rip_save(self) -> bool {
        self.bits & feature::NEXT_RIP_SAVE != 0
    }
    /// One guest's translations can be flushed alone.
    pub fn flush_by_asid(self) -> bool {
        self.bits & feature::FLUSH_BY_ASID != 0
    }
    /// Loops of PAUSE are counted.
    pub fn pause_filter(self) -> bool {
        self.bits & feature::PAUSE_FILTER != 0
    }
    /// PAUSEs far apart are not counted together.
    pub fn pause_filter_threshold(self) -> bool {
        self.bits & feature::PAUSE_FILTER_THRESHOLD != 0
    }
    /// The CPU is QEMU's own emulation, whose AMD-V has faults of its own: an interrupt injected as an event may be
    /// delivered twice, and one CPU may undo what another has just done to its state (docs/decisions, 9 and 10).
    pub fn is_tcg(self) -> bool {
        self.tcg
    }
    /// VMRUN switches SPEC_CTRL.
    pub fn virtual_spec_ctrl(self) -> bool {
        self.bits & feature::VIRTUAL_SPEC_CTRL != 0
    }
}

/// A core whose EFER.SVME is set, with what it shares between its virtual CPUs.
pub struct Core {
    features: HostFeatures,
    svm: SvmFeatures,
    permissions: Arc<PermissionMaps>,
    /// VMSAVE's and VMRUN's places for the host's own state.
    host: Box<Vmcb>,
    save_area: Box<Vmcb>,
    asids: Tags,
    last_attached: u64,
}

impl Core {
    /// See [`crate::cpu::Core::enable`].
    ///
    /// # Safety
    ///
    /// As there.
    pub unsafe fn enable(features: HostFeatures) -> Result<Self, Unsupported> {
        let leaf = __cpuid(0x8000_000a);
        // SAFETY: the register exists where CPUID shows SVM.
        if unsafe { Msr::new(VM_CR).read() } & VM_CR_SVMDIS != 0 {
            return Err(Unsupported::DisabledByFirmware);
        }
        if leaf.edx & feature::NESTED_PAGING == 0 {
            return Err(Unsupported::NoNestedPaging);
        }
        let core = Self {
            features,
            svm: SvmFeatures { bits: leaf.edx, tcg: runs_on_tcg() },
            permissions: Arc::from(PermissionMaps::new(&features)),
            host: Vmcb::zeroed(),
            save_area: Vmcb::zeroed(),
            asids: Tags::new(leaf.ebx),
            last_attached: 0,
        };
        // SAFETY: SVM is there and not disabled; the save area is a page of ours that lives as long as
        // guests run here, and no guest is attached yet.
        unsafe {
            context::enable_on_this_core(&features);
            Efer::update(|efer| efer.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE));
            Msr::new(VM_HSAVE_PA).write(address_of(&core.save_area).get());
        }
        Ok(core)
    }

    /// What the CPU offers.
    pub fn features(&self) -> &HostFeatures {
        &self.features
    }

    /// The largest pages that nested tables may use.
    pub fn largest_nested_page(&self) -> PageSize {
        if self.features.gigabyte_pages { PageSize::Gigabyte } else { PageSize::TwoMegabytes }
    }

    /// What its AMD-V offers.
    pub fn svm_features(&self) -> SvmFeatures {
        self.svm
    }

    /// The permission maps every guest of this core runs under.
    pub fn permissions(&self) -> Arc<PermissionMaps> {
        Arc::clone(&self.permissions)
    }

    /// Stores what VMRUN does not save of the host's state, and says where.
    pub fn save_host_state(&mut self) -> HostPhys {
        let host = address_of(&self.host);
        // SAFETY: a page of ours; a `Core` exists only where EFER.SVME is set.
        unsafe { asm!("vmsave rax", in("rax") host.get(), options(nostack, preserves_flags)) }
        host
    }

    /// The address-space identifier to use now in place of `held`, and what must be flushed first.
    pub fn asid(&mut self, held: Tag) -> (Tag, Flush) {
        self.asids.assign(held)
    }

    /// Notes which virtual CPU comes in; true when another ran here before.
    pub fn note_attached(&mut self, identity: u64) -> bool {
        let changed = self.last_attached != identity;
        self.last_attached = identity;
        changed
    }
}

impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AMD-V: nested paging, {} ASIDs", self.asids.count())?;
        for (there, name) in [
            (self.svm.next_rip_save(), "next-RIP save"),
            (self.svm.flush_by_asid(), "flush by ASID"),
            (self.svm.pause_filter(), "pause filter"),
            (self.svm.virtual_spec_ctrl(), "virtual SPEC_CTRL"),
            (self.features.ibpb, "IBPB"),
            (self.features.gigabyte_pages, "1 GiB pages"),
        ] {
            if there {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}

/// Whether the CPU is QEMU's own emulation: it names itself where hypervisors do, which set this bit.
fn runs_on_tcg() -> bool {
    const HYPERVISOR: u32 = 1 << 31;
    const TCG: [&[u8; 4]; 3] = [b"TCGT", b"CGTC", b"GTCG"];
    let name = __cpuid(0x4000_0000);
    __cpuid(1).ecx & HYPERVISOR != 0 && [name.ebx, name.ecx, name.edx].map(u32::to_le_bytes).iter().eq(TCG)
}

/// The physical address of a block: the monitor runs identity-mapped.
pub fn address_of(block: &Vmcb) -> HostPhys {
    HostPhys::new(::core::ptr::from_ref(block).expose_provenance() as u64)
}
