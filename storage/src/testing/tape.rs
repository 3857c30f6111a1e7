//! Disks that answer late, and that remember what was written when.

use super::{RamDisk, Random, answer};
use crate::block::{BlockDevice, BlockError, Geometry, Reply};
use crate::buffer::Buffer;
use core::future::poll_fn;
use core::task::Poll;
use spin::Mutex;
use std::sync::Arc;

/// What happened to a disk.
#[derive(Clone, Debug)]
enum Event {
    /// A write began; it ended before the event with that number, or has not.
    Write { at: u64, bytes: Vec<u8>, ended: Option<usize> },
    /// A flush ended, which had begun before the event with that number.
    Flush { began: usize },
}

/// A disk in memory that can say what it would hold had the power been lost at some moment.
pub struct Tape {
    disk: RamDisk,
    before: Vec<u8>,
    events: Mutex<Vec<Event>>,
}

impl Tape {
    /// A disk of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { disk: RamDisk::new(512, bytes.clone()), before: bytes, events: Mutex::default() }
    }

    /// How many writes and flushes there were.
    pub fn events(&self) -> usize {
        self.events.lock().len()
    }

    /// What it holds had the power been lost after so many events: of what had not ended when a flush began that
    /// has ended, any sectors.
    pub fn cut(&self, events: usize, random: &mut Random) -> Vec<u8> {
        // All of them, none, or so many of a hundred.
        let lucky = [0, 100, 10, 50, 90][random.below(5) as usize];
        self.replay(events, |safe| safe || random.below(100) < lucky)
    }

    /// What it held after so many events.
    pub fn at(&self, events: usize) -> Vec<u8> {
        self.replay(events, |_| true)
    }

    /// Writes each sector anew that `keeps`, which is told whether a flush has made it safe.
    fn replay(&self, events: usize, mut keeps: impl FnMut(bool) -> bool) -> Vec<u8> {
        let mut bytes = self.before.clone();
        let all = self.events.lock();
        let events = &all[..events];
        let flushes = events.iter().map(|event| if let Event::Flush { began } = event { *began } else { 0 });
        let safe = flushes.max().unwrap_or(0);
        for event in events {
            let Event::Write { at, bytes: written, ended } = event else { continue };
            for (sector, at) in written.chunks(512).zip((*at as usize..).step_by(512)) {
                if keeps(ended.is_some_and(|ended| ended <= safe)) {
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        bytes
    }
}

/// Once pending, so that something else happens meanwhile.
fn later() -> impl Future<Output = ()> + Send {
    let mut asked = false;
    poll_fn(move |_| if core::mem::replace(&mut asked, true) { Poll::Ready(()) } else { Poll::Pending })
}

impl BlockDevice for Tape {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.disk.read(at, into)
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        Box::pin(async move {
            let number = {
                let mut events = self.events.lock();
                events.push(Event::Write { at, bytes: from.to_vec(), ended: None });
                events.len() - 1
            };
            later().await;
            self.disk.write(at, from).await?;
            let mut events = self.events.lock();
            let now = events.len();
            let Event::Write { ended, .. } = &mut events[number] else { unreachable!() };
            *ended = Some(now);
            Ok(())
        })
    }

    fn flush(&self) -> Reply<'_> {
        Box::pin(async move {
            let began = self.events();
            later().await;
            self.events.lock().push(Event::Flush { began });
            Ok(())
        })
    }

    fn discard(&self, _at: u64, _len: u64) -> Reply<'_> {
        answer(Err(BlockError::Unsupported))
    }

    fn write_zeroes(&self, _at: u64, _len: u64) -> Reply<'_> {
        answer(Err(BlockError::Unsupported))
    }
}

/// A disk that begins and ends what is asked for some time later, so that requests overtake each other.
pub struct Slow {
    disk: Arc<dyn BlockDevice>,
    random: Mutex<Random>,
}

impl Slow {
    /// Another disk, slowed down.
    pub fn new(disk: Arc<dyn BlockDevice>, seed: u64) -> Self {
        Self { disk, random: Mutex::new(Random(seed)) }
    }

    fn delay(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut left = self.random.lock().below(5);
        poll_fn(move |_| {
            left = left.saturating_sub(1);
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    fn late<'a>(&'a self, request: impl FnOnce(&'a dyn BlockDevice) -> Reply<'a> + Send + 'a) -> Reply<'a> {
        let (before, behind) = (self.delay(), self.delay());
        Box::pin(async move {
            before.await;
            let answer = request(&*self.disk).await;
            behind.await;
            answer
        })
    }
}

impl BlockDevice for Slow {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.late(move |disk| disk.read(at, into))
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        self.late(move |disk| disk.write(at, from))
    }

    fn flush(&self) -> Reply<'_> {
        self.late(|disk| disk.flush())
    }

    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.late(move |disk| disk.discard(at, len))
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.late(move |disk| disk.write_zeroes(at, len))
    }
}
