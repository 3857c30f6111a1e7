//! A driver's side of rings, for tests: by the specification's text, and with what a driver may do wrong.

use super::queue::{QueueLayout, RingFeatures};
use crate::memory::{GuestMemory, GuestPhys, HeapBlock, Region};
use alloc::sync::Arc;
use std::collections::BTreeMap;

/// Guest memory of `bytes` from zero on.
pub fn memory(bytes: usize) -> Arc<GuestMemory> {
    let block = Box::new(HeapBlock::zeroed(bytes, 4096).unwrap());
    Arc::new(GuestMemory::new(vec![Region::new(GuestPhys::new(0), block)]).unwrap())
}

pub fn at(address: u64) -> GuestPhys {
    GuestPhys::new(address)
}

/// A range of guest memory: address and length.
pub type Range = (u64, u32);

/// The driver of one queue.
pub struct Driver {
    memory: Arc<GuestMemory>,
    pub layout: QueueLayout,
    features: RingFeatures,
    /// Where indirect tables go, one for each ID.
    tables: u64,
    free_descriptors: Vec<u16>,
    /// The descriptors that each chain holds, by its ID.
    chains: BTreeMap<u16, Vec<u16>>,
    available: (u16, bool),
    used: (u16, bool),
}

const TABLE_DESCRIPTORS: u64 = 16;

impl Driver {
    /// A queue at `base` and on; it takes 64 KiB at most for up to 64 entries.
    pub fn new(memory: &Arc<GuestMemory>, base: u64, size: u16, features: RingFeatures) -> Self {
        let layout =
            QueueLayout { size, descriptors: at(base), driver: at(base + 0x1000), device: at(base + 0x2000) };
        Self {
            memory: Arc::clone(memory),
            layout,
            features,
            tables: base + 0x3000,
            free_descriptors: (0..size).rev().collect(),
            chains: BTreeMap::new(),
            available: (0, true),
            used: (0, true),
        }
    }

    /// How many descriptors are free.
    pub fn free(&self) -> usize {
        self.free_descriptors.len()
    }

    /// Makes a buffer available; says its ID. `None` when there is no room.
    pub fn offer(&mut self, readable: &[Range], writable: &[Range], indirect: bool) -> Option<u16> {
        let flagged =
            readable.iter().map(|range| (*range, 0)).chain(writable.iter().map(|range| (*range, 2)));
        let ranges: Vec<(Range, u16)> = flagged.collect();
        let indirect = indirect && self.features.indirect;
        let wanted = if indirect { 1 } else { ranges.len() };
        if wanted > self.free() {
            return None;
        }
        let own: Vec<u16> = self.free_descriptors.split_off(self.free() - wanted);
        let id = own[0];
        let ranges = if indirect {
            assert!(ranges.len() as u64 <= TABLE_DESCRIPTORS);
            let table = self.tables + u64::from(id) * TABLE_DESCRIPTORS * 16;
            for (n, ((address, len), flags)) in ranges.iter().enumerate() {
                let last = n + 1 == ranges.len();
                let here = table + n as u64 * 16;
                if self.features.packed {
                    self.write(here, *address, *len, 0xdead, *flags);
                } else {
                    self.write(here, *address, *len, flags | u16::from(!last), n as u16 + 1);
                }
            }
            vec![((table, ranges.len() as u32 * 16), 4)]
        } else {
            ranges
        };
        if self.features.packed {
            self.offer_packed(id, &ranges)
        } else {
            self.offer_split(&own, &ranges)
        }
        self.chains.insert(id, own);
        Some(id)
    }

    fn offer_split(&mut self, own: &[u16], ranges: &[(Range, u16)]) {
        for (n, ((address, len), flags)) in ranges.iter().enumerate() {
            let next = own.get(n + 1);
            let flags = flags | u16::from(next.is_some());
            let here = self.layout.descriptors.get() + u64::from(own[n]) * 16;
            self.write(here, *address, *len, flags, next.copied().unwrap_or(0xbeef));
        }
        let slot = u64::from(self.available.0 % self.layout.size);
        self.memory.write_u16(at(self.layout.driver.get() + 4 + slot * 2), own[0]).unwrap();
        self.available.0 = self.available.0.wrapping_add(1);
        self.memory.write_u16(at(self.layout.driver.get() + 2), self.available.0).unwrap();
    }

    fn offer_packed(&mut self, id: u16, ranges: &[(Range, u16)]) {
        let first = self.available;
        let mut first_flags = 0;
        for (n, ((address, len), flags)) in ranges.iter().enumerate() {
            let more = u16::from(n + 1 < ranges.len());
            let (index, wrap) = self.available;
            let whose = if wrap { 1 << 7 } else { 1 << 15 };
            let flags = flags | more | whose;
            let here = self.layout.descriptors.get() + u64::from(index) * 16;
            if n == 0 {
                first_flags = flags;
                let stale = self.memory.read_u16(at(here + 14)).unwrap();
                self.write(here, *address, *len, id, stale);
            } else {
                self.write(here, *address, *len, id, flags);
            }
            self.available = if index + 1 == self.layout.size { (0, !wrap) } else { (index + 1, wrap) };
        }
        let here = self.layout.descriptors.get() + u64::from(first.0) * 16;
        self.memory.write_u16(at(here + 14), first_flags).unwrap();
    }

    fn write(&self, here: u64, address: u64, len: u32, third: u16, fourth: u16) {
        self.memory.write_u64(at(here), address).unwrap();
        self.memory.write_u32(at(here + 8), len).unwrap();
        self.memory.write_u16(at(here + 12), third).unwrap();
        self.memory.write_u16(at(here + 14), fourth).unwrap();
    }

    /// Takes the next used buffer: its ID, and how many bytes were written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        let (id, written) = if self.features.packed { self.take_packed()? } else { self.take_split()? };
        let own = self.chains.remove(&id).expect("a buffer that was offered is used once");
        self.free_descriptors.extend(own);
        Some((id, written))
    }

    fn take_split(&mut self) -> Option<(u16, u32)> {
        let used = self.layout.device.get();
        if self.memory.read_u16(at(used + 2)).unwrap() == self.used.0 {
            return None;
        }
        let entry = used + 4 + u64::from(self.used.0 % self.layout.size) * 8;
        self.used.0 = self.used.0.wrapping_add(1);
        let id = self.memory.read_u32(at(entry)).unwrap();
        Some((id.try_into().unwrap(), self.memory.read_u32(at(entry + 4)).unwrap()))
    }

    fn take_packed(&mut self) -> Option<(u16, u32)> {
        let (index, wrap) = self.used;
        let here = self.layout.descriptors.get() + u64::from(index) * 16;
        let flags = self.memory.read_u16(at(here + 14)).unwrap();
        if (flags & 1 << 7 != 0) != wrap || (flags & 1 << 15 != 0) != wrap {
            return None;
        }
        let id = self.memory.read_u16(at(here + 12)).unwrap();
        let written = self.memory.read_u32(at(here + 8)).unwrap();
        assert_eq!(flags & 2 != 0, written > 0, "the length counts where the flag is set");
        let entries = self.chains[&id].len() as u16;
        let next = index + entries;
        self.used = if next >= self.layout.size { (next - self.layout.size, !wrap) } else { (next, wrap) };
        Some((id, written))
    }

    /// Wants no interrupt but for the buffer used `after` this many more: 0 is the next.
    pub fn want_interrupt_after(&mut self, after: u16) {
        if self.features.packed {
            let index = self.used.0 + after;
            let (index, wrap) = if index >= self.layout.size {
                (index - self.layout.size, !self.used.1)
            } else {
                (index, self.used.1)
            };
            let event = index | if wrap { 1 << 15 } else { 0 };
            self.memory.write_u32(self.layout.driver, 2 << 16 | u32::from(event)).unwrap();
        } else {
            let place = self.layout.driver.get() + 4 + u64::from(self.layout.size) * 2;
            self.memory.write_u16(at(place), self.used.0.wrapping_add(after)).unwrap();
        }
    }

    /// Wants interrupts, or none; without an event index.
    pub fn want_interrupts(&mut self, wanted: bool) {
        if self.features.packed {
            self.memory.write_u32(self.layout.driver, u32::from(!wanted) << 16).unwrap();
        } else {
            self.memory.write_u16(self.layout.driver, u16::from(!wanted)).unwrap();
        }
    }

    /// Whether the device asked to be told of the buffer offered last.
    pub fn is_to_notify(&self) -> bool {
        if self.features.packed {
            let suppression = self.memory.read_u32(self.layout.device).unwrap();
            if suppression >> 16 != 2 {
                return suppression >> 16 == 0;
            }
            let event = (suppression as u16 & 0x7fff, suppression & 1 << 15 != 0);
            // The device's place is the one where what was offered last begins.
            event == self.before_last()
        } else if self.features.event_index {
            let place = self.layout.device.get() + 4 + u64::from(self.layout.size) * 8;
            self.memory.read_u16(at(place)).unwrap() == self.available.0.wrapping_sub(1)
        } else {
            self.memory.read_u16(self.layout.device).unwrap() & 1 == 0
        }
    }

    fn before_last(&self) -> (u16, bool) {
        match self.available {
            (0, wrap) => (self.layout.size - 1, !wrap),
            (index, wrap) => (index - 1, wrap),
        }
    }
}
