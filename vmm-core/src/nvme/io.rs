//! Commands on the namespace (NVMe 1.4, 6): what they ask of the disk.

use super::command::{Command, Status};
use super::{About, Answer, NAMESPACE, Nvme, prp};
use crate::chipset::Context;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use storage::{BlockDevice, BlockError, Buffer, pause};

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const WRITE_ZEROES: u8 = 0x08;
const DATASET_MANAGEMENT: u8 = 0x09;

/// Dword 12: safe from the loss of power before it is answered.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Dataset management, dword 11: nobody needs these blocks any more.
const DEALLOCATE: u32 = 1 << 2;
/// The size of one of dataset management's ranges in bytes.
const RANGE_BYTES: u64 = 16;

/// How a request ended.
pub(super) type Ended = Result<(), BlockError>;

/// What kind of request a command is, for counting and for saying what failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// So many bytes.
    Read(u64),
    /// So many bytes.
    Write(u64),
    Other,
}

/// What is asked of the disk; places and lengths are in bytes.
pub(super) enum Work {
    Read { at: u64, into: Buffer },
    Write { at: u64, from: Buffer, safe: bool },
    WriteZeroes { at: u64, len: u64, safe: bool },
    Discard(Vec<(u64, u64)>),
    Flush,
}

/// Does it.
pub(super) async fn perform(device: Arc<dyn BlockDevice>, work: Work) -> Ended {
    let safe = match work {
        Work::Read { at, into } => return device.read(at, into).await,
        Work::Flush => true,
        Work::Write { at, from, safe } => {
            device.write(at, from).await?;
            safe
        }
        Work::WriteZeroes { at, len, safe } => {
            device.write_zeroes(at, len).await?;
            safe
        }
        Work::Discard(ranges) => {
            for (n, (at, len)) in ranges.into_iter().enumerate() {
                if n > 0 {
                    // There may be many, all of them done at once.
                    pause().await;
                }
                device.discard(at, len).await?;
            }
            false
        }
    };
    if safe { device.flush().await } else { Ok(()) }
}

impl Nvme {
    /// Begins a command of queue `n`.
    pub(super) fn begin(&mut self, n: u16, command: &Command, ctx: &mut Context) -> Answer {
        let (kind, work) = match self.work(command, ctx) {
            Ok(work) => work,
            Err(status) => return Answer::Now(Err(status)),
        };
        let about = About::Command { queue: n, id: command.id, kind };
        match self.requests.start(about, perform(Arc::clone(&self.device), work)) {
            Some((_, ended)) => Answer::Now(self.result(kind, ended)),
            None => Answer::Later,
        }
    }

    /// A command's request has ended.
    pub(super) fn end(&mut self, queue: u16, id: u16, kind: Kind, ended: Ended, ctx: &mut Context) {
        let result = self.result(kind, ended);
        self.answer(queue, id, result, ctx);
    }

    fn result(&mut self, kind: Kind, ended: Ended) -> Result<u32, Status> {
        self.health.count(kind, ended.is_ok());
        match ended {
            Ok(()) => Ok(0),
            Err(error) => Err(status(kind, error)),
        }
    }

    fn work(&self, command: &Command, ctx: &Context) -> Result<(Kind, Work), Status> {
        let geometry = self.device.geometry();
        let every = command.opcode == FLUSH && command.namespace == u32::MAX;
        if command.namespace != NAMESPACE && !every {
            return Err(Status::INVALID_NAMESPACE);
        }
        if geometry.read_only && matches!(command.opcode, WRITE | WRITE_ZEROES | DATASET_MANAGEMENT) {
            return Err(Status::WRITE_PROTECTED);
        }
        let [_, _, how, _] = command.words;
        let safe = how & FORCE_UNIT_ACCESS != 0 || !self.features.caches_writes();
        let blocks = (how & 0xffff).saturating_add(1);
        Ok(match command.opcode {
            FLUSH => (Kind::Other, Work::Flush),
            READ => {
                let (at, len) = self.place(command.first_block(), blocks)?;
                (Kind::Read(len), Work::Read { at, into: prp::buffer(ctx.memory, command, len)? })
            }
            WRITE => {
                let (at, len) = self.place(command.first_block(), blocks)?;
                (Kind::Write(len), Work::Write { at, from: prp::buffer(ctx.memory, command, len)?, safe })
            }
            WRITE_ZEROES => {
                let (at, len) = self.place(command.first_block(), blocks)?;
                (Kind::Other, Work::WriteZeroes { at, len, safe })
            }
            DATASET_MANAGEMENT if geometry.discards => {
                (Kind::Other, Work::Discard(self.ranges(command, ctx)?))
            }
            _ => return Err(Status::INVALID_OPCODE),
        })
    }

    /// Where `blocks` blocks from `first` on lie, in bytes.
    fn place(&self, first: u64, blocks: u32) -> Result<(u64, u64), Status> {
        let geometry = self.device.geometry();
        let end = first.checked_add(u64::from(blocks)).filter(|end| *end <= geometry.blocks);
        let size = u64::from(geometry.block_size);
        let at = end.and_then(|_| first.checked_mul(size)).ok_or(Status::OUT_OF_RANGE)?;
        Ok((at, u64::from(blocks).saturating_mul(size)))
    }

    /// The ranges that dataset management says nobody needs; none where it says something else about them.
    fn ranges(&self, command: &Command, ctx: &Context) -> Result<Vec<(u64, u64)>, Status> {
        let [count, attributes, ..] = command.words;
        let count = u64::from(count & 0xff).saturating_add(1);
        let len = count.saturating_mul(RANGE_BYTES);
        let mut bytes = vec![0; len as usize];
        prp::buffer(ctx.memory, command, len)?.read(0, &mut bytes);
        if attributes & DEALLOCATE == 0 {
            return Ok(Vec::new());
        }
        let (ranges, _) = bytes.as_chunks::<{ RANGE_BYTES as usize }>();
        let mut places = Vec::with_capacity(ranges.len());
        for range in ranges {
            let range = u128::from_le_bytes(*range);
            match (range >> 32) as u32 {
                0 => {}
                blocks => places.push(self.place((range >> 64) as u64, blocks)?),
            }
        }
        Ok(places)
    }
}

/// What the guest is told of a request that failed.
fn status(kind: Kind, error: BlockError) -> Status {
    match (error, kind) {
        (BlockError::OutOfRange { .. }, _) => Status::OUT_OF_RANGE,
        (BlockError::ReadOnly, _) => Status::WRITE_PROTECTED,
        (BlockError::Unsupported | BlockError::Misaligned { .. }, _) => Status::INVALID_FIELD,
        (BlockError::NoRoom { .. }, _) => Status::CAPACITY_EXCEEDED,
        (BlockError::TimedOut | BlockError::Gone, _) => Status::INTERNAL,
        (_, Kind::Read(_)) => Status::READ_ERROR,
        _ => Status::WRITE_FAULT,
    }
}
