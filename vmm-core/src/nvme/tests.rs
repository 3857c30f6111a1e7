//! The controller, driven as a guest's driver would, with a disk that answers when a test says so.

use super::*;
use crate::chipset::tests::{memory, with_memory};
use crate::chipset::{ApicBus, ApicMessage};
use crate::memory::{GuestMemory, GuestPhys};
use crate::requests::testing::Promise;
use core::cell::RefCell;
use proptest::prelude::*;
use std::sync::Mutex;
use storage::testing::Bell;
use storage::{BlockError, Buffer, Geometry, Reply};

/// What the disk was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Flush,
    Discard(u64, u64),
    WriteZeroes(u64, u64),
}

/// A request, and where its bytes are.
type Unanswered = (Asked, Promise<Result<(), BlockError>>, Option<Buffer>);

/// A disk that notes what it is asked for, and does it when told.
struct SlowDisk {
    geometry: Geometry,
    asked: Mutex<Vec<Unanswered>>,
    /// Answers at once.
    prompt: bool,
}

impl SlowDisk {
    fn ask(&self, asked: Asked, buffer: Option<Buffer>) -> Reply<'_> {
        let promise = Promise::new();
        let reply = promise.kept(buffer.clone());
        if self.prompt {
            promise.end(Ok(()));
        }
        self.asked.lock().unwrap().push((asked, promise, buffer));
        Box::pin(reply)
    }

    /// What was asked for and is not answered.
    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().map(|(asked, ..)| asked.clone()).collect()
    }

    /// Answers request `n` of those that are not answered. What is read is full of `n`.
    fn end(&self, n: usize, result: Result<(), BlockError>) {
        let (asked, promise, buffer) = self.asked.lock().unwrap().remove(n);
        if let (Asked::Read(_, len), Some(buffer), Ok(())) = (&asked, &buffer, result) {
            buffer.write(0, &vec![n as u8; *len]);
        }
        drop(buffer);
        promise.end(result);
    }
}

impl BlockDevice for SlowDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.ask(Asked::Read(at, into.len()), Some(into))
    }
    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        let bytes = from.to_vec();
        self.ask(Asked::Write(at, bytes), Some(from))
    }
    fn flush(&self) -> Reply<'_> {
        self.ask(Asked::Flush, None)
    }
    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.ask(Asked::Discard(at, len), None)
    }
    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.ask(Asked::WriteZeroes(at, len), None)
    }
}

const GEOMETRY: Geometry = Geometry { block_size: 512, blocks: 10_000, read_only: false, discards: true };

/// Where the driver has its queues and data: submission queue `n`, completion queue `n`.
const QUEUE_ENTRIES: u32 = 8;
const DATA: u64 = 0x8_0000;

fn submission(n: u16) -> u64 {
    0x1_0000 + u64::from(n) * 0x1000
}

fn completion(n: u16) -> u64 {
    0x2_0000 + u64::from(n) * 0x1000
}

/// The vectors that were signalled.
#[derive(Default)]
struct Vectors(RefCell<Vec<u8>>);

impl ApicBus for Vectors {
    fn deliver(&self, message: ApicMessage) -> bool {
        self.0.borrow_mut().push(message.vector);
        true
    }
    fn set_intr(&self, _high: bool) {}
}

/// An answer: its queue, the command's identifier, status and result.
type Answered = (u16, u16, Result<u32, u16>);

struct Driver {
    nvme: Nvme,
    disk: Arc<SlowDisk>,
    memory: Arc<GuestMemory>,
    vectors: Vectors,
    bell: Arc<Bell>,
    tails: [u32; 3],
    heads: [u32; 3],
    phases: [bool; 3],
    next_id: u16,
}

impl Driver {
    fn new(geometry: Geometry) -> Self {
        Self::with(geometry, false)
    }

    fn with(geometry: Geometry, prompt: bool) -> Self {
        let disk = Arc::new(SlowDisk { geometry, asked: Mutex::default(), prompt });
        let identity = Identity { serial: "S3".into(), slot: 2, write_back: true };
        let mut nvme = Nvme::new(Arc::clone(&disk) as _, identity, 2).unwrap();
        let bell = Arc::new(Bell::default());
        nvme.connect(Waker::from(Arc::clone(&bell)));
        Self {
            nvme,
            disk,
            memory: memory(),
            vectors: Vectors::default(),
            bell,
            tails: [0; 3],
            heads: [0; 3],
            phases: [true; 3],
            next_id: 0,
        }
    }

    /// With both queue pairs made and all vectors aimed.
    fn ready(geometry: Geometry) -> Self {
        let mut driver = Self::new(geometry);
        driver.set_up();
        driver
    }

    fn set_up(&mut self) {
        self.enable();
        for vector in 0..3 {
            let at = 0x2000 + vector * 16;
            self.write(at, Width::Qword, 0xfee0_0000);
            self.write(at + 8, Width::Qword, 0x50 + vector);
        }
        self.nvme.config.set(self.nvme_capability() + 3, &[0x80]);
        with_memory(&self.vectors, &self.memory, |ctx| self.nvme.config_written(0, ctx));
        for n in 1..=2 {
            let size = (QUEUE_ENTRIES - 1) << 16 | u32::from(n);
            let created = self.admin(0x05, 0, completion(n), [size, u32::from(n) << 16 | 3, 0, 0]);
            assert_eq!(created, Ok(0));
            assert_eq!(self.admin(0x01, 0, submission(n), [size, u32::from(n) << 16 | 1, 0, 0]), Ok(0));
        }
        self.vectors.0.take();
    }

    fn nvme_capability(&self) -> u8 {
        let [capability] = self.nvme.config.get(0x34);
        capability
    }

    fn enable(&mut self) {
        (self.tails, self.heads, self.phases) = ([0; 3], [0; 3], [true; 3]);
        self.memory.fill(GuestPhys::new(0x1_0000), 0x2_0000, 0).unwrap();
        self.write(0x24, Width::Dword, u64::from(QUEUE_ENTRIES - 1) * 0x1_0001);
        self.write(0x28, Width::Qword, submission(0));
        self.write(0x30, Width::Qword, completion(0));
        self.write(0x14, Width::Dword, 0x46_0001);
        assert_eq!(self.status(), 1);
    }

    fn write(&mut self, at: u64, width: Width, value: u64) {
        with_memory(&self.vectors, &self.memory, |ctx| self.nvme.bar_write(0, at, width, value, ctx));
    }

    fn read(&mut self, at: u64, width: Width) -> u64 {
        with_memory(&self.vectors, &self.memory, |ctx| self.nvme.bar_read(0, at, width, ctx)) & width.mask()
    }

    fn status(&mut self) -> u64 {
        self.read(0x1c, Width::Dword)
    }

    fn poll(&mut self) {
        with_memory(&self.vectors, &self.memory, |ctx| self.nvme.poll(ctx));
    }

    /// Puts a command into queue `n` without telling; gives its identifier.
    fn put(&mut self, n: u16, opcode: u8, namespace: u32, prp: [u64; 2], words: [u32; 4]) -> u16 {
        self.next_id += 1;
        let at = submission(n) + u64::from(self.tails[usize::from(n)]) * 64;
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&(u32::from(self.next_id) << 16 | u32::from(opcode)).to_le_bytes());
        bytes[4..8].copy_from_slice(&namespace.to_le_bytes());
        bytes[24..40].copy_from_slice(prp.map(u64::to_le_bytes).as_flattened());
        bytes[40..56].copy_from_slice(words.map(u32::to_le_bytes).as_flattened());
        self.memory.write(GuestPhys::new(at), &bytes).unwrap();
        self.tails[usize::from(n)] = (self.tails[usize::from(n)] + 1) % QUEUE_ENTRIES;
        self.next_id
    }

    fn ring(&mut self, n: u16) {
        self.write(0x1000 + u64::from(n) * 8, Width::Dword, self.tails[usize::from(n)].into());
    }

    /// Reads or writes `blocks` blocks from `first` on, whose data begins at [`DATA`].
    fn transfer(&mut self, n: u16, opcode: u8, first: u32, blocks: u32) -> u16 {
        let id = self.put(n, opcode, 1, [DATA, DATA + 0x1000], [first, 0, blocks - 1, 0]);
        self.ring(n);
        id
    }

    /// The answers that have come to queue `n`, which the driver says it has seen.
    fn answers(&mut self, n: u16) -> Vec<Answered> {
        let answers = self.unseen(n);
        self.write(0x1004 + u64::from(n) * 8, Width::Dword, self.heads[usize::from(n)].into());
        answers
    }

    fn unseen(&mut self, n: u16) -> Vec<Answered> {
        let (mut answers, index) = (Vec::new(), usize::from(n));
        loop {
            let at = completion(n) + u64::from(self.heads[index]) * 16;
            let result = self.memory.read_u32(GuestPhys::new(at)).unwrap();
            let rest = self.memory.read_u64(GuestPhys::new(at + 8)).unwrap();
            let status = (rest >> 48) as u16;
            if (status & 1 != 0) != self.phases[index] {
                return answers;
            }
            let result = if status >> 1 == 0 { Ok(result) } else { Err(status >> 1 & 0x7ff) };
            answers.push(((rest >> 16) as u16, (rest >> 32) as u16, result));
            self.heads[index] = (self.heads[index] + 1) % QUEUE_ENTRIES;
            self.phases[index] ^= self.heads[index] == 0;
        }
    }

    /// Does a command of the administrator's, and gives its answer.
    fn admin(&mut self, opcode: u8, namespace: u32, prp: u64, words: [u32; 4]) -> Result<u32, u16> {
        let id = self.put(0, opcode, namespace, [prp, DATA + 0x1000], words);
        self.ring(0);
        match self.answers(0)[..] {
            [(0, answered, result)] if answered == id => result,
            ref other => panic!("{other:?}"),
        }
    }

    fn data<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(GuestPhys::new(DATA + at), &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn the_registers_say_what_is_offered() {
    let mut driver = Driver::new(GEOMETRY);
    assert_eq!(driver.read(0, Width::Qword), 0x20_f001_03ff);
    assert_eq!(driver.read(4, Width::Dword), 0x20);
    assert_eq!(driver.read(8, Width::Dword), 0x1_0400);
    assert_eq!(driver.status(), 0);
    driver.enable();
    assert_eq!(driver.read(0x28, Width::Qword), submission(0));
    driver.write(0x14, Width::Dword, 0);
    assert_eq!(driver.status(), 0);
    // Queues that are no memory, too short or in the middle of a page, and pages of 8 KiB.
    for (attributes, base, configuration) in
        [(0x7_0007, 0x10_0000, 1), (0, 0x1000, 1), (0x7_0007, 0x1008, 1), (0x7_0007, 0x1000, 0x81)]
    {
        driver.write(0x24, Width::Dword, attributes);
        driver.write(0x28, Width::Qword, base);
        driver.write(0x14, Width::Dword, configuration);
        assert_eq!(driver.status(), 2, "{attributes:#x} {base:#x} {configuration:#x}");
        driver.write(0x1000, Width::Dword, 1);
        assert_eq!(driver.status(), 2, "only a reset helps");
        driver.write(0x14, Width::Dword, 0);
        assert_eq!(driver.status(), 0);
    }
    driver.enable();
}

#[test]
fn it_tells_what_it_is() {
    let mut driver = Driver::ready(GEOMETRY);
    let identify =
        |driver: &mut Driver, what, namespace| driver.admin(0x06, namespace, DATA, [what, 0, 0, 0]);
    assert_eq!(identify(&mut driver, 1, 0), Ok(0));
    assert_eq!(&driver.data(4), b"S3                  ");
    assert_eq!(&driver.data(24), b"Peerboot disk                           ");
    assert_eq!(driver.data(77), [7], "512 KiB at a time");
    assert_eq!(driver.data(512), [0x66, 0x44, 0, 0, 1, 0, 0, 0, 0b1100, 0]);
    assert_eq!(driver.data(525), [7]);
    assert_eq!(&driver.data(768), b"nqn.2014.08.org.nvmexpress:12340002S3    ");
    assert_eq!(identify(&mut driver, 0, 1), Ok(0));
    assert_eq!(u64::from_le_bytes(driver.data(0)), 10_000);
    assert_eq!(driver.data(128), [0, 0, 9, 0]);
    assert_eq!(driver.data(99), [0]);
    assert_eq!(identify(&mut driver, 2, 0), Ok(0));
    assert_eq!(driver.data(0), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(identify(&mut driver, 2, 1), Ok(0));
    assert_eq!(driver.data(0), [0; 8]);
    assert_eq!(identify(&mut driver, 3, 1), Ok(0));
    let [kind, len, _, _, uuid @ ..] = driver.data::<24>(0);
    assert_eq!((kind, len, uuid[6] >> 4, uuid[8] >> 6), (3, 16, 8, 2));
    assert_eq!(identify(&mut driver, 0, 2), Err(0x0b));
    assert_eq!(identify(&mut driver, 3, 0), Err(0x0b));
    assert_eq!(identify(&mut driver, 0x7f, 0), Err(0x02));

    let mut driver = Driver::ready(Geometry { block_size: 4096, read_only: true, ..GEOMETRY });
    assert_eq!(identify(&mut driver, 0, 1), Ok(0));
    assert_eq!((driver.data(128), driver.data(99)), ([0, 0, 12, 0], [1]));
    let other = Identity { serial: "S3".into(), slot: 3, write_back: false };
    assert_ne!(other.uuid(), driver.nvme.identity.uuid());
}

#[test]
fn features_and_logs_answer() {
    let mut driver = Driver::ready(GEOMETRY);
    let set = |driver: &mut Driver, what, value| driver.admin(0x09, 0, 0, [what, value, 0, 0]);
    let get = |driver: &mut Driver, what| driver.admin(0x0a, 0, 0, [what, 0, 0, 0]);
    assert_eq!(set(&mut driver, 7, 0x3f_003f), Ok(0x1_0001), "two pairs, whatever is wished for");
    assert_eq!(set(&mut driver, 7, 0xffff), Err(2));
    assert_eq!((get(&mut driver, 7), get(&mut driver, 6)), (Ok(0x1_0001), Ok(1)));
    assert_eq!((set(&mut driver, 0x0b, 0x1f), get(&mut driver, 0x0b)), (Ok(0), Ok(0x1f)));
    assert_eq!(set(&mut driver, 6 | 1 << 31, 0), Err(0x10d));
    assert_eq!((set(&mut driver, 2, 1), set(&mut driver, 0x55, 0)), (Err(0x10e), Err(2)));
    assert_eq!(get(&mut driver, 0x106), Err(2));
    let log = |driver: &mut Driver, page: u32, dwords: u32, offset| {
        driver.admin(0x02, u32::MAX, DATA, [(dwords - 1) << 16 | page, 0, offset, 0])
    };
    let id = driver.transfer(1, 2, 0, 8);
    driver.disk.end(0, Ok(()));
    driver.poll();
    assert_eq!(driver.answers(1), [(1, id, Ok(0))]);
    assert_eq!(log(&mut driver, 2, 128, 0), Ok(0));
    assert_eq!((driver.data(3), driver.data(32), driver.data(64)), ([100, 10], [1, 0], [1, 0]));
    assert_eq!(log(&mut driver, 2, 1, 64), Ok(0));
    assert_eq!(driver.data(0), [1, 0, 0, 0]);
    assert_eq!(log(&mut driver, 3, 128, 0), Ok(0));
    assert_eq!(driver.data(8), identify::FIRMWARE);
    assert_eq!(log(&mut driver, 1, 16, 0), Ok(0));
    assert_eq!((log(&mut driver, 9, 1, 0), log(&mut driver, 1, 1, 1024)), (Err(0x109), Err(2)));
    assert_eq!(driver.admin(0x08, 0, 0, [1, 0, 0, 0]), Ok(1), "nothing is aborted");
    assert_eq!(driver.admin(0x42, 0, 0, [0; 4]), Err(1));
}

#[test]
fn requests_overlap_and_are_answered_as_they_end() {
    let mut driver = Driver::ready(GEOMETRY);
    driver.memory.fill(GuestPhys::new(DATA), 1024, 0x77).unwrap();
    let first = driver.transfer(1, 2, 8, 2);
    let second = driver.transfer(2, 1, 100, 2);
    let third = driver.transfer(1, 2, 0, 16);
    let expected = [Asked::Read(4096, 1024), Asked::Write(51_200, vec![0x77; 1024]), Asked::Read(0, 8192)];
    assert_eq!(driver.disk.asked(), expected);
    assert_eq!((driver.answers(1), driver.bell.rings()), (vec![], 0));
    driver.disk.end(2, Ok(()));
    assert_eq!(driver.bell.rings(), 1);
    assert_eq!(driver.answers(1), [], "not before it is asked to look");
    driver.poll();
    assert_eq!(driver.answers(1), [(1, third, Ok(0))]);
    assert_eq!(driver.data(8190), [2, 2], "read straight into the guest's memory");
    driver.disk.end(1, Err(BlockError::Failed));
    driver.disk.end(0, Err(BlockError::Failed));
    driver.poll();
    assert_eq!(driver.answers(2), [(2, second, Err(0x280))]);
    assert_eq!(driver.answers(1), [(1, first, Err(0x281))]);
    assert_eq!(driver.vectors.0.take(), [0x51, 0x51, 0x52]);
}

#[test]
fn one_interrupt_tells_of_all_that_ended() {
    let mut driver = Driver::ready(GEOMETRY);
    for n in 0..4 {
        driver.put(1, 2, 1, [DATA, 0], [n, 0, 0, 0]);
    }
    driver.ring(1);
    (0..4).for_each(|_| driver.disk.end(0, Ok(())));
    assert_eq!(driver.bell.rings(), 4);
    driver.poll();
    driver.poll();
    assert_eq!((driver.answers(1).len(), driver.vectors.0.take()), (4, vec![0x51]));
    let mut driver = Driver::with(GEOMETRY, true);
    driver.set_up();
    let id = driver.transfer(2, 0, 0, 1);
    assert_eq!((driver.answers(2), driver.bell.rings()), (vec![(2, id, Ok(0))], 0), "what ends at once");
}

#[test]
fn every_command_does_what_it_says() {
    let mut driver = Driver::ready(GEOMETRY);
    let mut run = |opcode, namespace, words: [u32; 4], expected: &[Asked]| {
        let id = driver.put(1, opcode, namespace, [DATA, DATA + 0x1000], words);
        driver.ring(1);
        let mut asked = Vec::new();
        while let Some(next) = driver.disk.asked().first() {
            asked.push(next.clone());
            driver.disk.end(0, Ok(()));
            // Between two ranges others go on.
            (0..2).for_each(|_| driver.poll());
        }
        assert_eq!(asked, expected);
        let (_, answered, result) = driver.answers(1)[0];
        assert_eq!(answered, id);
        result
    };
    const FUA: u32 = 1 << 30;
    let zeros = || Asked::Write(0, vec![0; 512]);
    assert_eq!(run(0, 1, [0; 4], &[Asked::Flush]), Ok(0));
    assert_eq!(run(0, u32::MAX, [0; 4], &[Asked::Flush]), Ok(0));
    assert_eq!(run(1, 1, [0, 0, FUA, 0], &[zeros(), Asked::Flush]), Ok(0));
    assert_eq!(run(8, 1, [1, 0, 0xffff >> 4, 0], &[Asked::WriteZeroes(512, 4096 * 512)]), Ok(0));
    assert_eq!(run(9, 1, [0, 1 << 2, 0, 0], &[]), Ok(0), "a range without blocks");
    for namespace in [0, 2, u32::MAX] {
        assert_eq!(run(2, namespace, [0; 4], &[]), Err(0x0b));
    }
    assert_eq!(run(2, 1, [9999, 0, 0, 0], &[Asked::Read(9999 * 512, 512)]), Ok(0));
    assert_eq!(run(2, 1, [9999, 0, 1, 0], &[]), Err(0x80));
    assert_eq!(run(2, 1, [u32::MAX, u32::MAX, 0, 0], &[]), Err(0x80));
    assert_eq!(run(2, 1, [0, 0, 1025, 0], &[]), Err(2), "more than 512 KiB");
    assert_eq!(run(5, 1, [0; 4], &[]), Err(1));

    let range = |blocks: u32, first: u64| u128::from(first) << 64 | u128::from(blocks) << 32;
    let ranges = [range(8, 16), range(1, 9999)].map(u128::to_le_bytes);
    driver.memory.write(GuestPhys::new(DATA), ranges.as_flattened()).unwrap();
    let discards = [Asked::Discard(8192, 4096), Asked::Discard(9999 * 512, 512)];
    let mut discard = |attributes, expected: &[Asked]| {
        driver.put(1, 9, 1, [DATA, 0], [1, attributes, 0, 0]);
        driver.ring(1);
        let mut asked = Vec::new();
        while let Some(next) = driver.disk.asked().first() {
            asked.push(next.clone());
            driver.disk.end(0, Ok(()));
            // Between two ranges others go on.
            (0..2).for_each(|_| driver.poll());
        }
        assert_eq!(asked, expected);
        driver.answers(1)[0].2
    };
    assert_eq!(discard(4, &discards), Ok(0));
    assert_eq!(discard(1, &[]), Ok(0), "hints are not followed");

    // Without its cache, each write is made safe.
    assert_eq!(driver.admin(0x09, 0, 0, [6, 0, 0, 0]), Ok(0));
    driver.transfer(1, 1, 0, 1);
    driver.disk.end(0, Ok(()));
    driver.poll();
    assert_eq!((driver.answers(1), driver.disk.asked()), (vec![], vec![Asked::Flush]));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut driver = Driver::ready(Geometry { read_only: true, ..GEOMETRY });
    for opcode in [1, 8, 9] {
        driver.transfer(1, opcode, 0, 1);
        assert_eq!(driver.answers(1)[0].2, Err(0x20));
    }
    assert_eq!(driver.disk.asked(), []);
}

#[test]
fn no_more_is_read_than_there_is_room_for_answers() {
    let mut driver = Driver::ready(GEOMETRY);
    for n in 0..7 {
        driver.transfer(1, 2, n, 1);
    }
    assert_eq!(driver.disk.asked().len(), 7);
    assert_eq!(driver.nvme.requests.len(), 7);
    driver.transfer(1, 2, 7, 1);
    assert_eq!(driver.disk.asked().len(), 7, "the eighth answer would have no room");
    driver.disk.end(3, Ok(()));
    driver.poll();
    assert_eq!(driver.disk.asked().len(), 6, "the guest has not seen the first");
    assert_eq!(driver.answers(1).len(), 1);
    assert_eq!(driver.disk.asked().len(), 7, "now it has");
}

#[test]
fn a_reset_ends_when_nothing_is_under_way_and_nothing_old_comes_later() {
    let mut driver = Driver::ready(GEOMETRY);
    driver.transfer(1, 2, 0, 1);
    driver.transfer(1, 2, 1, 1);
    driver.write(0x14, Width::Dword, 0);
    assert_eq!(driver.status(), 1, "memory may still be written");
    driver.write(0x14, Width::Dword, 0x46_0001);
    driver.memory.fill(GuestPhys::new(0x1_0000), 0x2_0000, 0).unwrap();
    driver.disk.end(1, Ok(()));
    driver.poll();
    driver.transfer(1, 2, 0, 1);
    assert_eq!(driver.disk.asked().len(), 1, "no command is read before");
    driver.write(0x14, Width::Dword, 0);
    driver.disk.end(0, Err(BlockError::TimedOut));
    assert_eq!(driver.status(), 1);
    driver.poll();
    assert_eq!(driver.status(), 0);
    let mut untouched = [1; 0x2000];
    driver.memory.read(GuestPhys::new(0x2_0000), &mut untouched).unwrap();
    assert_eq!(untouched, [0; 0x2000], "nobody was told");
    driver.set_up();
    let id = driver.transfer(1, 2, 0, 1);
    driver.disk.end(0, Ok(()));
    driver.poll();
    assert_eq!(driver.answers(1), [(1, id, Ok(0))]);
}

#[test]
fn a_life_ends_when_nothing_is_under_way() {
    let mut driver = Driver::ready(GEOMETRY);
    for n in 0..2 {
        driver.transfer(1, 2, n, 1);
    }
    let references = Arc::strong_count(&driver.memory);
    assert!(references > 1, "requests keep the memory");
    let wind_down =
        |driver: &mut Driver| with_memory(&driver.vectors, &driver.memory, |ctx| driver.nvme.wind_down(ctx));
    assert!(!wind_down(&mut driver));
    driver.disk.end(1, Ok(()));
    assert!(!wind_down(&mut driver));
    driver.transfer(1, 2, 3, 1);
    assert_eq!(driver.disk.asked().len(), 1, "nothing more is begun");
    driver.disk.end(0, Ok(()));
    assert!(wind_down(&mut driver));
    assert_eq!(Arc::strong_count(&driver.memory), 1);
}

#[test]
fn a_shutdown_waits_for_what_is_under_way_and_flushes() {
    let mut driver = Driver::ready(GEOMETRY);
    driver.transfer(1, 1, 0, 1);
    driver.write(0x14, Width::Dword, 0x46_4001);
    assert_eq!(driver.status(), 0b0101, "shutting down");
    driver.transfer(1, 1, 0, 1);
    driver.disk.end(0, Ok(()));
    driver.poll();
    assert_eq!(driver.answers(1).len(), 1);
    assert_eq!((driver.status(), driver.disk.asked()), (0b0101, vec![Asked::Flush]));
    driver.disk.end(0, Ok(()));
    driver.poll();
    assert_eq!(driver.status(), 0b1001);
    driver.write(0x14, Width::Dword, 0);
    assert_eq!(driver.status(), 0);
    driver.set_up();
}

#[test]
fn queues_come_and_go() {
    let mut driver = Driver::ready(GEOMETRY);
    let size = (QUEUE_ENTRIES - 1) << 16;
    let create = |driver: &mut Driver, opcode, base, words: [u32; 2]| {
        driver.admin(opcode, 0, base, [words[0], words[1], 0, 0])
    };
    assert_eq!(create(&mut driver, 5, completion(1), [size | 1, 3]), Err(0x101), "it is there");
    assert_eq!(create(&mut driver, 5, completion(1), [size | 3, 3]), Err(0x101), "so many there are not");
    assert_eq!(create(&mut driver, 5, completion(1), [size, 3]), Err(0x101));
    assert_eq!(driver.admin(4, 0, 0, [1, 0, 0, 0]), Err(0x10c), "in use");
    assert_eq!(driver.admin(4, 0, 0, [0, 0, 0, 0]), Err(0x101));
    assert_eq!(driver.admin(0, 0, 0, [0, 0, 0, 0]), Err(0x101));
    assert_eq!(driver.admin(0, 0, 0, [2, 0, 0, 0]), Ok(0));
    assert_eq!(driver.admin(4, 0, 0, [2, 0, 0, 0]), Ok(0));
    assert_eq!(create(&mut driver, 1, submission(2), [size | 2, 2 << 16 | 1]), Err(0x100));
    assert_eq!(create(&mut driver, 5, completion(2), [2, 3]), Err(0x102));
    assert_eq!(create(&mut driver, 5, completion(2), [0x400_0002, 3]), Err(0x102));
    assert_eq!(create(&mut driver, 5, completion(2), [size | 2, 2]), Err(2), "in pieces");
    assert_eq!(create(&mut driver, 5, completion(2), [size | 2, 3 << 16 | 3]), Err(0x108));
    assert_eq!(create(&mut driver, 5, completion(2) + 4, [size | 2, 3]), Err(0x13));
    assert_eq!(create(&mut driver, 5, 0x10_0000, [size | 2, 3]), Err(0x13));

    // A queue goes when its last command is answered.
    let command = driver.transfer(1, 2, 0, 1);
    let delete = driver.put(0, 0, 0, [0, 0], [1, 0, 0, 0]);
    driver.ring(0);
    assert_eq!(driver.answers(0), []);
    assert_eq!(driver.admin(0, 0, 0, [1, 0, 0, 0]), Err(0x101), "on its way already");
    driver.transfer(1, 2, 0, 1);
    assert_eq!(driver.disk.asked().len(), 1);
    driver.disk.end(0, Ok(()));
    driver.poll();
    assert_eq!(driver.answers(1), [(1, command, Ok(0))]);
    assert_eq!(driver.answers(0), [(0, delete, Ok(0))]);
    assert_eq!(driver.admin(4, 0, 0, [1, 0, 0, 0]), Ok(0));
}

#[test]
fn doorbells_can_be_left_in_memory() {
    const SHADOWS: u64 = 0x6_0000;
    const EVENTS: u64 = 0x6_1000;
    let mut driver = Driver::ready(GEOMETRY);
    let set = |driver: &mut Driver, prp: [u64; 2]| {
        let id = driver.put(0, 0x7c, 0, prp, [0; 4]);
        driver.ring(0);
        assert_eq!(driver.answers(0)[0].1, id);
        driver.nvme.shadows.is_some()
    };
    assert!(!set(&mut driver, [SHADOWS + 8, EVENTS]) && !set(&mut driver, [SHADOWS, 0x10_0000]));
    assert!(set(&mut driver, [SHADOWS, EVENTS]));
    let shadow = |n: u64| GuestPhys::new(SHADOWS + n * 4);
    // Rung once, and then gone on with unrung while that is under way.
    for tail in 1..4 {
        driver.put(1, 2, 1, [DATA, 0], [tail, 0, 0, 0]);
        driver.memory.write_u32(shadow(2), tail).unwrap();
        if tail == 1 {
            driver.write(0x1008, Width::Dword, 1);
        }
    }
    assert_eq!(driver.disk.asked().len(), 1);
    driver.disk.end(0, Ok(()));
    driver.poll();
    assert_eq!(driver.disk.asked().len(), 2, "seen when it looked");
    assert_eq!(
        driver.memory.read_u32(GuestPhys::new(EVENTS + 8)),
        Ok(3),
        "from the next one on it has to ring"
    );
    for _ in 0..2 {
        driver.disk.end(0, Ok(()));
    }
    driver.poll();
    // The answers are seen without a word but in memory.
    for _ in 0..5 {
        let seen = driver.unseen(1).len() as u32;
        driver.memory.write_u32(shadow(3), driver.heads[1]).unwrap();
        assert!(seen > 0);
        for _ in 0..5 {
            driver.put(1, 2, 1, [DATA, 0], [0; 4]);
        }
        driver.memory.write_u32(shadow(2), driver.tails[1]).unwrap();
        driver.ring(1);
        assert_eq!(driver.disk.asked().len(), 5);
        (0..5).for_each(|_| driver.disk.end(0, Ok(())));
        driver.poll();
    }
    driver.write(0x14, Width::Dword, 0);
    driver.memory.fill(GuestPhys::new(SHADOWS), 0x2000, 0x55).unwrap();
    driver.set_up();
    let id = driver.transfer(1, 2, 0, 1);
    driver.disk.end(0, Ok(()));
    driver.poll();
    assert_eq!(driver.answers(1), [(1, id, Ok(0))], "a reset ends that");
}

#[test]
fn event_requests_are_held() {
    let mut driver = Driver::ready(GEOMETRY);
    for _ in 0..4 {
        driver.put(0, 0x0c, 0, [0, 0], [0; 4]);
        driver.ring(0);
        assert_eq!(driver.answers(0), []);
    }
    assert_eq!(driver.admin(0x0c, 0, 0, [0; 4]), Err(0x105));
    for _ in 0..20 {
        assert_eq!(driver.admin(0x0a, 0, 0, [7, 0, 0, 0]), Ok(0x1_0001), "they take no room");
    }
}

proptest! {
    #[test]
    fn no_guest_can_break_it(
        memory in prop::collection::vec((0u64..0x40, any::<u64>()), 0..64),
        steps in prop::collection::vec((0u8..8, 0u64..0x4000, 2u32..4, any::<u64>()), 0..200),
    ) {
        let mut driver = Driver::ready(GEOMETRY);
        for (at, value) in memory {
            driver.memory.write_u64(GuestPhys::new(submission(1) + at * 8), value).unwrap();
        }
        for (action, at, width, value) in steps {
            let width = Width::from_bytes(1 << width).unwrap();
            match action {
                0 => _ = driver.read(at, width),
                1 => driver.write(at, width, value),
                2 => driver.write(at & 0x3c, width, value),
                3 => driver.write(0x1000 | at & 0x1c, width, value & 7),
                4 => {
                    let count = driver.disk.asked().len() as u64;
                    if let Some(n) = value.checked_rem(count) {
                        driver.disk.end(n as usize, Ok(()));
                    }
                }
                5 => driver.poll(),
                6 => _ = driver.put((value % 3) as u16, at as u8, 1, [at << 9, value << 3], [at as u32; 4]),
                _ => driver.ring((value % 3) as u16),
            }
        }
        // Whatever happened, nothing is left when all requests have ended.
        while !driver.disk.asked().is_empty() {
            driver.disk.end(0, Ok(()));
            let done = with_memory(&driver.vectors, &driver.memory, |ctx| driver.nvme.wind_down(ctx));
            prop_assert!(done == driver.disk.asked().is_empty());
        }
        prop_assert_eq!(Arc::strong_count(&driver.memory), 1);
    }
}
