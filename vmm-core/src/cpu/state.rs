//! A CPU's architectural state.

use super::CpuView;

/// RFLAGS bits (SDM 3.4.3).
pub mod rflags {
    /// Bit 1, always one.
    pub const FIXED: u64 = 1 << 1;
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Trap: single step.
    pub const TF: u64 = 1 << 8;
    /// Interrupts enabled.
    pub const IF: u64 = 1 << 9;
    /// String direction: down.
    pub const DF: u64 = 1 << 10;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// Resume: instruction breakpoints are off for one instruction.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check; for the supervisor: user pages may be touched although CR4.SMAP is set.
    pub const AC: u64 = 1 << 18;
}

/// A general register by its number in instruction encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// The register with this number; only the low four bits count.
    pub const fn from_number(number: u8) -> Self {
        match number & 15 {
            0 => Self::Rax,
            1 => Self::Rcx,
            2 => Self::Rdx,
            3 => Self::Rbx,
            4 => Self::Rsp,
            5 => Self::Rbp,
            6 => Self::Rsi,
            7 => Self::Rdi,
            8 => Self::R8,
            9 => Self::R9,
            10 => Self::R10,
            11 => Self::R11,
            12 => Self::R12,
            13 => Self::R13,
            14 => Self::R14,
            _ => Self::R15,
        }
    }
}

/// The registers every exit handler reads and writes. The layout is known to the world switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// The general registers, by encoding number.
    pub gpr: [u64; 16],
    /// The instruction pointer.
    pub rip: u64,
    /// The flags.
    pub rflags: u64,
}

impl Registers {
    /// The whole of `register`.
    pub const fn get(&self, register: Gpr) -> u64 {
        #[expect(clippy::indexing_slicing, reason = "Gpr counts 16 registers, and so does the array")]
        self.gpr[register as usize]
    }

    /// Sets the whole of `register`.
    pub const fn set(&mut self, register: Gpr, value: u64) {
        #[expect(clippy::indexing_slicing, reason = "Gpr counts 16 registers, and so does the array")]
        {
            self.gpr[register as usize] = value;
        }
    }

    /// EDX:EAX, the operand of RDMSR, WRMSR and XSETBV.
    pub const fn edx_eax(&self) -> u64 {
        (self.get(Gpr::Rdx) << 32) | (self.get(Gpr::Rax) & 0xffff_ffff)
    }

    /// Sets EDX:EAX; the upper halves become zero, as RDMSR leaves them.
    pub const fn set_edx_eax(&mut self, value: u64) {
        self.set(Gpr::Rax, value & 0xffff_ffff);
        self.set(Gpr::Rdx, value >> 32);
    }
}

/// A segment register by its number in instruction encodings, then LDTR and TR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Descriptor bits 40..=47 in bits 0..=7 (type, S, DPL, P) and bits 52..=55 in bits 8..=11 (AVL, L, D/B,
    /// G), as a VMCB holds them (APM 15.5.1).
    pub attributes: u16,
    /// In bytes, granularity already applied.
    pub limit: u32,
    /// The linear address of its first byte.
    pub base: u64,
}

impl Segment {
    /// Descriptor privilege level, 0 to 3.
    pub const fn privilege_level(self) -> u8 {
        ((self.attributes >> 5) & 3) as u8
    }
    /// Present.
    pub const fn present(self) -> bool {
        self.attributes & (1 << 7) != 0
    }
    /// L: a 64-bit code segment.
    pub const fn long(self) -> bool {
        self.attributes & (1 << 9) != 0
    }
    /// D/B: 32-bit default size.
    pub const fn default_big(self) -> bool {
        self.attributes & (1 << 10) != 0
    }

    /// A flat 4 GiB 32-bit code segment, execute/read, ring 0.
    pub const fn flat_code32(selector: u16) -> Self {
        Self { selector, attributes: 0xc9b, limit: u32::MAX, base: 0 }
    }
    /// A flat 64-bit code segment, execute/read, ring 0.
    pub const fn flat_code64(selector: u16) -> Self {
        Self { selector, attributes: 0xa9b, limit: u32::MAX, base: 0 }
    }
    /// A flat 4 GiB data segment, read/write, ring 0.
    pub const fn flat_data(selector: u16) -> Self {
        Self { selector, attributes: 0xc93, limit: u32::MAX, base: 0 }
    }
    /// A 64 KiB real-mode segment at `selector` * 16: code or data alike.
    pub const fn real_mode(selector: u16, code: bool) -> Self {
        Self {
            selector,
            attributes: if code { 0x9b } else { 0x93 },
            limit: 0xffff,
            base: (selector as u64) << 4,
        }
    }
    /// A busy TSS of the reset size, which every CPU must hold.
    pub const fn reset_tss() -> Self {
        Self { selector: 0, attributes: 0x8b, limit: 0xffff, base: 0 }
    }
    /// An empty, present LDT.
    pub const fn reset_ldt() -> Self {
        Self { selector: 0, attributes: 0x82, limit: 0xffff, base: 0 }
    }
}

/// The default operand and address size of a code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the sizes")]
pub enum CodeSize {
    Bits16,
    Bits32,
    Bits64,
}

impl CodeSize {
    /// The sizes of the code segment `code` with `efer` in EFER.
    #[inline]
    pub const fn of(code: Segment, efer: u64) -> Self {
        if efer & ControlRegisters::EFER_LMA != 0 && code.long() {
            Self::Bits64
        } else if code.default_big() {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// The table's linear address.
    pub base: u64,
    /// Its length in bytes less one.
    pub limit: u16,
}

/// The control registers that decide how memory is addressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub struct ControlRegisters {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

impl ControlRegisters {
    /// CR0.PE: protection enabled.
    pub const CR0_PE: u64 = 1 << 0;
    /// CR0.ET, always one.
    pub const CR0_ET: u64 = 1 << 4;
    /// CR0.WP: supervisor writes respect read-only pages.
    pub const CR0_WP: u64 = 1 << 16;
    /// CR0.PG: paging.
    pub const CR0_PG: u64 = 1 << 31;
    /// CR4.PSE: 4 MiB pages.
    pub const CR4_PSE: u64 = 1 << 4;
    /// CR4.PAE: 8-byte table entries.
    pub const CR4_PAE: u64 = 1 << 5;
    /// CR4.LA57: five levels.
    pub const CR4_LA57: u64 = 1 << 12;
    /// CR4.SMEP: no supervisor fetch from user pages.
    pub const CR4_SMEP: u64 = 1 << 20;
    /// CR4.SMAP: no supervisor access to user pages while RFLAGS.AC is clear.
    pub const CR4_SMAP: u64 = 1 << 21;
    /// EFER.LME: long mode enabled.
    pub const EFER_LME: u64 = 1 << 8;
    /// EFER.LMA: long mode active.
    pub const EFER_LMA: u64 = 1 << 10;
    /// EFER.NXE: no-execute pages.
    pub const EFER_NXE: u64 = 1 << 11;
}

/// Everything a boot protocol decides about a CPU before its first instruction. What is not here has its
/// value after INIT (SDM table 10-1).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub struct CpuState {
    pub registers: Registers,
    pub control: ControlRegisters,
    /// By [`SegmentRegister`].
    pub segments: [Segment; 8],
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
}

impl CpuState {
    /// After RESET or INIT: real mode at F000:FFF0, which is physical FFFFFFF0.
    pub fn reset() -> Self {
        const DATA: Segment = Segment::real_mode(0, false);
        static AFTER_RESET: CpuState = CpuState {
            registers: Registers { gpr: [0; 16], rip: 0xfff0, rflags: rflags::FIXED },
            control: ControlRegisters {
                cr0: ControlRegisters::CR0_ET | (3 << 29),
                cr2: 0,
                cr3: 0,
                cr4: 0,
                efer: 0,
            },
            segments: [
                DATA,
                Segment { selector: 0xf000, base: 0xffff_0000, ..Segment::real_mode(0, true) },
                DATA,
                DATA,
                DATA,
                DATA,
                Segment::reset_ldt(),
                Segment::reset_tss(),
            ],
            gdt: DescriptorTable { base: 0, limit: 0xffff },
            idt: DescriptorTable { base: 0, limit: 0xffff },
        };
        AFTER_RESET.clone()
    }

    /// After a start-up message (SIPI): real mode at the start of 4 KiB page `page`.
    pub fn startup(page: u8) -> Self {
        let mut state = Self::reset();
        let [_, code, ..] = &mut state.segments;
        *code = Segment::real_mode(u16::from(page) << 8, true);
        state.registers.rip = 0;
        state
    }

    /// Flat 32-bit protected mode, paging off, interrupts off, at `entry`; selectors CS = 8, others 16, as
    /// Linux, PVH and multiboot want them. No descriptor table is loaded.
    pub fn flat_protected_mode(entry: u32) -> Self {
        let data = Segment::flat_data(0x10);
        let code = Segment::flat_code32(8);
        let mut state = Self::reset();
        state.registers.rip = u64::from(entry);
        state.control.cr0 = ControlRegisters::CR0_PE | ControlRegisters::CR0_ET;
        state.segments = [data, code, data, data, data, data, Segment::reset_ldt(), Segment::reset_tss()];
        state.gdt = DescriptorTable::default();
        state.idt = DescriptorTable::default();
        state
    }

    /// Real mode at `segment`:`offset`, interrupts off, caches on; every other segment register is zero.
    pub fn real_mode(segment: u16, offset: u16) -> Self {
        let data = Segment::real_mode(0, false);
        let code = Segment::real_mode(segment, true);
        let mut state = Self::reset();
        state.registers.rip = u64::from(offset);
        state.control.cr0 = ControlRegisters::CR0_ET;
        state.segments = [data, code, data, data, data, data, Segment::reset_ldt(), Segment::reset_tss()];
        state.idt.limit = 0x3ff;
        state
    }

    /// Sets the privilege level that the CPU is at, 0 to 3: the stack segment has it.
    pub fn set_privilege_level(&mut self, level: u8) {
        let [_, _, stack, ..] = &mut self.segments;
        stack.attributes = stack.attributes & !(3 << 5) | u16::from(level & 3) << 5;
    }

    /// 64-bit mode at `entry` on the page tables at `cr3`, interrupts off; selectors as given.
    pub fn long_mode(entry: u64, cr3: u64, code_selector: u16, data_selector: u16) -> Self {
        let mut state = Self::flat_protected_mode(0);
        let data = Segment::flat_data(data_selector);
        let code = Segment::flat_code64(code_selector);
        state.segments = [data, code, data, data, data, data, Segment::reset_ldt(), Segment::reset_tss()];
        state.registers.rip = entry;
        state.control = ControlRegisters {
            cr0: ControlRegisters::CR0_PE | ControlRegisters::CR0_ET | ControlRegisters::CR0_PG,
            cr2: 0,
            cr3,
            cr4: ControlRegisters::CR4_PAE,
            efer: ControlRegisters::EFER_LME | ControlRegisters::EFER_LMA,
        };
        state
    }
}

/// A CPU on no hardware, for those that only look at it and change it: tests.
impl CpuView for CpuState {
    fn registers(&self) -> &Registers {
        &self.registers
    }
    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments.get(register as usize).copied().unwrap_or_default()
    }
    fn control(&self) -> ControlRegisters {
        self.control
    }
    fn set_cr2(&mut self, address: u64) {
        self.control.cr2 = address;
    }
}

/// Model-specific registers that belong to a CPU's own state and that backends keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub enum SystemMsr {
    SysenterCs = 0x174,
    SysenterEsp = 0x175,
    SysenterEip = 0x176,
    Pat = 0x277,
    Efer = 0xc000_0080,
    Star = 0xc000_0081,
    Lstar = 0xc000_0082,
    Cstar = 0xc000_0083,
    Sfmask = 0xc000_0084,
    FsBase = 0xc000_0100,
    GsBase = 0xc000_0101,
    KernelGsBase = 0xc000_0102,
    TscAux = 0xc000_0103,
    SpecCtrl = 0x48,
}

impl SystemMsr {
    /// The register at this index, when it is one of these.
    pub const fn from_index(index: u32) -> Option<Self> {
        Some(match index {
            0x48 => Self::SpecCtrl,
            0x174 => Self::SysenterCs,
            0x175 => Self::SysenterEsp,
            0x176 => Self::SysenterEip,
            0x277 => Self::Pat,
            0xc000_0080 => Self::Efer,
            0xc000_0081 => Self::Star,
            0xc000_0082 => Self::Lstar,
            0xc000_0083 => Self::Cstar,
            0xc000_0084 => Self::Sfmask,
            0xc000_0100 => Self::FsBase,
            0xc000_0101 => Self::GsBase,
            0xc000_0102 => Self::KernelGsBase,
            0xc000_0103 => Self::TscAux,
            _ => return None,
        })
    }

    /// The register's index.
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// Whether a WRMSR of `value` from long mode raises #GP for a base that is not canonical.
    pub const fn holds_linear_address(self) -> bool {
        matches!(
            self,
            Self::SysenterEsp
                | Self::SysenterEip
                | Self::Lstar
                | Self::Cstar
                | Self::FsBase
                | Self::GsBase
                | Self::KernelGsBase
        )
    }
}

/// IA32_PAT after reset (SDM 12.12.4).
pub const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;
