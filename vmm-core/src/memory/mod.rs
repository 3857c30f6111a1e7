//! Guest-physical memory and the tables that translate it: the only door to a guest's bytes.

mod address;
mod guest;
mod nested;
mod scatter;
mod walk;

pub use address::{GuestPhys, HostPhys};
pub use guest::{GuestMemory, HeapBlock, HostBlock, LayoutError, OutOfRange, Region};
pub use nested::{Format, NestedTables, PageSize, TooHigh, TrappingView};
pub use scatter::scattered;
pub use walk::{Access, AccessKind, Marking, PageFault, Paging, Translation, locate, translate};
