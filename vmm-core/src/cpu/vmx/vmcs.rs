//! The virtual-machine control structure: its fields (SDM volume 3, appendix B) and the instructions that
//! reach it.

use crate::cpu::SegmentRegister;
use crate::memory::HostPhys;
use alloc::boxed::Box;
use core::arch::asm;

/// A field's encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field(u32);

impl Field {
    /// The encoding as the instructions take it.
    pub const fn encoding(self) -> u32 {
        self.0
    }

    /// The field of the same kind for another segment register: they come in the order of
    /// [`SegmentRegister`], two apart.
    const fn of(self, register: SegmentRegister) -> Self {
        Self(self.0.wrapping_add((register as u32) << 1))
    }
}

/// The fields in use.
pub mod field {
    use super::Field;

    pub const VPID: Field = Field(0x0000);
    pub const GUEST_ES_SELECTOR: Field = Field(0x0800);
    pub const GUEST_INTERRUPT_STATUS: Field = Field(0x0810);
    pub const HOST_ES_SELECTOR: Field = Field(0x0c00);
    pub const HOST_CS_SELECTOR: Field = Field(0x0c02);
    pub const HOST_SS_SELECTOR: Field = Field(0x0c04);
    pub const HOST_DS_SELECTOR: Field = Field(0x0c06);
    pub const HOST_FS_SELECTOR: Field = Field(0x0c08);
    pub const HOST_GS_SELECTOR: Field = Field(0x0c0a);
    pub const HOST_TR_SELECTOR: Field = Field(0x0c0c);

    pub const MSR_BITMAP: Field = Field(0x2004);
    pub const TSC_OFFSET: Field = Field(0x2010);
    pub const VIRTUAL_APIC_PAGE: Field = Field(0x2012);
    pub const APIC_ACCESS_PAGE: Field = Field(0x2014);
    pub const EPT_POINTER: Field = Field(0x201a);
    pub const EOI_EXIT_BITMAPS: [Field; 4] = [Field(0x201c), Field(0x201e), Field(0x2020), Field(0x2022)];
    pub const GUEST_PHYSICAL_ADDRESS: Field = Field(0x2400);
    pub const VMCS_LINK_POINTER: Field = Field(0x2800);
    pub const GUEST_DEBUGCTL: Field = Field(0x2802);
    pub const GUEST_PAT: Field = Field(0x2804);
    pub const GUEST_EFER: Field = Field(0x2806);
    pub const GUEST_PDPTES: [Field; 4] = [Field(0x280a), Field(0x280c), Field(0x280e), Field(0x2810)];
    pub const HOST_PAT: Field = Field(0x2c00);
    pub const HOST_EFER: Field = Field(0x2c02);

    pub const PIN_CONTROLS: Field = Field(0x4000);
    pub const PRIMARY_CONTROLS: Field = Field(0x4002);
    pub const EXCEPTION_BITMAP: Field = Field(0x4004);
    pub const PAGE_FAULT_MASK: Field = Field(0x4006);
    pub const PAGE_FAULT_MATCH: Field = Field(0x4008);
    pub const CR3_TARGET_COUNT: Field = Field(0x400a);
    pub const EXIT_CONTROLS: Field = Field(0x400c);
    pub const EXIT_MSR_STORE_COUNT: Field = Field(0x400e);
    pub const EXIT_MSR_LOAD_COUNT: Field = Field(0x4010);
    pub const ENTRY_CONTROLS: Field = Field(0x4012);
    pub const ENTRY_MSR_LOAD_COUNT: Field = Field(0x4014);
    pub const ENTRY_INTERRUPTION_INFORMATION: Field = Field(0x4016);
    pub const ENTRY_EXCEPTION_ERROR_CODE: Field = Field(0x4018);
    pub const ENTRY_INSTRUCTION_LENGTH: Field = Field(0x401a);
    pub const TPR_THRESHOLD: Field = Field(0x401c);
    pub const SECONDARY_CONTROLS: Field = Field(0x401e);
    pub const PAUSE_LOOP_GAP: Field = Field(0x4020);
    pub const PAUSE_LOOP_WINDOW: Field = Field(0x4022);
    pub const INSTRUCTION_ERROR: Field = Field(0x4400);
    pub const EXIT_REASON: Field = Field(0x4402);
    pub const EXIT_INTERRUPTION_INFORMATION: Field = Field(0x4404);
    pub const EXIT_INTERRUPTION_ERROR_CODE: Field = Field(0x4406);
    pub const IDT_VECTORING_INFORMATION: Field = Field(0x4408);
    pub const IDT_VECTORING_ERROR_CODE: Field = Field(0x440a);
    pub const EXIT_INSTRUCTION_LENGTH: Field = Field(0x440c);
    pub const GUEST_ES_LIMIT: Field = Field(0x4800);
    pub const GUEST_GDTR_LIMIT: Field = Field(0x4810);
    pub const GUEST_IDTR_LIMIT: Field = Field(0x4812);
    pub const GUEST_ES_ACCESS_RIGHTS: Field = Field(0x4814);
    pub const GUEST_INTERRUPTIBILITY: Field = Field(0x4824);
    pub const GUEST_ACTIVITY: Field = Field(0x4826);
    pub const GUEST_SYSENTER_CS: Field = Field(0x482a);
    pub const PREEMPTION_TIMER: Field = Field(0x482e);
    pub const HOST_SYSENTER_CS: Field = Field(0x4c00);

    pub const CR0_MASK: Field = Field(0x6000);
    pub const CR4_MASK: Field = Field(0x6002);
    pub const CR0_SHADOW: Field = Field(0x6004);
    pub const CR4_SHADOW: Field = Field(0x6006);
    pub const EXIT_QUALIFICATION: Field = Field(0x6400);
    pub const GUEST_CR0: Field = Field(0x6800);
    pub const GUEST_CR3: Field = Field(0x6802);
    pub const GUEST_CR4: Field = Field(0x6804);
    pub const GUEST_ES_BASE: Field = Field(0x6806);
    pub const GUEST_GDTR_BASE: Field = Field(0x6816);
    pub const GUEST_IDTR_BASE: Field = Field(0x6818);
    pub const GUEST_DR7: Field = Field(0x681a);
    pub const GUEST_RSP: Field = Field(0x681c);
    pub const GUEST_RIP: Field = Field(0x681e);
    pub const GUEST_RFLAGS: Field = Field(0x6820);
    pub const GUEST_PENDING_DEBUG: Field = Field(0x6822);
    pub const GUEST_SYSENTER_ESP: Field = Field(0x6824);
    pub const GUEST_SYSENTER_EIP: Field = Field(0x6826);
    pub const HOST_CR0: Field = Field(0x6c00);
    pub const HOST_CR3: Field = Field(0x6c02);
    pub const HOST_CR4: Field = Field(0x6c04);
    pub const HOST_FS_BASE: Field = Field(0x6c06);
    pub const HOST_GS_BASE: Field = Field(0x6c08);
    pub const HOST_TR_BASE: Field = Field(0x6c0a);
    pub const HOST_GDTR_BASE: Field = Field(0x6c0c);
    pub const HOST_IDTR_BASE: Field = Field(0x6c0e);
    pub const HOST_SYSENTER_ESP: Field = Field(0x6c10);
    pub const HOST_SYSENTER_EIP: Field = Field(0x6c12);
    pub const HOST_RSP: Field = Field(0x6c14);
    pub const HOST_RIP: Field = Field(0x6c16);
}

/// A segment register's selector field.
pub const fn selector(register: SegmentRegister) -> Field {
    field::GUEST_ES_SELECTOR.of(register)
}

/// A segment register's limit field.
pub const fn limit(register: SegmentRegister) -> Field {
    field::GUEST_ES_LIMIT.of(register)
}

/// A segment register's access-rights field.
pub const fn access_rights(register: SegmentRegister) -> Field {
    field::GUEST_ES_ACCESS_RIGHTS.of(register)
}

/// A segment register's base field.
pub const fn base(register: SegmentRegister) -> Field {
    field::GUEST_ES_BASE.of(register)
}

/// A page that the CPU keeps for itself: a VMCS or the VMXON region. Only its first word is ours.
#[repr(C, align(4096))]
pub struct Region {
    revision: u32,
    data: [u8; 4092],
}

impl Region {
    /// An empty region in the CPU's format.
    pub fn new(revision: u32) -> Box<Self> {
        Box::new(Self { revision, data: [0; 4092] })
    }

    /// Where it lies: the monitor runs identity-mapped.
    pub fn address(&self) -> HostPhys {
        HostPhys::new(core::ptr::from_ref(self).expose_provenance() as u64)
    }
}

/// The VMCS that the core this runs on works with. Who holds it made it current by [`Current::load`], and
/// nobody else makes another one current before [`Current::clear`].
pub struct Current(());

/// An instruction of VMX failed: CF or ZF came back set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Runs an instruction that takes a physical address in memory and reports in CF and ZF.
macro_rules! with_address {
    ($instruction:literal, $address:expr) => {{
        let address: u64 = $address;
        let refused: u8;
        asm!(concat!($instruction, " [{address}]"), "setbe {refused}",
            address = in(reg) &address, refused = out(reg_byte) refused, options(nostack));
        if refused == 0 { Ok(()) } else { Err(Refused) }
    }};
}

impl Current {
    /// Makes the VMCS in `region` current.
    ///
    /// # Safety
    ///
    /// This core is in VMX operation and the region active on no other; it stays where it is, and the value
    /// is used on this core only, until [`clear`](Self::clear).
    pub unsafe fn load(region: &Region) -> Result<Self, Refused> {
        // SAFETY: the caller's promise.
        unsafe { with_address!("vmptrld", region.address().get()) }.map(|()| Self(()))
    }

    /// Has the CPU write the VMCS back to `region`, its memory, and let go of it. The next entry is a launch.
    pub fn clear(self, region: &Region) {
        // SAFETY: this core is in VMX operation, or `self` would not exist.
        let _ = unsafe { clear(region) };
    }

    /// What the field holds; zero for one that this CPU does not have.
    pub fn read(&self, field: Field) -> u64 {
        let mut value = 0_u64;
        // SAFETY: a VMCS is current; the instruction writes only the register.
        unsafe {
            asm!("vmread {value}, {field}", value = inout(reg) value, field = in(reg) u64::from(field.0),
                options(nostack, nomem));
        }
        value
    }

    /// The low half, which is all of a 32-bit field.
    pub fn read32(&self, field: Field) -> u32 {
        self.read(field) as u32
    }

    /// Sets the field; without effect on one that this CPU does not have.
    pub fn write(&mut self, field: Field, value: u64) {
        // SAFETY: a VMCS is current. What it says takes effect at VM entry, which checks it, and whose own
        // conditions `enter` states.
        unsafe {
            asm!("vmwrite {field}, {value}", field = in(reg) u64::from(field.0), value = in(reg) value,
                options(nostack));
        }
    }
}

/// Enters VMX operation on `region`.
///
/// # Safety
///
/// CR0, CR4 and IA32_FEATURE_CONTROL are as VMXON wants them; the region stays where it is until VMXOFF.
pub unsafe fn vmxon(region: &Region) -> Result<(), Refused> {
    // SAFETY: the caller's promise.
    unsafe { with_address!("vmxon", region.address().get()) }
}

/// Leaves VMX operation.
///
/// # Safety
///
/// This core is in VMX operation and no VMCS active on it.
pub unsafe fn vmxoff() {
    // SAFETY: the caller's promise.
    unsafe { asm!("vmxoff", options(nostack)) }
}

/// Makes a region that was never used a VMCS, or takes one out of the CPU's hands.
///
/// # Safety
///
/// This core is in VMX operation.
pub unsafe fn clear(region: &Region) -> Result<(), Refused> {
    // SAFETY: the caller's promise; the region is ours.
    unsafe { with_address!("vmclear", region.address().get()) }
}

/// Whose translations to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Scope {
    /// Those of one EPT pointer or VPID.
    Single = 1,
    /// All.
    All = 2,
}

/// Forgets guest-physical translations (INVEPT).
///
/// # Safety
///
/// This core is in VMX operation, and the CPU has INVEPT of this scope.
pub unsafe fn invept(scope: Scope, ept_pointer: u64) {
    let descriptor = [ept_pointer, 0];
    // SAFETY: the caller's promise.
    unsafe { asm!("invept {}, [{}]", in(reg) scope as u64, in(reg) &descriptor, options(nostack, readonly)) }
}

/// Forgets linear translations (INVVPID).
///
/// # Safety
///
/// This core is in VMX operation, and the CPU has INVVPID of this scope.
pub unsafe fn invvpid(scope: Scope, vpid: u16) {
    let descriptor = [u64::from(vpid), 0];
    // SAFETY: the caller's promise.
    unsafe { asm!("invvpid {}, [{}]", in(reg) scope as u64, in(reg) &descriptor, options(nostack, readonly)) }
}

/// The manual's words for a VM-instruction error (SDM table 31-1).
pub const fn instruction_error(number: u32) -> &'static str {
    match number {
        1 => "VM-instruction error 1: VMCALL executed in VMX root operation",
        2 => "VM-instruction error 2: VMCLEAR with invalid physical address",
        3 => "VM-instruction error 3: VMCLEAR with VMXON pointer",
        4 => "VM-instruction error 4: VMLAUNCH with non-clear VMCS",
        5 => "VM-instruction error 5: VMRESUME with non-launched VMCS",
        6 => "VM-instruction error 6: VMRESUME after VMXOFF",
        7 => "VM-instruction error 7: VM entry with invalid control field(s)",
        8 => "VM-instruction error 8: VM entry with invalid host-state field(s)",
        9 => "VM-instruction error 9: VMPTRLD with invalid physical address",
        10 => "VM-instruction error 10: VMPTRLD with VMXON pointer",
        11 => "VM-instruction error 11: VMPTRLD with incorrect VMCS revision identifier",
        12 => "VM-instruction error 12: VMREAD/VMWRITE from/to unsupported VMCS component",
        13 => "VM-instruction error 13: VMWRITE to read-only VMCS component",
        15 => "VM-instruction error 15: VMXON executed in VMX root operation",
        16 => "VM-instruction error 16: VM entry with invalid executive-VMCS pointer",
        17 => "VM-instruction error 17: VM entry with non-launched executive VMCS",
        18 => "VM-instruction error 18: VM entry with executive-VMCS pointer not VMXON pointer",
        19 => "VM-instruction error 19: VMCALL with non-clear VMCS",
        20 => "VM-instruction error 20: VMCALL with invalid VM-exit control fields",
        22 => "VM-instruction error 22: VMCALL with incorrect MSEG revision identifier",
        23 => "VM-instruction error 23: VMXOFF under dual-monitor treatment of SMIs and SMM",
        24 => "VM-instruction error 24: VMCALL with invalid SMM-monitor features",
        25 => "VM-instruction error 25: VM entry with invalid VM-execution control fields in executive VMCS",
        26 => "VM-instruction error 26: VM entry with events blocked by MOV SS",
        28 => "VM-instruction error 28: Invalid operand to INVEPT/INVVPID",
        _ => "a VM-instruction error that the manual does not list",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_fields_follow_the_register_numbers() {
        assert_eq!(selector(SegmentRegister::Tr), Field(0x080e));
        assert_eq!(limit(SegmentRegister::Ldtr), Field(0x480c));
        assert_eq!(access_rights(SegmentRegister::Cs), Field(0x4816));
        assert_eq!(base(SegmentRegister::Gs), Field(0x6810));
    }

    #[test]
    fn errors_carry_their_numbers() {
        for number in (1..=28).filter(|number| ![14, 21, 27].contains(number)) {
            assert!(instruction_error(number).contains(&format!("error {number}:")));
        }
    }
}
