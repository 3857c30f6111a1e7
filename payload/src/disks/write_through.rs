//! A disk whose writes are safe when they have ended.

use alloc::boxed::Box;
use alloc::sync::Arc;
use storage::{BlockDevice, Buffer, Geometry, Reply};

/// The same disk, with writes that end once they are safe from the loss of power.
pub struct WriteThrough(pub Arc<dyn BlockDevice>);

impl WriteThrough {
    /// The change, and then what makes it safe.
    fn and_flush<'a>(&'a self, change: Reply<'a>) -> Reply<'a> {
        Box::pin(async move {
            change.await?;
            self.0.flush().await
        })
    }
}

impl BlockDevice for WriteThrough {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.0.read(at, into)
    }
    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        self.and_flush(self.0.write(at, from))
    }
    fn flush(&self) -> Reply<'_> {
        self.0.flush()
    }
    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.0.discard(at, len)
    }
    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.and_flush(self.0.write_zeroes(at, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::future::ready;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};
    use spin::Mutex;
    use storage::BlockError;

    /// A disk that remembers what was asked of it.
    #[derive(Default)]
    struct Asked(Mutex<Vec<&'static str>>);

    impl Asked {
        fn note(&self, what: &'static str) -> Reply<'_> {
            self.0.lock().push(what);
            Box::pin(ready(Ok(())))
        }
    }

    impl BlockDevice for Asked {
        fn geometry(&self) -> Geometry {
            Geometry { block_size: 512, blocks: 8, read_only: false, discards: true }
        }
        fn read(&self, _at: u64, _into: Buffer) -> Reply<'_> {
            self.note("read")
        }
        fn write(&self, _at: u64, _from: Buffer) -> Reply<'_> {
            self.note("write")
        }
        fn flush(&self) -> Reply<'_> {
            self.note("flush")
        }
        fn discard(&self, _at: u64, _len: u64) -> Reply<'_> {
            self.note("discard")
        }
        fn write_zeroes(&self, _at: u64, _len: u64) -> Reply<'_> {
            self.note("zeroes")
        }
    }

    fn answers(disk: &dyn BlockDevice) -> Vec<Result<(), BlockError>> {
        let buffer = || Buffer::zeroed(512);
        let replies = [
            disk.read(0, buffer()),
            disk.write(0, buffer()),
            disk.flush(),
            disk.discard(0, 512),
            disk.write_zeroes(0, 512),
        ];
        let mut context = Context::from_waker(Waker::noop());
        let answer = |reply: Reply<'_>| match pin!(reply).as_mut().poll(&mut context) {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("nothing to wait for"),
        };
        replies.into_iter().map(answer).collect()
    }

    #[test]
    fn writes_through_are_followed_by_a_flush() {
        let asked = Arc::new(Asked::default());
        let disk = WriteThrough(Arc::clone(&asked) as _);
        assert_eq!(answers(&disk), [Ok(()); 5]);
        let said = asked.0.lock().clone();
        assert_eq!(said.iter().filter(|what| **what == "flush").count(), 3);
        for change in ["write", "zeroes"] {
            assert_eq!(said.iter().filter(|what| **what == change).count(), 1);
        }
        assert_eq!(said.last(), Some(&"flush"));
    }
}
