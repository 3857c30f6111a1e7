//! Packed rings: one ring of descriptors, which both sides write (virtio 1.2, 2.8).

use super::chain::Collector;
use super::split::indirect_descriptors;
use super::{Chain, QueueLayout, RingError, RingFeatures, Token, check_part, descriptor, passes};
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use core::sync::atomic::{Ordering, fence};

/// Descriptor flags that say whose it is: equal to each other once used.
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Event suppression (2.8.14): an offset with a wrap counter in bit 15, then flags.
const EVENT_BYTES: u64 = 4;
const EVENT_WRAP: u16 = 1 << 15;
/// RING_EVENT_FLAGS_DISABLE.
const EVENTS_OFF: u16 = 1;
/// RING_EVENT_FLAGS_DESC.
const EVENT_AT_DESCRIPTOR: u16 = 2;

/// A place in the ring, with the count of rounds as its last bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self { index: 0, wrap: true };

    /// `entries`, at most `size`, further on.
    fn advance(self, entries: u16, size: u16) -> Self {
        let index = self.index.wrapping_add(entries);
        match index.checked_sub(size) {
            Some(index) => Self { index, wrap: !self.wrap },
            None => Self { index, ..self },
        }
    }
}

#[derive(Debug)]
pub(super) struct PackedRing {
    size: u16,
    descriptors: GuestPhys,
    driver: GuestPhys,
    device: GuestPhys,
    indirect: bool,
    event_index: bool,
    next_available: Place,
    next_used: Place,
    /// How many entries were used since an interrupt was last considered.
    used_since: u16,
}

/// A descriptor, read once.
struct Descriptor {
    address: u64,
    len: u32,
    id: u16,
    flags: u16,
}

impl Descriptor {
    /// Reads the flags' word before the rest, and so nothing of what the driver had not finished.
    fn read(memory: &GuestMemory, at: GuestPhys) -> Result<Self, OutOfRange> {
        let word = memory.read_u64(GuestPhys::new(at.get().wrapping_add(8)))?;
        fence(Ordering::Acquire);
        let address = memory.read_u64(at)?;
        Ok(Self { address, len: word as u32, id: (word >> 32) as u16, flags: (word >> 48) as u16 })
    }

    fn is_available(&self, wrap: bool) -> bool {
        (self.flags & AVAILABLE != 0) == wrap && (self.flags & USED != 0) != wrap
    }

    fn device_writes(&self) -> bool {
        self.flags & descriptor::WRITE != 0
    }
}

impl PackedRing {
    pub(super) fn new(
        layout: &QueueLayout,
        features: RingFeatures,
        memory: &GuestMemory,
    ) -> Result<Self, RingError> {
        let bytes = descriptor::BYTES.wrapping_mul(u64::from(layout.size));
        check_part(memory, layout.descriptors, bytes, 16)?;
        check_part(memory, layout.driver, EVENT_BYTES, 4)?;
        check_part(memory, layout.device, EVENT_BYTES, 4)?;
        Ok(Self {
            size: layout.size,
            descriptors: layout.descriptors,
            driver: layout.driver,
            device: layout.device,
            indirect: features.indirect,
            event_index: features.event_index,
            next_available: Place::START,
            next_used: Place::START,
            used_since: 0,
        })
    }

    pub(super) fn pop(&mut self, memory: &GuestMemory, held: u16) -> Result<Option<Chain>, RingError> {
        let mut place = self.next_available;
        let mut descriptor = Descriptor::read(memory, self.at(place))?;
        if !descriptor.is_available(place.wrap) {
            return Ok(None);
        }
        let (mut chain, mut entries) = (Collector::new(memory), 0_u16);
        let free = self.size.saturating_sub(held);
        loop {
            entries = entries.saturating_add(1);
            if entries > free {
                return Err(if held == 0 {
                    RingError::TooLong
                } else {
                    RingError::TooManyAvailable(entries)
                });
            }
            if descriptor.flags & descriptor::INDIRECT != 0 {
                // A chain in the ring goes on there, or is all in one table.
                if !self.indirect || entries > 1 || descriptor.flags & descriptor::NEXT != 0 {
                    return Err(RingError::Indirect);
                }
                collect_table(memory, &descriptor, &mut chain)?;
            } else {
                chain.add(descriptor.address, descriptor.len, descriptor.device_writes())?;
            }
            place = place.advance(1, self.size);
            if descriptor.flags & descriptor::NEXT == 0 {
                break;
            }
            descriptor = Descriptor::read(memory, self.at(place))?;
        }
        self.next_available = place;
        Ok(Some(chain.finish(Token { id: descriptor.id, entries })))
    }

    pub(super) fn push(
        &mut self,
        token: Token,
        written: u32,
        memory: &GuestMemory,
    ) -> Result<(), OutOfRange> {
        let at = self.at(self.next_used).get().wrapping_add(8);
        memory.write_u32(GuestPhys::new(at), written)?;
        memory.write_u16(GuestPhys::new(at.wrapping_add(4)), token.id)?;
        let whose = if self.next_used.wrap { AVAILABLE | USED } else { 0 };
        let wrote = if written == 0 { 0 } else { descriptor::WRITE };
        // The driver sees everything else before the flags.
        fence(Ordering::Release);
        memory.write_u16(GuestPhys::new(at.wrapping_add(6)), whose | wrote)?;
        self.next_used = self.next_used.advance(token.entries, self.size);
        self.used_since = self.used_since.saturating_add(token.entries);
        Ok(())
    }

    pub(super) fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, OutOfRange> {
        let used = core::mem::take(&mut self.used_since);
        if used == 0 {
            return Ok(false);
        }
        fence(Ordering::SeqCst);
        let suppression = memory.read_u32(self.driver)?;
        let (event, flags) = (suppression as u16, (suppression >> 16) as u16 & 0b11);
        if flags == EVENT_AT_DESCRIPTOR && self.event_index {
            let new = self.next_used.index;
            let index = event & !EVENT_WRAP;
            let this_round = (event & EVENT_WRAP != 0) == self.next_used.wrap;
            let index = if this_round { index } else { index.wrapping_sub(self.size) };
            return Ok(passes(index, new, new.wrapping_sub(used)));
        }
        Ok(flags != EVENTS_OFF)
    }

    pub(super) fn ask_for_notification(&mut self, memory: &GuestMemory) -> Result<bool, OutOfRange> {
        let Place { index, wrap } = self.next_available;
        if self.event_index {
            let event = index | if wrap { EVENT_WRAP } else { 0 };
            memory.write_u32(self.device, u32::from(EVENT_AT_DESCRIPTOR) << 16 | u32::from(event))?;
        }
        fence(Ordering::SeqCst);
        Ok(Descriptor::read(memory, self.at(self.next_available))?.is_available(wrap))
    }

    fn at(&self, place: Place) -> GuestPhys {
        let offset = u64::from(place.index).wrapping_mul(descriptor::BYTES);
        GuestPhys::new(self.descriptors.get().wrapping_add(offset))
    }
}

/// Adds all descriptors of an indirect table, which follow each other (2.8.7).
fn collect_table(memory: &GuestMemory, table: &Descriptor, chain: &mut Collector) -> Result<(), RingError> {
    let descriptors = indirect_descriptors(table.len)?;
    check_part(memory, GuestPhys::new(table.address), u64::from(table.len), 1)?;
    for n in 0..u64::from(descriptors) {
        let at = table.address.wrapping_add(n.wrapping_mul(descriptor::BYTES));
        let descriptor = Descriptor::read(memory, GuestPhys::new(at))?;
        // Of the flags there, only the direction counts.
        chain.add(descriptor.address, descriptor.len, descriptor.device_writes())?;
    }
    Ok(())
}
