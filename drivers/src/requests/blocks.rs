//! A disk as everyone else sees it.

use super::{Operation, Request};
use crate::dma::Dma;
use crate::driver::{Disk, Error};
use crate::platform::Platform;
use crate::reply;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::future::ready;
use storage::{BlockDevice, BlockError, Buffer, Geometry, Memory, Piece, Reply};

/// What takes requests for a disk: a controller, or its part that the disk is at.
pub trait Engine: Send + Sync {
    /// Gives the request to the device, at once or in its turn.
    fn submit(&self, request: Request);
}

/// A disk, and what its device can do in a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Which of its controller's: a namespace, a port, a drive.
    pub number: u32,
    /// What it says it is.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Its blocks.
    pub geometry: Geometry,
    /// The most bytes that a command reads or writes, whole blocks, at least one.
    pub transfer: u64,
    /// The most bytes that a command discards; 0 where it has none.
    pub discard: u64,
    /// The most bytes that a command makes zero; 0 where it has none, and zeroes are written.
    pub zeroes: u64,
    /// Writes that have ended may be lost with the power until a flush.
    pub volatile_cache: bool,
    /// What may be under way at once.
    pub overlap: Overlap,
}

/// Which of a disk's commands may be under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// One at a time.
    None,
    /// Reads and writes; everything else is alone.
    Transfers,
    /// All.
    All,
}

/// A disk of some engine's.
pub struct Blocks {
    engine: Arc<dyn Engine>,
    unit: Arc<Unit>,
    zeroes: Dma,
}

impl Blocks {
    /// A disk whose requests `engine` takes.
    ///
    /// # Errors
    /// No memory for a page of zeroes.
    pub fn disk(platform: &dyn Platform, engine: Arc<dyn Engine>, unit: Unit) -> Result<Disk, Error> {
        let (number, model, serial) = (unit.number, unit.model.clone(), unit.serial.clone());
        let zeroes = Dma::allocate(platform, ZEROES)?;
        let device = Arc::new(Self { engine, unit: Arc::new(unit), zeroes });
        Ok(Disk { unit: number, model, serial, device })
    }

    fn submit(&self, operation: Operation, at: u64, len: u64, buffer: Option<Buffer>) -> Reply<'_> {
        let geometry = &self.unit.geometry;
        let writes = !matches!(operation, Operation::Read | Operation::Flush);
        let refused = match geometry.check(at, len) {
            Ok(()) if writes && geometry.read_only => Err(BlockError::ReadOnly),
            Ok(()) if operation == Operation::Discard && !geometry.discards => Err(BlockError::Unsupported),
            Ok(()) if len == 0 && operation != Operation::Flush => Ok(()),
            Ok(()) if operation == Operation::Flush && !self.unit.volatile_cache => Ok(()),
            Ok(()) => {
                let (answer, pending) = reply::pair();
                let unit = Arc::clone(&self.unit);
                self.engine.submit(Request::new(operation, unit, at, len, buffer, answer));
                return Box::pin(pending);
            }
            Err(error) => Err(error),
        };
        Box::pin(ready(refused))
    }
}

impl BlockDevice for Blocks {
    fn geometry(&self) -> Geometry {
        self.unit.geometry
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.submit(Operation::Read, at, into.len() as u64, Some(into))
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        self.submit(Operation::Write, at, from.len() as u64, Some(from))
    }

    fn flush(&self) -> Reply<'_> {
        self.submit(Operation::Flush, 0, 0, None)
    }

    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.submit(Operation::Discard, at, len, None)
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        if self.unit.zeroes > 0 {
            return self.submit(Operation::WriteZeroes, at, len, None);
        }
        let Ok(size) = usize::try_from(len) else { return Box::pin(ready(Err(BlockError::Unsupported))) };
        let zeroes = Buffer::new(Arc::new(Repeated { page: self.zeroes.clone(), size }));
        self.submit(Operation::Write, at, len, Some(zeroes))
    }
}

/// The size of the zeroes that are written again and again: a page, which every device can take in place.
const ZEROES: usize = 4096;

/// The same zeroes again and again, however many.
struct Repeated {
    page: Dma,
    size: usize,
}

impl Memory for Repeated {
    fn size(&self) -> usize {
        self.size
    }

    fn read(&self, _at: usize, bytes: &mut [u8]) {
        bytes.fill(0);
    }

    fn write(&self, _at: usize, _bytes: &[u8]) {}

    fn piece(&self, at: usize) -> Option<Piece> {
        let within = at % ZEROES;
        let len = ZEROES.saturating_sub(within).min(self.size.saturating_sub(at));
        Some(Piece { address: self.page.address().saturating_add(within as u64), len })
    }
}
