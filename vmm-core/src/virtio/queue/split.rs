//! Split rings: a descriptor table, and a ring each for available and used buffers (virtio 1.2, 2.7).

use super::chain::Collector;
use super::{Chain, QueueLayout, RingError, RingFeatures, Token, check_part, descriptor, passes};
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use core::sync::atomic::{Ordering, fence};

/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1 << 0;
/// Both rings begin with flags and an index; entries follow.
const INDEX: u64 = 2;
const ENTRIES: u64 = 4;
const AVAILABLE_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;

#[derive(Debug)]
pub(super) struct SplitRing {
    size: u16,
    descriptors: GuestPhys,
    available: GuestPhys,
    used: GuestPhys,
    indirect: bool,
    event_index: bool,
    /// The index of the next buffer to take.
    next_available: u16,
    /// The index of the next used entry.
    next_used: u16,
    /// That index when an interrupt was last considered.
    considered: u16,
}

/// A descriptor, read once.
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A table of descriptors.
struct Table {
    at: GuestPhys,
    descriptors: u16,
}

impl Table {
    fn read(&self, memory: &GuestMemory, index: u16) -> Result<Descriptor, RingError> {
        if index >= self.descriptors {
            return Err(RingError::NoSuchDescriptor(index));
        }
        let at = part(self.at, u64::from(index).wrapping_mul(descriptor::BYTES));
        let mut bytes = [0; descriptor::BYTES as usize];
        memory.read(at, &mut bytes)?;
        let value = u128::from_le_bytes(bytes);
        Ok(Descriptor {
            address: value as u64,
            len: (value >> 64) as u32,
            flags: (value >> 96) as u16,
            next: (value >> 112) as u16,
        })
    }
}

/// `offset` bytes into a part of the ring, all of which is memory.
fn part(at: GuestPhys, offset: u64) -> GuestPhys {
    GuestPhys::new(at.get().wrapping_add(offset))
}

impl SplitRing {
    pub(super) fn new(
        layout: &QueueLayout,
        features: RingFeatures,
        memory: &GuestMemory,
    ) -> Result<Self, RingError> {
        let size = u64::from(layout.size);
        if !layout.size.is_power_of_two() {
            return Err(RingError::Size(layout.size));
        }
        // Behind each ring's entries lies an event index.
        let ring = |entry: u64| entry.wrapping_mul(size).wrapping_add(ENTRIES).wrapping_add(2);
        check_part(memory, layout.descriptors, descriptor::BYTES.wrapping_mul(size), 16)?;
        check_part(memory, layout.driver, ring(AVAILABLE_ENTRY), 2)?;
        check_part(memory, layout.device, ring(USED_ENTRY), 4)?;
        Ok(Self {
            size: layout.size,
            descriptors: layout.descriptors,
            available: layout.driver,
            used: layout.device,
            indirect: features.indirect,
            event_index: features.event_index,
            next_available: 0,
            next_used: 0,
            considered: 0,
        })
    }

    pub(super) fn pop(&mut self, memory: &GuestMemory, held: u16) -> Result<Option<Chain>, RingError> {
        let waiting = self.available_index(memory)?.wrapping_sub(self.next_available);
        if waiting == 0 {
            return Ok(None);
        }
        // Buffers that are not used yet hold at least one descriptor each.
        if waiting > self.size.saturating_sub(held) {
            return Err(RingError::TooManyAvailable(waiting));
        }
        // The entries were written before the index.
        fence(Ordering::Acquire);
        let head = memory.read_u16(self.entry(self.available, self.next_available, AVAILABLE_ENTRY))?;
        let mut chain = Collector::new(memory);
        self.walk(memory, head, &mut chain)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain.finish(Token { id: head, entries: 1 })))
    }

    /// Follows a chain from its head through the ring's own table, and on through an indirect one at its end.
    fn walk(&self, memory: &GuestMemory, head: u16, chain: &mut Collector) -> Result<(), RingError> {
        let (mut table, mut index) = (Table { at: self.descriptors, descriptors: self.size }, head);
        let (mut left, mut within) = (self.size, false);
        loop {
            left = left.checked_sub(1).ok_or(RingError::TooLong)?;
            let descriptor = table.read(memory, index)?;
            if descriptor.flags & descriptor::INDIRECT != 0 {
                if !self.indirect || within || descriptor.flags & descriptor::NEXT != 0 {
                    return Err(RingError::Indirect);
                }
                let descriptors = indirect_descriptors(descriptor.len)?;
                table = Table { at: GuestPhys::new(descriptor.address), descriptors };
                check_part(memory, table.at, u64::from(descriptor.len), 1)?;
                (index, left, within) = (0, descriptors, true);
                continue;
            }
            chain.add(descriptor.address, descriptor.len, descriptor.flags & descriptor::WRITE != 0)?;
            if descriptor.flags & descriptor::NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    pub(super) fn push(
        &mut self,
        token: Token,
        written: u32,
        memory: &GuestMemory,
    ) -> Result<(), OutOfRange> {
        let entry = self.entry(self.used, self.next_used, USED_ENTRY);
        memory.write_u64(entry, u64::from(written) << 32 | u64::from(token.id))?;
        self.next_used = self.next_used.wrapping_add(1);
        // The driver sees the entry, and what it is about, before the index.
        fence(Ordering::Release);
        memory.write_u16(part(self.used, INDEX), self.next_used)
    }

    pub(super) fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, OutOfRange> {
        let old = core::mem::replace(&mut self.considered, self.next_used);
        if old == self.next_used {
            return Ok(false);
        }
        // The driver writes what it wants, and then looks at the used index: we do it the other way round.
        fence(Ordering::SeqCst);
        if self.event_index {
            let event = memory.read_u16(self.entries_end(self.available, AVAILABLE_ENTRY))?;
            return Ok(passes(event, self.next_used, old));
        }
        Ok(memory.read_u16(self.available)? & NO_INTERRUPT == 0)
    }

    pub(super) fn ask_for_notification(&mut self, memory: &GuestMemory) -> Result<bool, OutOfRange> {
        if self.event_index {
            memory.write_u16(self.entries_end(self.used, USED_ENTRY), self.next_available)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.available_index(memory)? != self.next_available)
    }

    fn available_index(&self, memory: &GuestMemory) -> Result<u16, OutOfRange> {
        memory.read_u16(part(self.available, INDEX))
    }

    /// Where the entry of a free-running index lies.
    fn entry(&self, ring: GuestPhys, index: u16, bytes: u64) -> GuestPhys {
        let slot = index & self.size.wrapping_sub(1);
        part(ring, u64::from(slot).wrapping_mul(bytes).wrapping_add(ENTRIES))
    }

    fn entries_end(&self, ring: GuestPhys, bytes: u64) -> GuestPhys {
        part(ring, u64::from(self.size).wrapping_mul(bytes).wrapping_add(ENTRIES))
    }
}

/// How many descriptors an indirect table of `len` bytes has.
pub(super) fn indirect_descriptors(len: u32) -> Result<u16, RingError> {
    let descriptors = u16::try_from(len >> 4).map_err(|_| RingError::TooLong)?;
    if descriptors == 0 || len & 0xf != 0 {
        return Err(RingError::IndirectLength(len));
    }
    Ok(descriptors)
}
