//! The bytes at CS:RIP.

use super::decode::{DecodeError, decode};
use super::{EmulateError, Fault, Instruction, Kind};
use crate::cpu::{CodeSize, CpuView, Event, SegmentRegister, rflags};
use crate::memory::{Access, AccessKind, GuestMemory, GuestPhys, Marking, Translation, locate, translate};
use core::fmt;

/// No instruction is longer (SDM 2.3.11).
pub const LONGEST: usize = 15;

/// Instruction bytes as the guest's CPU would fetch them, as far as it could.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FetchedCode {
    bytes: [u8; LONGEST],
    len: u8,
}

impl FetchedCode {
    /// The bytes: 1 to 15.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }
}

impl fmt::Debug for FetchedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.bytes() {
            write!(f, "{byte:02x} ")?;
        }
        Ok(())
    }
}

/// Why no further byte could be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    Fault(Fault),
    NotMemory(GuestPhys),
}

impl From<Obstacle> for EmulateError {
    fn from(obstacle: Obstacle) -> Self {
        match obstacle {
            Obstacle::Fault(fault) => Self::Fault(fault),
            Obstacle::NotMemory(at) => Self::CodeNotMemory(at),
        }
    }
}

/// Fetches the 15 bytes from CS:RIP on, or as many as there are before the code segment, the mapping or
/// memory ends. It is an error only if there is none.
pub fn fetch(cpu: &(impl CpuView + ?Sized), memory: &GuestMemory) -> Result<FetchedCode, EmulateError> {
    let (code, obstacle) = fetch_with_obstacle(cpu, memory);
    match obstacle {
        Some(obstacle) if code.len == 0 => Err(obstacle.into()),
        _ => Ok(code),
    }
}

/// Fetches and decodes the instruction at CS:RIP. The error is what the CPU would raise, or that the
/// instruction is none of those we know.
pub fn fetch_instruction(
    cpu: &(impl CpuView + ?Sized),
    memory: &GuestMemory,
) -> Result<Instruction, EmulateError> {
    let (code, obstacle) = fetch_with_obstacle(cpu, memory);
    if let Some(obstacle) = obstacle
        && code.len == 0
    {
        return Err(obstacle.into());
    }
    decode(code.bytes(), cpu.code_size()).map_err(|error| match error {
        DecodeError::Truncated => obstacle.map_or(EmulateError::Unsupported(code), EmulateError::from),
        DecodeError::TooLong => EmulateError::Fault(Fault::new(Event::GENERAL_PROTECTION)),
        DecodeError::Invalid => EmulateError::Fault(Fault::new(Event::INVALID_OPCODE)),
        DecodeError::Unsupported => EmulateError::Unsupported(code),
    })
}

/// Where the instruction at CS:RIP ends, which the hardware says is a `kind`: for where the hardware does not
/// say that itself. [`EmulateError::Changed`] when another instruction stands there now.
///
/// Most have one encoding, without a prefix: that costs a walk and a comparison.
#[inline]
pub fn next_rip(
    cpu: &(impl CpuView + ?Sized),
    memory: &GuestMemory,
    kind: Kind,
) -> Result<u64, EmulateError> {
    let rip = cpu.registers().rip;
    if let Some((opcode, length)) = usual_encoding(kind)
        && cpu.code_size() == CodeSize::Bits64
        && let Some(Translation { address, remaining }) = locate(memory, &cpu.paging(), rip)
        && remaining >= 4
        && let Ok(bytes) = memory.read_u32(address)
        && (bytes ^ opcode).wrapping_shl(32_u32.wrapping_sub(length.wrapping_mul(8))) == 0
    {
        return Ok(rip.wrapping_add(u64::from(length)));
    }
    decoded_next_rip(cpu, memory, kind)
}

/// RIP, `length` bytes further on.
pub(super) fn past(cpu: &(impl CpuView + ?Sized), length: u64) -> u64 {
    let rip = cpu.registers().rip.wrapping_add(length);
    if cpu.code_size() == CodeSize::Bits64 { rip } else { rip & 0xffff_ffff }
}

/// The encoding without prefixes as a little-endian number, and its length in bytes.
#[inline]
const fn usual_encoding(kind: Kind) -> Option<(u32, u32)> {
    match kind {
        Kind::Cpuid => Some((0xa20f, 2)),
        Kind::Rdmsr => Some((0x320f, 2)),
        Kind::Wrmsr => Some((0x300f, 2)),
        Kind::Rdtsc => Some((0x310f, 2)),
        Kind::Rdtscp => Some((0xf9_010f, 3)),
        Kind::Rdpmc => Some((0x330f, 2)),
        Kind::Hlt => Some((0xf4, 1)),
        Kind::Pause => Some((0x90f3, 2)),
        Kind::Monitor => Some((0xc8_010f, 3)),
        Kind::Mwait => Some((0xc9_010f, 3)),
        Kind::Vmcall => Some((0xc1_010f, 3)),
        Kind::Vmmcall => Some((0xd9_010f, 3)),
        Kind::Xsetbv => Some((0xd1_010f, 3)),
        Kind::Invd => Some((0x080f, 2)),
        Kind::Wbinvd => Some((0x090f, 2)),
        Kind::Clts => Some((0x060f, 2)),
        _ => None,
    }
}

#[cold]
fn decoded_next_rip(
    cpu: &(impl CpuView + ?Sized),
    memory: &GuestMemory,
    kind: Kind,
) -> Result<u64, EmulateError> {
    let instruction = fetch_expected(cpu, memory, kind)?;
    Ok(past(cpu, u64::from(instruction.length)))
}

/// The instruction at CS:RIP, which the hardware says is a `kind`.
pub(super) fn fetch_expected(
    cpu: &(impl CpuView + ?Sized),
    memory: &GuestMemory,
    kind: Kind,
) -> Result<Instruction, EmulateError> {
    match fetch_instruction(cpu, memory) {
        Ok(instruction) if instruction.kind == kind => Ok(instruction),
        Ok(_) | Err(EmulateError::Unsupported(_)) => Err(EmulateError::Changed),
        Err(error) => Err(error),
    }
}

#[inline]
fn fetch_translation(
    cpu: &(impl CpuView + ?Sized),
    memory: &GuestMemory,
    linear: u64,
) -> Result<Translation, Fault> {
    let access = Access {
        kind: AccessKind::Fetch,
        user: cpu.privilege_level() == 3,
        alignment_check: cpu.registers().rflags & rflags::AC != 0,
    };
    // The CPU has fetched from here and set Accessed; another flag a fetch does not set.
    translate(memory, &cpu.paging(), linear, access, Marking::Leave)
        .map_err(|fault| Fault::page_fault(fault, linear))
}

fn fetch_with_obstacle(
    cpu: &(impl CpuView + ?Sized),
    memory: &GuestMemory,
) -> (FetchedCode, Option<Obstacle>) {
    let mut code = FetchedCode { bytes: [0; LONGEST], len: 0 };
    let mut obstacle = None;
    while usize::from(code.len) < LONGEST && obstacle.is_none() {
        match fetch_piece(cpu, memory, &mut code) {
            Ok(fetched) => code.len = code.len.saturating_add(fetched).min(LONGEST as u8),
            Err(found) => obstacle = Some(found),
        }
    }
    (code, obstacle)
}

/// Fetches what follows the `code.len` bytes already there, up to the end of its page; says how much.
fn fetch_piece(
    cpu: &(impl CpuView + ?Sized),
    memory: &GuestMemory,
    code: &mut FetchedCode,
) -> Result<u8, Obstacle> {
    let general_protection = Obstacle::Fault(Fault::new(Event::GENERAL_PROTECTION));
    let rip = cpu.registers().rip.wrapping_add(u64::from(code.len));
    let mut wanted = (LONGEST as u64).saturating_sub(u64::from(code.len));
    let linear = if cpu.code_size() == CodeSize::Bits64 {
        if !super::linear::is_canonical(rip, &cpu.paging()) {
            return Err(general_protection);
        }
        rip
    } else {
        let segment = cpu.segment(SegmentRegister::Cs);
        let offset = rip & 0xffff_ffff;
        let room = u64::from(segment.limit).checked_sub(offset).ok_or(general_protection)?;
        wanted = wanted.min(room.saturating_add(1));
        segment.base.wrapping_add(offset) & 0xffff_ffff
    };
    let Translation { address, remaining } =
        fetch_translation(cpu, memory, linear).map_err(Obstacle::Fault)?;
    // Memory begins and ends at page boundaries, whatever the size of the mapping.
    let page = 0x1000_u64.wrapping_sub(address.get() & 0xfff);
    let wanted = wanted.min(remaining).min(page) as usize;
    let start = usize::from(code.len);
    let piece = code.bytes.get_mut(start..start.saturating_add(wanted)).ok_or(general_protection)?;
    memory.read(address, piece).map_err(|_| Obstacle::NotMemory(address))?;
    Ok(wanted as u8)
}
