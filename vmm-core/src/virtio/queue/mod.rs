//! Virtqueues as a device sees them (virtio 1.2, 2.6 to 2.8): split and packed rings behind one interface.

mod chain;
mod packed;
mod split;
#[cfg(test)]
mod tests;

pub use chain::{Chain, LONGEST_CHAIN, Segment, Segments, Token};

use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use core::fmt;
use packed::PackedRing;
use split::SplitRing;

/// The most entries of any ring (2.7, 2.8.10.1).
pub const LARGEST_QUEUE: u16 = 1 << 15;

/// Descriptor flags, of both kinds of ring (2.7.5, 2.8.1).
mod descriptor {
    /// The chain goes on.
    pub const NEXT: u16 = 1 << 0;
    /// The device writes it.
    pub const WRITE: u16 = 1 << 1;
    /// It names a table of descriptors.
    pub const INDIRECT: u16 = 1 << 2;
    /// A descriptor's length in bytes.
    pub const BYTES: u64 = 16;
}

/// Where a driver put a queue, and how large it made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    /// How many entries.
    pub size: u16,
    /// The descriptor table, or the descriptor ring.
    pub descriptors: GuestPhys,
    /// The available ring, or the driver's event suppression.
    pub driver: GuestPhys,
    /// The used ring, or the device's event suppression.
    pub device: GuestPhys,
}

/// What device and driver agreed on about rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_RING_PACKED.
    pub packed: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// VIRTIO_F_EVENT_IDX.
    pub event_index: bool,
}

/// What is wrong with a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// No ring can have this many entries.
    Size(u16),
    /// A part of the ring lies at an address that it must not lie at.
    Misaligned(GuestPhys),
    /// A part of the ring, or a buffer, is not memory.
    NotMemory {
        /// Its address.
        address: GuestPhys,
        /// Its length in bytes.
        len: u64,
    },
    /// More buffers became available than the ring has entries.
    TooManyAvailable(u16),
    /// A descriptor's number is larger than its table.
    NoSuchDescriptor(u16),
    /// A chain loops, or is longer than the ring, its table or [`LONGEST_CHAIN`].
    TooLong,
    /// A chain has more bytes than 32 bits can count.
    TooManyBytes,
    /// A buffer to read follows one to write.
    ReadableAfterWritable,
    /// An indirect descriptor where none may be.
    Indirect,
    /// An indirect table's length in bytes is no number of descriptors.
    IndirectLength(u32),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "no ring has {size} entries"),
            Self::Misaligned(at) => write!(f, "the ring's part at {at} is not aligned"),
            Self::NotMemory { address, len } => OutOfRange { address: *address, len: *len }.fmt(f),
            Self::TooManyAvailable(count) => {
                write!(f, "{count} buffers are available, more than there are entries")
            }
            Self::NoSuchDescriptor(index) => write!(f, "there is no descriptor {index}"),
            Self::TooLong => f.write_str("a chain of descriptors is too long or loops"),
            Self::TooManyBytes => f.write_str("a chain of descriptors has more than 4 GiB"),
            Self::ReadableAfterWritable => f.write_str("a buffer to read follows one to write"),
            Self::Indirect => f.write_str("an indirect descriptor where none may be"),
            Self::IndirectLength(len) => write!(f, "an indirect table of {len} bytes"),
        }
    }
}

impl core::error::Error for RingError {}

impl From<OutOfRange> for RingError {
    fn from(OutOfRange { address, len }: OutOfRange) -> Self {
        Self::NotMemory { address, len }
    }
}

/// A queue that the driver enabled.
///
/// Whoever got an error from it asks it no more: it is broken.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    /// Entries of the ring that belong to chains not used yet.
    held: u16,
}

#[derive(Debug)]
enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

impl Queue {
    /// The queue that the driver laid out so.
    ///
    /// # Errors
    /// It cannot lie there, or have this size.
    pub fn new(
        layout: &QueueLayout,
        features: RingFeatures,
        memory: &GuestMemory,
    ) -> Result<Self, RingError> {
        if layout.size == 0 || layout.size > LARGEST_QUEUE {
            return Err(RingError::Size(layout.size));
        }
        let ring = if features.packed {
            Ring::Packed(PackedRing::new(layout, features, memory)?)
        } else {
            Ring::Split(SplitRing::new(layout, features, memory)?)
        };
        Ok(Self { ring, held: 0 })
    }

    /// The next buffer that the driver made available, if there is one.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, RingError> {
        let chain = match &mut self.ring {
            Ring::Split(ring) => ring.pop(memory, self.held),
            Ring::Packed(ring) => ring.pop(memory, self.held),
        }?;
        if let Some(chain) = &chain {
            self.held = self.held.saturating_add(chain.token.entries);
        }
        Ok(chain)
    }

    /// Gives a buffer back, of which the first `written` writable bytes were written.
    ///
    /// # Errors
    /// The ring is not memory any more.
    pub fn push(&mut self, token: Token, written: u32, memory: &GuestMemory) -> Result<(), RingError> {
        self.held = self.held.saturating_sub(token.entries);
        match &mut self.ring {
            Ring::Split(ring) => ring.push(token, written, memory),
            Ring::Packed(ring) => ring.push(token, written, memory),
        }
        .map_err(RingError::from)
    }

    /// Whether the driver wants an interrupt for what was pushed since this was last asked.
    ///
    /// # Errors
    /// The ring is not memory any more.
    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        match &mut self.ring {
            Ring::Split(ring) => ring.wants_interrupt(memory),
            Ring::Packed(ring) => ring.wants_interrupt(memory),
        }
        .map_err(RingError::from)
    }

    /// Asks the driver to tell of the next buffer that it makes available. True where one became available meanwhile,
    /// which it may not tell of.
    ///
    /// # Errors
    /// The ring is not memory any more.
    pub fn ask_for_notification(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        match &mut self.ring {
            Ring::Split(ring) => ring.ask_for_notification(memory),
            Ring::Packed(ring) => ring.ask_for_notification(memory),
        }
        .map_err(RingError::from)
    }
}

/// Whether `part` of a ring can lie where it does.
fn check_part(memory: &GuestMemory, at: GuestPhys, len: u64, alignment: u64) -> Result<(), RingError> {
    if !at.is_aligned(alignment) {
        return Err(RingError::Misaligned(at));
    }
    if !memory.contains(at, len) {
        return Err(RingError::NotMemory { address: at, len });
    }
    Ok(())
}

/// Whether the event at `event` lies among those from `old` on up to before `new` (2.7.10).
const fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
