//! Where an operand in memory lies, and its bytes.

use super::execute::Machine;
use super::linear::linear;
use super::{Bus, Fault};
use crate::cpu::{CodeSize, CpuView, SegmentRegister, Width};
use crate::memory::{Access, AccessKind, GuestPhys, Marking, translate};

/// A translated operand: one piece, or two where it crosses into another page. Every check is done, so it can
/// be read and then written without a fault between.
#[derive(Clone, Copy)]
pub(super) struct Place {
    first: GuestPhys,
    /// Bytes at `first`; the rest, if any, is at `second`.
    first_len: u64,
    second: GuestPhys,
    len: u64,
}

impl Place {
    fn address(&self, index: u64) -> GuestPhys {
        let (start, index) = match index.checked_sub(self.first_len) {
            None => (self.first, index),
            Some(past) => (self.second, past),
        };
        // A piece ends with its page, so this cannot pass the end of the address space.
        start.checked_add(index).unwrap_or(start)
    }

    fn is_whole(&self) -> bool {
        self.first_len >= self.len
    }
}

impl<C: CpuView + ?Sized, B: Bus + ?Sized> Machine<'_, C, B> {
    /// Finds `len` bytes at `offset` in `segment`, and checks that they may be read, or also written.
    pub(super) fn place(
        &self,
        segment: SegmentRegister,
        offset: u64,
        len: u64,
        write: bool,
    ) -> Result<Place, Fault> {
        let start = linear(self.cpu, segment, offset, len, write)?;
        let (first, remaining) = self.translate(start, write)?;
        let first_len = remaining.min(len);
        let mut place = Place { first, first_len, second: first, len };
        if !place.is_whole() {
            let next = start.wrapping_add(first_len);
            let next = if self.size == CodeSize::Bits64 { next } else { next & 0xffff_ffff };
            (place.second, _) = self.translate(next, write)?;
        }
        Ok(place)
    }

    fn translate(&self, linear: u64, write: bool) -> Result<(GuestPhys, u64), Fault> {
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        let access = Access { kind, user: self.user, alignment_check: self.alignment_check };
        match translate(self.memory, &self.paging, linear, access, Marking::Mark) {
            // Memory and devices meet at page boundaries, whatever the size of the mapping.
            Ok(found) => {
                let page = 0x1000_u64.saturating_sub(found.address.get() & 0xfff);
                Ok((found.address, found.remaining.min(page)))
            }
            Err(fault) => Err(Fault::page_fault(fault, linear)),
        }
    }

    /// Reads an operand of `width` from `place`.
    pub(super) fn load(&mut self, place: &Place, width: Width) -> u64 {
        if place.is_whole() {
            return self.read(place.first, width);
        }
        (0..width.bytes()).fold(0, |value, index| {
            let byte = self.read(place.address(index), Width::Byte);
            value | byte.wrapping_shl((index as u32).wrapping_mul(8))
        })
    }

    /// Writes an operand of `width` to `place`, which was made for writing.
    pub(super) fn store(&mut self, place: &Place, width: Width, value: u64) {
        if place.is_whole() {
            return self.write(place.first, width, value);
        }
        for index in 0..width.bytes() {
            let byte = value.wrapping_shr((index as u32).wrapping_mul(8));
            self.write(place.address(index), Width::Byte, byte);
        }
    }

    fn read(&mut self, at: GuestPhys, width: Width) -> u64 {
        let from_memory = match width {
            Width::Byte => self.memory.read_u8(at).map(u64::from),
            Width::Word => self.memory.read_u16(at).map(u64::from),
            Width::Dword => self.memory.read_u32(at).map(u64::from),
            Width::Qword => self.memory.read_u64(at),
        };
        from_memory.unwrap_or_else(|_| self.bus.mmio_read(at, width) & width.mask())
    }

    fn write(&mut self, at: GuestPhys, width: Width, value: u64) {
        let to_memory = match width {
            Width::Byte => self.memory.write_u8(at, value as u8),
            Width::Word => self.memory.write_u16(at, value as u16),
            Width::Dword => self.memory.write_u32(at, value as u32),
            Width::Qword => self.memory.write_u64(at, value),
        };
        if to_memory.is_err() {
            self.bus.mmio_write(at, width, value & width.mask());
        }
    }
}
