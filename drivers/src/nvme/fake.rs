//! A controller that looks like one to the driver, and misbehaves when told to.

use crate::platform::Registers;
use crate::testing::FakePlatform;
use crate::trial::Device;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use spin::Mutex;

/// What goes wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this status.
    Status(u16),
    /// It is never completed.
    Silence,
    /// It is done, and completed twice.
    Twice,
    /// Completions of commands that nobody gave come before its own.
    WrongId,
    /// The controller stops with a fatal error.
    Fatal,
}

/// How the controller is made.
pub struct Kind {
    pub mdts: u8,
    pub commands: u16,
    pub cache: u8,
    pub most_queues: u16,
    pub entries: u16,
    /// It has the list of active namespaces.
    pub lists: bool,
}

impl Default for Kind {
    fn default() -> Self {
        Self { mdts: 5, commands: 0b1100, cache: 1, most_queues: 4, entries: 256, lists: true }
    }
}

pub struct Namespace {
    pub block_size: usize,
    pub bytes: Vec<u8>,
    pub read_only: bool,
}

struct Submissions {
    address: u64,
    entries: u32,
    head: u32,
    completions: u16,
}

struct Completions {
    address: u64,
    entries: u32,
    tail: u32,
    /// What the driver has taken.
    head: u32,
    phase: bool,
}

pub struct State {
    cc: u32,
    csts: u32,
    admin: [u32; 5],
    submissions: BTreeMap<u16, Submissions>,
    completions: BTreeMap<u16, Completions>,
    /// I/O commands that are not done yet, and whose they are.
    pub pending: Vec<(u16, [u32; 16])>,
    pub namespaces: BTreeMap<u32, Namespace>,
    pub faults: VecDeque<Fault>,
    pub gone: bool,
    /// It ignores CC.
    pub stuck: bool,
    /// Admin commands are not answered,
    pub mute: bool,
    /// but it is at work in the memory of the last one.
    at_work: Option<u64>,
    pub vectors: BTreeMap<u16, Option<u32>>,
    /// Opcodes of the commands done.
    pub done: Vec<u8>,
}

pub struct Fake {
    platform: Arc<FakePlatform>,
    kind: Kind,
    pub state: Mutex<State>,
}

impl Fake {
    pub fn new(platform: &Arc<FakePlatform>, kind: Kind, namespaces: Vec<(u32, Namespace)>) -> Arc<Self> {
        let state = State {
            cc: 1,
            csts: 1,
            admin: [0; 5],
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            pending: Vec::new(),
            namespaces: namespaces.into_iter().collect(),
            faults: VecDeque::new(),
            gone: false,
            stuck: false,
            mute: false,
            at_work: None,
            vectors: BTreeMap::new(),
            done: Vec::new(),
        };
        Arc::new(Self { platform: Arc::clone(platform), kind, state: Mutex::new(state) })
    }

    fn configure(&self, state: &mut State, value: u32) {
        if state.stuck {
            return;
        }
        let before = state.cc & 1;
        state.cc = value;
        if value & 1 == 0 {
            state.csts = 0;
            state.submissions.clear();
            state.completions.clear();
            state.pending.clear();
        } else if before == 0 {
            assert_eq!(value >> 16 & 0xff, 0x46, "entries of 64 and 16 bytes");
            let [aqa, asq_low, asq_high, acq_low, acq_high] = state.admin;
            let address = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
            self.make_completions(state, 0, address(acq_low, acq_high), (aqa >> 16) + 1);
            let (address, entries) = (address(asq_low, asq_high), (aqa & 0xffff) + 1);
            state.submissions.insert(0, Submissions { address, entries, head: 0, completions: 0 });
            state.csts = 1;
        }
    }

    fn make_completions(&self, state: &mut State, number: u16, address: u64, entries: u32) {
        let made = Completions { address, entries, tail: 0, head: 0, phase: true };
        state.completions.insert(number, made);
    }

    fn doorbell(&self, state: &mut State, number: u16, completions: bool, value: u32) {
        if completions {
            state.completions.get_mut(&number).expect("a queue").head = value;
            return;
        }
        loop {
            let queue = state.submissions.get_mut(&number).expect("a queue");
            assert!(value < queue.entries);
            if queue.head == value {
                return;
            }
            let bytes = self.platform.read(queue.address + u64::from(queue.head) * 64, 64);
            queue.head = (queue.head + 1) % queue.entries;
            let mut entry = [0; 16];
            for (n, word) in entry.iter_mut().enumerate() {
                *word = u32::from_le_bytes(bytes[n * 4..n * 4 + 4].try_into().unwrap());
            }
            if number == 0 {
                self.administer(state, &entry);
            } else {
                state.pending.push((number, entry));
            }
        }
    }

    /// The last thing that it does in memory before it is kept from it.
    pub fn finish(&self) {
        let at_work = self.state.lock().at_work.take();
        at_work.into_iter().for_each(|address| self.platform.write(address, &[0xee; 4096]));
    }

    fn complete(&self, state: &mut State, queue: u16, id: u16, status: u16, result: u32) {
        let queue = state.submissions[&queue].completions;
        let queue = state.completions.get_mut(&queue).expect("a queue");
        assert_ne!((queue.tail + 1) % queue.entries, queue.head, "the driver never takes completions");
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&result.to_le_bytes());
        bytes[12..14].copy_from_slice(&id.to_le_bytes());
        bytes[14..].copy_from_slice(&(status << 1 | u16::from(queue.phase)).to_le_bytes());
        self.platform.write(queue.address + u64::from(queue.tail) * 16, &bytes);
        queue.tail = (queue.tail + 1) % queue.entries;
        queue.phase ^= queue.tail == 0;
    }

    fn administer(&self, state: &mut State, entry: &[u32; 16]) {
        let address = u64::from(entry[6]) | u64::from(entry[7]) << 32;
        if state.mute {
            state.at_work = Some(address).filter(|address| *address != 0);
            return;
        }
        let id = (entry[0] >> 16) as u16;
        let (number, entries) = (entry[10] as u16, (entry[10] >> 16) + 1);
        let mut result = 0;
        let status = match entry[0] as u8 {
            0x06 => match self.identify(state, entry[10], entry[1]) {
                Some(bytes) => {
                    self.platform.write(address, &bytes);
                    0
                }
                None => 0x4002,
            },
            0x09 if entry[10] == 7 => {
                let last = u32::from(self.kind.most_queues - 1);
                result = last << 16 | (last + 1);
                0
            }
            0x05 if entries <= u32::from(self.kind.entries) => {
                self.make_completions(state, number, address, entries);
                state.vectors.insert(number, (entry[11] & 2 != 0).then_some(entry[11] >> 16));
                0
            }
            0x01 if entries <= u32::from(self.kind.entries) && state.completions.contains_key(&number) => {
                let completions = (entry[11] >> 16) as u16;
                state.submissions.insert(number, Submissions { address, entries, head: 0, completions });
                0
            }
            _ => 0x4001,
        };
        self.complete(state, 0, id, status, result);
    }

    fn identify(&self, state: &State, what: u32, namespace: u32) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        match what {
            0 => {
                if let Some(namespace) = state.namespaces.get(&namespace) {
                    let blocks = (namespace.bytes.len() / namespace.block_size) as u64;
                    bytes[..8].copy_from_slice(&blocks.to_le_bytes());
                    bytes[26] = 1;
                    bytes[99] = u8::from(namespace.read_only);
                    bytes[134] = namespace.block_size.trailing_zeros() as u8;
                }
            }
            1 => {
                bytes[4..24].copy_from_slice(b"serial              ");
                bytes[24..30].copy_from_slice(b"model ");
                bytes[77] = self.kind.mdts;
                bytes[516] = state.namespaces.keys().max().map_or(0, |number| *number as u8);
                bytes[520..522].copy_from_slice(&self.kind.commands.to_le_bytes());
                bytes[525] = self.kind.cache;
            }
            2 if self.kind.lists => {
                for (n, number) in state.namespaces.keys().enumerate() {
                    bytes[n * 4..n * 4 + 4].copy_from_slice(&number.to_le_bytes());
                }
            }
            _ => return None,
        }
        Some(bytes)
    }

    /// The pages of a transfer, as PRP entries say.
    fn pages(&self, entry: &[u32; 16], len: usize) -> Vec<(u64, usize)> {
        let prp1 = u64::from(entry[6]) | u64::from(entry[7]) << 32;
        let prp2 = u64::from(entry[8]) | u64::from(entry[9]) << 32;
        assert_eq!(prp1 % 4, 0, "PRP 1 is dword-aligned");
        let first = len.min(4096 - (prp1 % 4096) as usize);
        let mut pages = vec![(prp1, first)];
        let mut left = len - first;
        if left > 4096 {
            let count = left.div_ceil(4096);
            assert!(prp2 % 8 == 0 && prp2 % 4096 + count as u64 * 8 <= 4096, "a list within a page");
            for entry in self.platform.read(prp2, count * 8).chunks(8) {
                pages.push((u64::from_le_bytes(entry.try_into().unwrap()), left.min(4096)));
                left -= left.min(4096);
            }
        } else if left > 0 {
            pages.push((prp2, left));
        }
        assert!(pages[1..].iter().all(|(page, _)| page % 4096 == 0), "pages begin at pages");
        pages
    }

    fn perform(&self, state: &mut State, entry: &[u32; 16]) -> u16 {
        let most = if self.kind.mdts == 0 { usize::MAX } else { 4096 << self.kind.mdts };
        state.done.push(entry[0] as u8);
        let Some(namespace) = state.namespaces.get_mut(&entry[1]) else { return 0x400b };
        let first = (u64::from(entry[10]) | u64::from(entry[11]) << 32) as usize;
        let len = ((entry[12] & 0xffff) as usize + 1) * namespace.block_size;
        let at = first.wrapping_mul(namespace.block_size);
        match entry[0] as u8 {
            0 if self.kind.cache == 1 => 0,
            1 | 2 => {
                assert!(len <= most, "more than MDTS");
                let mut at = at;
                for (page, len) in self.pages(entry, len) {
                    let Some(bytes) = namespace.bytes.get_mut(at..at + len) else { return 0x4080 };
                    if entry[0] as u8 == 2 {
                        self.platform.write(page, bytes);
                    } else {
                        bytes.copy_from_slice(&self.platform.read(page, len));
                    }
                    at += len;
                }
                0
            }
            8 if self.kind.commands & 8 != 0 => {
                namespace.bytes[at..at + len].fill(0);
                0
            }
            9 if self.kind.commands & 4 != 0 => {
                assert_eq!((entry[10], entry[11]), (0, 4), "one range to deallocate");
                let (page, _) = self.pages(entry, 16)[0];
                let range = self.platform.read(page, 16);
                let len = u32::from_le_bytes(range[4..8].try_into().unwrap()) as usize * namespace.block_size;
                let at = u64::from_le_bytes(range[8..].try_into().unwrap()) as usize * namespace.block_size;
                namespace.bytes[at..at + len].fill(0xdd);
                0
            }
            _ => 0x4001,
        }
    }
}

impl Device for Fake {
    fn step(&self, choice: usize) {
        let state = &mut *self.state.lock();
        if state.pending.is_empty() || state.gone || state.csts & 2 != 0 {
            return;
        }
        let (queue, entry) = state.pending.swap_remove(choice % state.pending.len());
        let id = (entry[0] >> 16) as u16;
        let fault = state.faults.pop_front();
        match fault {
            Some(Fault::Status(status)) => return self.complete(state, queue, id, status, 0),
            Some(Fault::Silence) => return,
            Some(Fault::Fatal) => {
                state.csts |= 2;
                return;
            }
            Some(Fault::WrongId) => {
                for wrong in [id ^ 0x100, id ^ 0x1f, 0xffff] {
                    self.complete(state, queue, wrong, 0, 0);
                }
            }
            Some(Fault::Twice) | None => (),
        }
        let status = self.perform(state, &entry);
        self.complete(state, queue, id, status, 0);
        if fault == Some(Fault::Twice) {
            self.complete(state, queue, id, status, 0);
        }
    }

    fn image(&self) -> Vec<u8> {
        self.state.lock().namespaces[&1].bytes.clone()
    }
}

impl Registers for Fake {
    fn len(&self) -> usize {
        0x2000
    }
    fn read_u8(&self, _offset: usize) -> u8 {
        panic!("registers have 32 bits")
    }
    fn read_u16(&self, _offset: usize) -> u16 {
        panic!("registers have 32 bits")
    }
    fn read_u32(&self, offset: usize) -> u32 {
        let state = self.state.lock();
        if state.gone {
            return u32::MAX;
        }
        match offset {
            // Time-out: one second.
            0 => u32::from(self.kind.entries - 1) | 2 << 24,
            4 => 1 << 5,
            8 => 0x1_0400,
            0x14 => state.cc,
            0x1c => state.csts,
            _ => panic!("read at {offset:#x}"),
        }
    }
    fn read_u64(&self, _offset: usize) -> u64 {
        panic!("registers have 32 bits")
    }
    fn write_u8(&self, _offset: usize, _value: u8) {
        panic!("registers have 32 bits")
    }
    fn write_u16(&self, _offset: usize, _value: u16) {
        panic!("registers have 32 bits")
    }
    fn write_u32(&self, offset: usize, value: u32) {
        let state = &mut *self.state.lock();
        match offset {
            _ if state.gone => (),
            0x14 => self.configure(state, value),
            0x24..0x38 => state.admin[if offset == 0x24 { 0 } else { (offset - 0x28) / 4 + 1 }] = value,
            0x1000.. => {
                let number = (offset - 0x1000) / 4;
                self.doorbell(state, (number / 2) as u16, number % 2 == 1, value);
            }
            _ => panic!("write at {offset:#x}"),
        }
    }
    fn write_u64(&self, _offset: usize, _value: u64) {
        panic!("registers have 32 bits")
    }
}
