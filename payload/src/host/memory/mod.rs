//! The machine's physical memory: what there is, and who has which piece.

mod claims;
mod frames;
mod map;
mod range;
mod zero;

pub use claims::Claims;
pub use frames::{FrameAllocator, Frames};
pub use map::{MemoryMap, PAGE, Record, Use};
pub use range::{Range, RangeSet};
