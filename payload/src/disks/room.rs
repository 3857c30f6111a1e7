//! Memory for what guests write to disks that forget it.

use crate::host::dma::SharedFrames;
use crate::host::memory::FrameAllocator;
use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::Mutex;
use storage::Buffer;
use storage::overlay::{PIECE, Room};

/// Memory is taken in slabs of so many bytes, so that it stays in few pieces.
const SLAB: usize = 1 << 20;

/// Room among what is left for guests.
pub struct Frames {
    frames: &'static FrameAllocator,
    left: Mutex<Left>,
}

/// What can be had without another slab.
#[derive(Default)]
struct Left {
    /// The slab that pieces are taken from, and where the next is.
    slab: Option<(Buffer, usize)>,
    /// What was given back: of a slab that is in use in part nothing else becomes of the rest.
    free: Vec<Buffer>,
}

impl Frames {
    /// Nothing is taken yet.
    pub fn new(frames: &'static FrameAllocator) -> Self {
        Self { frames, left: Mutex::default() }
    }
}

impl Room for Frames {
    fn take(&self) -> Option<Buffer> {
        let Left { slab, free } = &mut *self.left.lock();
        if let Some(piece) = free.pop() {
            return Some(piece);
        }
        let of_slab = slab.as_ref().and_then(|(slab, next)| slab.slice(*next, PIECE as usize));
        let piece = match of_slab {
            Some(piece) => piece,
            None => {
                let fresh = Buffer::new(Arc::new(SharedFrames::anywhere(self.frames, SLAB)?));
                let piece = fresh.slice(0, PIECE as usize)?;
                *slab = Some((fresh, 0));
                piece
            }
        };
        if let Some((_, next)) = slab {
            *next += PIECE as usize;
        }
        Some(piece)
    }

    fn give(&self, piece: Buffer) {
        self.left.lock().free.push(piece);
    }
}
