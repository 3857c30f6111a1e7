//! The machine's physical memory: what there is, and who has which piece.

mod frames;
mod map;
mod range;
mod zero;

pub use frames::{FrameAllocator, Frames};
pub use map::{MemoryMap, PAGE, Record, Use};
pub use range::{Range, RangeSet};
