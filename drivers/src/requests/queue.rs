//! Requests that wait, and the commands that are under way for them.

use super::{Operation, Overlap, Reach, Request, Unit};
use crate::dma::Dma;
use crate::driver::Error;
use crate::platform::Platform;
use crate::reply::Answer;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;
use storage::{BlockError, Buffer, Piece};

/// How long a read, a write or a flush may take, in nanoseconds: disks that spin up or repair a block take many
/// seconds.
const PATIENCE: u64 = 30_000_000_000;

/// How long a command on whole ranges may take.
const LONG_PATIENCE: u64 = 120_000_000_000;

/// The bytes of a piece of memory through which goes what a device cannot reach: the most that a command moves then.
const BOUNCE: usize = 0x1_0000;

/// How many such pieces there can be. Who needs another waits for one.
const BOUNCES: usize = 8;

/// Later than any moment.
const NEVER: u64 = u64::MAX;

/// How often a command is given to the device again whose way back was cut off by another one's failure.
const AGAIN: u8 = 2;

/// What a queue's device looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many commands can be under way.
    pub slots: usize,
    /// What memory it can work on.
    pub reach: Reach,
    /// What a discard's command carries: so many blocks from the first one on, at most [`BOUNCE`] bytes. Empty where
    /// there are no discards.
    pub ranges: fn(first: u64, blocks: u64) -> Vec<u8>,
}

/// A command for the device, until it has ended.
pub struct Command {
    /// What to do.
    pub operation: Operation,
    /// With which disk.
    pub unit: Arc<Unit>,
    /// The first block.
    pub block: u64,
    /// How many blocks.
    pub blocks: u64,
    /// The memory that the device works on: the blocks' bytes, or a discard's ranges.
    pub pieces: Vec<Piece>,
    /// Nothing else is under way meanwhile.
    pub alone: bool,
    /// How often it was tried before.
    pub tries: u8,
    request: Arc<Request>,
    bounced: Option<Bounced>,
}

/// What a command works on instead of its request's memory.
struct Bounced {
    through: Dma,
    /// Where what is read goes.
    into: Option<Buffer>,
}

/// Requests that wait, and commands under way, each in its slot.
pub struct Queue {
    shape: Shape,
    waiting: VecDeque<Arc<Request>>,
    /// Commands that are to be tried again.
    again: VecDeque<Command>,
    slots: Vec<Option<Command>>,
    /// When each slot's command must have ended; `NEVER` where there is none.
    deadlines: Vec<u64>,
    under_way: usize,
    /// The command under way is to be alone.
    alone: bool,
    stopped: bool,
    closed: Option<BlockError>,
    bounces: Bounces,
    answers: Vec<(Answer, Result<(), BlockError>)>,
}

impl Queue {
    /// A queue with nothing in it.
    ///
    /// # Errors
    /// No memory.
    pub fn new(platform: Arc<dyn Platform>, shape: Shape) -> Result<Self, Error> {
        Ok(Self {
            shape,
            waiting: VecDeque::new(),
            again: VecDeque::new(),
            slots: (0..shape.slots).map(|_| None).collect(),
            deadlines: alloc::vec![NEVER; shape.slots],
            under_way: 0,
            alone: false,
            stopped: false,
            closed: None,
            bounces: Bounces::new(platform)?,
            answers: Vec::new(),
        })
    }

    /// Has a request wait for its turn.
    pub fn push(&mut self, request: Request) {
        let request = Arc::new(request);
        if let Some(error) = self.closed {
            request.progress.lock().error = Some(error);
            self.end_early(&request);
        } else {
            self.waiting.push_back(request);
        }
    }

    /// The next command that the device is to be given, and its slot; `None` while there is none, or no room for it.
    pub fn next(&mut self, now: u64) -> Option<(usize, &Command)> {
        if self.stopped || self.closed.is_some() || (self.alone && self.under_way > 0) {
            return None;
        }
        let slot = self.deadlines.iter().position(|deadline| *deadline == NEVER)?;
        let command = match self.again.front() {
            Some(command) if command.alone && self.under_way > 0 => return None,
            Some(_) => self.again.pop_front()?,
            None => self.cut()?,
        };
        let patience = match command.operation {
            Operation::Discard | Operation::WriteZeroes => LONG_PATIENCE,
            _ => PATIENCE,
        };
        *self.deadlines.get_mut(slot)? = now.saturating_add(patience);
        self.alone = command.alone;
        self.under_way = self.under_way.saturating_add(1);
        let command = self.slots.get_mut(slot)?.insert(command);
        Some((slot, command))
    }

    /// The command in a slot.
    pub fn command(&self, slot: usize) -> Option<&Command> {
        self.slots.get(slot)?.as_ref()
    }

    /// The slot's command has ended. Whether there was one.
    pub fn end(&mut self, slot: usize, result: Result<(), BlockError>) -> bool {
        let Some(command) = self.take(slot) else { return false };
        self.settle(command, result);
        true
    }

    /// The slot's command did not get through, and is tried again; after too many tries it has failed with `error`.
    /// Where not all commands overlap it is then alone, so that it is seen which one fails.
    pub fn retry(&mut self, slot: usize, error: BlockError) {
        let Some(mut command) = self.take(slot) else { return };
        if command.tries == AGAIN {
            return self.settle(command, Err(error));
        }
        command.tries = command.tries.saturating_add(1);
        command.alone = command.unit.overlap != Overlap::All;
        self.again.push_back(command);
    }

    /// Empties a slot.
    fn take(&mut self, slot: usize) -> Option<Command> {
        let command = self.slots.get_mut(slot)?.take()?;
        *self.deadlines.get_mut(slot)? = NEVER;
        self.under_way = self.under_way.saturating_sub(1);
        Some(command)
    }

    /// The device was reset and has forgotten what was under way: what is overdue has timed out, all else is tried
    /// again.
    pub fn forgotten(&mut self, now: u64) {
        for slot in 0..self.slots.len() {
            if self.deadlines.get(slot).is_some_and(|deadline| *deadline <= now) {
                self.end(slot, Err(BlockError::TimedOut));
            } else {
                self.retry(slot, BlockError::Failed);
            }
        }
    }

    /// When the first of the commands under way must have ended, or the device must be looked at.
    pub fn deadline(&self) -> Option<u64> {
        if self.stopped {
            return Some(0);
        }
        self.deadlines.iter().copied().min().filter(|deadline| *deadline != NEVER)
    }

    /// The device is in no state to take commands: none is given to it, and it must be looked at now.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether that is so.
    pub const fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Commands go to the device again.
    pub fn resume(&mut self) {
        self.stopped = false;
    }

    /// The device is no use any more: all that waits or is under way, and whatever comes, gets this answer.
    pub fn close(&mut self, error: BlockError) {
        (self.closed, self.stopped) = (Some(error), false);
        for slot in 0..self.slots.len() {
            self.end(slot, Err(error));
        }
        while let Some(command) = self.again.pop_front() {
            self.settle(command, Err(error));
        }
        while let Some(request) = self.waiting.pop_front() {
            request.progress.lock().error.get_or_insert(error);
            self.end_early(&request);
        }
    }

    /// Cuts a command from the first request that waits; `None` where none waits, it must wait for what is under
    /// way, or for memory.
    fn cut(&mut self) -> Option<Command> {
        loop {
            let request = Arc::clone(self.waiting.front()?);
            let alone = match request.unit.overlap {
                Overlap::None => true,
                Overlap::Transfers => !matches!(request.operation, Operation::Read | Operation::Write),
                Overlap::All => false,
            };
            if alone && self.under_way > 0 {
                return None;
            }
            if request.progress.lock().error.is_some() {
                self.waiting.pop_front();
                self.end_early(&request);
                continue;
            }
            let issued = request.progress.lock().issued;
            let left = request.len.saturating_sub(issued);
            let mut pieces = Vec::new();
            let (len, bounced) = match self.reach(&request, issued, left, &mut pieces) {
                Reached::There(len, bounced) => (len, bounced),
                Reached::Later => return None,
                Reached::Never => {
                    request.progress.lock().error = Some(BlockError::Failed);
                    continue;
                }
            };
            let block_size = u64::from(request.unit.geometry.block_size).max(1);
            {
                let mut progress = request.progress.lock();
                progress.issued = issued.saturating_add(len);
                progress.whole = len >= left;
                progress.commands = progress.commands.saturating_add(1);
                if progress.whole {
                    self.waiting.pop_front();
                }
            }
            return Some(Command {
                operation: request.operation,
                unit: Arc::clone(&request.unit),
                block: request.at.saturating_add(issued).checked_div(block_size)?,
                blocks: len.checked_div(block_size)?,
                pieces,
                alone,
                tries: 0,
                request,
                bounced,
            });
        }
    }

    /// Finds memory for the part of a request that begins at `issued`.
    fn reach(&mut self, request: &Request, issued: u64, left: u64, pieces: &mut Vec<Piece>) -> Reached {
        let unit = &request.unit;
        let limit = match request.operation {
            Operation::Read | Operation::Write => unit.transfer,
            Operation::Discard => unit.discard,
            Operation::WriteZeroes => unit.zeroes,
            Operation::Flush => 0,
        };
        let mut len = left.min(limit);
        let Some(buffer) = &request.buffer else {
            if request.operation != Operation::Discard {
                return Reached::There(len, None);
            }
            let block_size = u64::from(unit.geometry.block_size).max(1);
            let first = request.at.saturating_add(issued).checked_div(block_size).unwrap_or(0);
            let ranges = (self.shape.ranges)(first, len.checked_div(block_size).unwrap_or(0));
            let Some(through) = self.bounces.take() else { return Reached::Later };
            through.write(0, &ranges);
            return self.through(through, ranges.len(), None, len, pieces);
        };
        let part = |len: u64| buffer.slice(usize::try_from(issued).ok()?, usize::try_from(len).ok()?);
        let Some(in_place) = part(len) else { return Reached::Never };
        if self.shape.reach.cut(&in_place, pieces) {
            return Reached::There(len, None);
        }
        len = len.min(BOUNCE as u64);
        let Some(part) = part(len) else { return Reached::Never };
        let Some(through) = self.bounces.take() else { return Reached::Later };
        let into = if request.operation == Operation::Write {
            through.write(0, &part.to_vec());
            None
        } else {
            Some(part.clone())
        };
        self.through(through, part.len(), into, len, pieces)
    }

    /// Has the device work on the first `size` bytes of a bounce.
    fn through(
        &mut self,
        through: Dma,
        size: usize,
        into: Option<Buffer>,
        len: u64,
        pieces: &mut Vec<Piece>,
    ) -> Reached {
        match through.buffer().slice(0, size) {
            Some(bytes) if self.shape.reach.cut(&bytes, pieces) => {
                Reached::There(len, Some(Bounced { through, into }))
            }
            _ => {
                self.bounces.give(through);
                Reached::Never
            }
        }
    }

    /// A command has ended for good.
    fn settle(&mut self, command: Command, result: Result<(), BlockError>) {
        if let Some(Bounced { through, into }) = command.bounced {
            if let (Some(into), Ok(())) = (into, result) {
                let mut bytes = alloc::vec![0; into.len()];
                through.read(0, &mut bytes);
                into.write(0, &bytes);
            }
            self.bounces.give(through);
        }
        let mut progress = command.request.progress.lock();
        progress.commands = progress.commands.saturating_sub(1);
        if let Err(error) = result {
            progress.error.get_or_insert(error);
        }
        if progress.whole && progress.commands == 0 {
            let result = progress.error.map_or(Ok(()), Err);
            self.answers.extend(progress.answer.take().map(|answer| (answer, result)));
        }
    }

    /// A request gets no other command, because something went wrong with it.
    fn end_early(&mut self, request: &Request) {
        let mut progress = request.progress.lock();
        progress.whole = true;
        if progress.commands == 0 {
            let result = progress.error.map_or(Ok(()), Err);
            self.answers.extend(progress.answer.take().map(|answer| (answer, result)));
        }
    }
}

/// What came of looking for memory for a command.
enum Reached {
    /// The command is about so many bytes of its disk.
    There(u64, Option<Bounced>),
    /// Once another one has ended.
    Later,
    /// The device cannot take it in any way.
    Never,
}

/// Something with a queue, used by one core at a time.
pub struct Shared<T> {
    inner: Mutex<T>,
    deadline: AtomicU64,
}

impl<T: AsMut<Queue>> Shared<T> {
    /// Nobody uses it yet.
    pub const fn new(inner: T) -> Self {
        Self { inner: Mutex::new(inner), deadline: AtomicU64::new(NEVER) }
    }

    /// Uses it, and answers what that ended. Who is woken by an answer may use it again at once.
    pub fn with<R>(&self, what: impl FnOnce(&mut T) -> R) -> R {
        let (result, answers) = {
            let mut inner = self.inner.lock();
            let result = what(&mut inner);
            let queue = inner.as_mut();
            self.deadline.store(queue.deadline().unwrap_or(NEVER), Ordering::Relaxed);
            (result, core::mem::take(&mut queue.answers))
        };
        answers.into_iter().for_each(|(answer, result)| answer.give(result));
        result
    }

    /// When the first of the commands under way must have ended.
    pub fn deadline(&self) -> Option<u64> {
        Some(self.deadline.load(Ordering::Relaxed)).filter(|deadline| *deadline != NEVER)
    }
}

/// Memory through which goes what a device cannot reach; there is always one piece.
struct Bounces {
    platform: Arc<dyn Platform>,
    free: Vec<Dma>,
    made: usize,
}

impl Bounces {
    fn new(platform: Arc<dyn Platform>) -> Result<Self, Error> {
        let first = Dma::allocate(&*platform, BOUNCE)?;
        Ok(Self { platform, free: alloc::vec![first], made: 1 })
    }

    fn take(&mut self) -> Option<Dma> {
        if let Some(free) = self.free.pop() {
            return Some(free);
        }
        if self.made >= BOUNCES {
            return None;
        }
        let another = Dma::allocate(&*self.platform, BOUNCE).ok()?;
        self.made = self.made.saturating_add(1);
        Some(another)
    }

    fn give(&mut self, bounce: Dma) {
        self.free.push(bounce);
    }
}
