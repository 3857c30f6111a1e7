//! The registers that no world switch touches and that a core's virtual CPUs must nevertheless not share:
//! FPU and vector state, XCR0, DR0 to DR3, TSC_AUX.
//!
//! The monitor itself is built without vector instructions and uses no breakpoints, so these stay in the
//! hardware from attach to detach, however often the guest exits in between.

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::ptr::NonNull;
use x86_64::registers::model_specific::Msr;

/// XCR0 bits that guests may be offered (SDM 13.3).
pub mod xcr0 {
    /// x87 state; always on.
    pub const X87: u64 = 1 << 0;
    /// SSE state.
    pub const SSE: u64 = 1 << 1;
    /// AVX state.
    pub const AVX: u64 = 1 << 2;
    /// The three AVX-512 states, which come together.
    pub const AVX512: u64 = 0b111 << 5;
    /// Protection keys for user pages.
    pub const PKRU: u64 = 1 << 9;
    /// All that we know how to keep apart.
    pub const KNOWN: u64 = X87 | SSE | AVX | AVX512 | PKRU;
}

/// The subleaf of CPUID leaf 0xD about PKRU's room in the XSAVE area.
const PKRU_LEAF: u32 = xcr0::PKRU.trailing_zeros();
/// CPUID leaf 0xD, subleaf 1, EAX: XSAVEC.
const XSAVEC: u32 = 1 << 1;
/// CPUID leaf 1, ECX: OSXSAVE.
const OSXSAVE: u32 = 1 << 27;
const IA32_PRED_CMD: u32 = 0x49;
const TSC_AUX: u32 = 0xc000_0103;

/// What this machine's CPUs offer, as far as backends and guests care. CPUID says it, and is believed in all but one.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostFeatures {
    /// AMD-V.
    pub svm: bool,
    /// VT-x.
    pub vmx: bool,
    /// XSAVE and XCR0.
    pub xsave: bool,
    /// The XCR0 bits that the CPU has and that we keep apart between guests.
    pub xcr0: u64,
    /// Bytes that all of those states take in an XSAVE area.
    pub xsave_size: usize,
    /// XSAVEC, and it puts states where it should.
    pub xsavec: bool,
    /// RDTSCP and with it TSC_AUX.
    pub rdtscp: bool,
    /// The time-stamp counter runs at one pace in every power state.
    pub invariant_tsc: bool,
    /// 1 GiB pages.
    pub gigabyte_pages: bool,
    /// Indirect branch prediction barrier.
    pub ibpb: bool,
    /// IA32_SPEC_CTRL with at least one of IBRS, STIBP, SSBD.
    pub spec_ctrl: bool,
    /// How many bits a physical address has.
    pub physical_address_bits: u8,
}

impl HostFeatures {
    /// Asks the CPU this runs on, where vector state is on already.
    pub fn detect() -> Self {
        let leaf =
            |leaf| if __cpuid(leaf & 0x8000_0000).eax >= leaf { __cpuid(leaf) } else { __cpuid_none() };
        let (basic, extended, sizes) = (leaf(1), leaf(0x8000_0001), leaf(0x8000_0008));
        let structured = leaf(7);
        let xsave = basic.ecx & (1 << 26) != 0;
        let (xcr0, xsave_size) = if xsave {
            let offered = __cpuid_count(0xd, 0);
            let mut bits = (u64::from(offered.eax) | u64::from(offered.edx) << 32) & xcr0::KNOWN;
            // Bochs 2.7's Tiger Lake offers protection keys that have no room in the area: XSAVE would put them
            // where x87 state is.
            if bits & xcr0::PKRU != 0 && __cpuid_count(0xd, PKRU_LEAF).eax == 0 {
                bits &= !xcr0::PKRU;
            }
            (bits, offered.ecx as usize)
        } else {
            (xcr0::X87 | xcr0::SSE, 512)
        };
        Self {
            svm: extended.ecx & (1 << 2) != 0,
            vmx: basic.ecx & (1 << 5) != 0,
            xsave,
            xcr0,
            xsave_size,
            xsavec: xsave && __cpuid_count(0xd, 1).eax & XSAVEC != 0 && xsavec_keeps_places(),
            rdtscp: extended.edx & (1 << 27) != 0,
            invariant_tsc: leaf(0x8000_0007).edx & (1 << 8) != 0,
            gigabyte_pages: extended.edx & (1 << 26) != 0,
            ibpb: sizes.ebx & (1 << 12) != 0 || structured.edx & (1 << 26) != 0,
            spec_ctrl: sizes.ebx & (1 << 14 | 1 << 15 | 1 << 24) != 0
                || structured.edx & (1 << 26 | 1 << 27 | 1 << 31) != 0,
            physical_address_bits: (sizes.eax & 0xff) as u8,
        }
    }
}

/// Whether XSAVEC puts AVX state behind the header of its area, where XRSTOR looks for it (SDM 13.4.3). Bochs 2.7 puts it
/// before and over the header, so that its guests' programs would lose what they compute. Where AVX is not on there is
/// nothing to see, and nothing to lose.
fn xsavec_keeps_places() -> bool {
    /// The beginning of an area's extended region, where the first of its states lies.
    const EXTENDED: usize = 576;
    #[repr(C, align(64))]
    struct Area([u8; 1024]);

    // SAFETY: XGETBV is executed only where OSXSAVE is on.
    if __cpuid(1).ecx & OSXSAVE == 0 || unsafe { xgetbv() } & xcr0::AVX == 0 {
        return true;
    }
    let (mut area, mut saved, ones) = (Area([0; 1024]), [0_u8; 32], [0xff_u8; 32]);
    // SAFETY: AVX is on, and the area has room for its state wherever it is put. YMM0 gets back what it had.
    unsafe {
        asm!(
            "vmovdqu [{saved}], ymm0",
            "vmovdqu ymm0, [{ones}]",
            "xsavec64 [{area}]",
            "vmovdqu ymm0, [{saved}]",
            saved = in(reg) saved.as_mut_ptr(),
            ones = in(reg) ones.as_ptr(),
            area = in(reg) area.0.as_mut_ptr(),
            in("eax") xcr0::AVX as u32,
            in("edx") 0,
            options(nostack, preserves_flags),
        );
    }
    area.0.get(EXTENDED..EXTENDED + 16) == Some(&[0xff; 16])
}

const fn __cpuid_none() -> core::arch::x86_64::CpuidResult {
    core::arch::x86_64::CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 }
}

/// Lets the host save and restore vector state: CR4.OSFXSR, CR4.OSXSAVE and a full XCR0.
///
/// # Safety
///
/// Ring 0, on the core that is to run guests, while no guest is attached to it.
pub unsafe fn enable_on_this_core(features: &HostFeatures) {
    use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
    // SAFETY: the caller's promise; the flags only allow instructions that the CPU has.
    unsafe {
        Cr0::update(|cr0| {
            cr0.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
            cr0.insert(Cr0Flags::MONITOR_COPROCESSOR | Cr0Flags::NUMERIC_ERROR);
        });
        Cr4::update(|cr4| {
            cr4.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE);
            cr4.set(Cr4Flags::OSXSAVE, features.xsave);
        });
        if features.xsave {
            xsetbv(features.xcr0);
        }
    }
}

/// One virtual CPU's share of these registers, while it is not in the hardware.
pub struct Context {
    area: NonNull<u8>,
    layout: Layout,
    features: HostFeatures,
    xcr0: u64,
    debug: [u64; 4],
    tsc_aux: u64,
    attached: bool,
}

// SAFETY: the area is owned memory without thread affinity.
unsafe impl Send for Context {}

impl Context {
    /// The state after INIT.
    pub fn new(features: HostFeatures) -> Self {
        let size = features.xsave_size.max(576);
        // 64 bytes is what XSAVE asks for; the size is a CPU's few KiB and the alignment a power of two.
        let layout = Layout::from_size_align(size, 64).unwrap_or(Layout::new::<[u64; 512]>());
        // SAFETY: the layout's size is not zero.
        let area =
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        let mut context =
            Self { area, layout, features, xcr0: xcr0::X87, debug: [0; 4], tsc_aux: 0, attached: false };
        context.reset();
        context
    }

    /// Goes back to the state after INIT; only while detached.
    pub fn reset(&mut self) {
        // SAFETY: the area is ours and at least 576 bytes long; FCW lies at 0, MXCSR at 24 (SDM 13.5.1).
        unsafe {
            self.area.write_bytes(0, self.layout.size());
            self.area.cast::<u16>().write(0x37f);
            self.area.add(24).cast::<u32>().write(0x1f80);
        }
        self.xcr0 = xcr0::X87;
        self.debug = [0; 4];
        self.tsc_aux = 0;
    }

    /// The guest's XCR0. The hardware is asked while attached: QEMU 7.2 lets XSETBV through uncaught.
    pub fn xcr0(&self) -> u64 {
        if self.attached && self.features.xsave {
            // SAFETY: CR4.OSXSAVE was set by `enable_on_this_core`.
            unsafe { xgetbv() }
        } else {
            self.xcr0
        }
    }

    /// Sets the guest's XCR0, in the hardware too while attached.
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        if self.attached && self.features.xsave {
            // SAFETY: a checked value within what the CPU offers; the monitor uses no extended state.
            unsafe { xsetbv(value) }
        }
    }

    /// TSC_AUX as the guest sees it.
    pub fn tsc_aux(&self) -> u64 {
        if self.attached && self.features.rdtscp {
            // SAFETY: the register exists where RDTSCP does.
            unsafe { Msr::new(TSC_AUX).read() }
        } else {
            self.tsc_aux
        }
    }

    /// Sets TSC_AUX.
    pub fn set_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = value;
        if self.attached && self.features.rdtscp {
            // SAFETY: as for the read; the monitor does not use the register.
            unsafe { Msr::new(TSC_AUX).write(value & 0xffff_ffff) }
        }
    }

    /// Brings the registers into the hardware. With `barrier`, branch predictors forget the guest before.
    pub fn attach(&mut self, barrier: bool) {
        if self.attached {
            return;
        }
        let all = self.features.xcr0;
        // SAFETY: the core was prepared by `enable_on_this_core`; the area is large enough for all states of
        // `all`, and 64-byte aligned; what is loaded was saved by `detach` or is the reset state.
        unsafe {
            if barrier && self.features.ibpb {
                Msr::new(IA32_PRED_CMD).write(1);
            }
            if self.features.xsave {
                xsetbv(all);
                asm!("xrstor64 [{}]", in(reg) self.area.as_ptr(), in("eax") all as u32, in("edx") (all >> 32) as u32,
                    options(nostack));
                xsetbv(self.xcr0);
            } else {
                asm!("fxrstor64 [{}]", in(reg) self.area.as_ptr(), options(nostack));
            }
            let [d0, d1, d2, d3] = self.debug;
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) d0, in(reg) d1, in(reg) d2,
                in(reg) d3, options(nostack, nomem, preserves_flags));
            if self.features.rdtscp {
                Msr::new(TSC_AUX).write(self.tsc_aux & 0xffff_ffff);
            }
        }
        self.attached = true;
    }

    /// Takes the registers out of the hardware.
    pub fn detach(&mut self) {
        if !self.attached {
            return;
        }
        let all = self.features.xcr0;
        (self.tsc_aux, self.xcr0) = (self.tsc_aux(), self.xcr0());
        // SAFETY: as in `attach`.
        unsafe {
            if self.features.xsave {
                xsetbv(all);
                asm!("xsave64 [{}]", in(reg) self.area.as_ptr(), in("eax") all as u32, in("edx") (all >> 32) as u32,
                    options(nostack));
            } else {
                asm!("fxsave64 [{}]", in(reg) self.area.as_ptr(), options(nostack));
            }
            let (d0, d1, d2, d3): (u64, u64, u64, u64);
            asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) d0, out(reg) d1, out(reg) d2,
                out(reg) d3, options(nostack, nomem, preserves_flags));
            self.debug = [d0, d1, d2, d3];
        }
        self.attached = false;
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: `area` came from `alloc_zeroed` with this layout, and is freed once.
        unsafe { dealloc(self.area.as_ptr(), self.layout) }
    }
}

/// Reads XCR0.
///
/// # Safety
///
/// CR4.OSXSAVE is set.
unsafe fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack, nomem, preserves_flags));
    }
    u64::from(low) | u64::from(high) << 32
}

/// Sets XCR0.
///
/// # Safety
///
/// CR4.OSXSAVE is set and `value` is one that the CPU accepts.
unsafe fn xsetbv(value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, nomem, preserves_flags));
    }
}
