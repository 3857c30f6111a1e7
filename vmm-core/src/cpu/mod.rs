//! One virtual CPU, whatever runs it.
//!
//! A backend enters the guest, decodes what the hardware says on the way out into one [`Exit`], and gives the
//! rest of the monitor the guest's registers. It holds no device code and knows no policy. What a backend
//! offers is [`VirtualCpu`]; which one this machine has is found once a core, by [`Core::enable`].
// Unsafe because this is where virtual CPUs meet real ones: privileged instructions and structures that the
// hardware reads.
#![allow(unsafe_code)]

#[cfg(not(any(feature = "amd-v", feature = "vt-x")))]
compile_error!("no guest runs without a backend: amd-v, vt-x or both");

mod apic_page;
mod context;
mod exit;
mod state;
#[cfg(feature = "amd-v")]
mod svm;
mod tags;
#[cfg(feature = "vt-x")]
mod vmx;

use crate::memory::{Format, GuestMemory, NestedTables, Paging, TooHigh};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

pub use apic_page::{APIC_BASE, ApicAccess, ApicLoan, ApicPage};
pub use context::{HostFeatures, xcr0};
pub use exit::{EntryFailure, Event, Exit, MemoryAccess, PortAccess, Width};
pub use state::{
    CodeSize, ControlRegisters, CpuState, DescriptorTable, Gpr, Registers, Segment, SegmentRegister,
    SystemMsr, rflags,
};

/// How many calls refill the return predictor after an exit: the entries of the largest one.
const RETURN_PREDICTOR: usize = 32;

/// What instruction emulation and page-table walks need of a CPU: its registers, to read and write.
pub trait CpuView {
    /// The general registers, RIP and RFLAGS.
    fn registers(&self) -> &Registers;
    /// The same, to change.
    fn registers_mut(&mut self) -> &mut Registers;
    /// A segment register with its hidden part.
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// CR0, CR2, CR3, CR4 and EFER as the guest sees them.
    fn control(&self) -> ControlRegisters;
    /// Sets CR2, the address of a page fault about to be injected.
    fn set_cr2(&mut self, address: u64);
    /// The current privilege level, 0 to 3.
    fn privilege_level(&self) -> u8 {
        self.segment(SegmentRegister::Ss).privilege_level()
    }
    /// The guest's MAXPHYADDR, 32 to 52. On more bits the hardware's own walk has already faulted.
    fn physical_bits(&self) -> u8 {
        52
    }
    /// The default size of operands and addresses in the code being run.
    #[inline]
    fn code_size(&self) -> CodeSize {
        CodeSize::of(self.segment(SegmentRegister::Cs), self.control().efer)
    }
    /// What decides how the CPU translates linear addresses.
    #[inline]
    fn paging(&self) -> Paging {
        let ControlRegisters { cr0, cr3, cr4, efer, .. } = self.control();
        Paging { cr0, cr3, cr4, efer, physical_bits: self.physical_bits() }
    }
}

/// A virtual CPU on its backend.
///
/// It runs only between [`attach`](Self::attach) and [`detach`](Self::detach), on the core it was attached
/// to: while attached, its FPU, vector and debug registers live in that core's hardware.
pub trait VirtualCpu: CpuView + Send {
    /// Sets everything a boot protocol decides, and all else to its value after INIT.
    fn load(&mut self, state: &CpuState);
    /// Brings this CPU's registers into the hardware of `core`, the one this code runs on.
    fn attach(&mut self, core: &mut Core);
    /// Takes this CPU's registers out of the hardware again.
    fn detach(&mut self);
    /// Enters the guest and runs it until it needs something.
    fn run(&mut self) -> Exit;
    /// Where the instruction that caused the last exit ends, when the hardware says so.
    fn next_rip(&self) -> Option<u64>;
    /// Ends an instruction done in software: goes on at `next_rip`, and with it end the shadow of STI and
    /// MOV SS and the effect of RF.
    fn complete_instruction(&mut self, next_rip: u64);
    /// Delivers `event` at the next entry; replaces one not yet delivered.
    fn inject(&mut self, event: Event);
    /// Whether an event already waits for the next entry, or was cut short by the last exit.
    fn injection_pending(&self) -> bool;
    /// Whether an external interrupt injected now would be taken at once.
    fn accepts_interrupt(&self) -> bool;
    /// Whether a non-maskable interrupt injected now would be taken at once.
    fn accepts_nmi(&self) -> bool;
    /// Asks for [`Exit::InterruptWindow`] as soon as an interrupt of this priority class (vector >> 4) can be
    /// taken, or takes the request back. Class 16 is above every task priority.
    fn request_interrupt_window(&mut self, priority_class: Option<u8>);
    /// Asks for [`Exit::InterruptWindow`] once a non-maskable interrupt can be taken, which it cannot now.
    fn request_nmi_window(&mut self);
    /// The task priority as last set by the guest through CR8 or by us, 0 to 15.
    fn task_priority_class(&self) -> u8;
    /// Sets what the guest reads from CR8, 0 to 15.
    fn set_task_priority_class(&mut self, class: u8);
    /// The page in which the CPU can work on the registers of a local APIC while the guest runs, where it can.
    fn apic_page(&self) -> Option<Arc<ApicPage>> {
        None
    }
    /// From the next entry on, has the CPU deliver interrupts by the registers in [`Self::apic_page`], and answer
    /// the guest's accesses from there; without a loan it does neither.
    fn lend_apic(&mut self, loan: Option<ApicLoan>) {
        let _ = loan;
    }
    /// A model-specific register that is part of the CPU's own state.
    fn system_msr(&self, msr: SystemMsr) -> u64;
    /// Sets such a register; the value has been checked.
    fn set_system_msr(&mut self, msr: SystemMsr, value: u64);
    /// The guest's XCR0.
    fn xcr0(&self) -> u64;
    /// Sets XCR0; the value has been checked.
    fn set_xcr0(&mut self, value: u64);
    /// Whether the CPU has a timer of its own that ends the guest's stay, beside the host's interrupt.
    fn has_preemption_timer(&self) -> bool {
        false
    }
    /// Has that timer end the guest's stay with [`Exit::HostInterrupt`] after so many ticks of the TSC in the guest.
    fn set_preemption_timer(&mut self, ticks: u64) {
        let _ = ticks;
    }
    /// Whether loops of PAUSE end the guest's stay, where the CPU counts them, as they do at first: its core is wanted by
    /// others. Holds from the next [`Self::load`] on.
    fn set_pause_exits(&mut self, wanted: bool);
    /// What is added to the host's time-stamp counter for this guest.
    fn set_tsc_offset(&mut self, offset: u64);
}

/// Why a core cannot run guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// CPUID shows neither VT-x nor AMD-V.
    NoVirtualization,
    /// The CPU has this one, but the build does not.
    LeftOut(&'static str),
    /// AMD-V is there, but VM_CR.SVMDIS is set, and locked or not (APM 15.30.1).
    DisabledByFirmware,
    /// There is AMD-V without nested paging.
    NoNestedPaging,
    /// VT-x is there, but IA32_FEATURE_CONTROL is locked without it (SDM 24.7).
    VmxLockedOff,
    /// There is VT-x without EPT.
    NoExtendedPageTables,
    /// There is VT-x whose guests cannot run in real mode.
    NoUnrestrictedGuest,
    /// There is VT-x without something else that is needed; the manual's name for it.
    NoVmxFeature(&'static str),
    /// VMXON failed although everything it asks for is there.
    VmxonRefused,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self {
            Self::NoVirtualization => "this CPU has neither VT-x nor AMD-V",
            Self::LeftOut(name) => {
                return write!(
                    f,
                    "this CPU has {name}, which was left out of this payload, so no guest can run"
                );
            }
            Self::DisabledByFirmware => "AMD-V is switched off by firmware (VM_CR.SVMDIS)",
            Self::NoNestedPaging => "this CPU's AMD-V has no nested paging",
            Self::VmxLockedOff => "VT-x is switched off and locked by firmware (IA32_FEATURE_CONTROL)",
            Self::NoExtendedPageTables => "this CPU has VT-x without EPT",
            Self::NoUnrestrictedGuest => "this CPU has VT-x without unrestricted guest",
            Self::NoVmxFeature(name) => {
                return write!(f, "this CPU has VT-x without {name}, so no guest can run");
            }
            Self::VmxonRefused => "VMXON failed, although firmware allows it",
        };
        write!(f, "{reason}, so no guest can run")
    }
}

/// One physical core that can run guests.
pub struct Core {
    backend: Backend,
}

enum Backend {
    #[cfg(feature = "amd-v")]
    Svm(svm::Core),
    #[cfg(feature = "vt-x")]
    Vmx(vmx::Core),
}

impl Core {
    /// Switches virtualization on, on the core this runs on.
    ///
    /// # Safety
    ///
    /// The caller runs at ring 0 on an identity-mapped core whose interrupt table and TSS are loaded and stay
    /// where they are, and calls this once a core. The handler of vector 2 is one for NMIs, and returns.
    pub unsafe fn enable() -> Result<Self, Unsupported> {
        let features = HostFeatures::detect();
        match (features.svm, features.vmx) {
            #[cfg(feature = "amd-v")]
            (true, _) => {
                // SAFETY: passed on to the caller.
                let core = unsafe { svm::Core::enable(features)? };
                Ok(Self { backend: Backend::Svm(core) })
            }
            #[cfg(feature = "vt-x")]
            (false, true) => {
                // SAFETY: passed on to the caller.
                let core = unsafe { vmx::Core::enable(features)? };
                Ok(Self { backend: Backend::Vmx(core) })
            }
            #[cfg(not(feature = "amd-v"))]
            (true, _) => Err(Unsupported::LeftOut("AMD-V")),
            #[cfg(not(feature = "vt-x"))]
            (false, true) => Err(Unsupported::LeftOut("VT-x")),
            (false, false) => Err(Unsupported::NoVirtualization),
        }
    }

    /// What the CPU offers, as far as backends and guests care.
    pub fn features(&self) -> &HostFeatures {
        match &self.backend {
            #[cfg(feature = "amd-v")]
            Backend::Svm(core) => core.features(),
            #[cfg(feature = "vt-x")]
            Backend::Vmx(core) => core.features(),
        }
    }

    /// Nested tables for `memory`, in this CPU's format and with the largest pages it has.
    pub fn new_nested_tables(&self, memory: Arc<GuestMemory>) -> Result<NestedTables, TooHigh> {
        match &self.backend {
            #[cfg(feature = "amd-v")]
            Backend::Svm(core) => NestedTables::new(memory, Format::Npt, core.largest_nested_page()),
            #[cfg(feature = "vt-x")]
            Backend::Vmx(core) => {
                let mut tables = NestedTables::new(memory, Format::Ept, core.largest_nested_page())?;
                if core.lends_apics() {
                    tables.trap(APIC_BASE);
                }
                Ok(tables)
            }
        }
    }

    /// A new virtual CPU in its reset state, translating through `tables`.
    pub fn new_virtual_cpu(&self, tables: Arc<NestedTables>) -> Box<dyn VirtualCpu> {
        match &self.backend {
            #[cfg(feature = "amd-v")]
            Backend::Svm(core) => Box::new(svm::Vcpu::new(core, tables)),
            #[cfg(feature = "vt-x")]
            Backend::Vmx(core) => Box::new(vmx::Vcpu::new(core, tables)),
        }
    }
}

impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backend {
            #[cfg(feature = "amd-v")]
            Backend::Svm(core) => core.fmt(f),
            #[cfg(feature = "vt-x")]
            Backend::Vmx(core) => core.fmt(f),
        }
    }
}
