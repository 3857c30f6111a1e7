//! Requests that Linux carries out while others are made (io_submit, io_getevents).

use crate::linux::{self, call};
use core::ptr::null;

/// How many may be under way at once.
pub const MOST: usize = 64;

/// Which way the bytes go, by the number that Linux has for it.
#[derive(Clone, Copy)]
pub enum Direction {
    /// From the disk.
    Read = 0,
    /// To the disk.
    Write = 1,
}

/// What is asked for.
pub struct Request {
    /// To or from the disk.
    pub direction: Direction,
    /// The disk's file descriptor.
    pub disk: u32,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// Where in memory.
    pub buffer: u64,
    /// How much.
    pub bytes: u64,
    /// What its end is told by.
    pub number: u64,
}

/// Linux's `struct iocb`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ControlBlock {
    data: u64,
    key_and_flags: u64,
    opcode: u16,
    priority: u16,
    descriptor: u32,
    buffer: u64,
    bytes: u64,
    offset: u64,
    rest: [u64; 2],
}

/// Linux's `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    block: u64,
    result: i64,
    result2: i64,
}

/// Requests that wait to be submitted, those under way, and those that have ended.
pub struct Requests {
    context: u64,
    waiting: [ControlBlock; MOST],
    waiting_count: usize,
    events: [Event; MOST],
    event_count: usize,
}

impl Requests {
    /// None yet.
    pub fn new() -> Result<Self, i64> {
        let mut context = 0_u64;
        call(linux::IO_SETUP, [MOST as u64, (&raw mut context) as u64, 0, 0, 0, 0])?;
        Ok(Self {
            context,
            waiting: [ControlBlock::default(); MOST],
            waiting_count: 0,
            events: [Event::default(); MOST],
            event_count: 0,
        })
    }

    /// Adds one to those that are submitted together.
    pub fn add(&mut self, request: Request) {
        self.waiting[self.waiting_count] = ControlBlock {
            data: request.number,
            opcode: request.direction as u16,
            descriptor: request.disk,
            buffer: request.buffer,
            bytes: request.bytes,
            offset: request.offset,
            ..ControlBlock::default()
        };
        self.waiting_count += 1;
    }

    /// Hands them to Linux, which has read them when this returns.
    pub fn submit(&mut self) -> Result<(), i64> {
        let mut pointers = [null::<ControlBlock>(); MOST];
        pointers.iter_mut().zip(&self.waiting).for_each(|(pointer, block)| *pointer = block);
        let mut done = 0;
        while done < self.waiting_count {
            let (count, first) = ((self.waiting_count - done) as u64, (&raw const pointers[done]) as u64);
            done += call(linux::IO_SUBMIT, [self.context, count, first, 0, 0, 0])? as usize;
        }
        self.waiting_count = 0;
        Ok(())
    }

    /// Waits until at least one has ended.
    pub fn wait(&mut self) -> Result<(), i64> {
        let events = (&raw mut self.events) as u64;
        self.event_count = call(linux::IO_GETEVENTS, [self.context, 1, MOST as u64, events, 0, 0])? as usize;
        Ok(())
    }

    /// The number and the result of one that has ended: the bytes that were moved, or a negative error.
    pub fn ended(&mut self) -> Option<(u64, i64)> {
        self.event_count = self.event_count.checked_sub(1)?;
        let event = &self.events[self.event_count];
        Some((event.data, event.result))
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // One that is gone already leaves nothing to do.
        let _ = call(linux::IO_DESTROY, [self.context, 0, 0, 0, 0, 0]);
    }
}
