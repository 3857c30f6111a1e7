//! A channel: two drives that share registers, one command at a time.

use super::registers::{Ports, bus_master};
use crate::acs::{self, Identity, TaskFile, error, status};
use crate::dma::Dma;
use crate::driver::Error;
use crate::platform::Platform;
use crate::requests::{Engine, Operation, Queue, Reach, Request, Shape, Shared};
use crate::task::{MILLISECOND, Recovery, pause, until};
use alloc::boxed::Box;
use alloc::sync::Arc;
use storage::BlockError;

/// The bytes of the table of memory regions: 512 of them.
const TABLE: usize = 4096;

/// How long a drive may take to be ready after a reset, in nanoseconds (ATA Command Set 4: 31 seconds).
const RESET: u64 = 31_000 * MILLISECOND;

/// How long it may take when the machine starts, where nobody may be there.
const START: u64 = 10_000 * MILLISECOND;

/// The regions that a bus master takes (Programming Interface for Bus Master IDE Controller 1.0, 1.2).
const REACH: Reach = Reach {
    last: 0xffff_ffff,
    align: 2,
    page: 1,
    boundary: 0x1_0000,
    // A region of 64 KiB is written as zero, which not every controller understands.
    longest: 0x8000,
    pieces: TABLE / 8,
};

/// A channel with drives.
pub struct Channel {
    platform: Arc<dyn Platform>,
    ports: Ports,
    inner: Shared<Inner>,
    recovery: Recovery<()>,
}

/// What is under way.
struct Inner {
    ports: Ports,
    queue: Queue,
    table: Dma,
    drives: [Option<Identity>; 2],
    /// The drive that was spoken to last.
    selected: Option<usize>,
}

impl Channel {
    /// The channel at `ports`, if drives are there. Firmware's commands, if it had some, are over after this.
    ///
    /// # Errors
    /// No memory.
    pub async fn find(platform: &Arc<dyn Platform>, ports: Ports) -> Result<Option<Self>, Error> {
        ports.stop();
        if !ports.is_anybody_there() {
            return Ok(None);
        }
        reset(&**platform, &ports, [true, true], START).await;
        let drives = [identify(&**platform, &ports, 0).await, identify(&**platform, &ports, 1).await];
        ports.allow_interrupts();
        if drives.iter().all(Option::is_none) {
            return Ok(None);
        }
        let shape = Shape { slots: 1, reach: REACH, ranges: acs::ranges };
        let inner = Inner {
            ports: ports.clone(),
            queue: Queue::new(Arc::clone(platform), shape)?,
            table: Dma::allocate(&**platform, TABLE)?,
            drives,
            selected: None,
        };
        let (platform, inner) = (Arc::clone(platform), Shared::new(inner));
        Ok(Some(Self { platform, ports, inner, recovery: Recovery::new() }))
    }

    /// Its drives: 0 is the master, 1 the slave.
    pub fn drives(&self) -> [Option<Identity>; 2] {
        self.inner.with(|inner| inner.drives.clone())
    }

    /// Looks whether the command under way has ended.
    pub fn serve(&self) {
        let now = self.platform.now();
        self.inner.with(|inner| inner.serve(now));
    }

    /// When to look at it.
    pub fn deadline(&self) -> Option<u64> {
        self.recovery.deadline(self.inner.deadline())
    }

    /// Brings the channel back if what is under way is overdue, or it is in a bad state. Whether it had to.
    pub fn recover(self: &Arc<Self>) -> bool {
        let now = self.platform.now();
        self.recovery.looked(now);
        self.serve();
        let overdue = self.inner.deadline().is_some_and(|deadline| deadline <= now);
        let begins = overdue && !self.recovery.is_under_way();
        if begins {
            self.inner.with(|inner| inner.queue.stop());
            let channel = Arc::clone(self);
            self.recovery.begin(|| Box::pin(async move { channel.restart().await }));
        }
        self.recovery.proceed(now);
        begins
    }

    async fn restart(&self) {
        self.ports.stop();
        let now = self.platform.now();
        // The controller works on no memory any more.
        self.inner.with(|inner| inner.queue.forgotten(now));
        let there = self.drives().map(|drive| drive.is_some());
        let there = reset(&*self.platform, &self.ports, there, RESET).await;
        self.ports.allow_interrupts();
        let now = self.platform.now();
        self.inner.with(|inner| {
            for (drive, there) in inner.drives.iter_mut().zip(there) {
                if !there {
                    *drive = None;
                }
            }
            if inner.drives.iter().all(Option::is_none) {
                return inner.queue.close(BlockError::Gone);
            }
            inner.selected = None;
            inner.queue.resume();
            inner.proceed(now);
        });
    }
}

impl Engine for Channel {
    fn submit(&self, request: Request) {
        let now = self.platform.now();
        self.inner.with(|inner| {
            inner.queue.push(request);
            inner.proceed(now);
        });
    }
}

impl AsMut<Queue> for Inner {
    fn as_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }
}

impl Inner {
    fn serve(&mut self, now: u64) {
        let master = self.ports.master_status();
        if self.queue.is_stopped() || master & bus_master::INTERRUPT == 0 {
            return;
        }
        let Some(command) = self.queue.command(0) else {
            // Nobody asked for this interrupt. Both sides forget it.
            self.ports.status();
            return self.ports.clear();
        };
        let moves = !command.pieces.is_empty();
        let state = self.ports.status();
        if state & status::BUSY != 0 {
            // Ones are what is read where nobody is.
            if state == 0xff {
                self.queue.stop();
            }
            return;
        }
        self.ports.stop();
        self.ports.clear();
        let failed = state & (status::ERROR | status::FAULT) != 0;
        let damaged = error::CRC | error::ABORTED;
        if failed && self.ports.error() & damaged == damaged {
            self.queue.retry(0, BlockError::Failed);
        } else if failed || master & bus_master::ERROR != 0 {
            self.queue.end(0, Err(BlockError::Failed));
        } else if moves && master & bus_master::ACTIVE != 0 || state & status::DATA_REQUEST != 0 {
            // The device moved fewer bytes than it was to, or wants to move more.
            self.queue.end(0, Err(BlockError::Failed));
            if state & status::DATA_REQUEST != 0 {
                self.queue.stop();
            }
        } else {
            self.queue.end(0, Ok(()));
        }
        self.proceed(now);
    }

    /// Gives the next command to its drive, if none is under way.
    fn proceed(&mut self, now: u64) {
        while let Some((slot, command)) = self.queue.next(now) {
            let drive = command.unit.number as usize & 1;
            let Some(identity) = self.drives.get(drive).and_then(Option::as_ref) else {
                self.queue.end(slot, Err(BlockError::Gone));
                continue;
            };
            let task = TaskFile::of(command, identity);
            if self.selected != Some(drive) {
                self.ports.select(drive, 0);
                self.selected = Some(drive);
            }
            if self.ports.other_status() & (status::BUSY | status::DATA_REQUEST) != 0 {
                // It stays under way, until the device was reset.
                return self.queue.stop();
            }
            let moves = !command.pieces.is_empty();
            let mut at = 0_usize;
            for (n, piece) in command.pieces.iter().enumerate() {
                let last = n.saturating_add(1) == command.pieces.len();
                self.table.write_u32(at, piece.address as u32);
                self.table.write_u32(at.saturating_add(4), piece.len as u32 | u32::from(last) << 31);
                at = at.saturating_add(8);
            }
            if moves {
                self.ports.prepare(self.table.address() as u32, command.operation == Operation::Read);
            } else {
                self.ports.clear();
            }
            self.ports.write(drive, &task);
            if moves {
                self.ports.go();
            }
        }
    }
}

/// Resets both drives, and says which of those that are wanted are there afterwards.
async fn reset(platform: &dyn Platform, ports: &Ports, wanted: [bool; 2], patience: u64) -> [bool; 2] {
    /// How long the reset bit is held, and how long drives are left alone after it (ATA Command Set 4).
    const HOLD: u64 = 10_000;
    const LEAVE: u64 = 3 * MILLISECOND;
    ports.assert_reset();
    pause(platform, HOLD).await;
    ports.end_reset();
    pause(platform, LEAVE).await;
    let mut there = [false; 2];
    for (drive, (wanted, there)) in wanted.into_iter().zip(&mut there).enumerate() {
        if !wanted {
            continue;
        }
        ports.select(drive, 0);
        // A drive that is not there reads as ones, or is answered for with zeroes by the other.
        let mut state = 0;
        until(platform, patience, || {
            state = ports.other_status();
            state == 0xff || state & status::BUSY == 0
        })
        .await;
        *there = !matches!(state, 0 | 0x7f) && state & status::BUSY == 0;
    }
    there
}

/// What a drive says of itself, if it is a disk.
async fn identify(platform: &dyn Platform, ports: &Ports, drive: usize) -> Option<Identity> {
    const PATIENCE: u64 = 10_000 * MILLISECOND;
    ports.select(drive, 0);
    if matches!(ports.other_status(), 0 | 0x7f | 0xff) {
        return None;
    }
    ports.write(drive, &TaskFile::plain(acs::IDENTIFY));
    ports.settle();
    let mut state = 0;
    let end = || {
        state = ports.other_status();
        let wants = status::ERROR | status::FAULT | status::DATA_REQUEST;
        matches!(state, 0 | 0xff) || state & status::BUSY == 0 && state & wants != 0
    };
    until(platform, PATIENCE, end).await;
    // What is not busy, has no error and wants to be read.
    if state & (status::BUSY | status::ERROR | status::FAULT | status::DATA_REQUEST) != status::DATA_REQUEST {
        return None;
    }
    let mut bytes = [0; Identity::SIZE];
    for pair in bytes.chunks_exact_mut(2) {
        pair.copy_from_slice(&ports.data().to_le_bytes());
    }
    // Reading this ends the interrupt.
    ports.status();
    Identity::read(&bytes).ok()
}
