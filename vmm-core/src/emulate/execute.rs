//! What an instruction does to registers, flags and memory.

use super::arithmetic::{Outcome, STATUS, add, arithmetic, keeping_carry, logic, subtract};
use super::decode::sign_extend;
use super::instruction::{Arithmetic, Base, Bit, Instruction, Kind, MemoryOperand, Operand};
use super::linear::linear;
use super::place::Place;
use super::{Bus, EmulateError, Fault, Progress};
use crate::cpu::{CodeSize, CpuView, Event, Gpr, Registers, Width, rflags};
use crate::memory::{GuestMemory, Paging};

/// A CPU at work on one instruction.
///
/// A LOCKed instruction reads and then writes without holding anything: only operands on a device come here,
/// whose bus serves one access at a time and knows no locked one.
pub(super) struct Machine<'a, C: ?Sized, B: ?Sized> {
    pub cpu: &'a mut C,
    pub memory: &'a GuestMemory,
    pub bus: &'a mut B,
    pub paging: Paging,
    pub size: CodeSize,
    /// Privilege level 3.
    pub user: bool,
    /// RFLAGS.AC.
    pub alignment_check: bool,
}

impl<'a, C: CpuView + ?Sized, B: Bus + ?Sized> Machine<'a, C, B> {
    pub(super) fn new(cpu: &'a mut C, memory: &'a GuestMemory, bus: &'a mut B) -> Self {
        Self {
            paging: cpu.paging(),
            size: cpu.code_size(),
            user: cpu.privilege_level() == 3,
            alignment_check: cpu.registers().rflags & rflags::AC != 0,
            cpu,
            memory,
            bus,
        }
    }

    /// Executes all but the advance of RIP; `None` for an instruction whose execution is not our business.
    pub(super) fn execute(&mut self, instruction: &Instruction) -> Result<Option<Progress>, EmulateError> {
        match instruction.kind {
            Kind::Movs | Kind::Stos | Kind::Lods | Kind::Scas | Kind::Cmps => {
                return Ok(Some(self.string(instruction)?));
            }
            Kind::Mov => self.mov(instruction)?,
            Kind::Movzx => self.extend(instruction, |value, _| value)?,
            Kind::Movsx => self.extend(instruction, sign_extend)?,
            Kind::Arithmetic(_) | Kind::Test => self.two_operands(instruction)?,
            Kind::Not | Kind::Neg | Kind::Inc | Kind::Dec => self.one_operand(instruction)?,
            Kind::Xchg | Kind::Xadd => self.exchange(instruction)?,
            Kind::Cmpxchg => self.compare_exchange(instruction)?,
            Kind::CmpxchgPair => self.compare_exchange_pair(instruction)?,
            Kind::Bit(bit) => self.bit(instruction, bit)?,
            _ => return Ok(None),
        }
        Ok(Some(Progress::Done))
    }

    fn mov(&mut self, instruction: &Instruction) -> Result<(), EmulateError> {
        let width = instruction.width;
        if let Operand::Memory(memory) = instruction.destination {
            let place = self.operand(instruction, memory, 0, width.bytes(), true)?;
            let value = self.source(instruction)?;
            self.store(&place, width, value);
        } else {
            let value = self.source(instruction)?;
            self.set(instruction.destination, width, value);
        }
        Ok(())
    }

    fn extend(
        &mut self,
        instruction: &Instruction,
        extension: impl Fn(u64, Width) -> u64,
    ) -> Result<(), EmulateError> {
        let value = extension(self.source(instruction)?, instruction.source_width);
        self.set(instruction.destination, instruction.width, value);
        Ok(())
    }

    /// The eight of [`Kind::Arithmetic`], and TEST.
    fn two_operands(&mut self, instruction: &Instruction) -> Result<(), EmulateError> {
        let width = instruction.width;
        let flags = self.cpu.registers().rflags;
        let keeps = matches!(instruction.kind, Kind::Test | Kind::Arithmetic(Arithmetic::Cmp));
        let calculate = |left: u64, right: u64| match instruction.kind {
            Kind::Arithmetic(operation) => arithmetic(operation, width, left, right, flags),
            _ => logic(width, left & right),
        };
        let outcome = if let Operand::Memory(memory) = instruction.destination {
            let place = self.operand(instruction, memory, 0, width.bytes(), !keeps)?;
            let right = self.source(instruction)?;
            let outcome = calculate(self.load(&place, width), right);
            if !keeps {
                self.store(&place, width, outcome.value);
            }
            outcome
        } else {
            let right = self.source(instruction)?;
            let outcome = calculate(self.get(instruction.destination, width), right);
            if !keeps {
                self.set(instruction.destination, width, outcome.value);
            }
            outcome
        };
        self.set_status(outcome.flags);
        Ok(())
    }

    fn one_operand(&mut self, instruction: &Instruction) -> Result<(), EmulateError> {
        let width = instruction.width;
        let place = self.destination(instruction, width.bytes())?;
        let value = self.load(&place, width);
        let flags = self.cpu.registers().rflags;
        let outcome = match instruction.kind {
            Kind::Not => Outcome { value: !value, flags: flags & STATUS },
            Kind::Neg => subtract(width, 0, value, 0),
            Kind::Inc => keeping_carry(add(width, value, 1, 0), flags),
            _ => keeping_carry(subtract(width, value, 1, 0), flags),
        };
        self.store(&place, width, outcome.value);
        self.set_status(outcome.flags);
        Ok(())
    }

    /// XCHG and XADD: the register gets what was in memory.
    fn exchange(&mut self, instruction: &Instruction) -> Result<(), EmulateError> {
        let width = instruction.width;
        let place = self.destination(instruction, width.bytes())?;
        let (old, register) = (self.load(&place, width), self.get(instruction.source, width));
        if instruction.kind == Kind::Xadd {
            let outcome = add(width, old, register, 0);
            self.store(&place, width, outcome.value);
            self.set_status(outcome.flags);
        } else {
            self.store(&place, width, register);
        }
        self.set(instruction.source, width, old);
        Ok(())
    }

    fn compare_exchange(&mut self, instruction: &Instruction) -> Result<(), EmulateError> {
        let width = instruction.width;
        let accumulator = Operand::Register(Gpr::Rax);
        let place = self.destination(instruction, width.bytes())?;
        let old = self.load(&place, width);
        let outcome = subtract(width, self.get(accumulator, width), old, 0);
        if outcome.flags & rflags::ZF != 0 {
            let new = self.get(instruction.source, width);
            self.store(&place, width, new);
        } else {
            // The CPU writes in either case.
            self.store(&place, width, old);
            self.set(accumulator, width, old);
        }
        self.set_status(outcome.flags);
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B.
    fn compare_exchange_pair(&mut self, instruction: &Instruction) -> Result<(), EmulateError> {
        let Operand::Memory(memory) = instruction.destination else { return Err(EmulateError::Changed) };
        let width = instruction.width;
        // Only the 16-byte form must be aligned.
        if width == Width::Qword {
            let offset = self.effective(instruction, &memory, 0);
            if linear(self.cpu, memory.segment, offset, 16, true)? & 15 != 0 {
                return Err(Fault::new(Event::GENERAL_PROTECTION).into());
            }
        }
        // Both halves are checked before either is read.
        let low = self.operand(instruction, memory, 0, width.bytes(), true)?;
        let high = self.operand(instruction, memory, width.bytes(), width.bytes(), true)?;
        let old = (self.load(&low, width), self.load(&high, width));
        let get = |machine: &Self, register| machine.get(Operand::Register(register), width);
        let equal = old == (get(self, Gpr::Rax), get(self, Gpr::Rdx));
        let new = if equal { (get(self, Gpr::Rbx), get(self, Gpr::Rcx)) } else { old };
        self.store(&low, width, new.0);
        self.store(&high, width, new.1);
        let flags = &mut self.cpu.registers_mut().rflags;
        if equal {
            *flags |= rflags::ZF;
        } else {
            *flags &= !rflags::ZF;
            self.set(Operand::Register(Gpr::Rax), width, old.0);
            self.set(Operand::Register(Gpr::Rdx), width, old.1);
        }
        Ok(())
    }

    /// BT, BTS, BTR and BTC. A bit number in a register reaches beyond the operand, both ways.
    fn bit(&mut self, instruction: &Instruction, bit: Bit) -> Result<(), EmulateError> {
        let Operand::Memory(memory) = instruction.destination else { return Err(EmulateError::Changed) };
        let width = instruction.width;
        let number = self.get(instruction.source, width);
        let reach = match instruction.source {
            Operand::Immediate(_) => 0,
            _ => {
                let operands =
                    (sign_extend(number, width) as i64).wrapping_shr(width.bits().trailing_zeros());
                (operands as u64).wrapping_mul(width.bytes())
            }
        };
        let write = bit != Bit::Test;
        let place = self.operand(instruction, memory, reach, width.bytes(), write)?;
        let mask = 1_u64.wrapping_shl(number as u32 & width.bits().wrapping_sub(1));
        let old = self.load(&place, width);
        if write {
            let new = match bit {
                Bit::Test => old,
                Bit::Set => old | mask,
                Bit::Reset => old & !mask,
                Bit::Complement => old ^ mask,
            };
            self.store(&place, width, new);
        }
        let flags = &mut self.cpu.registers_mut().rflags;
        *flags = *flags & !rflags::CF | if old & mask != 0 { rflags::CF } else { 0 };
        Ok(())
    }

    /// The instruction's memory destination, to be read and written. Without one it is not the instruction
    /// that exited.
    fn destination(&self, instruction: &Instruction, len: u64) -> Result<Place, EmulateError> {
        match instruction.destination {
            Operand::Memory(memory) => self.operand(instruction, memory, 0, len, true),
            _ => Err(EmulateError::Changed),
        }
    }

    /// `len` bytes, `displacement` bytes behind where `operand` points.
    fn operand(
        &self,
        instruction: &Instruction,
        operand: MemoryOperand,
        displacement: u64,
        len: u64,
        write: bool,
    ) -> Result<Place, EmulateError> {
        let offset = self.effective(instruction, &operand, displacement);
        Ok(self.place(operand.segment, offset, len, write)?)
    }

    /// The offset in its segment that `operand` names, plus `displacement`.
    fn effective(&self, instruction: &Instruction, operand: &MemoryOperand, displacement: u64) -> u64 {
        let registers = self.cpu.registers();
        let base = match operand.base {
            Base::None => 0,
            Base::Register(register) => registers.get(register),
            Base::Rip => registers.rip.wrapping_add(u64::from(instruction.length)),
        };
        let index = operand.index.map_or(0, |register| registers.get(register));
        base.wrapping_add(index.wrapping_mul(u64::from(operand.scale)))
            .wrapping_add(operand.displacement)
            .wrapping_add(displacement)
            & instruction.address_size.mask()
    }

    /// The source's value, cut to its width.
    fn source(&mut self, instruction: &Instruction) -> Result<u64, EmulateError> {
        let width = instruction.source_width;
        match instruction.source {
            Operand::Memory(memory) => {
                let place = self.operand(instruction, memory, 0, width.bytes(), false)?;
                Ok(self.load(&place, width))
            }
            operand => Ok(self.get(operand, width)),
        }
    }

    /// The value of an operand that is not in memory, cut to `width`.
    fn get(&self, operand: Operand, width: Width) -> u64 {
        let registers = self.cpu.registers();
        let value = match operand {
            Operand::Register(register) => registers.get(register),
            Operand::HighByte(register) => registers.get(register) >> 8,
            Operand::Immediate(value) => value,
            Operand::None | Operand::Memory(_) | Operand::Control(_) | Operand::Debug(_) => 0,
        };
        value & width.mask()
    }

    /// Sets a register operand.
    fn set(&mut self, operand: Operand, width: Width, value: u64) {
        let registers = self.cpu.registers_mut();
        match operand {
            Operand::Register(register) => set_register(registers, register, width, value),
            Operand::HighByte(register) => {
                let rest = registers.get(register) & !0xff00;
                registers.set(register, rest | (value & 0xff) << 8);
            }
            Operand::None | Operand::Memory(_) | Operand::Immediate(_) => {}
            Operand::Control(_) | Operand::Debug(_) => {}
        }
    }

    /// Replaces the status flags.
    pub(super) fn set_status(&mut self, flags: u64) {
        let all = &mut self.cpu.registers_mut().rflags;
        *all = *all & !STATUS | flags & STATUS;
    }
}

/// Sets the low part of a register: four bytes clear the upper half, fewer leave what is above.
#[inline]
pub(super) fn set_register(registers: &mut Registers, register: Gpr, width: Width, value: u64) {
    let kept = match width {
        Width::Byte | Width::Word => registers.get(register) & !width.mask(),
        Width::Dword | Width::Qword => 0,
    };
    registers.set(register, kept | value & width.mask());
}
