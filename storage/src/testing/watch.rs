//! A disk that is watched by who tests what stands on it.

use crate::block::{BlockDevice, Geometry, Reply};
use crate::buffer::{Buffer, Memory, Piece};
use core::future::poll_fn;
use core::task::Poll;
use spin::Mutex;
use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;

/// Another disk, each answer of which takes a moment.
pub struct Watch {
    disk: Arc<dyn BlockDevice>,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    under_way: usize,
    /// The most requests that were under way at once.
    pub most: usize,
    /// The most bytes in a request that had a copy of its own of them, in memory that devices do not reach.
    pub copied: usize,
}

impl Watch {
    /// This disk, watched.
    pub fn new(disk: Arc<dyn BlockDevice>) -> Arc<Self> {
        Arc::new(Self { disk, seen: Mutex::default() })
    }

    /// What was seen since this was last asked.
    pub fn take(&self) -> Seen {
        core::mem::take(&mut *self.seen.lock())
    }

    fn watch<'a>(&'a self, buffer: Option<&Buffer>, request: Reply<'a>) -> Reply<'a> {
        let copied =
            buffer.filter(|buffer| buffer.pieces().any(|piece| piece.is_none())).map_or(0, Buffer::len);
        Box::pin(async move {
            {
                let mut seen = self.seen.lock();
                seen.under_way += 1;
                seen.most = seen.most.max(seen.under_way);
                seen.copied = seen.copied.max(copied);
            }
            let mut asked = false;
            poll_fn(|_| if core::mem::replace(&mut asked, true) { Poll::Ready(()) } else { Poll::Pending })
                .await;
            let answer = request.await;
            self.seen.lock().under_way -= 1;
            answer
        })
    }
}

impl BlockDevice for Watch {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        let request = self.disk.read(at, into.clone());
        self.watch(Some(&into), request)
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        let request = self.disk.write(at, from.clone());
        self.watch(Some(&from), request)
    }

    fn flush(&self) -> Reply<'_> {
        self.watch(None, self.disk.flush())
    }

    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.watch(None, self.disk.discard(at, len))
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.watch(None, self.disk.write_zeroes(at, len))
    }
}

/// Memory that devices reach, as guests' is.
pub struct Reachable(Mutex<Vec<u8>>);

impl Reachable {
    /// A buffer with these bytes.
    pub fn holding(bytes: &[u8]) -> Buffer {
        Buffer::new(Arc::new(Self(Mutex::new(bytes.to_vec()))))
    }
}

impl Memory for Reachable {
    fn size(&self) -> usize {
        self.0.lock().len()
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0.lock()[at..][..bytes.len()]);
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.0.lock()[at..][..bytes.len()].copy_from_slice(bytes);
    }

    fn piece(&self, at: usize) -> Option<Piece> {
        Some(Piece { address: 0x10_0000 + at as u64, len: self.size() - at })
    }
}
