//! A disk in memory, which answers at once.

use std::future::{Future, ready};
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use storage::{BlockDevice, BlockError, Buffer, Geometry, Reply};

/// The size of a block in bytes.
pub const BLOCK: usize = 512;

/// The disk. What its last block lacks does not count.
pub struct RamDisk(pub Mutex<Vec<u8>>);

fn answer(result: Result<(), BlockError>) -> Reply<'static> {
    Box::pin(ready(result))
}

impl BlockDevice for RamDisk {
    fn geometry(&self) -> Geometry {
        let blocks = (self.0.lock().expect("one thread").len() / BLOCK) as u64;
        Geometry { block_size: BLOCK as u32, blocks, read_only: false, discards: false }
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        answer(self.geometry().check(at, into.len() as u64).map(|()| {
            into.write(0, &self.0.lock().expect("one thread")[at as usize..][..into.len()]);
        }))
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        answer(self.geometry().check(at, from.len() as u64).map(|()| {
            from.read(0, &mut self.0.lock().expect("one thread")[at as usize..][..from.len()]);
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

/// What comes of a future that waits for nothing.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("memory answers at once"),
    }
}
