//! What every driver of disks is tried with: random requests in random order of completion, against a model.

use crate::driver::Driver;
use crate::platform::Platform;
use crate::testing::{self, FakePlatform, poll};
use alloc::sync::Arc;
use core::task::Poll;
use proptest::prelude::*;
use storage::{BlockDevice, BlockError, Buffer, Reply};

const SECOND: u64 = 1_000_000_000;

/// A device below a driver, as far as a trial cares.
pub trait Device {
    /// Does one of the commands that the driver gave it, which of them as `choice` says.
    fn step(&self, choice: usize);
    /// What is on the disk.
    fn image(&self) -> Vec<u8>;
}

/// A driver at work on a fake device.
pub trait Rig {
    /// Where it runs.
    fn platform(&self) -> &FakePlatform;
    /// The driver.
    fn driver(&self) -> &dyn Driver;
    /// What it drives.
    fn device(&self) -> &dyn Device;

    /// The first of its disks.
    fn disk(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.driver().disks()[0].device)
    }

    /// What comes of a request while the device works and time goes on.
    fn wait(&self, reply: Reply<'_>) -> Result<(), BlockError> {
        testing::run(reply, || {
            self.device().step(0);
            self.driver().serve(0);
            self.platform().pass(SECOND / 4);
            if self.driver().deadline().is_some_and(|deadline| deadline <= self.platform().now()) {
                self.driver().recover();
            }
        })
    }

    /// Reads from the first disk what is on it.
    fn reads(&self) -> Result<(), BlockError> {
        let (disk, buffer) = (self.disk(), Buffer::zeroed(1024));
        self.wait(disk.read(512, buffer.clone()))?;
        assert_eq!(buffer.to_vec(), self.device().image()[512..1536]);
        Ok(())
    }
}

/// Where a request's bytes are.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Out of the device's reach.
    Heap,
    /// In one piece.
    Whole,
    /// Beginning with pieces of so many bytes.
    Pieces(usize),
}

#[derive(Clone, Copy, Debug)]
pub enum Ask {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

/// A request, and how many commands the device does before the next one.
#[derive(Clone, Debug)]
pub struct Step {
    pub ask: Ask,
    pub block: u64,
    pub blocks: u64,
    pub place: Place,
    pub fill: u8,
    pub choices: Vec<usize>,
}

/// Requests to a disk of so many blocks.
pub fn steps(blocks: u64, longest: u64) -> impl Strategy<Value = Vec<Step>> {
    let ask = prop_oneof![
        4 => Just(Ask::Read),
        4 => Just(Ask::Write),
        1 => Just(Ask::Flush),
        1 => Just(Ask::Discard),
        1 => Just(Ask::WriteZeroes),
    ];
    let place = prop_oneof![
        Just(Place::Heap),
        Just(Place::Whole),
        prop_oneof![Just(4096), Just(512), Just(510), Just(64), Just(7)].prop_map(Place::Pieces),
    ];
    let choices = proptest::collection::vec(any::<usize>(), 0..4);
    let step = (ask, 0..blocks, 0..=longest, place, any::<u8>(), choices);
    let step = step.prop_map(move |(ask, block, len, place, fill, choices)| Step {
        ask,
        block,
        blocks: len.min(blocks - block),
        place,
        fill,
        choices,
    });
    proptest::collection::vec(step, 1..40)
}

/// A request that was not answered yet.
struct Asked<'a> {
    reply: Reply<'a>,
    bytes: core::ops::Range<usize>,
    writes: bool,
    reads: Option<Buffer>,
}

/// Makes the requests, and looks at all answers, and at the disk afterwards.
pub fn run(
    platform: &FakePlatform,
    driver: &dyn Driver,
    disk: &dyn BlockDevice,
    device: &dyn Device,
    steps: &[Step],
) {
    let size = disk.geometry().block_size as usize;
    let mut model = device.image();
    // What was discarded reads as anything.
    let mut any = vec![false; model.len()];
    let mut asked: Vec<Asked> = Vec::new();
    for step in steps {
        let (at, len) = (step.block as usize * size, step.blocks as usize * size);
        let bytes = at..at + len;
        let writes = !matches!(step.ask, Ask::Read | Ask::Flush);
        // What is under way at once has no order: its results are known only where it does not meet.
        let meets = |other: &Asked| {
            (writes || other.writes) && bytes.start < other.bytes.end && other.bytes.start < bytes.end
        };
        let mut choice = step.fill as usize;
        while asked.iter().any(meets) {
            choice = choice.wrapping_mul(31).wrapping_add(7);
            proceed(driver, device, &model, &any, &mut asked, choice);
        }
        let buffer = match step.place {
            Place::Heap => Buffer::zeroed(len),
            Place::Whole => platform.scattered(&[len]),
            Place::Pieces(part) => {
                let mut parts = vec![part; (len / part).min(20)];
                parts.extend(Some(len - parts.len() * part).filter(|rest| *rest > 0));
                platform.scattered(&parts)
            }
        };
        let mut reads = None;
        let reply = match step.ask {
            Ask::Read => {
                reads = Some(buffer.clone());
                disk.read(at as u64, buffer)
            }
            Ask::Write => {
                let content: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_mul(3) ^ step.fill).collect();
                buffer.write(0, &content);
                model[bytes.clone()].copy_from_slice(&content);
                any[bytes.clone()].fill(false);
                disk.write(at as u64, buffer)
            }
            Ask::Flush => disk.flush(),
            Ask::Discard => {
                if disk.geometry().discards {
                    any[bytes.clone()].fill(true);
                }
                disk.discard(at as u64, len as u64)
            }
            Ask::WriteZeroes => {
                model[bytes.clone()].fill(0);
                any[bytes.clone()].fill(false);
                disk.write_zeroes(at as u64, len as u64)
            }
        };
        asked.push(Asked { reply, bytes, writes, reads });
        for choice in &step.choices {
            proceed(driver, device, &model, &any, &mut asked, *choice);
        }
    }
    let mut rounds = 0;
    while !asked.is_empty() {
        rounds += 1;
        assert!(rounds < 100_000, "{} requests are never answered", asked.len());
        proceed(driver, device, &model, &any, &mut asked, rounds * 7);
    }
    let image = device.image();
    assert_eq!(driver.deadline(), None, "nothing is under way");
    assert!((0..model.len()).all(|n| any[n] || model[n] == image[n]), "the disk holds something else");
}

fn proceed(
    driver: &dyn Driver,
    device: &dyn Device,
    model: &[u8],
    any: &[bool],
    asked: &mut Vec<Asked>,
    choice: usize,
) {
    device.step(choice);
    driver.serve(0);
    asked.retain_mut(|asked| {
        let Poll::Ready(result) = poll(&mut asked.reply) else { return true };
        assert!(matches!(result, Ok(()) | Err(BlockError::Unsupported)), "{result:?}");
        if let Some(buffer) = &asked.reads {
            let read = buffer.to_vec();
            let same = |n: usize| any[asked.bytes.start + n] || read[n] == model[asked.bytes.start + n];
            assert!((0..read.len()).all(same), "what was read at {:?} was never written", asked.bytes);
        }
        false
    });
}
