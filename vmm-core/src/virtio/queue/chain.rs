//! A driver's buffer: a list of ranges of guest memory, first those the device reads, then those it writes.

use super::RingError;
use crate::memory::{GuestMemory, GuestPhys};
use alloc::vec::Vec;

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first byte.
    pub address: GuestPhys,
    /// Its length in bytes; not zero.
    pub len: u32,
}

/// Ranges of guest memory that follow each other as one string of bytes. All of them are memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments(Vec<Segment>);

impl Segments {
    /// How many bytes they have together; less than 4 GiB.
    pub fn len(&self) -> u64 {
        self.0.iter().fold(0, |sum, segment| sum.saturating_add(u64::from(segment.len)))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Segment> + '_ {
        self.0.iter().copied()
    }

    /// How many ranges there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Takes the first `len` bytes off; all of them when there are fewer.
    #[must_use]
    pub fn split_front(&mut self, len: u64) -> Self {
        let (mut front, mut left) = (Vec::new(), len);
        let mut whole = 0_usize;
        for segment in &mut self.0 {
            let Some(rest) = left.checked_sub(u64::from(segment.len)) else { break };
            front.push(*segment);
            (left, whole) = (rest, whole.saturating_add(1));
        }
        self.0.drain(..whole);
        // What is left is shorter than the range it ends in.
        if let (Some(first), Some(part)) =
            (self.0.first_mut(), u32::try_from(left).ok().filter(|part| *part > 0))
            && let Some(address) = first.address.checked_add(left)
        {
            front.push(Segment { address: first.address, len: part });
            *first = Segment { address, len: first.len.saturating_sub(part) };
        }
        Self(front)
    }

    /// Copies the first bytes into `bytes`; says how many there were.
    pub fn read(&self, memory: &GuestMemory, bytes: &mut [u8]) -> usize {
        let mut done = 0_usize;
        for segment in self.iter() {
            let left = bytes.get_mut(done..).unwrap_or_default();
            let len = left.len().min(segment.len as usize);
            let Some(part) = left.get_mut(..len).filter(|part| !part.is_empty()) else { break };
            if memory.read(segment.address, part).is_err() {
                break;
            }
            done = done.saturating_add(len);
        }
        done
    }

    /// Copies `bytes` to the first ones; says how many had room.
    pub fn write(&self, memory: &GuestMemory, bytes: &[u8]) -> usize {
        let mut done = 0_usize;
        for segment in self.iter() {
            let left = bytes.get(done..).unwrap_or_default();
            let len = left.len().min(segment.len as usize);
            let Some(part) = left.get(..len).filter(|part| !part.is_empty()) else { break };
            if memory.write(segment.address, part).is_err() {
                break;
            }
            done = done.saturating_add(len);
        }
        done
    }
}

/// Which chain of a ring a used entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The chain's head, or buffer ID.
    pub(super) id: u16,
    /// How many entries of the ring it holds until it is used.
    pub(super) entries: u16,
}

/// A buffer that the driver made available.
#[derive(Debug)]
pub struct Chain {
    /// What [`Queue::push`](super::Queue::push) wants back.
    pub token: Token,
    /// What the device reads.
    pub readable: Segments,
    /// What the device writes.
    pub writable: Segments,
}

/// The most descriptors of one chain, those of an indirect table included.
pub const LONGEST_CHAIN: usize = 1024;

/// Puts a chain's descriptors together, checking each.
pub(super) struct Collector<'a> {
    memory: &'a GuestMemory,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    descriptors: usize,
    bytes: u32,
}

impl<'a> Collector<'a> {
    pub(super) fn new(memory: &'a GuestMemory) -> Self {
        Self { memory, readable: Vec::new(), writable: Vec::new(), descriptors: 0, bytes: 0 }
    }

    /// Adds a descriptor's range, which the device writes or reads.
    pub(super) fn add(&mut self, address: u64, len: u32, writable: bool) -> Result<(), RingError> {
        self.descriptors = self.descriptors.saturating_add(1);
        if self.descriptors > LONGEST_CHAIN {
            return Err(RingError::TooLong);
        }
        if !writable && !self.writable.is_empty() {
            return Err(RingError::ReadableAfterWritable);
        }
        let address = GuestPhys::new(address);
        if !self.memory.contains(address, u64::from(len)) {
            return Err(RingError::NotMemory { address, len: u64::from(len) });
        }
        self.bytes = self.bytes.checked_add(len).ok_or(RingError::TooManyBytes)?;
        if len > 0 {
            let list = if writable { &mut self.writable } else { &mut self.readable };
            list.push(Segment { address, len });
        }
        Ok(())
    }

    pub(super) fn finish(self, token: Token) -> Chain {
        Chain { token, readable: Segments(self.readable), writable: Segments(self.writable) }
    }
}
