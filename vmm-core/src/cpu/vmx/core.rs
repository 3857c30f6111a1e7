//! A physical core in VMX operation.

use super::capabilities::{Capabilities, feature_control};
use super::controls::Controls;
use super::hygiene::Hygiene;
use super::msr_bitmap::MsrBitmap;
use super::vmcs::{self, Region, Scope};
use crate::cpu::Unsupported;
use crate::cpu::context::{self, HostFeatures};
use crate::cpu::tags::{Flush, Tag, Tags};
use crate::memory::PageSize;
use ::core::fmt;
use alloc::boxed::Box;
use alloc::sync::Arc;
use x86_64::registers::control::{Cr0, Cr4};
use x86_64::registers::model_specific::Msr;

/// As many VPIDs as there are (SDM 29.1): they have 16 bits, and 0 is the host's.
const VPIDS: u32 = 1 << 16;

/// What a core's virtual CPUs share.
pub struct Shared {
    /// What the CPU offers.
    pub features: HostFeatures,
    /// What its VT-x offers.
    pub capabilities: Capabilities,
    /// The controls that all start with.
    pub controls: Controls,
    /// What is cleared before a guest runs.
    pub hygiene: Hygiene,
    /// Which MSRs exit.
    pub msr_bitmap: Box<MsrBitmap>,
    /// The same where an x2APIC is lent to the CPU.
    pub x2apic_bitmap: Box<MsrBitmap>,
}

/// A core that executed VMXON, with what it shares between its virtual CPUs.
pub struct Core {
    shared: Arc<Shared>,
    /// The VMXON region: the CPU's until VMXOFF.
    _region: Box<Region>,
    tags: Tags,
    last_attached: u64,
}

impl Core {
    /// See [`crate::cpu::Core::enable`].
    ///
    /// # Safety
    ///
    /// As there.
    pub unsafe fn enable(mut features: HostFeatures) -> Result<Self, Unsupported> {
        // SAFETY: CPUID showed VMX, and this is ring 0.
        let capabilities = unsafe { Capabilities::read() };
        let controls = Controls::choose(&capabilities)?;
        // Without the control, the instruction is #UD in a guest.
        features.rdtscp &= controls.rdtscp();
        let region = Region::new(capabilities.revision());
        // SAFETY: the register exists where CPUID shows VMX; VMXON's conditions are met one by one, and no
        // guest is attached yet. The region lives as long as the core stays in VMX operation.
        unsafe {
            let mut register = Msr::new(feature_control::INDEX);
            if let Some(value) = feature_control::to_write(register.read())? {
                register.write(value);
            }
            context::enable_on_this_core(&features);
            Cr0::write_raw((Cr0::read_raw() | capabilities.cr0.ones) & capabilities.cr0.possible);
            Cr4::write_raw(Cr4::read_raw() | capabilities.cr4.ones);
            vmcs::vmxon(&region).map_err(|vmcs::Refused| Unsupported::VmxonRefused)?;
        }
        let shared = Shared {
            features,
            capabilities,
            controls,
            hygiene: Hygiene::detect(),
            msr_bitmap: MsrBitmap::new(&features),
            x2apic_bitmap: MsrBitmap::with_x2apic(&features),
        };
        Ok(Self { shared: Arc::new(shared), _region: region, tags: Tags::new(VPIDS), last_attached: 0 })
    }

    /// What the CPU offers.
    pub fn features(&self) -> &HostFeatures {
        &self.shared.features
    }

    /// The largest pages that nested tables may use.
    pub fn largest_nested_page(&self) -> PageSize {
        let capabilities = &self.shared.capabilities;
        if capabilities.ept_gigabyte_pages() {
            PageSize::Gigabyte
        } else if capabilities.ept_large_pages() {
            PageSize::TwoMegabytes
        } else {
            PageSize::FourKilobytes
        }
    }

    /// Whether local APICs can be lent to the CPU.
    pub fn lends_apics(&self) -> bool {
        self.shared.controls.lends_apics
    }

    /// What all virtual CPUs of this core share.
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// The tag to use now in place of `held`. What must be forgotten before its use has been.
    pub fn tag(&mut self, held: Tag, ept_pointers: [u64; 2]) -> Tag {
        let (tag, flush) = self.tags.assign(held);
        let Shared { capabilities, controls, .. } = &*self.shared;
        let scope = |single: bool| if flush == Flush::Tag && single { Scope::Single } else { Scope::All };
        if flush != Flush::Nothing {
            // SAFETY: a `Core` exists only on a core in VMX operation; `Controls::choose` insists on INVEPT,
            // and uses VPIDs only where there is INVVPID.
            unsafe {
                // The guest's nested tables may lie where another's lay before.
                for pointer in ept_pointers {
                    vmcs::invept(scope(capabilities.invept_single()), pointer);
                }
                if controls.vpid() {
                    vmcs::invvpid(scope(capabilities.invvpid_single()), tag.number as u16);
                }
            }
        }
        tag
    }

    /// Notes which virtual CPU comes in; true when another ran here before.
    pub fn note_attached(&mut self, identity: u64) -> bool {
        let changed = self.last_attached != identity;
        self.last_attached = identity;
        changed
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // SAFETY: this core is in VMX operation since `enable`, and its virtual CPUs are detached: a region
        // that the CPU still knows must not be given back.
        unsafe { vmcs::vmxoff() }
    }
}

impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { features, capabilities, controls, hygiene, .. } = &*self.shared;
        f.write_str("VT-x: EPT, unrestricted guest")?;
        for (there, name) in [
            (capabilities.ept_gigabyte_pages(), "1 GiB pages"),
            (controls.vpid(), "VPID"),
            (controls.tpr_shadow(), "TPR shadow"),
            (controls.lends_apics, "APIC-register and x2APIC virtualization, virtual-interrupt delivery"),
            (controls.preemption_timer(), "preemption timer"),
            (controls.pause_loop_exiting(), "PAUSE-loop exiting"),
            (features.ibpb, "IBPB"),
            (hygiene.flush_l1d, "L1D flush"),
            (hygiene.clear_buffers, "MD_CLEAR"),
        ] {
            if there {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}
