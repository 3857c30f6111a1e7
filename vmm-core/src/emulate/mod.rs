//! Instructions that the hardware leaves to us: those that touch a device's memory, and the string forms of
//! port access; and reading code where the hardware does not say what it decoded.
//!
//! One instruction goes through here like this: [`fetch_instruction`] walks the guest's page tables and
//! decodes, an operand becomes a linear and then a guest-physical address, and what memory does not back the
//! [`Bus`] answers.

mod arithmetic;
mod decode;
mod execute;
mod fetch;
mod instruction;
mod linear;
mod place;
mod string;

pub use decode::{DecodeError, decode};
pub use fetch::{FetchedCode, fetch, fetch_instruction, next_rip};
pub use instruction::{
    AddressSize, Arithmetic, Base, Bit, Instruction, Kind, MemoryOperand, Operand, Repeat,
};

use crate::cpu::{CpuView, Event, Gpr, PortAccess, Width};
use crate::memory::{GuestMemory, GuestPhys, PageFault};
use core::fmt;
use execute::Machine;

/// Where an emulated access goes when no memory backs it. Nobody's addresses and ports read as all ones.
pub trait Bus {
    /// Reads `width` bytes; bits above count for nothing.
    fn mmio_read(&mut self, address: GuestPhys, width: Width) -> u64;
    /// Writes the low `width` bytes of `value`.
    fn mmio_write(&mut self, address: GuestPhys, width: Width, value: u64);
    /// Reads a port, at most 4 bytes wide; bits above count for nothing.
    fn port_read(&mut self, port: u16, width: Width) -> u32;
    /// Writes the low `width` bytes of `value` to a port.
    fn port_write(&mut self, port: u16, width: Width, value: u32);
}

/// An exception that the emulated instruction raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    event: Event,
    /// What CR2 becomes.
    address: Option<u64>,
}

impl Fault {
    const fn new(event: Event) -> Self {
        Self { event, address: None }
    }

    const fn page_fault(fault: PageFault, linear: u64) -> Self {
        Self { event: Event::page_fault(fault.error_code), address: Some(linear) }
    }

    /// The event to inject. For #PF, CR2 is set here.
    pub fn raise(self, cpu: &mut (impl CpuView + ?Sized)) -> Event {
        if let Some(address) = self.address {
            cpu.set_cr2(address);
        }
        self.event
    }
}

/// Why an instruction was not emulated. RIP still points at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmulateError {
    /// It raises an exception: the guest's own matter.
    Fault(Fault),
    /// It is none of those we know.
    Unsupported(FetchedCode),
    /// RIP leads to an address that no memory backs.
    CodeNotMemory(GuestPhys),
    /// It is not what the exit was about: another CPU of the guest has written over it. Entering the guest
    /// again does what the guest now wants.
    Changed,
}

impl fmt::Display for EmulateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "the instruction raises {}", fault.event),
            Self::Unsupported(code) => write!(f, "no emulation for the instruction {code:?}"),
            Self::CodeNotMemory(at) => write!(f, "code at guest-physical {at}, which is not memory"),
            Self::Changed => f.write_str("the instruction was overwritten since its exit"),
        }
    }
}

impl core::error::Error for EmulateError {}

impl From<Fault> for EmulateError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// How far a port instruction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// The instruction is complete.
    Done,
    /// A long string instruction has done a part, and its registers say which: RIP stays, and the guest, when
    /// entered again, goes on from there after it has taken its interrupts.
    Partial,
}

/// Emulates the instruction at RIP, which accesses memory that is a device's. Gives the RIP to go on at, or
/// `None` while a long string instruction has only done a part.
///
/// Only instructions that access memory are taken, and no port or privileged instruction among them: the
/// hardware checked the privilege of the one that exited, and the guest may have replaced it since.
pub fn emulate<C: CpuView + ?Sized, B: Bus + ?Sized>(
    cpu: &mut C,
    memory: &GuestMemory,
    bus: &mut B,
) -> Result<Option<u64>, EmulateError> {
    let instruction = fetch_instruction(cpu, memory)?;
    let next_rip = fetch::past(cpu, u64::from(instruction.length));
    match Machine::new(cpu, memory, bus).execute(&instruction)? {
        Some(Progress::Done) => Ok(Some(next_rip)),
        Some(Progress::Partial) => Ok(None),
        None => Err(EmulateError::Unsupported(fetch(cpu, memory)?)),
    }
}

/// What the MOV to CR8 at RIP writes, and where it ends. [`EmulateError::Changed`] when another instruction
/// stands there now.
pub fn task_priority_write(
    cpu: &(impl CpuView + ?Sized),
    memory: &GuestMemory,
) -> Result<(u64, u64), EmulateError> {
    let instruction = fetch::fetch_expected(cpu, memory, Kind::MovToControl)?;
    match (instruction.destination, instruction.source) {
        (Operand::Control(8), Operand::Register(source)) => {
            let next_rip = fetch::past(cpu, u64::from(instruction.length));
            Ok((cpu.registers().get(source) & instruction.width.mask(), next_rip))
        }
        _ => Err(EmulateError::Changed),
    }
}

/// Does the port access of an exit: IN, OUT, INS or OUTS. Where it ends the hardware
/// told the caller.
#[inline]
pub fn port<C: CpuView + ?Sized, B: Bus + ?Sized>(
    cpu: &mut C,
    memory: &GuestMemory,
    bus: &mut B,
    access: &PortAccess,
) -> Result<Progress, EmulateError> {
    if access.string {
        return port_string(cpu, memory, bus, access);
    }
    if access.write {
        let value = cpu.registers().get(Gpr::Rax) & access.width.mask();
        bus.port_write(access.port, access.width, value as u32);
    } else {
        let value = bus.port_read(access.port, access.width);
        execute::set_register(cpu.registers_mut(), Gpr::Rax, access.width, u64::from(value));
    }
    Ok(Progress::Done)
}

/// The hardware checked that the guest may use this port in this direction, so these are not read from the
/// instruction again; only its memory side is.
#[cold]
fn port_string<C: CpuView + ?Sized, B: Bus + ?Sized>(
    cpu: &mut C,
    memory: &GuestMemory,
    bus: &mut B,
    access: &PortAccess,
) -> Result<Progress, EmulateError> {
    let kind = if access.write { Kind::Outs } else { Kind::Ins };
    let instruction = fetch::fetch_expected(cpu, memory, kind)?;
    if instruction.width != access.width {
        return Err(EmulateError::Changed);
    }
    Ok(Machine::new(cpu, memory, bus).port_string(access, &instruction)?)
}

#[cfg(test)]
mod tests;
