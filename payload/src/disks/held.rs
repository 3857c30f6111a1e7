//! A device, and what is somebody's for as long as it is open.

use alloc::boxed::Box;
use alloc::sync::Arc;
use storage::{BlockDevice, Buffer, Geometry, Reply};

/// The same device, with what goes back when it is dropped.
pub struct Held {
    // Nobody else may have what is kept while this is there.
    device: Arc<dyn BlockDevice>,
    _kept: Box<dyn Send + Sync>,
}

impl Held {
    /// `device`, with `kept`.
    pub fn new(device: Arc<dyn BlockDevice>, kept: impl Send + Sync + 'static) -> Self {
        Self { device, _kept: Box::new(kept) }
    }
}

impl BlockDevice for Held {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.device.read(at, into)
    }
    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        self.device.write(at, from)
    }
    fn flush(&self) -> Reply<'_> {
        self.device.flush()
    }
    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.device.discard(at, len)
    }
    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.device.write_zeroes(at, len)
    }
}
