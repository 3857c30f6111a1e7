//! The string instructions, repeated or not.

use super::arithmetic::subtract;
use super::execute::{Machine, set_register};
use super::instruction::{AddressSize, Instruction, Kind, Repeat};
use super::{Bus, Fault, Progress};
use crate::cpu::{CpuView, Gpr, PortAccess, SegmentRegister, Width, rflags};

/// How many bytes one call moves before the guest may take interrupts and the host its core.
const PORTION: u64 = 4096;

/// How one element moves.
struct Strides {
    width: Width,
    address_size: AddressSize,
    repeat: bool,
}

impl<C: CpuView + ?Sized, B: Bus + ?Sized> Machine<'_, C, B> {
    /// MOVS, STOS, LODS, SCAS and CMPS.
    pub(super) fn string(&mut self, instruction: &Instruction) -> Result<Progress, Fault> {
        let Instruction { kind, width, address_size, segment, repeat, .. } = *instruction;
        let strides = Strides { width, address_size, repeat: repeat.is_some() };
        self.repeat(&strides, |machine| {
            let source = |machine: &Self| {
                machine.place(segment, machine.pointer(Gpr::Rsi, address_size), width.bytes(), false)
            };
            let destination = |machine: &Self, write| {
                let offset = machine.pointer(Gpr::Rdi, address_size);
                machine.place(SegmentRegister::Es, offset, width.bytes(), write)
            };
            let accumulator = machine.cpu.registers().get(Gpr::Rax) & width.mask();
            match kind {
                Kind::Movs => {
                    let (from, to) = (source(machine)?, destination(machine, true)?);
                    let value = machine.load(&from, width);
                    machine.store(&to, width, value);
                    machine.step(Gpr::Rsi, &strides);
                    machine.step(Gpr::Rdi, &strides);
                }
                Kind::Stos => {
                    let to = destination(machine, true)?;
                    machine.store(&to, width, accumulator);
                    machine.step(Gpr::Rdi, &strides);
                }
                Kind::Lods => {
                    let from = source(machine)?;
                    let value = machine.load(&from, width);
                    set_register(machine.cpu.registers_mut(), Gpr::Rax, width, value);
                    machine.step(Gpr::Rsi, &strides);
                }
                _ => {
                    let (left, from) = if kind == Kind::Cmps {
                        let (left, right) = (source(machine)?, destination(machine, false)?);
                        (machine.load(&left, width), right)
                    } else {
                        (accumulator, destination(machine, false)?)
                    };
                    let outcome = subtract(width, left, machine.load(&from, width), 0);
                    machine.set_status(outcome.flags);
                    if kind == Kind::Cmps {
                        machine.step(Gpr::Rsi, &strides);
                    }
                    machine.step(Gpr::Rdi, &strides);
                    let equal = outcome.flags & rflags::ZF != 0;
                    return Ok(equal == (repeat == Some(Repeat::WhileEqual)));
                }
            }
            Ok(true)
        })
    }

    /// INS and OUTS: `access` says which port, `instruction` where in memory.
    pub(super) fn port_string(
        &mut self,
        access: &PortAccess,
        instruction: &Instruction,
    ) -> Result<Progress, Fault> {
        let PortAccess { port, width, write, .. } = *access;
        let Instruction { address_size, segment, repeat, .. } = *instruction;
        let strides = Strides { width, address_size, repeat: repeat.is_some() };
        self.repeat(&strides, |machine| {
            if write {
                let offset = machine.pointer(Gpr::Rsi, address_size);
                let from = machine.place(segment, offset, width.bytes(), false)?;
                let value = machine.load(&from, width);
                machine.bus.port_write(port, width, value as u32);
                machine.step(Gpr::Rsi, &strides);
            } else {
                // A fault must come before the port is read: what it gave could not be given back.
                let offset = machine.pointer(Gpr::Rdi, address_size);
                let to = machine.place(SegmentRegister::Es, offset, width.bytes(), true)?;
                let value = machine.bus.port_read(port, width);
                machine.store(&to, width, u64::from(value));
                machine.step(Gpr::Rdi, &strides);
            }
            Ok(true)
        })
    }

    /// Does `element` once, or as often as the count register says and `element` wants, up to a portion. A
    /// fault leaves the registers as the elements before it made them.
    fn repeat(
        &mut self,
        strides: &Strides,
        mut element: impl FnMut(&mut Self) -> Result<bool, Fault>,
    ) -> Result<Progress, Fault> {
        if !strides.repeat {
            element(self)?;
            return Ok(Progress::Done);
        }
        let mut bytes = 0_u64;
        // A single step is one element (SDM 18.3.1.4).
        let portion = if self.cpu.registers().rflags & rflags::TF == 0 { PORTION } else { 1 };
        loop {
            let left = self.pointer(Gpr::Rcx, strides.address_size);
            if left == 0 {
                return Ok(Progress::Done);
            }
            if bytes >= portion {
                return Ok(Progress::Partial);
            }
            let go_on = element(self)?;
            let left = left.wrapping_sub(1);
            set_register(self.cpu.registers_mut(), Gpr::Rcx, strides.address_size.width(), left);
            if !go_on {
                return Ok(Progress::Done);
            }
            bytes = bytes.saturating_add(strides.width.bytes());
        }
    }

    /// A register as an address or count.
    fn pointer(&self, register: Gpr, size: AddressSize) -> u64 {
        self.cpu.registers().get(register) & size.mask()
    }

    /// Moves a pointer by one element, up or down.
    fn step(&mut self, register: Gpr, strides: &Strides) {
        let registers = self.cpu.registers_mut();
        let width = strides.width.bytes();
        let pointer = registers.get(register);
        let pointer = if registers.rflags & rflags::DF == 0 {
            pointer.wrapping_add(width)
        } else {
            pointer.wrapping_sub(width)
        };
        set_register(registers, register, strides.address_size.width(), pointer);
    }
}
