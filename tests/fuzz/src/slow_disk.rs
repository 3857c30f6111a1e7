//! A disk that answers when it is told to.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use storage::{BlockDevice, BlockError, Buffer, Geometry, Reply};

#[derive(Default)]
struct Request {
    result: Option<Result<(), BlockError>>,
    waker: Option<Waker>,
    into: Option<Buffer>,
}

/// The disk, with what it was asked for and has not answered.
#[derive(Default)]
pub struct SlowDisk(Mutex<Vec<Arc<Mutex<Request>>>>);

impl SlowDisk {
    /// Answers one of the requests; false where there is none.
    pub fn end(&self, which: usize, well: bool) -> bool {
        let mut requests = self.0.lock().unwrap();
        let Some(n) = which.checked_rem(requests.len()) else { return false };
        let request = requests.swap_remove(n);
        let mut request = request.lock().unwrap();
        if let Some(into) = request.into.take() {
            into.write(0, &vec![0x5a; into.len()]);
        }
        request.result = Some(if well { Ok(()) } else { Err(BlockError::Failed) });
        let waker = request.waker.take();
        drop(request);
        waker.into_iter().for_each(Waker::wake);
        true
    }

    fn ask(&self, at: u64, len: u64, into: Option<Buffer>) -> Reply<'_> {
        if let Err(error) = self.geometry().check(at, len) {
            return Box::pin(async move { Err(error) });
        }
        let request = Arc::new(Mutex::new(Request { into, ..Request::default() }));
        self.0.lock().unwrap().push(Arc::clone(&request));
        Box::pin(poll_fn(move |context| {
            let mut request = request.lock().unwrap();
            if let Some(result) = request.result {
                return Poll::Ready(result);
            }
            request.waker = Some(context.waker().clone());
            Poll::Pending
        }))
    }
}

impl BlockDevice for SlowDisk {
    fn geometry(&self) -> Geometry {
        Geometry { block_size: 512, blocks: 1000, read_only: false, discards: true }
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.ask(at, into.len() as u64, Some(into))
    }
    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        let len = from.to_vec().len() as u64;
        self.ask(at, len, None)
    }
    fn flush(&self) -> Reply<'_> {
        self.ask(0, 0, None)
    }
    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.ask(at, len, None)
    }
    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.ask(at, len, None)
    }
}
