//! The block device (virtio 1.2, 5.2), on whatever stores blocks.
//!
//! A request's buffers go to the storage as they lie in guest memory. Many are under way at once; each ends when the
//! storage has answered, in any order. No access waits for one.

use super::device::{Device, Identity, Queues};
use super::queue::{Chain, Segments, Token};
use crate::chipset::Context;
use crate::memory::{GuestMemory, GuestPhys, scattered};
use crate::requests::{MOST, Requests};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Waker;
use storage::{BlockDevice, BlockError, Buffer, Geometry, Reply, pause};

/// Feature bits (5.2.3).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLOCK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MULTI_QUEUE: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (5.2.6).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// A request's last byte (5.2.6).
mod status {
    pub const OK: u8 = 0;
    pub const IO_ERROR: u8 = 1;
    pub const UNSUPPORTED: u8 = 2;
}

/// The configuration structure's size, and its field of the cache's mode (5.2.4).
const CONFIG_BYTES: usize = 60;
const CONFIG_WRITE_BACK: usize = 32;

/// Places and lengths in requests are in sectors, whatever the block size.
const SECTOR_SHIFT: u32 = 9;
const SECTOR: u64 = 1 << SECTOR_SHIFT;
const HEADER_BYTES: u64 = 16;
/// A serial number's size in bytes.
const SERIAL_BYTES: usize = 20;
/// The unit that reads and writes are best made in, in bytes: no storage here likes less.
const GOOD_UNIT: u32 = 4096;

const QUEUE_SIZE: u16 = 128;
/// More queues than this never pay, since no more requests than [`MOST`] are under way at once.
const MOST_QUEUES: usize = 16;
/// The most data buffers in a request: a ring's worth, without header and status.
const MOST_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// No request is taken while those under way have this many buffers: what they take of our memory has an end.
const MANY_SEGMENTS: usize = 2048;

/// The most bytes that the storage is asked for at once: a driver's buffers may name the same memory again and again,
/// and so be as long as 32 bits can say. Linux asks for 1280 KiB at most.
const PIECE: usize = 2 << 20;

/// A range of sectors to discard or to make zero.
const RANGE_BYTES: u64 = 16;
/// The most such ranges in a request.
const MOST_RANGES: u32 = 32;
/// The most sectors in such a range: 64 MiB.
const MOST_RANGE_SECTORS: u32 = 1 << 17;
/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP.
const FLAG_UNMAP: u32 = 1;

/// A virtio block device.
pub struct Block {
    storage: Arc<dyn BlockDevice>,
    geometry: Geometry,
    serial: [u8; SERIAL_BYTES],
    /// The cache's mode after a reset.
    write_back: bool,
    /// What the driver accepted.
    features: u64,
    config: [u8; CONFIG_BYTES],
    queues: Vec<u16>,
    requests: Requests<Asked, Result<(), BlockError>>,
    /// How many buffers the requests under way have, those included that nobody waits for any more.
    segments: Arc<AtomicUsize>,
    /// Requests may wait in queues that nobody will tell of.
    left_waiting: bool,
    /// Which queue is looked at first when several may have requests.
    first: u16,
}

/// Who asked, and where the answer goes.
struct Asked {
    queue: u16,
    token: Token,
    status: GuestPhys,
    /// How many bytes are written when it succeeds, the status included.
    written: u32,
}

/// A request's buffers, counted until it is gone.
struct Counted {
    all: Arc<AtomicUsize>,
    segments: usize,
}

impl Counted {
    fn new(all: &Arc<AtomicUsize>, segments: usize) -> Self {
        all.fetch_add(segments, Ordering::Relaxed);
        Self { all: Arc::clone(all), segments }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.fetch_sub(self.segments, Ordering::Relaxed);
    }
}

/// What is to be done at the storage.
enum Work {
    Read(u64, Buffer),
    Write(u64, Buffer),
    Flush,
    Discard(Vec<(u64, u64)>),
    WriteZeroes(Vec<(u64, u64)>),
}

/// What a request comes to.
enum Verdict {
    /// It is to be done.
    Work(Work),
    /// It is done, with so many bytes written before the status.
    Done(u32),
    /// It is refused with this status.
    Refused(u8),
}

impl Block {
    /// A disk of what `storage` stores, with up to `queues` queues. Of `serial` the first 20 bytes count. In the mode
    /// `write_back`, what was written may be lost with the power until the driver flushes it; it can choose the other
    /// mode.
    pub fn new(storage: Arc<dyn BlockDevice>, serial: &str, write_back: bool, queues: usize) -> Self {
        let geometry = storage.geometry();
        let mut padded = [0; SERIAL_BYTES];
        padded.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        let queues = queues.clamp(1, MOST_QUEUES);
        let mut block = Self {
            storage,
            geometry,
            serial: padded,
            write_back,
            features: 0,
            config: configuration(&geometry, queues),
            queues: alloc::vec![QUEUE_SIZE; queues],
            requests: Requests::new(MOST, Waker::noop().clone()),
            segments: Arc::default(),
            left_waiting: false,
            first: 0,
        };
        block.set_write_back(write_back);
        block
    }

    fn set_write_back(&mut self, write_back: bool) {
        if let Some(field) = self.config.get_mut(CONFIG_WRITE_BACK) {
            *field = write_back.into();
        }
    }

    /// Whether a write ends only once it is safe: what a driver gets that cannot flush (5.2.5.1, 5.2.6.2).
    fn writes_through(&self) -> bool {
        let in_write_back = if self.features & feature::CONFIG_WCE == 0 {
            self.write_back
        } else {
            self.config.get(CONFIG_WRITE_BACK).is_some_and(|field| *field != 0)
        };
        self.features & feature::FLUSH == 0 || !in_write_back
    }

    /// Takes requests from `queue` for as long as there are any and room for them.
    fn take(&mut self, queue: u16, queues: &mut Queues) {
        loop {
            let many = self.segments.load(Ordering::Relaxed) >= MANY_SEGMENTS;
            if self.requests.is_full() || many || queues.is_spent() {
                // Whatever ends has us look again, and so has who served enough.
                self.left_waiting = true;
                return;
            }
            if let Some(chain) = queues.pop(queue) {
                self.begin(queue, chain, queues);
            } else if !queues.ask_for_notification(queue) {
                return;
            }
        }
    }

    fn begin(&mut self, queue: u16, chain: Chain, queues: &mut Queues) {
        let Chain { token, mut readable, writable: mut answer } = chain;
        let segments = readable.count().saturating_add(answer.count());
        let Some(data_bytes) = answer.len().checked_sub(1) else {
            return queues.refuse(queue, "a request without a byte for its status");
        };
        let data = answer.split_front(data_bytes);
        let Some(status) = answer.iter().next().map(|segment| segment.address) else { return };
        let mut header = [0; HEADER_BYTES as usize];
        if readable.split_front(HEADER_BYTES).read(queues.memory(), &mut header) < header.len() {
            return queues.refuse(queue, "a request that is shorter than its header");
        }
        let value = u128::from_le_bytes(header);
        let (kind, sector) = (value as u32, (value >> 64) as u64);
        let mut asked = Asked { queue, token, status, written: 1 };
        let work = match self.judge(kind, sector, &readable, &data, queues.memory()) {
            Verdict::Work(work) => work,
            Verdict::Done(written) => {
                asked.written = written.saturating_add(1);
                return answer_with(&asked, status::OK, queues);
            }
            Verdict::Refused(status) => return answer_with(&asked, status, queues),
        };
        if let Work::Read(_, into) = &work {
            asked.written = (into.len() as u32).saturating_add(1);
        }
        let work = carry_out(Arc::clone(&self.storage), work, self.writes_through());
        let counted = Counted::new(&self.segments, segments);
        let work = async move {
            let _counted = counted;
            work.await
        };
        if let Some((asked, result)) = self.requests.start(asked, work) {
            answer_with(&asked, status_of(result), queues);
        }
    }

    fn judge(
        &self,
        kind: u32,
        sector: u64,
        readable: &Segments,
        data: &Segments,
        memory: &Arc<GuestMemory>,
    ) -> Verdict {
        let buffer = |segments: &Segments| {
            let ranges = segments.iter().map(|segment| (segment.address, u64::from(segment.len)));
            scattered(memory, ranges).map_err(|_| status::IO_ERROR)
        };
        let transfer = |segments: &Segments| {
            let at = sector.checked_mul(SECTOR).ok_or(status::IO_ERROR)?;
            self.geometry.check(at, segments.len()).map_err(|_| status::IO_ERROR)?;
            Ok((at, buffer(segments)?))
        };
        let work = match kind {
            kind::IN => transfer(data).map(|(at, into)| Work::Read(at, into)),
            kind::OUT if self.geometry.read_only => Err(status::IO_ERROR),
            kind::OUT => transfer(readable).map(|(at, from)| Work::Write(at, from)),
            kind::FLUSH => Ok(Work::Flush),
            kind::GET_ID => return Verdict::Done(data.write(memory, &self.serial) as u32),
            kind::DISCARD if self.features & feature::DISCARD != 0 => {
                self.ranges(readable, memory, 0).map(Work::Discard)
            }
            kind::WRITE_ZEROES if self.features & feature::WRITE_ZEROES != 0 => {
                self.ranges(readable, memory, FLAG_UNMAP).map(Work::WriteZeroes)
            }
            _ => Err(status::UNSUPPORTED),
        };
        work.map_or_else(Verdict::Refused, Verdict::Work)
    }

    /// The ranges in bytes that a request lists, with no flags but `flags`.
    fn ranges(&self, list: &Segments, memory: &GuestMemory, flags: u32) -> Result<Vec<(u64, u64)>, u8> {
        let len = list.len();
        if len == 0
            || !len.is_multiple_of(RANGE_BYTES)
            || len > RANGE_BYTES.saturating_mul(MOST_RANGES.into())
        {
            return Err(status::IO_ERROR);
        }
        let mut bytes = alloc::vec![0; len as usize];
        list.read(memory, &mut bytes);
        let (entries, _) = bytes.as_chunks::<{ RANGE_BYTES as usize }>();
        let range = |entry: &[u8; RANGE_BYTES as usize]| {
            let value = u128::from_le_bytes(*entry);
            let (sector, sectors, given) = (value as u64, (value >> 64) as u32, (value >> 96) as u32);
            if given & !flags != 0 {
                return Err(status::UNSUPPORTED);
            }
            if sectors > MOST_RANGE_SECTORS {
                return Err(status::IO_ERROR);
            }
            let at = sector.checked_mul(SECTOR).ok_or(status::IO_ERROR)?;
            let len = u64::from(sectors).saturating_mul(SECTOR);
            self.geometry.check(at, len).map(|()| (at, len)).map_err(|_| status::IO_ERROR)
        };
        entries.iter().map(range).collect()
    }
}

/// The configuration structure (5.2.4).
fn configuration(geometry: &Geometry, queues: usize) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        config.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    let block = geometry.block_size.max(SECTOR as u32);
    let sectors_of_block = block >> SECTOR_SHIFT;
    let blocks_of_unit = GOOD_UNIT.checked_div(block).unwrap_or(1).max(1);
    put(0, &(geometry.size() / SECTOR).to_le_bytes());
    put(12, &MOST_SEGMENTS.to_le_bytes());
    put(20, &block.to_le_bytes());
    // Blocks of a physical one as a power of two; none is cut by the beginning; the least and the best transfer.
    put(24, &[blocks_of_unit.trailing_zeros() as u8, 0]);
    put(26, &(blocks_of_unit as u16).to_le_bytes());
    put(34, &(queues as u16).to_le_bytes());
    put(36, &MOST_RANGE_SECTORS.to_le_bytes());
    put(40, &MOST_RANGES.to_le_bytes());
    put(44, &sectors_of_block.to_le_bytes());
    put(48, &MOST_RANGE_SECTORS.to_le_bytes());
    put(52, &MOST_RANGES.to_le_bytes());
    config
}

/// A request's bytes in pieces: where on the disk each is, and where in memory.
fn pieces(at: u64, buffer: Buffer) -> impl ExactSizeIterator<Item = (u64, Buffer)> {
    (0..buffer.len()).step_by(PIECE).map(move |start| {
        let len = buffer.len().saturating_sub(start).min(PIECE);
        (at.saturating_add(start as u64), buffer.slice(start, len).unwrap_or_else(|| buffer.clone()))
    })
}

async fn carry_out(storage: Arc<dyn BlockDevice>, work: Work, through: bool) -> Result<(), BlockError> {
    let writes = !matches!(work, Work::Read(..) | Work::Flush);
    let asked: &dyn BlockDevice = &*storage;
    let mut parts: Box<dyn ExactSizeIterator<Item = Reply<'_>> + Send> = match work {
        Work::Read(at, into) => Box::new(pieces(at, into).map(|(at, part)| asked.read(at, part))),
        Work::Write(at, from) => Box::new(pieces(at, from).map(|(at, part)| asked.write(at, part))),
        Work::Flush => Box::new(core::iter::once_with(|| asked.flush())),
        Work::Discard(ranges) => Box::new(ranges.into_iter().map(|(at, len)| asked.discard(at, len))),
        Work::WriteZeroes(ranges) => {
            Box::new(ranges.into_iter().map(|(at, len)| asked.write_zeroes(at, len)))
        }
    };
    while let Some(part) = parts.next() {
        part.await?;
        if parts.len() > 0 {
            // It may have been done at once, and there may be many.
            pause().await;
        }
    }
    if writes && through { storage.flush().await } else { Ok(()) }
}

const fn status_of(result: Result<(), BlockError>) -> u8 {
    match result {
        Ok(()) => status::OK,
        Err(BlockError::Unsupported) => status::UNSUPPORTED,
        Err(_) => status::IO_ERROR,
    }
}

/// Gives a request back with its status. Where it failed, the data are not to be relied on.
fn answer_with(asked: &Asked, status: u8, queues: &mut Queues) {
    // It was memory when the request came, and a guest's memory stays.
    let _ = queues.memory().write_u8(asked.status, status);
    queues.push(asked.queue, asked.token, if status == status::OK { asked.written } else { 0 });
}

impl Device for Block {
    fn identity(&self) -> Identity {
        Identity { name: "virtio block device", id: 2, class: 0x01_00_00 }
    }

    fn features(&self) -> u64 {
        let mut features = feature::SEG_MAX
            | feature::BLOCK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | feature::CONFIG_WCE
            | feature::MULTI_QUEUE;
        if self.geometry.read_only {
            features |= feature::READ_ONLY;
        } else {
            features |= feature::WRITE_ZEROES;
            if self.geometry.discards {
                features |= feature::DISCARD;
            }
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: usize, value: u8, _ctx: &mut Context) {
        if offset == CONFIG_WRITE_BACK && self.features & feature::CONFIG_WCE != 0 {
            self.set_write_back(value != 0);
        }
    }

    fn connect(&mut self, waker: Waker) {
        self.requests = Requests::new(MOST, waker);
    }

    fn start(&mut self, features: u64) {
        (self.features, self.left_waiting) = (features, true);
    }

    fn serve(&mut self, notified: Option<u16>, queues: &mut Queues, _ctx: &mut Context) {
        while let Some((asked, result)) = self.requests.take_ended() {
            answer_with(&asked, status_of(result), queues);
        }
        if core::mem::take(&mut self.left_waiting) {
            // Another queue first each time, so that none takes all the room.
            let (count, first) = (queues.count(), self.first);
            for n in 0..count {
                self.take(first.wrapping_add(n).checked_rem(count).unwrap_or(0), queues);
            }
            self.first = first.wrapping_add(1).checked_rem(count).unwrap_or(0);
        } else if let Some(queue) = notified {
            self.take(queue, queues);
        }
    }

    fn reset(&mut self) {
        self.requests.forget();
        (self.features, self.left_waiting) = (0, false);
        self.set_write_back(self.write_back);
    }

    fn reset_queue(&mut self, queue: u16) {
        self.requests.forget_where(|asked| asked.queue == queue);
    }

    fn is_idle(&self, queue: Option<u16>) -> bool {
        // Of a queue that was reset, all requests are forgotten.
        let known = if queue.is_some() { self.requests.iter().count() } else { 0 };
        self.requests.len() == known
    }
}

#[cfg(test)]
mod tests;
