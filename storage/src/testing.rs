//! A disk for tests, and a way to wait for it.

use crate::block::{BlockDevice, BlockError, Geometry, Reply};
use crate::buffer::Buffer;
use core::future::{Future, ready};
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use spin::Mutex;

/// A disk in memory.
pub struct RamDisk {
    block_size: u32,
    bytes: Mutex<Vec<u8>>,
    /// Reads of this byte fail.
    pub bad: Option<u64>,
}

impl RamDisk {
    pub fn new(block_size: u32, bytes: Vec<u8>) -> Self {
        Self { block_size, bytes: Mutex::new(bytes), bad: None }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }
}

fn answer(result: Result<(), BlockError>) -> Reply<'static> {
    Box::pin(ready(result))
}

impl BlockDevice for RamDisk {
    fn geometry(&self) -> Geometry {
        let blocks = self.bytes.lock().len() as u64 / u64::from(self.block_size);
        Geometry { block_size: self.block_size, blocks, read_only: false, discards: false }
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        let range = at..at + into.len() as u64;
        answer(self.geometry().check(at, into.len() as u64).and_then(|()| {
            if self.bad.is_some_and(|bad| range.contains(&bad)) {
                return Err(BlockError::Failed);
            }
            into.write(0, &self.bytes.lock()[at as usize..range.end as usize]);
            Ok(())
        }))
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        answer(self.geometry().check(at, from.len() as u64).map(|()| {
            from.read(0, &mut self.bytes.lock()[at as usize..][..from.len()]);
        }))
    }

    fn flush(&self) -> Reply<'_> {
        answer(Ok(()))
    }

    fn discard(&self, _at: u64, _len: u64) -> Reply<'_> {
        answer(Err(BlockError::Unsupported))
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.write(at, Buffer::zeroed(len as usize))
    }
}

/// What comes of a future that never has to wait for anything real.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
