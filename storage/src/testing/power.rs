//! Cutting the power of images that are being written.

use super::{RamDisk, Random, Slow, Tape, wait};
use crate::block::{BlockDevice, BlockError, Reply, read_bytes};
use crate::buffer::Buffer;
use crate::join;
use std::sync::Arc;

/// What may be read in a sector, by the numbers that were written.
type Possible = Vec<u32>;

/// What is written to a sector with this number.
pub fn sector(id: u32) -> Vec<u8> {
    id.to_be_bytes().repeat(128)
}

/// Opens an image in a file.
pub type Opener<'a> = &'a dyn Fn(Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice>;

/// An image that was written in batches, many requests at once, and flushed now and then.
pub struct Story {
    tape: Arc<Tape>,
    /// What may be read after so many events.
    known: Vec<(usize, Vec<Possible>)>,
}

/// What is left after a loss of power.
pub struct Cut {
    /// When it was.
    pub what: String,
    /// The image's file.
    pub file: Arc<RamDisk>,
    known: Vec<Possible>,
}

impl Story {
    /// Writes to the image in `bytes`, whose sectors have these numbers before.
    pub fn of(bytes: Vec<u8>, before: &[u32], seed: u64, open: Opener<'_>) -> Self {
        let tape = Arc::new(Tape::new(bytes));
        let image = open(Arc::new(Slow::new(Arc::clone(&tape) as Arc<dyn BlockDevice>, seed)));
        let mut random = Random(seed);
        let sectors = before.len() as u64;
        let mut possible: Vec<Possible> = before.iter().map(|id| vec![*id]).collect();
        let mut known = vec![(0, possible.clone())];
        // What was written last, where nothing was discarded since.
        let mut now: Vec<Option<u32>> = before.iter().copied().map(Some).collect();
        let mut id = 10_000;
        for _ in 0..12 {
            let mut replies: Vec<Reply<'_>> = Vec::new();
            let mut start = random.below(200);
            while start < sectors {
                let most = [4, 4, 200][random.below(3) as usize];
                let len = (1 + random.below(most)).min(sectors - start);
                let (at, bytes) = (start * 512, len * 512);
                let (reply, value, left): (Reply<'_>, u32, Option<u32>) = match random.below(6) {
                    0 => (image.write_zeroes(at, bytes), 0, Some(0)),
                    1 => (image.discard(at, bytes), 0, None),
                    _ => {
                        id += 1;
                        let content = sector(id).repeat(len as usize);
                        (image.write(at, Buffer::holding(&content)), id, Some(id))
                    }
                };
                let range = start as usize..(start + len) as usize;
                possible[range.clone()].iter_mut().for_each(|possible| possible.push(value));
                now[range].fill(left);
                replies.push(Box::pin(async move {
                    match reply.await {
                        Err(BlockError::Unsupported) => Ok(()),
                        answer => answer,
                    }
                }));
                start += len + random.below(300);
            }
            // From now on there may be what is being written.
            known.push((tape.events(), possible.clone()));
            wait(join::all(replies)).unwrap();
            if random.below(2) == 0 {
                wait(image.flush()).unwrap();
                for (possible, now) in possible.iter_mut().zip(&now) {
                    *possible = now.map_or(core::mem::take(possible), |now| vec![now]);
                }
                known.push((tape.events(), possible.clone()));
            }
        }
        wait(image.flush()).unwrap();
        Self { tape, known }
    }

    /// What is left had the power been lost at some moment.
    pub fn cut(&self, random: &mut Random) -> Cut {
        let all = self.tape.events();
        let at = random.below(all as u64 + 1) as usize;
        // What may be there is what could be before the last of the story that the cut came behind.
        let known = self.known.iter().rfind(|(events, _)| *events <= at).expect("a beginning");
        let file = Arc::new(RamDisk::new(512, self.tape.cut(at, random)));
        Cut { what: format!("cut at {at} of {all}"), file, known: known.1.clone() }
    }
}

impl Cut {
    /// Nothing that was flushed is lost, and nothing is there that nobody wrote.
    pub fn check(&self, image: &dyn BlockDevice, what: &str) {
        let content = wait(read_bytes(image, 0, self.known.len() * 512)).unwrap();
        for (number, (sector, known)) in content.chunks(512).zip(&self.known).enumerate() {
            let what = format!("{what}, {}: sector {number}", self.what);
            let found = u32::from_be_bytes(sector[..4].try_into().unwrap());
            assert!(sector.chunks(4).all(|word| word == &sector[..4]), "{what} is torn");
            assert!(known.contains(&found), "{what} has {found}, not one of {known:?}");
        }
    }
}
