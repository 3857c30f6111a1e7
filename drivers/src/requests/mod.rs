//! Requests on their way through devices that take several commands at a time: what their drivers share.
//!
//! A [`Blocks`] makes requests of what is asked of a disk. The driver puts each into a [`Queue`], which cuts commands
//! from it that the device can take, keeps those under way with their deadlines, and answers a request once the last
//! of its commands has ended.

mod blocks;
mod queue;
mod reach;

pub use blocks::{Blocks, Engine, Overlap, Unit};
pub use queue::{Command, Queue, Shape, Shared};
pub use reach::Reach;

use crate::reply::Answer;
use alloc::sync::Arc;
use spin::Mutex;
use storage::{BlockError, Buffer};

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the disk to memory.
    Read,
    /// From memory to the disk.
    Write,
    /// What was written is made safe.
    Flush,
    /// Nobody needs these blocks.
    Discard,
    /// These blocks become zero.
    WriteZeroes,
}

/// Something that is asked of a disk, until it is answered.
pub struct Request {
    operation: Operation,
    unit: Arc<Unit>,
    at: u64,
    len: u64,
    /// Of reads and writes.
    buffer: Option<Buffer>,
    progress: Mutex<Progress>,
}

/// How far a request has come.
struct Progress {
    /// Bytes for which there has been a command, from the beginning on.
    issued: u64,
    /// Whether there will be no other command.
    whole: bool,
    /// Commands that have not ended.
    commands: usize,
    /// The first thing that went wrong.
    error: Option<BlockError>,
    answer: Option<Answer>,
}

impl Request {
    /// A request that is within the disk.
    pub fn new(
        operation: Operation,
        unit: Arc<Unit>,
        at: u64,
        len: u64,
        buffer: Option<Buffer>,
        answer: Answer,
    ) -> Self {
        let progress = Progress { issued: 0, whole: false, commands: 0, error: None, answer: Some(answer) };
        Self { operation, unit, at, len, buffer, progress: Mutex::new(progress) }
    }
}
