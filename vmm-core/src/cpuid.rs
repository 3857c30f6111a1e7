//! What CPUID tells a guest.
//!
//! A composed view, not the host's: every leaf and bit that a guest sees is named here, with the reason where
//! the name does not say it. What is not named reads zero. The guest has one socket with a core for each vCPU
//! and no threads.
//!
//! Some bits promise what the rest of the monitor keeps: an x2APIC, the TSC-deadline timer, MTRRs, a PAT, and
//! machine-check registers without banks are emulated on every host.

use crate::cpu::{HostFeatures, xcr0};
use alloc::vec::Vec;
use core::iter::once;
use core::ops::RangeInclusive;

/// What one CPUID instruction returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl CpuidResult {
    const ZERO: Self = Self { eax: 0, ebx: 0, ecx: 0, edx: 0 };

    const fn new(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Self {
        Self { eax, ebx, ecx, edx }
    }
}

/// The CPUID instruction of the machine we run on.
pub trait HostCpuid {
    /// What leaf `leaf` returns with `subleaf` in ECX.
    fn read(&self, leaf: u32, subleaf: u32) -> CpuidResult;
}

/// The CPU this runs on.
#[derive(Clone, Copy, Debug)]
pub struct CpuidInstruction;

impl HostCpuid for CpuidInstruction {
    fn read(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let core::arch::x86_64::CpuidResult { eax, ebx, ecx, edx } =
            core::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax, ebx, ecx, edx }
    }
}

/// What a guest's CPUID depends on beside the host's.
#[derive(Clone, Copy, Debug)]
pub struct CpuidConfig {
    /// What of the host's state is kept apart between guests, and therefore may be offered.
    pub features: HostFeatures,
    /// How many vCPUs the guest has.
    pub vcpus: u32,
    /// The frequency of the guest's time-stamp counter.
    pub tsc_khz: u32,
    /// Whether that counter never stops nor changes its pace, and is the same on every core.
    pub invariant_tsc: bool,
    /// The guest's physical address bits, at most the host's.
    pub physical_bits: u8,
    /// Whether a guest may use five-level paging.
    pub five_level_paging: bool,
    /// Whether reads of IA32_ARCH_CAPABILITIES are answered.
    pub arch_capabilities: bool,
    /// KVM-compatible features, as in leaf 0x4000_0001's EAX: see [`kvm`].
    pub kvm_features: u32,
}

/// KVM's feature bits (Documentation/virt/kvm/x86/cpuid.rst).
pub mod kvm {
    /// Clock registers at the old indices 0x11 and 0x12.
    pub const CLOCKSOURCE: u32 = 1 << 0;
    /// Port 0x80 need not be written for a delay.
    pub const NOP_IO_DELAY: u32 = 1 << 1;
    /// Clock registers at 0x4b56_4d00 and 0x4b56_4d01.
    pub const CLOCKSOURCE2: u32 = 1 << 3;
    /// A record of the time that others had the vCPU's core.
    pub const STEAL_TIME: u32 = 1 << 5;
    /// A word that ends interrupts: see [`crate::eoi_word`].
    pub const PV_EOI: u32 = 1 << 6;
    /// The clock's stable flag can be trusted.
    pub const CLOCKSOURCE_STABLE: u32 = 1 << 24;
}

/// What a vCPU's own registers decide about its CPUID at the moment it asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuidState {
    /// CR4: OSXSAVE and PKE show.
    pub cr4: u64,
    /// XCR0: it decides the size of the XSAVE area.
    pub xcr0: u64,
    /// Whether the local APIC is enabled in IA32_APIC_BASE.
    pub apic_enabled: bool,
}

/// Our signature in leaf 0x4000_0000.
const SIGNATURE: &[u8; 12] = b"PeerbootPeer";
/// KVM's, a range further on: Linux looks for it in steps of 0x100.
const KVM_SIGNATURE: &[u8; 12] = b"KVMKVMKVM\0\0\0";
const KVM_BASE: u32 = 0x100;
/// The frequency that the local APIC's timer counts down with before its divider.
pub const APIC_TIMER_KHZ: u32 = 1_000_000;

const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;
const FXSAVE_AND_HEADER: u32 = 576;

/// The bits of a set of bit numbers.
const fn bits(numbers: &[u32]) -> u32 {
    let mut mask = 0;
    let mut rest = numbers;
    while let [number, tail @ ..] = rest {
        mask |= 1_u32.wrapping_shl(*number);
        rest = tail;
    }
    mask
}

/// Leaf 1, ECX.
mod leaf1_ecx {
    use super::bits;
    /// SSE3, PCLMULQDQ, SSSE3, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, RDRAND.
    pub const PLAIN: u32 = bits(&[0, 1, 9, 13, 17, 19, 20, 22, 23, 25, 30]);
    pub const XSAVE: u32 = bits(&[26]);
    /// FMA, AVX, F16C.
    pub const AVX: u32 = bits(&[12, 28, 29]);
    pub const OSXSAVE: u32 = bits(&[27]);
    /// x2APIC, TSC deadline, hypervisor.
    pub const EMULATED: u32 = bits(&[21, 24, 31]);
}

/// Leaf 1, EDX.
mod leaf1_edx {
    use super::bits;
    /// FPU, VME, DE, PSE, TSC, MSR, PAE, CX8, SEP, PGE, CMOV, PSE36, CLFLUSH, MMX, FXSR, SSE, SSE2, SS.
    pub const PLAIN: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 8, 11, 13, 15, 17, 19, 23, 24, 25, 26, 27]);
    /// MCE, APIC, MTRR, MCA, PAT.
    pub const EMULATED: u32 = bits(&[7, 9, 12, 14, 16]);
    pub const APIC: u32 = bits(&[9]);
    /// More than one logical processor in the package.
    pub const HTT: u32 = bits(&[28]);
}

/// Leaf 7, subleaf 0.
mod leaf7 {
    use super::bits;
    /// FSGSBASE, BMI1, FDP only on exceptions, SMEP, BMI2, ERMS, INVPCID, no FCS and FDS, RDSEED, ADX, SMAP,
    /// CLFLUSHOPT, CLWB, SHA.
    pub const EBX: u32 = bits(&[0, 3, 6, 7, 8, 9, 10, 13, 18, 19, 20, 23, 24, 29]);
    pub const EBX_AVX2: u32 = bits(&[5]);
    /// F, DQ, IFMA, CD, BW, VL.
    pub const EBX_AVX512: u32 = bits(&[16, 17, 21, 28, 30, 31]);
    /// UMIP, GFNI, CLDEMOTE.
    pub const ECX: u32 = bits(&[2, 8, 25]);
    pub const ECX_PKU: u32 = bits(&[3]);
    pub const ECX_OSPKE: u32 = bits(&[4]);
    /// VAES, VPCLMULQDQ.
    pub const ECX_AVX: u32 = bits(&[9, 10]);
    /// VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ.
    pub const ECX_AVX512: u32 = bits(&[1, 6, 11, 12, 14]);
    pub const ECX_LA57: u32 = bits(&[16]);
    pub const ECX_RDPID: u32 = bits(&[22]);
    /// FSRM, MD_CLEAR, SERIALIZE.
    pub const EDX: u32 = bits(&[4, 10, 14]);
    /// VP2INTERSECT, FP16.
    pub const EDX_AVX512: u32 = bits(&[8, 23]);
    /// IBRS and IBPB by one bit.
    pub const EDX_IBRS_IBPB: u32 = bits(&[26]);
    /// STIBP, SSBD.
    pub const EDX_SPEC_CTRL: u32 = bits(&[27, 31]);
    pub const EDX_ARCH_CAPABILITIES: u32 = bits(&[29]);
    /// Subleaf 1: FZRM, FSRS, FSRC.
    pub const ONE_EAX: u32 = bits(&[10, 11, 12]);
    /// Subleaf 1: AVX-VNNI, AVX-IFMA.
    pub const ONE_EAX_AVX: u32 = bits(&[4, 23]);
    /// Subleaf 1: AVX512-BF16.
    pub const ONE_EAX_AVX512: u32 = bits(&[5]);
}

/// Leaf 6, EAX: the local APIC's timer runs in every C-state.
const ARAT: u32 = bits(&[2]);
/// Leaf 0xD, subleaf 1, EAX: XSAVEOPT, XGETBV of XINUSE. Not XSAVES: nobody keeps IA32_XSS apart.
const XSAVE_VARIANTS: u32 = bits(&[0, 2]);
/// Leaf 0xD, subleaf 1, EAX: XSAVEC.
const XSAVEC: u32 = bits(&[1]);
/// Leaf 0xD, subleaf > 1, ECX: aligned to 64 bytes in the compacted form.
const XSAVE_ALIGNED: u32 = bits(&[1]);

/// Leaf 0x8000_0001.
mod extended1 {
    use super::bits;
    /// LAHF in 64-bit mode, CR8 by LOCK MOV CR0, LZCNT, SSE4A, misaligned SSE, PREFETCHW, TBM.
    pub const ECX: u32 = bits(&[0, 4, 5, 6, 7, 8, 21]);
    /// Leaves 0x8000_001D and 0x8000_001E tell the topology.
    pub const ECX_TOPOLOGY: u32 = bits(&[22]);
    /// XOP, FMA4.
    pub const ECX_AVX: u32 = bits(&[11, 16]);
    /// AMD's way to say that the package has several cores.
    pub const ECX_CMP_LEGACY: u32 = bits(&[1]);
    /// Set on AMD only, the same as in leaf 1: FPU, VME, DE, PSE, TSC, MSR, PAE, CX8, PGE, CMOV, PSE36, MMX,
    /// FXSR. Then SYSCALL, NX, AMD's MMX, 1 GiB pages, LM, AMD's 3DNow! and its extension.
    pub const EDX: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 8, 13, 15, 17, 23, 24, 11, 20, 22, 26, 29, 30, 31]);
    /// Set on AMD only, the same as in leaf 1: MCE, APIC, MTRR, MCA, PAT.
    pub const EDX_EMULATED: u32 = super::leaf1_edx::EMULATED;
    pub const EDX_RDTSCP: u32 = bits(&[27]);
}

/// Leaf 0x8000_0007, EDX: the time-stamp counter is invariant.
const INVARIANT_TSC: u32 = bits(&[8]);

/// Leaf 0x8000_0008, EBX.
mod extended8_ebx {
    use super::bits;
    /// CLZERO, XSAVE restores error pointers; then facts about the core: no speculative store bypass, not hit by
    /// branch type confusion.
    pub const PLAIN: u32 = bits(&[0, 2, 26, 29]);
    /// IBPB, and that it flushes the return predictor.
    pub const IBPB: u32 = bits(&[12, 30]);
    /// IBRS, STIBP, both preferred always on, IBRS preferred, IBRS protects within a mode, SSBD.
    pub const SPEC_CTRL: u32 = bits(&[14, 15, 16, 17, 18, 19, 24]);
}

/// AMD's last topology leaf.
const TOPOLOGY_LEAF: u32 = 0x8000_001e;

/// Leaf 0x8000_0021, EAX: no nested data breakpoints, LFENCE always serializes, null selectors clear the base.
const EXTENDED21_EAX: u32 = bits(&[0, 2, 6]);

/// One leaf's entry in the table of results.
#[derive(Clone, Copy, Debug, Default)]
struct Leaf {
    /// Where the leaf's results start.
    first: u16,
    /// How many there are: one for a leaf without subleaves, zero where everything reads zero.
    count: u16,
    /// Whether ECX selects among them; past the last everything reads zero.
    indexed: bool,
}

/// A state component of the XSAVE area beyond the legacy region.
#[derive(Clone, Copy, Debug)]
struct Component {
    /// Its bit in XCR0.
    bit: u64,
    size: u32,
    /// In the standard form.
    offset: u32,
    /// To 64 bytes, in the compacted form.
    aligned: bool,
}

/// One vCPU's CPUID.
#[derive(Clone, Debug)]
pub struct CpuidView {
    /// By leaf less the first of its range.
    basic: Vec<Leaf>,
    hypervisor: Vec<Leaf>,
    extended: Vec<Leaf>,
    results: Vec<CpuidResult>,
    components: Vec<Component>,
    apic_id: u32,
}

const BASIC: u32 = 0;
const HYPERVISOR: u32 = 0x4000_0000;
const EXTENDED: u32 = 0x8000_0000;

impl CpuidView {
    /// What the vCPU with `apic_id` sees on a host whose CPUID is `host`.
    pub fn compose(host: &dyn HostCpuid, config: &CpuidConfig, apic_id: u32) -> Self {
        let composer = Composer::new(host, config, apic_id);
        let mut view = Self {
            basic: Vec::new(),
            hypervisor: Vec::new(),
            extended: Vec::new(),
            results: Vec::new(),
            components: composer.components(),
            apic_id,
        };
        for number in 0..=composer.last_basic {
            let leaf = view.store(composer.basic(number));
            view.basic.push(leaf);
        }
        for number in 0..=KVM_BASE.saturating_add(1) {
            let leaf = view.store(composer.hypervisor(number));
            view.hypervisor.push(leaf);
        }
        for number in 0..=composer.last_extended & 0xffff {
            let leaf = view.store(composer.extended(number));
            view.extended.push(leaf);
        }
        view
    }

    /// Adds a leaf's results to the table.
    fn store(&mut self, content: Content) -> Leaf {
        let first = self.results.len() as u16;
        let indexed = matches!(content, Content::Subleaves(_));
        match content {
            Content::Zero => {}
            Content::Plain(result) => self.results.push(result),
            Content::Subleaves(results) => self.results.extend(results),
        }
        Leaf { first, count: (self.results.len() as u16).saturating_sub(first), indexed }
    }

    /// Whether what a leaf says depends on the vCPU's state.
    pub const fn depends_on_state(leaf: u32) -> bool {
        matches!(leaf, 1 | 7 | 0xd | 0x8000_0001)
    }

    /// What the guest gets for `leaf` in EAX and `subleaf` in ECX.
    pub fn read(&self, leaf: u32, subleaf: u32, state: &CpuidState) -> CpuidResult {
        let mut result = self.lookup(leaf, subleaf);
        match leaf {
            1 => {
                if state.cr4 & CR4_OSXSAVE != 0 {
                    result.ecx |= leaf1_ecx::OSXSAVE;
                }
                if !state.apic_enabled {
                    result.edx &= !leaf1_edx::APIC;
                }
            }
            7 if subleaf == 0 && state.cr4 & CR4_PKE != 0 => result.ecx |= leaf7::ECX_OSPKE,
            // Past the last level, the topology leaf repeats the subleaf and the APIC ID.
            0xb if subleaf > 1 => {
                result = CpuidResult::new(0, 0, subleaf & 0xff, self.apic_id);
            }
            0xd if subleaf == 0 => result.ebx = self.xsave_size(state.xcr0),
            0xd if subleaf == 1 && result.eax != 0 => result.ebx = self.compacted_xsave_size(state.xcr0),
            0x8000_0001 if !state.apic_enabled => result.edx &= !leaf1_edx::APIC,
            _ => {}
        }
        result
    }

    /// Whether the CPU is one of AMD's make, with AMD's model-specific registers.
    pub fn is_amd(&self) -> bool {
        let CpuidResult { ebx, ecx, edx, .. } = self.lookup(0, 0);
        [ebx, edx, ecx] == [0x6874_7541, 0x6974_6e65, 0x444d_4163]
    }

    /// Whether the guest knows of IA32_PRED_CMD.
    pub fn offers_ibpb(&self) -> bool {
        self.lookup(0x8000_0008, 0).ebx & extended8_ebx::IBPB != 0
            || self.lookup(7, 0).edx & leaf7::EDX_IBRS_IBPB != 0
    }

    /// Whether the guest knows of IA32_SPEC_CTRL.
    pub fn offers_spec_ctrl(&self) -> bool {
        self.lookup(0x8000_0008, 0).ebx & extended8_ebx::SPEC_CTRL != 0
            || self.lookup(7, 0).edx & (leaf7::EDX_IBRS_IBPB | leaf7::EDX_SPEC_CTRL) != 0
    }

    /// Whether the guest knows of RDTSCP and TSC_AUX.
    pub fn offers_rdtscp(&self) -> bool {
        self.lookup(0x8000_0001, 0).edx & extended1::EDX_RDTSCP != 0
    }

    /// How many bits the guest's physical addresses have.
    pub fn physical_bits(&self) -> u8 {
        (self.lookup(0x8000_0008, 0).eax & 0xff) as u8
    }

    /// The bits that the guest may set in XCR0.
    pub fn xcr0_mask(&self) -> u64 {
        let offered = self.lookup(0xd, 0);
        u64::from(offered.edx) << 32 | u64::from(offered.eax)
    }

    fn lookup(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let range = match leaf & 0xf000_0000 {
            BASIC => &self.basic,
            HYPERVISOR => &self.hypervisor,
            EXTENDED => &self.extended,
            _ => return CpuidResult::ZERO,
        };
        let Some(&Leaf { first, count, indexed }) = range.get((leaf & 0x0fff_ffff) as usize) else {
            return CpuidResult::ZERO;
        };
        let index = if indexed { subleaf } else { 0 };
        if index >= u32::from(count) {
            return CpuidResult::ZERO;
        }
        let at = usize::from(first).saturating_add(index as usize);
        self.results.get(at).copied().unwrap_or(CpuidResult::ZERO)
    }

    /// Bytes of the XSAVE area in the standard form for the states in `xcr0`.
    fn xsave_size(&self, xcr0: u64) -> u32 {
        self.enabled(xcr0)
            .map(|component| component.offset.saturating_add(component.size))
            .fold(FXSAVE_AND_HEADER, u32::max)
    }

    /// The same in the compacted form.
    fn compacted_xsave_size(&self, xcr0: u64) -> u32 {
        self.enabled(xcr0).fold(FXSAVE_AND_HEADER, |end, component| {
            let start = if component.aligned { end.saturating_add(63) & !63 } else { end };
            start.saturating_add(component.size)
        })
    }

    fn enabled(&self, xcr0: u64) -> impl Iterator<Item = &Component> {
        self.components.iter().filter(move |component| xcr0 & component.bit != 0)
    }
}

/// What one leaf holds.
enum Content {
    Zero,
    Plain(CpuidResult),
    Subleaves(Vec<CpuidResult>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    /// AMD, and Hygon, whose leaves are AMD's.
    Amd,
    Other,
}

/// The host's CPUID on its way into a view.
struct Composer<'a> {
    host: &'a dyn HostCpuid,
    config: &'a CpuidConfig,
    apic_id: u32,
    vendor: Vendor,
    host_last_basic: u32,
    host_last_extended: u32,
    last_basic: u32,
    last_extended: u32,
    /// The states that the guest may keep in its XSAVE area; none without XSAVE.
    xcr0: u64,
}

impl<'a> Composer<'a> {
    fn new(host: &'a dyn HostCpuid, config: &'a CpuidConfig, apic_id: u32) -> Self {
        let identity = host.read(0, 0);
        let vendor = match &[identity.ebx, identity.edx, identity.ecx].map(u32::to_le_bytes).concat()[..] {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        };
        let host_last_extended = host.read(EXTENDED, 0).eax;
        // At least the topology leaf, which an x2APIC asks for; Intel's frequency leaf is the last we make.
        let last_basic = if vendor == Vendor::Intel { 0x15 } else { 0xd };
        let last_extended = match vendor {
            Vendor::Amd => host_last_extended.clamp(0x8000_0008, 0x8000_0021),
            _ => 0x8000_0008,
        };
        let xcr0 = if config.features.xsave { config.features.xcr0 } else { 0 };
        let host_last_basic = identity.eax;
        Self {
            host,
            config,
            apic_id,
            vendor,
            host_last_basic,
            host_last_extended,
            last_basic,
            last_extended,
            xcr0,
        }
    }

    fn has_states(&self, states: u64) -> bool {
        self.xcr0 & states == states
    }

    /// A mask that lets `bits` pass where `condition` holds.
    fn when(condition: bool, bits: u32) -> u32 {
        if condition { bits } else { 0 }
    }

    /// The host's leaf, zero where the host has none of that number.
    fn host(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let last = if leaf < EXTENDED { self.host_last_basic } else { self.host_last_extended };
        if leaf > last { CpuidResult::ZERO } else { self.host.read(leaf, subleaf) }
    }

    fn basic(&self, leaf: u32) -> Content {
        match leaf {
            0 => Content::Plain(CpuidResult { eax: self.last_basic, ..self.host(0, 0) }),
            1 => Content::Plain(self.features()),
            // Cache and TLB descriptors; AMD has none there.
            2 if self.vendor == Vendor::Intel => Content::Plain(self.host(2, 0)),
            4 if self.vendor == Vendor::Intel => Content::Subleaves(self.caches(4)),
            6 => Content::Plain(CpuidResult { eax: ARAT, ..CpuidResult::ZERO }),
            7 => Content::Subleaves(self.structured_features()),
            0xb => Content::Subleaves(self.topology()),
            0xd if self.xcr0 != 0 => Content::Subleaves(self.xsave()),
            0x15 => Content::Plain(self.tsc_frequency()),
            _ => Content::Zero,
        }
    }

    /// Leaf 1: signature and features.
    fn features(&self) -> CpuidResult {
        let host = self.host(1, 0);
        let many = self.config.vcpus > 1;
        let logical = self.config.vcpus.min(255) << 16;
        let ecx = leaf1_ecx::PLAIN
            | Self::when(self.xcr0 != 0, leaf1_ecx::XSAVE)
            | Self::when(self.has_states(xcr0::AVX), leaf1_ecx::AVX);
        CpuidResult {
            eax: host.eax,
            // CLFLUSH's line size is the host's.
            ebx: (self.apic_id & 0xff) << 24 | logical | host.ebx & 0xff00,
            ecx: host.ecx & ecx | leaf1_ecx::EMULATED,
            edx: host.edx & leaf1_edx::PLAIN | leaf1_edx::EMULATED | Self::when(many, leaf1_edx::HTT),
        }
    }

    /// Leaf 7.
    fn structured_features(&self) -> Vec<CpuidResult> {
        let (zero, one) = (self.host(7, 0), self.host(7, 1));
        let features = &self.config.features;
        let (avx, avx512) = (self.has_states(xcr0::AVX), self.has_states(xcr0::AVX512));
        let ebx = leaf7::EBX | Self::when(avx, leaf7::EBX_AVX2) | Self::when(avx512, leaf7::EBX_AVX512);
        let ecx = leaf7::ECX
            | Self::when(self.has_states(xcr0::PKRU), leaf7::ECX_PKU)
            | Self::when(avx, leaf7::ECX_AVX)
            | Self::when(avx512, leaf7::ECX_AVX512)
            | Self::when(self.config.five_level_paging, leaf7::ECX_LA57)
            | Self::when(features.rdtscp, leaf7::ECX_RDPID);
        let edx = leaf7::EDX
            | Self::when(avx512, leaf7::EDX_AVX512)
            | Self::when(features.spec_ctrl && features.ibpb, leaf7::EDX_IBRS_IBPB)
            | Self::when(features.spec_ctrl, leaf7::EDX_SPEC_CTRL)
            | Self::when(self.config.arch_capabilities, leaf7::EDX_ARCH_CAPABILITIES);
        let one_eax =
            leaf7::ONE_EAX | Self::when(avx, leaf7::ONE_EAX_AVX) | Self::when(avx512, leaf7::ONE_EAX_AVX512);
        let last = zero.eax.min(1);
        let first = CpuidResult::new(last, zero.ebx & ebx, zero.ecx & ecx, zero.edx & edx);
        let second = CpuidResult { eax: one.eax & one_eax, ..CpuidResult::ZERO };
        once(first).chain((last == 1).then_some(second)).collect()
    }

    /// How many low bits of an APIC ID tell the cores of the package apart.
    fn core_bits(&self) -> u32 {
        32_u32.saturating_sub(self.config.vcpus.saturating_sub(1).leading_zeros())
    }

    /// Leaf 0xB: a thread level of one thread, a core level of all vCPUs.
    fn topology(&self) -> Vec<CpuidResult> {
        const THREADS: u32 = 1 << 8;
        const CORES: u32 = 2 << 8;
        Vec::from([
            CpuidResult::new(0, 1, THREADS, self.apic_id),
            CpuidResult::new(self.core_bits(), self.config.vcpus, CORES | 1, self.apic_id),
        ])
    }

    /// The caches, leaf 4 on Intel and 0x8000_001D on AMD: the first two levels a core's own, the rest shared
    /// by all.
    fn caches(&self, leaf: u32) -> Vec<CpuidResult> {
        const KIND: u32 = 0x1f;
        const SHARED_BY: u32 = 0xfff << 14;
        const PACKAGE_CORES: u32 = 0x3f << 26;
        let sharers = 1_u32.checked_shl(self.core_bits()).unwrap_or(1).saturating_sub(1);
        (0..8)
            .map(|subleaf| self.host(leaf, subleaf))
            .take_while(|cache| cache.eax & KIND != 0)
            .map(|cache| {
                let level = cache.eax >> 5 & 7;
                let shared = Self::when(level > 2, sharers << 14 & SHARED_BY);
                let cores = Self::when(leaf == 4, sharers.min(0x3f) << 26);
                CpuidResult { eax: cache.eax & !SHARED_BY & !PACKAGE_CORES | shared | cores, ..cache }
            })
            .collect()
    }

    /// The states that the guest may have beyond x87 and SSE.
    fn components(&self) -> Vec<Component> {
        (2..63)
            .map(|number| (number, 1_u64 << number))
            .filter(|(_, bit)| self.xcr0 & bit != 0)
            .map(|(number, bit)| {
                let host = self.host(0xd, number);
                let aligned = host.ecx & XSAVE_ALIGNED != 0;
                Component { bit, size: host.eax, offset: host.ebx, aligned }
            })
            .collect()
    }

    /// Leaf 0xD. EBX of the first two subleaves depends on the guest's XCR0, and is made when it is read.
    fn xsave(&self) -> Vec<CpuidResult> {
        let largest = self
            .components()
            .into_iter()
            .map(|component| component.offset.saturating_add(component.size))
            .fold(FXSAVE_AND_HEADER, u32::max);
        let states = CpuidResult::new(self.xcr0 as u32, 0, largest, (self.xcr0 >> 32) as u32);
        let variants = XSAVE_VARIANTS | Self::when(self.config.features.xsavec, XSAVEC);
        let variants = CpuidResult { eax: self.host(0xd, 1).eax & variants, ..CpuidResult::ZERO };
        let last = 63_u32.saturating_sub(self.xcr0.leading_zeros());
        let components = (2..=last).map(|number| {
            let offered = self.xcr0.checked_shr(number).unwrap_or(0) & 1 != 0;
            let host = self.host(0xd, number);
            if offered {
                CpuidResult { ecx: host.ecx & XSAVE_ALIGNED, edx: 0, ..host }
            } else {
                CpuidResult::ZERO
            }
        });
        [states, variants].into_iter().chain(components).collect()
    }

    /// Leaf 0x15: the local APIC's timer frequency is the crystal's, and what the time-stamp counter is to it.
    fn tsc_frequency(&self) -> CpuidResult {
        CpuidResult::new(APIC_TIMER_KHZ, self.config.tsc_khz, APIC_TIMER_KHZ.saturating_mul(1000), 0)
    }

    fn hypervisor(&self, leaf: u32) -> Content {
        let signed =
            |last: u32, [a, b, c]: [u32; 3]| Content::Plain(CpuidResult::new(HYPERVISOR | last, a, b, c));
        match leaf {
            0 => signed(0x10, words(SIGNATURE)),
            // As VMware began and others took up.
            0x10 => Content::Plain(CpuidResult::new(self.config.tsc_khz, APIC_TIMER_KHZ, 0, 0)),
            KVM_BASE => signed(KVM_BASE | 1, words(KVM_SIGNATURE)),
            leaf if leaf == KVM_BASE | 1 => {
                Content::Plain(CpuidResult { eax: self.config.kvm_features, ..CpuidResult::ZERO })
            }
            _ => Content::Zero,
        }
    }

    fn extended(&self, leaf: u32) -> Content {
        const BRAND: RangeInclusive<u32> = 2..=4;
        let host = self.host(EXTENDED | leaf, 0);
        let amd = self.vendor == Vendor::Amd;
        match leaf {
            0 => Content::Plain(CpuidResult { eax: self.last_extended, ..host }),
            1 => Content::Plain(self.extended_features(host)),
            // The name, and AMD's caches and TLBs; Intel says only L2 there.
            leaf if BRAND.contains(&leaf) => Content::Plain(host),
            5 | 6 => Content::Plain(host),
            7 => {
                let invariant = Self::when(self.config.invariant_tsc, INVARIANT_TSC);
                Content::Plain(CpuidResult { edx: host.edx & invariant, ..CpuidResult::ZERO })
            }
            8 => Content::Plain(self.sizes(host)),
            // TLBs for 1 GiB pages; how wide the vector units are.
            0x19 | 0x1a if amd => Content::Plain(host),
            0x1d if amd => Content::Subleaves(self.caches(EXTENDED | leaf)),
            // The APIC ID, the core's number with one thread a core, the one node.
            0x1e if amd => Content::Plain(CpuidResult::new(self.apic_id, self.apic_id & 0xff, 0, 0)),
            0x21 if amd => {
                Content::Plain(CpuidResult { eax: host.eax & EXTENDED21_EAX, ..CpuidResult::ZERO })
            }
            _ => Content::Zero,
        }
    }

    fn extended_features(&self, host: CpuidResult) -> CpuidResult {
        let amd = self.vendor == Vendor::Amd;
        let many = self.config.vcpus > 1;
        let ecx = extended1::ECX
            | Self::when(self.has_states(xcr0::AVX), extended1::ECX_AVX)
            | Self::when(self.last_extended >= TOPOLOGY_LEAF, extended1::ECX_TOPOLOGY);
        let edx = extended1::EDX | Self::when(self.config.features.rdtscp, extended1::EDX_RDTSCP);
        CpuidResult {
            eax: host.eax,
            ebx: host.ebx,
            ecx: host.ecx & ecx | Self::when(amd && many, extended1::ECX_CMP_LEGACY),
            edx: host.edx & edx | Self::when(amd, extended1::EDX_EMULATED),
        }
    }

    /// Leaf 0x8000_0008: address widths and, on AMD, cores and speculation controls.
    fn sizes(&self, host: CpuidResult) -> CpuidResult {
        let linear = host.eax & 0xff00;
        let physical = u32::from(self.config.physical_bits);
        let features = &self.config.features;
        let ebx = extended8_ebx::PLAIN
            | Self::when(features.ibpb, extended8_ebx::IBPB)
            | Self::when(features.spec_ctrl, extended8_ebx::SPEC_CTRL);
        let cores = self.core_bits() << 12 | self.config.vcpus.saturating_sub(1) & 0xff;
        let amd = self.vendor == Vendor::Amd;
        CpuidResult::new(linear | physical, Self::when(amd, host.ebx & ebx), Self::when(amd, cores), 0)
    }
}

/// Twelve letters as EBX, ECX and EDX hold them.
fn words(letters: &[u8; 12]) -> [u32; 3] {
    let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3] = *letters;
    [[a0, a1, a2, a3], [b0, b1, b2, b3], [c0, c1, c2, c3]].map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that answers every leaf with these four, but for the largest leaves and the vendor.
    struct Host {
        vendor: &'static [u8; 12],
        fill: u32,
    }

    impl HostCpuid for Host {
        fn read(&self, leaf: u32, subleaf: u32) -> CpuidResult {
            let [b, d, c] = words(self.vendor);
            match (leaf, subleaf) {
                (0, _) => CpuidResult::new(0x20, b, c, d),
                (EXTENDED, _) => CpuidResult::new(0x8000_0028, b, c, d),
                // Two states behind each other, the second aligned.
                (0xd, 2) => CpuidResult::new(256, 576, 0, 0),
                (0xd, 5) => CpuidResult::new(64, 1088, 0, 0),
                (0xd, 6) => CpuidResult::new(512, 1152, 0, 0),
                (0xd, 7) => CpuidResult::new(1024, 1664, 0, 0),
                (0xd, 9) => CpuidResult::new(8, 2688, XSAVE_ALIGNED, 0),
                (4 | 0x8000_001d, 0..4) => {
                    let level = [1, 1, 2, 3][subleaf as usize];
                    CpuidResult::new(!0xff | level << 5 | 1, 0x1234, 63, 0)
                }
                (4 | 0x8000_001d, _) => CpuidResult::ZERO,
                _ => CpuidResult::new(self.fill, self.fill, self.fill, self.fill),
            }
        }
    }

    const INTEL: Host = Host { vendor: b"GenuineIntel", fill: u32::MAX };
    const AMD: Host = Host { vendor: b"AuthenticAMD", fill: u32::MAX };
    const RUNNING: CpuidState = CpuidState { cr4: 0, xcr0: xcr0::X87, apic_enabled: true };

    fn config(vcpus: u32) -> CpuidConfig {
        CpuidConfig {
            features: HostFeatures {
                xsave: true,
                xcr0: xcr0::KNOWN,
                xsavec: true,
                rdtscp: true,
                ibpb: true,
                spec_ctrl: true,
                ..HostFeatures::default()
            },
            vcpus,
            tsc_khz: 2_400_000,
            invariant_tsc: false,
            physical_bits: 40,
            five_level_paging: false,
            arch_capabilities: false,
            kvm_features: kvm::CLOCKSOURCE2,
        }
    }

    fn amd(vcpus: u32, apic_id: u32) -> CpuidView {
        CpuidView::compose(&AMD, &config(vcpus), apic_id)
    }

    #[test]
    fn the_vendor_string_passes_and_the_ranges_end_where_we_say() {
        let view = amd(1, 0);
        let identity = view.read(0, 0, &RUNNING);
        let [b, d, c] = words(b"AuthenticAMD");
        assert_eq!(identity, CpuidResult::new(0xd, b, c, d));
        assert_eq!(view.read(EXTENDED, 0, &RUNNING).eax, 0x8000_0021);
        for leaf in [0xe, 0x1f, 0x8000_0022, 0x4000_0102, 0x4000_ff00, 0xc000_0000, u32::MAX] {
            assert_eq!(view.read(leaf, 0, &RUNNING), CpuidResult::ZERO, "{leaf:#x}");
        }
        assert_eq!(CpuidView::compose(&INTEL, &config(1), 0).read(0, 0, &RUNNING).eax, 0x15);
    }

    #[test]
    fn no_bit_that_we_do_not_keep_passes_a_host_with_all() {
        let forbidden: [(u32, u32, [&[u32]; 4]); 6] = [
            // DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA; PSN, DS, ACPI, TM, PBE.
            (1, 0, [&[], &[], &[2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 18], &[18, 21, 22, 29, 31]]),
            // TSC_ADJUST, SGX, HLE, RDT-M, MPX, RDT-A, RTM, PT; WAITPKG, CET, TME, PKS; AMX, CET-IBT.
            (7, 0, [&[], &[1, 2, 4, 11, 12, 14, 15, 25], &[5, 7, 13, 16, 31], &[20, 22, 24, 25, 29]]),
            (0xd, 1, [&[3, 4], &[], &[], &[]]),
            // SVM, EXTAPIC, OSVW, IBS, SKINIT, WDT, LWP, performance counters, MWAITX; FFXSR.
            (0x8000_0001, 0, [&[], &[], &[2, 3, 9, 10, 12, 13, 15, 23, 24, 29], &[25]]),
            (0x8000_0008, 0, [&[], &[25], &[], &[]]),
            (0x8000_0007, 0, [&[], &[0], &[], &[8]]),
        ];
        for host in [&INTEL, &AMD] {
            let view = CpuidView::compose(host, &config(2), 1);
            for (leaf, subleaf, registers) in forbidden {
                let CpuidResult { eax, ebx, ecx, edx } = view.read(leaf, subleaf, &RUNNING);
                for (value, numbers) in [eax, ebx, ecx, edx].into_iter().zip(registers) {
                    assert_eq!(value & bits(numbers), 0, "leaf {leaf:#x}: {value:#x} {numbers:?}");
                }
            }
            // MONITOR, PMU, SGX, PT; SVM, IBS, LWP, SEV.
            for leaf in [5, 0xa, 0x12, 0x14, 0x8000_000a, 0x8000_001b, 0x8000_001c, 0x8000_001f] {
                assert_eq!(view.read(leaf, 0, &RUNNING), CpuidResult::ZERO, "{leaf:#x}");
            }
        }
    }

    #[test]
    fn a_host_without_features_gives_only_what_we_emulate() {
        let host = Host { vendor: b"AuthenticAMD", fill: 0 };
        let view = CpuidView::compose(&host, &config(1), 0);
        let leaf = view.read(1, 0, &RUNNING);
        assert_eq!(leaf.ecx, bits(&[21, 24, 31]), "x2APIC, TSC deadline, hypervisor");
        assert_eq!(leaf.edx, bits(&[7, 9, 12, 14, 16]), "MCE, APIC, MTRR, MCA, PAT");
        assert_eq!(view.read(7, 0, &RUNNING), CpuidResult::ZERO);
    }

    #[test]
    fn states_that_are_not_kept_apart_take_their_instructions_with_them() {
        let mut config = config(1);
        config.features.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
        let view = CpuidView::compose(&AMD, &config, 0);
        assert_eq!(view.xcr0_mask(), 7);
        assert_ne!(view.read(1, 0, &RUNNING).ecx & leaf1_ecx::AVX, 0);
        let leaf = view.read(7, 0, &RUNNING);
        assert_ne!(leaf.ebx & leaf7::EBX_AVX2, 0);
        assert_eq!(leaf.ebx & leaf7::EBX_AVX512, 0);
        assert_eq!(leaf.ecx & (leaf7::ECX_AVX512 | leaf7::ECX_PKU), 0);
        config.features.xsave = false;
        let view = CpuidView::compose(&AMD, &config, 0);
        assert_eq!(view.read(1, 0, &RUNNING).ecx & (leaf1_ecx::AVX | leaf1_ecx::XSAVE), 0);
        assert_eq!(view.read(0xd, 0, &RUNNING).ecx, 0);
        assert_eq!(view.xcr0_mask(), 0);
    }

    #[test]
    fn speculation_controls_show_only_where_they_are_kept_apart() {
        let mut config = config(1);
        assert_eq!(
            CpuidView::compose(&AMD, &config, 0).read(0x8000_0008, 0, &RUNNING).ebx & bits(&[12, 14, 15, 24]),
            bits(&[12, 14, 15, 24])
        );
        (config.features.ibpb, config.features.spec_ctrl) = (false, false);
        let view = CpuidView::compose(&AMD, &config, 0);
        assert_eq!(view.read(0x8000_0008, 0, &RUNNING).ebx & bits(&[12, 14, 15, 24]), 0);
        assert_eq!(view.read(7, 0, &RUNNING).edx & bits(&[26, 27, 29, 31]), 0);
    }

    #[test]
    fn the_xsave_area_is_as_large_as_the_states_turned_on() {
        let view = amd(1, 0);
        let sizes = |xcr0| {
            let state = CpuidState { xcr0, ..RUNNING };
            (view.read(0xd, 0, &state).ebx, view.read(0xd, 1, &state).ebx)
        };
        assert_eq!(sizes(xcr0::X87), (576, 576));
        assert_eq!(sizes(xcr0::X87 | xcr0::SSE | xcr0::AVX), (832, 832));
        assert_eq!(sizes(xcr0::X87 | xcr0::PKRU), (2696, 584));
        assert_eq!(sizes(xcr0::KNOWN), (2696, 576 + 256 + 64 + 512 + 1024 + 8));
        assert_eq!(view.read(0xd, 0, &RUNNING).ecx, 2696);
        assert_eq!(view.read(0xd, 3, &RUNNING), CpuidResult::ZERO, "MPX");
        assert_eq!(view.read(0xd, 9, &RUNNING), CpuidResult::new(8, 2688, XSAVE_ALIGNED, 0));
        assert_eq!(view.read(0xd, 10, &RUNNING), CpuidResult::ZERO);
    }

    #[test]
    fn xsavec_that_puts_states_elsewhere_is_not_offered() {
        let variants = |xsavec| {
            let mut config = config(1);
            config.features.xsavec = xsavec;
            CpuidView::compose(&INTEL, &config, 0).read(0xd, 1, &RUNNING).eax
        };
        assert_eq!(variants(true), 0b111);
        assert_eq!(variants(false), 0b101);
    }

    #[test]
    fn what_the_guest_turned_on_shows() {
        let view = amd(1, 0);
        let on = CpuidState { cr4: CR4_OSXSAVE | CR4_PKE, xcr0: xcr0::X87, apic_enabled: false };
        assert_eq!(view.read(1, 0, &RUNNING).ecx & leaf1_ecx::OSXSAVE, 0);
        assert_ne!(view.read(1, 0, &on).ecx & leaf1_ecx::OSXSAVE, 0);
        assert_ne!(view.read(7, 0, &on).ecx & leaf7::ECX_OSPKE, 0);
        assert_eq!(view.read(7, 1, &on).ecx, 0);
        for leaf in [1, 0x8000_0001] {
            assert_ne!(view.read(leaf, 0, &RUNNING).edx & leaf1_edx::APIC, 0);
            assert_eq!(view.read(leaf, 0, &on).edx & leaf1_edx::APIC, 0);
        }
    }

    #[test]
    fn every_leaf_tells_the_same_topology() {
        let view = amd(6, 5);
        let leaf1 = view.read(1, 0, &RUNNING);
        assert_eq!((leaf1.ebx >> 24, leaf1.ebx >> 16 & 0xff), (5, 6));
        assert_ne!(leaf1.edx & leaf1_edx::HTT, 0);
        assert_eq!(view.read(0xb, 0, &RUNNING), CpuidResult::new(0, 1, 0x100, 5));
        assert_eq!(view.read(0xb, 1, &RUNNING), CpuidResult::new(3, 6, 0x201, 5));
        assert_eq!(view.read(0xb, 7, &RUNNING), CpuidResult::new(0, 0, 7, 5));
        assert_eq!(view.read(0x8000_0008, 0, &RUNNING).ecx, 0x3005);
        assert_eq!(view.read(0x8000_001e, 0, &RUNNING), CpuidResult::new(5, 5, 0, 0));
        let sharers = |subleaf| view.read(0x8000_001d, subleaf, &RUNNING).eax >> 14 & 0xfff;
        assert_eq!([0, 1, 2, 3, 4].map(sharers), [0, 0, 0, 7, 0]);
        let intel = CpuidView::compose(&INTEL, &config(6), 5);
        assert_eq!(intel.read(4, 3, &RUNNING).eax >> 14, 7 << 12 | 7);
        assert_eq!(amd(1, 0).read(1, 0, &RUNNING).edx & leaf1_edx::HTT, 0);
    }

    #[test]
    fn hypervisor_leaves_name_us_kvm_and_the_frequencies() {
        let view = amd(1, 0);
        let [b, c, d] = words(SIGNATURE);
        assert_eq!(view.read(0x4000_0000, 0, &RUNNING), CpuidResult::new(0x4000_0010, b, c, d));
        assert_eq!(view.read(0x4000_0010, 0, &RUNNING), CpuidResult::new(2_400_000, 1_000_000, 0, 0));
        // Linux's search: every 0x100, the first that carries the signature.
        let found = (0x4000_0000_u32..0x4001_0000).step_by(0x100).find(|base| {
            let CpuidResult { ebx, ecx, edx, .. } = view.read(*base, 0, &RUNNING);
            [ebx, ecx, edx] == words(b"KVMKVMKVM\0\0\0")
        });
        assert_eq!(found, Some(0x4000_0100));
        assert_eq!(view.read(0x4000_0101, 0, &RUNNING).eax, kvm::CLOCKSOURCE2);
        let intel = CpuidView::compose(&INTEL, &config(1), 0).read(0x15, 0, &RUNNING);
        let hertz = u64::from(intel.ecx) * u64::from(intel.ebx) / u64::from(intel.eax);
        assert_eq!(hertz, 2_400_000_000);
    }

    proptest::proptest! {
        #[test]
        fn any_host_and_any_question_get_an_answer(
            fill in proptest::num::u32::ANY,
            leaf in proptest::num::u32::ANY,
            subleaf in proptest::num::u32::ANY,
            xcr0 in proptest::num::u64::ANY,
            vcpus in proptest::num::u32::ANY,
        ) {
            let host = Host { vendor: b"AuthenticAMD", fill };
            let view = CpuidView::compose(&host, &config(vcpus), fill);
            let state = CpuidState { cr4: xcr0, xcr0, apic_enabled: true };
            for leaf in [leaf, leaf & 0x3f, 0x8000_0000 | leaf & 0x3f] {
                let once = view.read(leaf, subleaf, &state);
                if !CpuidView::depends_on_state(leaf) {
                    proptest::prop_assert_eq!(once, view.read(leaf, subleaf, &CpuidState::default()));
                }
                proptest::prop_assert_eq!(once, view.read(leaf, subleaf, &state));
            }
        }
    }
}
