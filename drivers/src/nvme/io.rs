//! A pair of queues for reads and writes, and the requests that go through it.

use super::ring::{Entry, Ring, command};
use crate::dma::Dma;
use crate::driver::Error;
use crate::platform::Platform;
use crate::requests::{Command, Operation, Queue, Reach, Request, Shape};
use alloc::sync::Arc;
use alloc::vec::Vec;
use storage::BlockError;

/// The most entries of each queue. A command's slot is the lower byte of its identifier.
pub const MOST_ENTRIES: u16 = 64;

/// The most bytes that a command moves: what one list of pages suffices for.
pub const MOST_BYTES: u64 = 512 << 10;

/// The bytes of a slot's list of pages: all pages of the largest transfer but the first, which may begin within one.
const LIST: usize = 1024;

/// The size of a memory page: CC.MPS is 0.
const PAGE: u64 = 4096;

/// Opcodes of the NVM command set.
const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const WRITE_ZEROES: u8 = 0x08;
const DATASET_MANAGEMENT: u8 = 0x09;

/// Dataset management's attribute "deallocate", in dword 11.
const DEALLOCATE: u32 = 1 << 2;

/// "Do not retry", in a status of 15 bits.
const DO_NOT_RETRY: u16 = 1 << 14;

/// The pages of a transfer: PRP entries (NVMe Base Specification 2.0, 4.1.1).
const REACH: Reach = Reach {
    last: u64::MAX,
    align: 4,
    page: PAGE,
    boundary: PAGE,
    longest: PAGE as usize,
    pieces: LIST / 8 + 1,
};

/// Queues, and what goes through them.
pub struct Io {
    ring: Ring,
    queue: Queue,
    lists: Dma,
    /// The identifier of each slot's last command: the slot, and how often it was used, in the upper byte.
    ids: Vec<u16>,
}

impl Io {
    /// Queues around `ring`.
    ///
    /// # Errors
    /// No memory.
    pub fn new(platform: &Arc<dyn Platform>, ring: Ring) -> Result<Self, Error> {
        // A ring that were full would look empty.
        let slots = usize::from(ring.entries().min(MOST_ENTRIES)).saturating_sub(1).max(1);
        let shape = Shape { slots, reach: REACH, ranges };
        Ok(Self {
            ring,
            queue: Queue::new(Arc::clone(platform), shape)?,
            lists: Dma::allocate(&**platform, slots.saturating_mul(LIST))?,
            ids: (0..slots).map(|slot| slot as u16).collect(),
        })
    }

    /// Where the commands and where the completions are, and how many entries each of them has.
    pub const fn rings(&self) -> (u64, u64, u16) {
        let (submissions, completions) = self.ring.addresses();
        (submissions, completions, self.ring.entries())
    }

    /// Has a request wait for its turn, which may be now.
    pub fn submit(&mut self, request: Request, now: u64) {
        self.queue.push(request);
        self.proceed(now);
    }

    /// Takes completions, and gives the controller what had to wait for them.
    pub fn serve(&mut self, now: u64) {
        let mut taken = false;
        // A controller that writes without end is not listened to for ever.
        for _ in 0..self.ring.entries() {
            let Some(completion) = self.ring.take() else { break };
            taken = true;
            let slot = usize::from(completion.id & 0xff);
            // An identifier that is not under way, or is no more, is nobody's.
            if self.ids.get(slot) != Some(&completion.id) {
                continue;
            }
            match completion.status {
                0 => {
                    self.queue.end(slot, Ok(()));
                }
                status if status & DO_NOT_RETRY == 0 => self.queue.retry(slot, error(status)),
                status => {
                    self.queue.end(slot, Err(error(status)));
                }
            }
        }
        if taken {
            self.ring.release();
        }
        self.proceed(now);
    }

    /// Gives the controller nothing for now.
    pub fn stop(&mut self) {
        self.queue.stop();
    }

    /// There is no such disk any more.
    pub fn close(&mut self) {
        self.queue.close(BlockError::Gone);
    }

    /// The controller has forgotten its queues.
    pub fn forgotten(&mut self, now: u64) {
        self.ring.reset();
        self.queue.forgotten(now);
    }

    /// The controller takes commands again.
    pub fn resume(&mut self, now: u64) {
        self.queue.resume();
        self.proceed(now);
    }

    /// Gives the controller as many commands as there are and it has room for.
    fn proceed(&mut self, now: u64) {
        let mut written = false;
        while let Some((slot, command)) = self.queue.next(now) {
            let Some(id) = self.ids.get_mut(slot) else { break };
            *id = id.wrapping_add(0x100);
            self.ring.write(*id, &entry(command, slot, &self.lists));
            written = true;
        }
        if written {
            self.ring.submit();
        }
    }
}

impl AsMut<Queue> for Io {
    fn as_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }
}

/// What tells the controller to do it.
fn entry(asked: &Command, slot: usize, lists: &Dma) -> Entry {
    let opcode = match asked.operation {
        Operation::Read => READ,
        Operation::Write => WRITE,
        Operation::Flush => FLUSH,
        Operation::Discard => DATASET_MANAGEMENT,
        Operation::WriteZeroes => WRITE_ZEROES,
    };
    let mut entry = command(opcode, asked.unit.number);
    let [_, _, _, _, _, _, prp1_low, prp1_high, prp2_low, prp2_high, dword10, dword11, dword12, ..] =
        &mut entry;
    let mut pieces = asked.pieces.iter();
    let first = pieces.next().map_or(0, |piece| piece.address);
    let second = match asked.pieces.get(1..) {
        None | Some([]) => 0,
        Some([piece]) => piece.address,
        Some(others) => {
            let at = slot.saturating_mul(LIST);
            for (n, piece) in others.iter().enumerate() {
                lists.write_u64(at.saturating_add(n.saturating_mul(8)), piece.address);
            }
            lists.address().saturating_add(at as u64)
        }
    };
    (*prp1_low, *prp1_high) = (first as u32, (first >> 32) as u32);
    (*prp2_low, *prp2_high) = (second as u32, (second >> 32) as u32);
    match asked.operation {
        Operation::Flush => (),
        // One range; the number of ranges is one more than dword 10 says.
        Operation::Discard => *dword11 = DEALLOCATE,
        Operation::Read | Operation::Write | Operation::WriteZeroes => {
            (*dword10, *dword11) = (asked.block as u32, (asked.block >> 32) as u32);
            *dword12 = asked.blocks.saturating_sub(1) as u32 & 0xffff;
        }
    }
    entry
}

/// A range for dataset management: attributes, length, first block (NVM Command Set Specification 1.0, 3.2.3).
fn ranges(first: u64, blocks: u64) -> Vec<u8> {
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    [[0; 4], blocks.to_le_bytes()].concat().into_iter().chain(first.to_le_bytes()).collect()
}

/// What a status says (NVMe Base Specification 2.0, figures 97 and 101).
const fn error(status: u16) -> BlockError {
    match status & 0x7ff {
        // Invalid command opcode.
        0x001 => BlockError::Unsupported,
        // Namespace is write protected; attempted write to read only range.
        0x020 | 0x182 => BlockError::ReadOnly,
        _ => BlockError::Failed,
    }
}
