//! The virtual machine control block (APM volume 2, appendix B).

use crate::cpu::{DescriptorTable, Segment};
use core::mem::offset_of;

/// Intercepts of control-register writes, at 000h.
pub const INTERCEPT_CR8_WRITE: u32 = 1 << 24;

/// Intercepts of exceptions, at 008h: one bit a vector.
pub mod intercept_exception {
    pub const DEBUG: u32 = 1 << 1;
    pub const ALIGNMENT_CHECK: u32 = 1 << 17;
    pub const MACHINE_CHECK: u32 = 1 << 18;
}

/// Intercepts of the first vector, at 00Ch.
pub mod intercept1 {
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const VINTR: u32 = 1 << 4;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const PAUSE: u32 = 1 << 23;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IOIO: u32 = 1 << 27;
    pub const MSR: u32 = 1 << 28;
    pub const FERR_FREEZE: u32 = 1 << 30;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Intercepts of the second vector, at 010h.
pub mod intercept2 {
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const MWAIT_ARMED: u32 = 1 << 12;
    pub const XSETBV: u32 = 1 << 13;
    pub const RDPRU: u32 = 1 << 14;
}

/// Exit codes (APM appendix C).
pub mod exit_code {
    pub const CR8_WRITE: u64 = 0x18;
    pub const EXCEPTION_FIRST: u64 = 0x40;
    pub const DEBUG: u64 = 0x41;
    pub const ALIGNMENT_CHECK: u64 = 0x51;
    pub const MACHINE_CHECK: u64 = 0x52;
    pub const EXCEPTION_LAST: u64 = 0x5f;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const INIT: u64 = 0x63;
    pub const VINTR: u64 = 0x64;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const PAUSE: u64 = 0x77;
    pub const HLT: u64 = 0x78;
    pub const INVLPGA: u64 = 0x7a;
    pub const IOIO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const SKINIT: u64 = 0x86;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT_ARMED: u64 = 0x8c;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    pub const NESTED_PAGE_FAULT: u64 = 0x400;
    pub const INVALID: u64 = u64::MAX;
    /// The same from QEMU 7.2, which stores only half of it.
    pub const INVALID_SHORT: u64 = 0xffff_ffff;
}

/// EVENTINJ and EXITINTINFO (APM 15.20).
pub mod event {
    pub const VALID: u64 = 1 << 31;
    pub const ERROR_CODE_VALID: u64 = 1 << 11;
    pub const INTERRUPT: u64 = 0 << 8;
    pub const NMI: u64 = 2 << 8;
    pub const EXCEPTION: u64 = 3 << 8;
    pub const SOFTWARE_INTERRUPT: u64 = 4 << 8;
    pub const TYPE: u64 = 7 << 8;
}

/// The virtual-interrupt word at 060h.
pub mod virtual_interrupt {
    pub const TPR: u64 = 0xf;
    pub const IRQ: u64 = 1 << 8;
    pub const IGNORE_TPR: u64 = 1 << 20;
    /// RFLAGS.IF and CR8 in the guest are virtual; the host's own IF decides about physical interrupts.
    pub const MASKING: u64 = 1 << 24;
    pub const VECTOR: u64 = 0xff << VECTOR_SHIFT;
    pub const VECTOR_SHIFT: u32 = 32;
}

/// A segment register as the VMCB holds it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct VmcbSegment {
    selector: u16,
    attributes: u16,
    limit: u32,
    base: u64,
}

impl From<Segment> for VmcbSegment {
    fn from(segment: Segment) -> Self {
        let Segment { selector, attributes, limit, base } = segment;
        Self { selector, attributes, limit, base }
    }
}

impl From<VmcbSegment> for Segment {
    fn from(segment: VmcbSegment) -> Self {
        let VmcbSegment { selector, attributes, limit, base } = segment;
        Self { selector, attributes, limit, base }
    }
}

impl From<DescriptorTable> for VmcbSegment {
    fn from(table: DescriptorTable) -> Self {
        Self { limit: u32::from(table.limit), base: table.base, ..Self::default() }
    }
}

/// The whole block: control area, then state-save area.
#[repr(C, align(4096))]
pub struct Vmcb {
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercept1: u32,
    pub intercept2: u32,
    pub intercept3: u32,
    reserved_018: [u8; 0x24],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub virtual_interrupt: u64,
    /// Bit 0: the instruction after STI or MOV SS is still to come.
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub nested_paging: u64,
    reserved_098: [u8; 0x10],
    pub event_injection: u64,
    pub nested_cr3: u64,
    pub lbr_virtualization: u64,
    pub clean: u64,
    pub next_rip: u64,
    reserved_0d0: [u8; 0x330],

    /// ES, CS, SS, DS, FS, GS.
    pub segments: [VmcbSegment; 6],
    pub gdtr: VmcbSegment,
    pub ldtr: VmcbSegment,
    pub idtr: VmcbSegment,
    pub tr: VmcbSegment,
    reserved_4a0: [u8; 0x2b],
    pub cpl: u8,
    reserved_4cc: u32,
    pub efer: u64,
    reserved_4d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_580: [u8; 0x58],
    pub rsp: u64,
    reserved_5e0: [u8; 0x18],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_648: [u8; 0x20],
    pub pat: u64,
    pub debug_control: u64,
    reserved_678: [u8; 0x68],
    pub spec_ctrl: u64,
    reserved_6e8: [u8; 0x918],
}

// The offsets that the manual's tables B-1 and B-2 give.
const _: () = {
    assert!(size_of::<Vmcb>() == 4096);
    assert!(offset_of!(Vmcb, pause_filter_threshold) == 0x3c);
    assert!(offset_of!(Vmcb, iopm_base) == 0x40);
    assert!(offset_of!(Vmcb, asid) == 0x58);
    assert!(offset_of!(Vmcb, virtual_interrupt) == 0x60);
    assert!(offset_of!(Vmcb, exit_code) == 0x70);
    assert!(offset_of!(Vmcb, nested_paging) == 0x90);
    assert!(offset_of!(Vmcb, event_injection) == 0xa8);
    assert!(offset_of!(Vmcb, next_rip) == 0xc8);
    assert!(offset_of!(Vmcb, segments) == 0x400);
    assert!(offset_of!(Vmcb, gdtr) == 0x460);
    assert!(offset_of!(Vmcb, tr) == 0x490);
    assert!(offset_of!(Vmcb, cpl) == 0x4cb);
    assert!(offset_of!(Vmcb, efer) == 0x4d0);
    assert!(offset_of!(Vmcb, cr4) == 0x548);
    assert!(offset_of!(Vmcb, rip) == 0x578);
    assert!(offset_of!(Vmcb, rsp) == 0x5d8);
    assert!(offset_of!(Vmcb, rax) == 0x5f8);
    assert!(offset_of!(Vmcb, cr2) == 0x640);
    assert!(offset_of!(Vmcb, pat) == 0x668);
    assert!(offset_of!(Vmcb, spec_ctrl) == 0x6e0);
};

impl Vmcb {
    /// All zero, which is a block that intercepts nothing and cannot be run yet.
    pub fn zeroed() -> alloc::boxed::Box<Self> {
        // SAFETY: every field is an integer or an array of them, for which zero is a value.
        unsafe { alloc::boxed::Box::<Self>::new_zeroed().assume_init() }
    }
}
