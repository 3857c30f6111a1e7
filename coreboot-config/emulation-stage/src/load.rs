//! The payload out of CBFS and into memory.
#![allow(unsafe_code)] // A payload says itself where in memory it goes.

use core::ops::Range;

use coreboot_config::cbfs::{Cbfs, Compression};
use coreboot_config::selfboot::Payload;
use coreboot_config::timestamps::id;

use crate::error::StageError;
use crate::physical;
use crate::timestamps::Timestamps;

/// The name that coreboot boots.
const NAME: &str = "fallback/payload";
/// More than any flash holds.
const LARGEST: usize = 32 << 20;

/// Loads the payload in `cbfs` and returns its entry point. Its segments have to lie within one of `room`, RAM
/// that nothing else uses.
pub fn payload(cbfs: &Cbfs<'_>, room: &[Range<u64>], timestamps: &mut Timestamps) -> Result<u32, StageError> {
    let file = cbfs.find(NAME)?;
    let contents = file.contents(LARGEST)?;
    let payload = Payload::parse(&contents)?;
    let mut entered = false;
    for segment in payload.segments() {
        let (start, length) = (segment.load_address, segment.memory_len as usize);
        let end = start.saturating_add(u64::from(segment.memory_len));
        if !room.iter().any(|room| room.start <= start && end <= room.end) {
            return Err(StageError::SegmentPlace { start, end });
        }
        entered |= (start..end).contains(&payload.entry);
        // SAFETY: `room` is RAM that nothing else uses, and the borrow ends with this turn.
        let memory = unsafe { physical::bytes(start, length) };
        let lzma = segment.compression == Compression::Lzma;
        if lzma {
            timestamps.stamp(id::LZMA_START);
        }
        let filled = segment
            .compression
            .decompress(segment.data, memory)
            .map_err(|error| StageError::SegmentData { start, error })?;
        if lzma {
            timestamps.stamp(id::LZMA_END);
        }
        memory[filled..].fill(0);
        crate::info!("Loaded segment at {start:#x}, {filled:#x} of {length:#x} bytes");
    }
    match u32::try_from(payload.entry) {
        Ok(entry) if entered => Ok(entry),
        _ => Err(StageError::Entry(payload.entry)),
    }
}
