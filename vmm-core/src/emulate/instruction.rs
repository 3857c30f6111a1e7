//! A decoded instruction.

use crate::cpu::{Gpr, SegmentRegister, Width};

/// What an instruction does. Names are the manuals' mnemonics where one suffices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the mnemonics")]
pub enum Kind {
    Cpuid,
    Rdmsr,
    Wrmsr,
    Rdtsc,
    Rdtscp,
    Rdpmc,
    Hlt,
    Pause,
    Monitor,
    Mwait,
    Vmcall,
    Vmmcall,
    Xgetbv,
    Xsetbv,
    Invd,
    Wbinvd,
    Invlpg,
    Clts,
    Lmsw,
    Smsw,
    /// MOV to a control register, the destination.
    MovToControl,
    /// MOV from a control register, the source.
    MovFromControl,
    /// MOV to a debug register, the destination.
    MovToDebug,
    /// MOV from a debug register, the source.
    MovFromDebug,
    In,
    Out,
    Ins,
    Outs,
    /// MOV between general registers, memory and immediates, and MOVNTI.
    Mov,
    Movzx,
    /// MOVSX and MOVSXD.
    Movsx,
    /// A 16-byte move between memory and a vector register. Its other operand is not decoded.
    MovVector,
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
    /// The eight of one encoding pattern.
    Arithmetic(Arithmetic),
    Test,
    Not,
    Neg,
    Inc,
    Dec,
    Xchg,
    Xadd,
    Cmpxchg,
    /// CMPXCHG8B or CMPXCHG16B: `width` is that of one half.
    CmpxchgPair,
    /// BT, BTS, BTR and BTC.
    Bit(Bit),
}

/// The two-operand arithmetic group, in the order of its encoding (SDM volume 2, table A-6, group 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the mnemonics")]
pub enum Arithmetic {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
}

impl Arithmetic {
    /// By the three bits that select it in the encoding; only they count.
    pub const fn from_number(number: u8) -> Self {
        match number & 7 {
            0 => Self::Add,
            1 => Self::Or,
            2 => Self::Adc,
            3 => Self::Sbb,
            4 => Self::And,
            5 => Self::Sub,
            6 => Self::Xor,
            _ => Self::Cmp,
        }
    }
}

/// What becomes of the bit that a bit test has copied to CF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bit {
    /// BT: nothing.
    Test,
    /// BTS: set.
    Set,
    /// BTR: cleared.
    Reset,
    /// BTC: inverted.
    Complement,
}

impl Bit {
    /// By bits 3 and 4 of the opcode, bits 0 and 1 of the group's number; only the low two bits count.
    pub const fn from_number(number: u8) -> Self {
        match number & 3 {
            0 => Self::Test,
            1 => Self::Set,
            2 => Self::Reset,
            _ => Self::Complement,
        }
    }
}

/// How wide an instruction's addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the sizes")]
pub enum AddressSize {
    Bits16,
    Bits32,
    Bits64,
}

impl AddressSize {
    /// The size in bits.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }

    /// The width of a register that holds such an address or count.
    pub const fn width(self) -> Width {
        match self {
            Self::Bits16 => Width::Word,
            Self::Bits32 => Width::Dword,
            Self::Bits64 => Width::Qword,
        }
    }

    /// All ones in this size.
    pub const fn mask(self) -> u64 {
        self.width().mask()
    }
}

/// A repeat prefix. Instructions that compare nothing take either as REP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// F3: REP or REPE.
    WhileEqual,
    /// F2: REPNE.
    WhileNotEqual,
}

/// What a memory operand's address starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    None,
    /// A general register.
    Register(Gpr),
    /// The address of the next instruction.
    Rip,
}

/// Where a memory operand lies: segment, base + index * scale + displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    /// The segment, by prefix or by default.
    pub segment: SegmentRegister,
    /// The base.
    pub base: Base,
    /// The index register.
    pub index: Option<Gpr>,
    /// 1, 2, 4 or 8.
    pub scale: u8,
    /// Sign-extended.
    pub displacement: u64,
}

/// An operand. How wide it is, the instruction says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// There is none, or the instruction implies it.
    None,
    /// The low part of a general register.
    Register(Gpr),
    /// Bits 8 to 15 of one: AH, CH, DH or BH.
    HighByte(Gpr),
    /// Memory.
    Memory(MemoryOperand),
    /// A constant, sign- or zero-extended as the instruction wants it, cut to the operand's width.
    Immediate(u64),
    /// A control register, by number.
    Control(u8),
    /// A debug register, by number.
    Debug(u8),
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub kind: Kind,
    /// Its length in bytes, 1 to 15.
    pub length: u8,
    /// How wide its operands are; of MOVZX, MOVSX and LMSW, the destination. Without meaning where the kind
    /// has no operands.
    pub width: Width,
    /// How wide the source is: other than `width` for MOVZX and MOVSX only.
    pub source_width: Width,
    /// How wide addresses and counts are.
    pub address_size: AddressSize,
    /// The segment by prefix, else DS: where a string instruction reads.
    pub segment: SegmentRegister,
    /// The repeat prefix, of string instructions only.
    pub repeat: Option<Repeat>,
    /// What is written, or the first of two that are compared; of OUT, the port.
    pub destination: Operand,
    /// What is read; of IN, the port.
    pub source: Operand,
}

impl Instruction {
    /// The memory operand that its ModRM byte or offset names. String instructions have none.
    pub const fn memory(&self) -> Option<MemoryOperand> {
        match (self.destination, self.source) {
            (Operand::Memory(operand), _) | (_, Operand::Memory(operand)) => Some(operand),
            _ => None,
        }
    }
}
