//! From a segment and an offset to a linear address.

use super::Fault;
use crate::cpu::{CodeSize, ControlRegisters, CpuView, Event, Segment, SegmentRegister, rflags};
use crate::memory::Paging;

/// Whether `address` is the sign extension of its low 48 bits, or 57 with five levels of tables.
#[inline]
pub(super) const fn is_canonical(address: u64, paging: &Paging) -> bool {
    let unused = if paging.five_levels() { 7_u32 } else { 16 };
    (address.wrapping_shl(unused) as i64).wrapping_shr(unused) as u64 == address
}

/// Where `len` bytes at `offset` in `register` begin, or the fault that the CPU raises: #SS for the stack
/// segment, else #GP (SDM volume 3, 6.3 and 6.5).
pub(super) fn linear(
    cpu: &(impl CpuView + ?Sized),
    register: SegmentRegister,
    offset: u64,
    len: u64,
    write: bool,
) -> Result<u64, Fault> {
    let last = len.saturating_sub(1);
    let (address, allowed) = if cpu.code_size() == CodeSize::Bits64 {
        let base = match register {
            SegmentRegister::Fs | SegmentRegister::Gs => cpu.segment(register).base,
            _ => 0,
        };
        let address = base.wrapping_add(offset);
        let paging = cpu.paging();
        (address, is_canonical(address, &paging) && is_canonical(address.wrapping_add(last), &paging))
    } else {
        let segment = cpu.segment(register);
        let real =
            cpu.control().cr0 & ControlRegisters::CR0_PE == 0 || cpu.registers().rflags & rflags::VM != 0;
        let permitted = real || permits(segment, write);
        (segment.base.wrapping_add(offset) & 0xffff_ffff, permitted && holds(segment, offset, last))
    };
    match (allowed, register) {
        (true, _) => Ok(address),
        (false, SegmentRegister::Ss) => Err(Fault::new(Event::STACK_FAULT)),
        (false, _) => Err(Fault::new(Event::GENERAL_PROTECTION)),
    }
}

const CODE: u16 = 1 << 3;
const EXPAND_DOWN: u16 = 1 << 2;
/// Of a data segment: writable; of a code segment: readable.
const READ_WRITE: u16 = 1 << 1;

/// Whether the segment's type lets its bytes be read or written as data.
const fn permits(segment: Segment, write: bool) -> bool {
    let allows = segment.attributes & READ_WRITE != 0;
    let code = segment.attributes & CODE != 0;
    segment.present() && if write { !code && allows } else { !code || allows }
}

/// Whether the bytes from `offset` to `last` further on lie within the segment.
fn holds(segment: Segment, offset: u64, last: u64) -> bool {
    let Some(end) = offset.checked_add(last) else { return false };
    let limit = u64::from(segment.limit);
    if segment.attributes & (CODE | EXPAND_DOWN) == EXPAND_DOWN {
        let top = if segment.default_big() { 0xffff_ffff } else { 0xffff };
        offset > limit && end <= top
    } else {
        end <= limit
    }
}
