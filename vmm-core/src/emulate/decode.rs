//! From bytes to an [`Instruction`].
//!
//! Only what can cause an exit is decoded; everything else is [`DecodeError::Unsupported`].

use super::instruction::{
    AddressSize, Arithmetic, Base, Bit, Instruction, Kind, MemoryOperand, Operand, Repeat,
};
use crate::cpu::{CodeSize, Gpr, SegmentRegister, Width};
use core::fmt;

/// Why bytes are no instruction for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end before the instruction does.
    Truncated,
    /// More than 15 bytes: #GP.
    TooLong,
    /// No CPU knows it: #UD.
    Invalid,
    /// A CPU may know it; we do not.
    Unsupported,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the bytes end inside the instruction",
            Self::TooLong => "the instruction is longer than 15 bytes",
            Self::Invalid => "the bytes are no valid instruction",
            Self::Unsupported => "the instruction is none that the emulator knows",
        })
    }
}

impl core::error::Error for DecodeError {}

/// Decodes the instruction at the start of `code`, which runs with the default size `size`.
pub fn decode(code: &[u8], size: CodeSize) -> Result<Instruction, DecodeError> {
    let mut decoder = Decoder::new(code, size);
    decoder.prefixes()?;
    let opcode = decoder.byte()?;
    let instruction = match opcode {
        0x0f => decoder.two_byte()?,
        _ => decoder.one_byte(opcode)?,
    };
    if decoder.lock && !decoder.lockable(&instruction) {
        return Err(DecodeError::Invalid);
    }
    Ok(Instruction { length: decoder.at as u8, ..instruction })
}

struct Decoder<'a> {
    code: &'a [u8],
    /// How many bytes are read.
    at: usize,
    size: CodeSize,
    /// 66.
    operand_prefix: bool,
    address_size: AddressSize,
    segment: Option<SegmentRegister>,
    /// The last of F2 and F3.
    repeat: Option<Repeat>,
    lock: bool,
    /// The low four bits of the REX prefix, and whether there is one.
    rex: u8,
    has_rex: bool,
}

const REX_W: u8 = 8;
const REX_R: u8 = 4;
const REX_X: u8 = 2;
const REX_B: u8 = 1;

/// A ModRM byte with what follows it.
#[derive(Clone, Copy)]
struct ModRm {
    /// The middle field without REX.R: a register or an opcode extension.
    reg: u8,
    /// Whether the operand is a register.
    is_register: bool,
    /// The low field without REX.B.
    rm: u8,
    /// Only where it is not a register.
    memory: MemoryOperand,
}

impl<'a> Decoder<'a> {
    fn new(code: &'a [u8], size: CodeSize) -> Self {
        Self {
            code,
            at: 0,
            size,
            operand_prefix: false,
            address_size: match size {
                CodeSize::Bits16 => AddressSize::Bits16,
                CodeSize::Bits32 => AddressSize::Bits32,
                CodeSize::Bits64 => AddressSize::Bits64,
            },
            segment: None,
            repeat: None,
            lock: false,
            rex: 0,
            has_rex: false,
        }
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        if self.at >= super::fetch::LONGEST {
            return Err(DecodeError::TooLong);
        }
        let byte = *self.code.get(self.at).ok_or(DecodeError::Truncated)?;
        self.at = self.at.saturating_add(1);
        Ok(byte)
    }

    /// `width` bytes, little-endian, zero-extended.
    fn unsigned(&mut self, width: Width) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for index in 0..width as u32 {
            value |= u64::from(self.byte()?).wrapping_shl(index.wrapping_mul(8));
        }
        Ok(value)
    }

    /// `width` bytes, little-endian, sign-extended.
    fn signed(&mut self, width: Width) -> Result<u64, DecodeError> {
        Ok(sign_extend(self.unsigned(width)?, width))
    }

    fn prefixes(&mut self) -> Result<(), DecodeError> {
        let long = self.size == CodeSize::Bits64;
        loop {
            let byte = self.byte()?;
            match byte {
                0x66 => self.operand_prefix = true,
                0x67 => {
                    self.address_size = match self.size {
                        CodeSize::Bits16 | CodeSize::Bits64 => AddressSize::Bits32,
                        CodeSize::Bits32 => AddressSize::Bits16,
                    }
                }
                0xf0 => self.lock = true,
                0xf2 => self.repeat = Some(Repeat::WhileNotEqual),
                0xf3 => self.repeat = Some(Repeat::WhileEqual),
                // In 64-bit mode these four are no segments any more: the prefixes do nothing.
                0x26 | 0x2e | 0x36 | 0x3e if long => {}
                0x26 => self.segment = Some(SegmentRegister::Es),
                0x2e => self.segment = Some(SegmentRegister::Cs),
                0x36 => self.segment = Some(SegmentRegister::Ss),
                0x3e => self.segment = Some(SegmentRegister::Ds),
                0x64 => self.segment = Some(SegmentRegister::Fs),
                0x65 => self.segment = Some(SegmentRegister::Gs),
                0x40..=0x4f if long => {
                    (self.rex, self.has_rex) = (byte & 15, true);
                    continue;
                }
                _ => {
                    self.at = self.at.saturating_sub(1);
                    return Ok(());
                }
            }
            // REX counts only as the last prefix.
            (self.rex, self.has_rex) = (0, false);
        }
    }

    /// Word, doubleword or quadword, by mode, 66 and REX.W.
    fn operand_width(&self) -> Width {
        if self.rex & REX_W != 0 {
            Width::Qword
        } else if (self.size == CodeSize::Bits16) != self.operand_prefix {
            Width::Word
        } else {
            Width::Dword
        }
    }

    /// Doubleword, or quadword by REX.W, of instructions without a word form.
    fn double_width(&self) -> Width {
        if self.rex & REX_W != 0 { Width::Qword } else { Width::Dword }
    }

    /// The width by an opcode's lowest bit: clear for bytes.
    fn width_by(&self, opcode: u8) -> Width {
        if opcode & 1 == 0 { Width::Byte } else { self.operand_width() }
    }

    /// The width of an immediate for operands of `width`: at most 4 bytes.
    fn immediate(&mut self, width: Width) -> Result<Operand, DecodeError> {
        let encoded = width.min(Width::Dword);
        Ok(Operand::Immediate(self.signed(encoded)? & width.mask()))
    }

    /// An 8-bit immediate, sign-extended to operands of `width`.
    fn immediate8(&mut self, width: Width) -> Result<Operand, DecodeError> {
        Ok(Operand::Immediate(self.signed(Width::Byte)? & width.mask()))
    }

    fn mod_rm(&mut self) -> Result<ModRm, DecodeError> {
        let byte = self.byte()?;
        let (mode, reg, rm) = (byte >> 6, byte >> 3 & 7, byte & 7);
        let none = MemoryOperand {
            segment: SegmentRegister::Ds,
            base: Base::None,
            index: None,
            scale: 1,
            displacement: 0,
        };
        let memory = match (mode, self.address_size) {
            (3, _) => none,
            (_, AddressSize::Bits16) => self.memory16(none, mode, rm)?,
            _ => self.memory32(none, mode, rm)?,
        };
        Ok(ModRm { reg, is_register: mode == 3, rm, memory })
    }

    /// 16-bit addressing (SDM volume 2, table 2-1).
    fn memory16(&mut self, none: MemoryOperand, mode: u8, rm: u8) -> Result<MemoryOperand, DecodeError> {
        let (base, index) = match rm {
            0 => (Base::Register(Gpr::Rbx), Some(Gpr::Rsi)),
            1 => (Base::Register(Gpr::Rbx), Some(Gpr::Rdi)),
            2 => (Base::Register(Gpr::Rbp), Some(Gpr::Rsi)),
            3 => (Base::Register(Gpr::Rbp), Some(Gpr::Rdi)),
            4 => (Base::Register(Gpr::Rsi), None),
            5 => (Base::Register(Gpr::Rdi), None),
            6 if mode == 0 => (Base::None, None),
            6 => (Base::Register(Gpr::Rbp), None),
            _ => (Base::Register(Gpr::Rbx), None),
        };
        let displacement = match mode {
            0 if base == Base::None => self.signed(Width::Word)?,
            0 => 0,
            1 => self.signed(Width::Byte)?,
            _ => self.signed(Width::Word)?,
        };
        Ok(MemoryOperand { segment: self.segment_for(base), base, index, displacement, ..none })
    }

    /// 32- and 64-bit addressing (SDM volume 2, tables 2-2 and 2-3).
    fn memory32(&mut self, none: MemoryOperand, mode: u8, rm: u8) -> Result<MemoryOperand, DecodeError> {
        let mut operand = none;
        if rm == 4 {
            let sib = self.byte()?;
            operand.scale = 1 << (sib >> 6);
            let index = sib >> 3 & 7 | self.rex_bit(REX_X);
            // RSP is no index; R12 is.
            operand.index = (index != 4).then_some(Gpr::from_number(index));
            if !(sib & 7 == 5 && mode == 0) {
                operand.base = Base::Register(Gpr::from_number(sib & 7 | self.rex_bit(REX_B)));
            }
        } else if rm == 5 && mode == 0 {
            if self.size == CodeSize::Bits64 {
                operand.base = Base::Rip;
            }
        } else {
            operand.base = Base::Register(Gpr::from_number(rm | self.rex_bit(REX_B)));
        }
        let no_register = !matches!(operand.base, Base::Register(_));
        operand.displacement = match mode {
            0 if no_register => self.signed(Width::Dword)?,
            0 => 0,
            1 => self.signed(Width::Byte)?,
            _ => self.signed(Width::Dword)?,
        };
        operand.segment = self.segment_for(operand.base);
        Ok(operand)
    }

    /// The segment by prefix, else SS for the stack's two registers, else DS.
    fn segment_for(&self, base: Base) -> SegmentRegister {
        let default = match base {
            Base::Register(Gpr::Rsp | Gpr::Rbp) => SegmentRegister::Ss,
            _ => SegmentRegister::Ds,
        };
        self.segment.unwrap_or(default)
    }

    /// 8 where REX has `bit`, else 0: what it adds to a register number.
    fn rex_bit(&self, bit: u8) -> u8 {
        if self.rex & bit != 0 { 8 } else { 0 }
    }

    /// A general register of `width` by its number without REX, extended by REX's `bit`.
    fn register(&self, number: u8, bit: u8, width: Width) -> Operand {
        if width == Width::Byte && !self.has_rex && number >= 4 {
            Operand::HighByte(Gpr::from_number(number & 3))
        } else {
            Operand::Register(Gpr::from_number(number | self.rex_bit(bit)))
        }
    }

    /// What ModRM's middle field names.
    fn reg(&self, mod_rm: &ModRm, width: Width) -> Operand {
        self.register(mod_rm.reg, REX_R, width)
    }

    /// What ModRM's other fields name.
    fn rm(&self, mod_rm: &ModRm, width: Width) -> Operand {
        if mod_rm.is_register {
            self.register(mod_rm.rm, REX_B, width)
        } else {
            Operand::Memory(mod_rm.memory)
        }
    }

    /// An instruction of `kind` with these operands; its length is not known yet.
    fn instruction(&self, kind: Kind, width: Width, destination: Operand, source: Operand) -> Instruction {
        Instruction {
            kind,
            length: 0,
            width,
            source_width: width,
            address_size: self.address_size,
            segment: self.segment.unwrap_or(SegmentRegister::Ds),
            repeat: None,
            destination,
            source,
        }
    }

    /// An instruction without operands, or with such as it implies.
    fn plain(&self, kind: Kind) -> Instruction {
        self.instruction(kind, self.operand_width(), Operand::None, Operand::None)
    }

    fn string(&self, kind: Kind, width: Width) -> Instruction {
        Instruction { repeat: self.repeat, ..self.instruction(kind, width, Operand::None, Operand::None) }
    }

    /// `kind` between a register and register-or-memory: by bit 1 of the opcode the register is written.
    fn two_operands(&mut self, kind: Kind, opcode: u8) -> Result<Instruction, DecodeError> {
        let width = self.width_by(opcode);
        let mod_rm = self.mod_rm()?;
        let (reg, rm) = (self.reg(&mod_rm, width), self.rm(&mod_rm, width));
        Ok(if opcode & 2 == 0 {
            self.instruction(kind, width, rm, reg)
        } else {
            self.instruction(kind, width, reg, rm)
        })
    }

    /// `kind` whose destination is register-or-memory of the operand's width and whose source is a register.
    fn register_to_rm(&mut self, kind: Kind, width: Width) -> Result<Instruction, DecodeError> {
        let mod_rm = self.mod_rm()?;
        Ok(self.instruction(kind, width, self.rm(&mod_rm, width), self.reg(&mod_rm, width)))
    }

    fn one_byte(&mut self, opcode: u8) -> Result<Instruction, DecodeError> {
        let long = self.size == CodeSize::Bits64;
        let width = self.width_by(opcode);
        let accumulator = Operand::Register(Gpr::Rax);
        Ok(match opcode {
            0x00..=0x3f if opcode & 7 <= 5 => {
                let kind = Kind::Arithmetic(Arithmetic::from_number(opcode >> 3));
                if opcode & 4 == 0 {
                    self.two_operands(kind, opcode)?
                } else {
                    let immediate = self.immediate(width)?;
                    self.instruction(kind, width, accumulator, immediate)
                }
            }
            0x40..=0x4f => {
                let kind = if opcode & 8 == 0 { Kind::Inc } else { Kind::Dec };
                let width = self.operand_width();
                self.instruction(kind, width, self.register(opcode & 7, REX_B, width), Operand::None)
            }
            0x63 if long => {
                let width = self.operand_width();
                let source_width = width.min(Width::Dword);
                let mod_rm = self.mod_rm()?;
                let (reg, rm) = (self.reg(&mod_rm, width), self.rm(&mod_rm, source_width));
                Instruction { source_width, ..self.instruction(Kind::Movsx, width, reg, rm) }
            }
            // Ports are at most 4 bytes wide.
            0x6c | 0x6d => self.string(Kind::Ins, width.min(Width::Dword)),
            0x6e | 0x6f => self.string(Kind::Outs, width.min(Width::Dword)),
            0x80..=0x83 => self.arithmetic_immediate(opcode)?,
            0x84 | 0x85 => self.register_to_rm(Kind::Test, width)?,
            0x86 | 0x87 => self.register_to_rm(Kind::Xchg, width)?,
            0x88..=0x8b => self.two_operands(Kind::Mov, opcode)?,
            0x90 if self.repeat == Some(Repeat::WhileEqual) => self.plain(Kind::Pause),
            // Without REX.B it is NOP, which does not cut RAX to 32 bits.
            0x90 if self.rex & REX_B == 0 => return Err(DecodeError::Unsupported),
            0x90..=0x97 => {
                let width = self.operand_width();
                let register = self.register(opcode & 7, REX_B, width);
                self.instruction(Kind::Xchg, width, register, accumulator)
            }
            0xa0..=0xa3 => {
                let displacement = self.unsigned(self.address_size.width())?;
                let memory = Operand::Memory(MemoryOperand {
                    segment: self.segment.unwrap_or(SegmentRegister::Ds),
                    base: Base::None,
                    index: None,
                    scale: 1,
                    displacement,
                });
                if opcode & 2 == 0 {
                    self.instruction(Kind::Mov, width, accumulator, memory)
                } else {
                    self.instruction(Kind::Mov, width, memory, accumulator)
                }
            }
            0xa4 | 0xa5 => self.string(Kind::Movs, width),
            0xa6 | 0xa7 => self.string(Kind::Cmps, width),
            0xa8 | 0xa9 => {
                let immediate = self.immediate(width)?;
                self.instruction(Kind::Test, width, accumulator, immediate)
            }
            0xaa | 0xab => self.string(Kind::Stos, width),
            0xac | 0xad => self.string(Kind::Lods, width),
            0xae | 0xaf => self.string(Kind::Scas, width),
            0xb0..=0xb7 => {
                let register = self.register(opcode & 7, REX_B, Width::Byte);
                let immediate = self.immediate(Width::Byte)?;
                self.instruction(Kind::Mov, Width::Byte, register, immediate)
            }
            0xb8..=0xbf => {
                let width = self.operand_width();
                let register = self.register(opcode & 7, REX_B, width);
                // The one instruction with a whole 64-bit immediate.
                let immediate = Operand::Immediate(self.unsigned(width)?);
                self.instruction(Kind::Mov, width, register, immediate)
            }
            0xc6 | 0xc7 => {
                let mod_rm = self.mod_rm()?;
                match mod_rm.reg {
                    0 => {
                        let immediate = self.immediate(width)?;
                        self.instruction(Kind::Mov, width, self.rm(&mod_rm, width), immediate)
                    }
                    // XABORT and XBEGIN.
                    7 if mod_rm.is_register && mod_rm.rm == 0 => return Err(DecodeError::Unsupported),
                    _ => return Err(DecodeError::Invalid),
                }
            }
            0xe4..=0xe7 | 0xec..=0xef => {
                let width = width.min(Width::Dword);
                let port = if opcode & 8 == 0 {
                    Operand::Immediate(self.unsigned(Width::Byte)?)
                } else {
                    Operand::Register(Gpr::Rdx)
                };
                if opcode & 2 == 0 {
                    self.instruction(Kind::In, width, accumulator, port)
                } else {
                    self.instruction(Kind::Out, width, port, accumulator)
                }
            }
            0xf4 => self.plain(Kind::Hlt),
            0xf6 | 0xf7 => {
                let mod_rm = self.mod_rm()?;
                let rm = self.rm(&mod_rm, width);
                match mod_rm.reg {
                    0 | 1 => {
                        let immediate = self.immediate(width)?;
                        self.instruction(Kind::Test, width, rm, immediate)
                    }
                    2 => self.instruction(Kind::Not, width, rm, Operand::None),
                    3 => self.instruction(Kind::Neg, width, rm, Operand::None),
                    _ => return Err(DecodeError::Unsupported),
                }
            }
            0xfe | 0xff => {
                let mod_rm = self.mod_rm()?;
                let rm = self.rm(&mod_rm, width);
                match mod_rm.reg {
                    0 => self.instruction(Kind::Inc, width, rm, Operand::None),
                    1 => self.instruction(Kind::Dec, width, rm, Operand::None),
                    7 => return Err(DecodeError::Invalid),
                    _ if opcode == 0xfe => return Err(DecodeError::Invalid),
                    _ => return Err(DecodeError::Unsupported),
                }
            }
            _ => return Err(DecodeError::Unsupported),
        })
    }

    /// Group 1: arithmetic on register-or-memory with an immediate.
    fn arithmetic_immediate(&mut self, opcode: u8) -> Result<Instruction, DecodeError> {
        if opcode == 0x82 && self.size == CodeSize::Bits64 {
            return Err(DecodeError::Invalid);
        }
        let width = self.width_by(opcode);
        let mod_rm = self.mod_rm()?;
        let kind = Kind::Arithmetic(Arithmetic::from_number(mod_rm.reg));
        let immediate = if opcode == 0x81 { self.immediate(width)? } else { self.immediate8(width)? };
        Ok(self.instruction(kind, width, self.rm(&mod_rm, width), immediate))
    }

    /// The opcodes behind 0F.
    fn two_byte(&mut self) -> Result<Instruction, DecodeError> {
        let opcode = self.byte()?;
        let width = self.width_by(opcode);
        Ok(match opcode {
            0x01 => self.group7()?,
            0x06 => self.plain(Kind::Clts),
            0x08 => self.plain(Kind::Invd),
            // With F3 it is WBNOINVD.
            0x09 if self.repeat == Some(Repeat::WhileEqual) => return Err(DecodeError::Unsupported),
            0x09 => self.plain(Kind::Wbinvd),
            0x10 | 0x11 | 0x28 | 0x29 | 0x2b | 0x6f | 0x7f | 0xe7 => self.vector_move(opcode)?,
            0x20..=0x23 => self.special_register(opcode)?,
            0x30 => self.plain(Kind::Wrmsr),
            0x31 => self.plain(Kind::Rdtsc),
            0x32 => self.plain(Kind::Rdmsr),
            0x33 => self.plain(Kind::Rdpmc),
            0xa2 => self.plain(Kind::Cpuid),
            0xa3 | 0xab | 0xb3 | 0xbb => {
                let width = self.operand_width();
                self.register_to_rm(Kind::Bit(Bit::from_number(opcode >> 3)), width)?
            }
            0xb0 | 0xb1 => self.register_to_rm(Kind::Cmpxchg, width)?,
            0xb6 | 0xb7 => self.extend(Kind::Movzx, opcode)?,
            0xbe | 0xbf => self.extend(Kind::Movsx, opcode)?,
            0xba => {
                let width = self.operand_width();
                let mod_rm = self.mod_rm()?;
                if mod_rm.reg < 4 {
                    return Err(DecodeError::Invalid);
                }
                let bit = Operand::Immediate(self.unsigned(Width::Byte)?);
                let kind = Kind::Bit(Bit::from_number(mod_rm.reg));
                self.instruction(kind, width, self.rm(&mod_rm, width), bit)
            }
            0xc0 | 0xc1 => self.register_to_rm(Kind::Xadd, width)?,
            0xc3 => {
                let width = self.double_width();
                let mod_rm = self.mod_rm()?;
                if mod_rm.is_register || self.operand_prefix || self.repeat.is_some() {
                    return Err(DecodeError::Invalid);
                }
                self.instruction(Kind::Mov, width, self.rm(&mod_rm, width), self.reg(&mod_rm, width))
            }
            0xc7 => {
                let mod_rm = self.mod_rm()?;
                if mod_rm.reg != 1 || mod_rm.is_register {
                    return Err(DecodeError::Unsupported);
                }
                let width = self.double_width();
                self.instruction(Kind::CmpxchgPair, width, Operand::Memory(mod_rm.memory), Operand::None)
            }
            _ => return Err(DecodeError::Unsupported),
        })
    }

    /// MOVZX and MOVSX: the opcode's lowest bit says whether the source is a byte or a word.
    fn extend(&mut self, kind: Kind, opcode: u8) -> Result<Instruction, DecodeError> {
        let width = self.operand_width();
        let source_width = if opcode & 1 == 0 { Width::Byte } else { Width::Word };
        let mod_rm = self.mod_rm()?;
        let (reg, rm) = (self.reg(&mod_rm, width), self.rm(&mod_rm, source_width));
        Ok(Instruction { source_width, ..self.instruction(kind, width, reg, rm) })
    }

    /// MOV to and from control and debug registers. The mode field is ignored: the operand is a register.
    fn special_register(&mut self, opcode: u8) -> Result<Instruction, DecodeError> {
        let byte = self.byte()?;
        let number = byte >> 3 & 7 | self.rex_bit(REX_R);
        let general = Operand::Register(Gpr::from_number(byte & 7 | self.rex_bit(REX_B)));
        let width = if self.size == CodeSize::Bits64 { Width::Qword } else { Width::Dword };
        if opcode & 1 == 0 {
            if !matches!(number, 0 | 2 | 3 | 4 | 8) {
                return Err(DecodeError::Invalid);
            }
            let control = Operand::Control(number);
            Ok(if opcode & 2 == 0 {
                self.instruction(Kind::MovFromControl, width, general, control)
            } else {
                self.instruction(Kind::MovToControl, width, control, general)
            })
        } else {
            if number > 7 {
                return Err(DecodeError::Invalid);
            }
            let debug = Operand::Debug(number);
            Ok(if opcode & 2 == 0 {
                self.instruction(Kind::MovFromDebug, width, general, debug)
            } else {
                self.instruction(Kind::MovToDebug, width, debug, general)
            })
        }
    }

    /// Group 7 (SDM volume 2, table A-6): SMSW, LMSW, INVLPG, and many without operands.
    fn group7(&mut self) -> Result<Instruction, DecodeError> {
        let mod_rm = self.mod_rm()?;
        let prefixed = self.operand_prefix || self.repeat.is_some();
        Ok(match (mod_rm.is_register, mod_rm.reg, mod_rm.rm) {
            (is_register, 4, _) => {
                // In memory it is always a word.
                let width = if is_register { self.operand_width() } else { Width::Word };
                self.instruction(Kind::Smsw, width, self.rm(&mod_rm, width), Operand::None)
            }
            (_, 6, _) => {
                self.instruction(Kind::Lmsw, Width::Word, Operand::None, self.rm(&mod_rm, Width::Word))
            }
            (false, 7, _) => {
                self.instruction(Kind::Invlpg, Width::Byte, Operand::Memory(mod_rm.memory), Operand::None)
            }
            (true, 7, 1) => self.plain(Kind::Rdtscp),
            (true, 0, 1) if !prefixed => self.plain(Kind::Vmcall),
            (true, 1, 0) if !prefixed => self.plain(Kind::Monitor),
            (true, 1, 1) if !prefixed => self.plain(Kind::Mwait),
            (true, 2, 0) if !prefixed => self.plain(Kind::Xgetbv),
            (true, 2, 1) if !prefixed => self.plain(Kind::Xsetbv),
            (true, 3, 1) if self.repeat.is_none() => self.plain(Kind::Vmmcall),
            _ => return Err(DecodeError::Unsupported),
        })
    }

    /// MOVUPS, MOVUPD, MOVAPS, MOVAPD, MOVDQU, MOVDQA, MOVNTPS, MOVNTPD and MOVNTDQ to and from memory.
    fn vector_move(&mut self, opcode: u8) -> Result<Instruction, DecodeError> {
        let mod_rm = self.mod_rm()?;
        let whole = match opcode {
            // With F2 and F3 these move one element, or convert.
            0x10 | 0x11 | 0x28 | 0x29 | 0x2b => self.repeat.is_none(),
            // Without a prefix these are MMX.
            0x6f | 0x7f => match self.repeat {
                None => self.operand_prefix,
                Some(repeat) => repeat == Repeat::WhileEqual,
            },
            _ => self.repeat.is_none() && self.operand_prefix,
        };
        if !whole || mod_rm.is_register {
            return Err(DecodeError::Unsupported);
        }
        let memory = Operand::Memory(mod_rm.memory);
        let width = Width::Qword;
        let store = matches!(opcode, 0x11 | 0x29 | 0x2b | 0x7f | 0xe7);
        Ok(if store {
            self.instruction(Kind::MovVector, width, memory, Operand::None)
        } else {
            self.instruction(Kind::MovVector, width, Operand::None, memory)
        })
    }

    /// Whether LOCK may stand before the instruction: it changes memory by reading and writing it.
    fn lockable(&self, instruction: &Instruction) -> bool {
        let changes = match instruction.kind {
            Kind::Arithmetic(operation) => operation != Arithmetic::Cmp,
            Kind::Bit(bit) => bit != Bit::Test,
            Kind::Inc | Kind::Dec | Kind::Not | Kind::Neg => true,
            Kind::Xchg | Kind::Xadd | Kind::Cmpxchg | Kind::CmpxchgPair => true,
            _ => false,
        };
        changes && matches!(instruction.destination, Operand::Memory(_))
    }
}

/// `value` of `width` with its sign bit copied to all above.
pub(super) const fn sign_extend(value: u64, width: Width) -> u64 {
    let unused = 64_u32.wrapping_sub(width.bits());
    (value.wrapping_shl(unused) as i64).wrapping_shr(unused) as u64
}
