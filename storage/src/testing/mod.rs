//! Disks for tests, and a way to wait for them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

#[cfg(test)]
mod file_system;
#[cfg(test)]
mod image;
#[cfg(test)]
mod power;
#[cfg(test)]
mod tape;
#[cfg(test)]
mod watch;

use crate::block::{BlockDevice, BlockError, Geometry, Reply};
use crate::buffer::Buffer;
use core::future::{Future, ready};
use core::pin::pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};
#[cfg(test)]
pub use file_system::{Scratch, mke2fs, mkfs_vfat, run};
#[cfg(test)]
pub use image::Image;
#[cfg(test)]
pub use power::{Story, sector};
use spin::Mutex;
use std::boxed::Box;
use std::sync::Arc;
use std::task::Wake;
use std::vec::Vec;
#[cfg(test)]
pub use tape::{Slow, Tape};
#[cfg(test)]
pub use watch::{Reachable, Watch};

/// Counts how often it was woken.
#[derive(Default)]
pub struct Bell(AtomicU64);

impl Bell {
    /// How often.
    pub fn rings(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A disk in memory, which answers at once.
pub struct RamDisk {
    block_size: u32,
    bytes: Mutex<Vec<u8>>,
    /// Reads of this byte fail.
    pub bad: Option<u64>,
    read_only: bool,
}

impl RamDisk {
    /// A disk of these bytes. What its last block lacks does not count.
    pub fn new(block_size: u32, bytes: Vec<u8>) -> Self {
        Self { block_size, bytes: Mutex::new(bytes), bad: None, read_only: false }
    }

    /// The same disk, which is not to be written.
    pub fn sealed(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// What it holds.
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
        Geometry { block_size: self.block_size, blocks, read_only: self.read_only, discards: false }
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        answer(self.geometry().check(at, into.len() as u64).and_then(|()| {
            if self.bad.is_some_and(|bad| (at..at + into.len() as u64).contains(&bad)) {
                return Err(BlockError::Failed);
            }
            into.write(0, &self.bytes.lock()[at as usize..][..into.len()]);
            Ok(())
        }))
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        answer(self.geometry().check(at, from.len() as u64).and_then(|()| {
            if self.read_only {
                return Err(BlockError::ReadOnly);
            }
            from.read(0, &mut self.bytes.lock()[at as usize..][..from.len()]);
            Ok(())
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
///
/// # Panics
/// It waits for what does not come.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1 << 24 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("this waits for ever");
}

/// Bytes of which no two pieces nearby look alike.
#[cfg(test)]
pub fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at + seed) * 7 % 251) as u8).collect()
}

/// Numbers that look random, and are the same in each run.
#[cfg(test)]
pub struct Random(pub u64);

#[cfg(test)]
impl Random {
    /// One below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }
}
