//! A queue of the device, and the requests that go through it (virtio 1.2, 5.2.6).

use super::configuration::{Configuration, SECTOR};
use crate::driver::Error;
use crate::platform::Platform;
use crate::requests::{Command, Operation, Queue, Reach, Request, Shape};
use crate::virtio::{Broken, Completion, Direction, Feature, Ring, Transport};
use alloc::sync::Arc;
use alloc::vec::Vec;
use storage::{BlockError, Piece};

/// Kinds of requests.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// What the device says of a request that it has done, and of one that it does not know.
const OK: u8 = 0;
const UNSUPPORTED: u8 = 2;
/// What it does not say: it has said nothing.
const NO_STATUS: u8 = 0xff;

/// Where in a slot's own bytes are the request's header, a range or the serial number, and the status.
const HEADER: (usize, usize) = (0, 16);
const EXTRA: usize = 16;
const STATUS: usize = 48;
/// The size of a range, and of the serial number.
const RANGE: usize = 16;
const SERIAL: usize = 20;

/// How long the device may take to say its serial number, in nanoseconds.
pub const SERIAL_PATIENCE: u64 = 10_000_000_000;
/// The longest piece of memory in a request, in bytes, so that all of them together are counted in 32 bits.
const LONGEST: usize = 1 << 20;
/// A guest's memory is in pieces of this size at worst.
const PAGE: u64 = 4096;

/// A queue, and what goes through it.
pub struct Commands {
    transport: Arc<Transport>,
    number: u16,
    notify: usize,
    ring: Ring,
    queue: Queue,
    transfer: u64,
    broken: bool,
}

impl Commands {
    /// The device's queue of this number, which has not begun.
    ///
    /// # Errors
    /// There is no such queue or none that can be used, or no memory.
    pub fn new(
        platform: &Arc<dyn Platform>,
        transport: &Arc<Transport>,
        number: u16,
        configuration: &Configuration,
        features: u64,
    ) -> Result<Self, Error> {
        let indirect = features & Feature::INDIRECT_DESCRIPTORS.bits() != 0;
        let ring = Ring::new(&**platform, transport.queue_size(number), indirect)?;
        let pieces = ring.most_pieces().min(configuration.pieces as usize).max(1);
        let reach = Reach {
            last: u64::MAX,
            align: 1,
            page: 1,
            boundary: 1 << 63,
            longest: LONGEST.min(configuration.longest as usize),
            pieces,
        };
        let large = configuration.geometry()?.block_size == 4096;
        let ranges = if large { ranges_of_4096 } else { ranges_of_512 };
        let shape = Shape { slots: ring.slots(), reach, ranges };
        Ok(Self {
            transport: Arc::clone(transport),
            number,
            notify: transport.notify_offset(number),
            ring,
            queue: Queue::new(Arc::clone(platform), shape)?,
            transfer: transfer(&reach),
            broken: false,
        })
    }

    /// Its size, and where its parts are.
    pub fn ring(&self) -> (u16, [u64; 3]) {
        (self.ring.size(), self.ring.parts())
    }

    /// The most bytes that a request is to move.
    pub const fn transfer(&self) -> u64 {
        self.transfer
    }

    /// Has a request wait for its turn, which may be now.
    pub fn submit(&mut self, request: Request, now: u64) {
        self.queue.push(request);
        self.proceed(now);
    }

    /// Takes completions, and gives the device what had to wait for them.
    pub fn serve(&mut self, now: u64) {
        // A device that completes without end is not listened to for ever.
        for _ in 0..self.ring.slots() {
            match self.completed() {
                Ok(Some(completion)) => {
                    let result = self.result(completion);
                    self.queue.end(completion.slot, result);
                }
                Ok(None) | Err(Broken) => break,
            }
        }
        self.proceed(now);
    }

    /// What the device has completed, as long as it keeps to the rules; then nothing goes through before its reset.
    fn completed(&mut self) -> Result<Option<Completion>, Broken> {
        if self.broken {
            return Err(Broken);
        }
        self.ring.complete().inspect_err(|_| {
            self.broken = true;
            self.queue.stop();
        })
    }

    /// Gives the device nothing for now.
    pub fn stop(&mut self) {
        self.queue.stop();
    }

    /// There is no such disk any more.
    pub fn close(&mut self) {
        self.queue.close(BlockError::Gone);
    }

    /// The device has forgotten its queues.
    pub fn forgotten(&mut self, now: u64) {
        self.ring.clear();
        self.broken = false;
        self.queue.forgotten(now);
    }

    /// The device takes requests again.
    pub fn resume(&mut self, now: u64) {
        self.queue.resume();
        self.proceed(now);
    }

    /// Gives the device as many requests as there are and it has room for.
    fn proceed(&mut self, now: u64) {
        let mut submitted = false;
        while let Some((slot, command)) = self.queue.next(now) {
            fill(&mut self.ring, slot, command);
            submitted = true;
        }
        if submitted {
            self.notify();
        }
    }

    fn notify(&self) {
        if self.ring.wants_notification() {
            self.transport.notify(self.number, self.notify);
        }
    }

    /// What came of a slot's request.
    fn result(&self, completion: Completion) -> Result<(), BlockError> {
        let (own, _) = self.ring.scratch(completion.slot);
        let command = self.queue.command(completion.slot);
        let read = command.filter(|command| command.operation == Operation::Read);
        let bytes = read.map_or(0, |command| command.pieces.iter().map(|piece| piece.len as u64).sum());
        match self.ring.scratch_memory().read_u8(own.saturating_add(STATUS)) {
            // Its status is the last byte that it writes: with less, not all of what was to be read is there.
            OK if u64::from(completion.written) > bytes => Ok(()),
            UNSUPPORTED => Err(BlockError::Unsupported),
            _ => Err(BlockError::Failed),
        }
    }

    /// Asks for the serial number, before there are any other requests.
    pub fn ask_serial(&mut self) {
        let own = header(&self.ring, 0, GET_ID, 0);
        let extra = Piece { address: own.saturating_add(EXTRA as u64), len: SERIAL };
        submit(&mut self.ring, 0, own, [(extra, Direction::FromDevice)].into_iter());
        self.notify();
    }

    /// The serial number, or none where the device has none, once it has answered.
    pub fn serial_answer(&mut self) -> Option<Result<Option<[u8; SERIAL]>, Broken>> {
        let completion = self.completed().transpose()?;
        Some(completion.map(|completion| {
            let (own, _) = self.ring.scratch(completion.slot);
            let mut bytes = [0; SERIAL];
            self.ring.scratch_memory().read(own.saturating_add(EXTRA), &mut bytes);
            self.result(completion).ok().map(|()| bytes)
        }))
    }
}

impl From<Broken> for Error {
    fn from(_: Broken) -> Self {
        Self::Unusable("it completes what it was never asked for")
    }
}

impl AsMut<Queue> for Commands {
    fn as_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }
}

/// Writes what a request begins with; where the slot's own bytes are for the device.
fn header(ring: &Ring, slot: usize, kind: u32, sector: u64) -> u64 {
    let (own, address) = ring.scratch(slot);
    let memory = ring.scratch_memory();
    memory.write_u32(own, kind);
    memory.write_u32(own.saturating_add(4), 0);
    memory.write_u64(own.saturating_add(8), sector);
    memory.write_u8(own.saturating_add(STATUS), NO_STATUS);
    address
}

/// Submits a request whose header is written, with `data` between that and the status.
fn submit(ring: &mut Ring, slot: usize, own: u64, data: impl Iterator<Item = (Piece, Direction)>) {
    let (at, len) = HEADER;
    let header = Piece { address: own.saturating_add(at as u64), len };
    let status = Piece { address: own.saturating_add(STATUS as u64), len: 1 };
    let first = core::iter::once((header, Direction::ToDevice));
    ring.submit(slot, first.chain(data).chain(core::iter::once((status, Direction::FromDevice))));
}

/// The most bytes that a request is to move, so that any memory fits that is in pages, the first of them not whole.
fn transfer(reach: &Reach) -> u64 {
    let (pieces, longest) = (reach.pieces as u64, (reach.longest as u64).max(1));
    let pages = pieces.saturating_sub(1).checked_div(PAGE.div_ceil(longest)).unwrap_or(0).max(1);
    pages.saturating_mul(PAGE).min(pieces.saturating_mul(longest))
}

/// Submits a command.
fn fill(ring: &mut Ring, slot: usize, command: &Command) {
    let (kind, direction) = match command.operation {
        Operation::Read => (IN, Direction::FromDevice),
        Operation::Write => (OUT, Direction::ToDevice),
        Operation::Flush => (FLUSH, Direction::ToDevice),
        Operation::Discard => (DISCARD, Direction::ToDevice),
        Operation::WriteZeroes => (WRITE_ZEROES, Direction::ToDevice),
    };
    let block_size = command.unit.geometry.block_size;
    let transfers = matches!(command.operation, Operation::Read | Operation::Write);
    let sector = if transfers { sectors(command.block, block_size) } else { 0 };
    let own = header(ring, slot, kind, sector);
    let mut range = None;
    if command.operation == Operation::WriteZeroes {
        let (at, _) = ring.scratch(slot);
        let bytes = range_of(sectors(command.block, block_size), sectors(command.blocks, block_size));
        ring.scratch_memory().write(at.saturating_add(EXTRA), &bytes);
        range = Some(Piece { address: own.saturating_add(EXTRA as u64), len: RANGE });
    }
    let data = command.pieces.iter().copied().chain(range).map(|piece| (piece, direction));
    submit(ring, slot, own, data);
}

/// So many blocks in sectors.
fn sectors(blocks: u64, block_size: u32) -> u64 {
    blocks.saturating_mul(u64::from(block_size).checked_div(SECTOR).unwrap_or(1))
}

/// A range of sectors, without flags.
fn range_of(sector: u64, count: u64) -> [u8; RANGE] {
    let mut range = [0; RANGE];
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let fields = sector.to_le_bytes().into_iter().chain(count.to_le_bytes());
    range.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    range
}

fn ranges_of_512(first: u64, blocks: u64) -> Vec<u8> {
    range_of(first, blocks).into()
}

fn ranges_of_4096(first: u64, blocks: u64) -> Vec<u8> {
    range_of(sectors(first, 4096), sectors(blocks, 4096)).into()
}
