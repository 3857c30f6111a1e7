//! A virtio-blk device below the registers, which also misbehaves.

use super::configuration::BlockFeature;
use crate::platform::Registers;
use crate::testing::FakePlatform;
use crate::trial::Device;
use crate::virtio::{Feature, Transport};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use spin::Mutex;

/// What the device is like.
#[derive(Clone)]
pub struct Kind {
    pub block_size: u32,
    pub features: u64,
    pub queues: u16,
    pub queue_size: u16,
    pub longest: u32,
    pub pieces: u32,
    pub serial: &'static [u8],
}

impl Default for Kind {
    fn default() -> Self {
        let features = BlockFeature::WANTED - BlockFeature::RO - BlockFeature::SIZE_MAX;
        let general = Feature::VERSION_1 | Feature::INDIRECT_DESCRIPTORS;
        Self {
            block_size: 512,
            features: features.bits() | general.bits(),
            queues: 1,
            queue_size: 256,
            longest: 0,
            pieces: 254,
            serial: b"serial",
        }
    }
}

/// What it does wrong, with the next request or from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It answers nothing, until it is reset.
    Silent,
    /// The next request gets this status and is not done.
    Status(u8),
    /// It says of the next request that it wrote so many bytes less.
    Short(u32),
    /// It completes another than the next request.
    WrongId(u32),
    /// It says that it has completed so many more.
    TooMany(u16),
    /// It says that it needs a reset.
    NeedsReset,
    /// All its registers read as ones.
    Gone,
    /// It does not reset, and answers nothing.
    Stubborn,
}

/// A request that the driver made available.
struct Request {
    queue: u16,
    head: u16,
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
}

#[derive(Clone, Default)]
struct Ring {
    size: u16,
    parts: [u64; 3],
    vector: u16,
    enabled: bool,
    taken: u16,
    used: u16,
}

pub struct State {
    status: u8,
    feature_select: [u32; 2],
    /// What the driver said it uses.
    pub features: u64,
    selected: u16,
    rings: Vec<Ring>,
    pending: Vec<Request>,
    image: Vec<u8>,
    fault: Option<Fault>,
    /// Kinds of all requests that were done, with the first sector, and how many pieces of data they had.
    pub done: Vec<(u32, u64, usize)>,
    pub resets: u32,
    pub notifications: Vec<u16>,
}

pub struct Fake {
    platform: Arc<FakePlatform>,
    kind: Kind,
    pub state: Mutex<State>,
}

impl Fake {
    pub fn new(platform: &Arc<FakePlatform>, kind: Kind, image: Vec<u8>) -> Arc<Self> {
        let state = State {
            status: 0,
            feature_select: [0; 2],
            features: 0,
            selected: 0,
            rings: vec![Ring::default(); kind.queues.into()],
            pending: Vec::new(),
            image,
            fault: None,
            done: Vec::new(),
            resets: 0,
            notifications: Vec::new(),
        };
        Arc::new(Self { platform: Arc::clone(platform), kind, state: Mutex::new(state) })
    }

    /// The registers, as the driver finds them.
    pub fn transport(self: &Arc<Self>) -> Transport {
        let window = |part| Arc::new(Window { fake: Arc::clone(self), part }) as Arc<dyn Registers>;
        Transport::new(
            window(Part::Common),
            window(Part::Notify),
            4,
            window(Part::Interrupts),
            window(Part::Device),
        )
    }

    pub fn fault(&self, fault: Fault) {
        self.state.lock().fault = Some(fault);
    }

    /// The messages of the queues that are on.
    pub fn vectors(&self) -> Vec<u16> {
        self.state.lock().rings.iter().filter(|ring| ring.enabled).map(|ring| ring.vector).collect()
    }

    /// How many requests wait for it.
    pub fn waiting(&self) -> usize {
        let mut state = self.state.lock();
        self.take(&mut state);
        state.pending.len()
    }

    fn word(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.platform.read(address, 2).try_into().unwrap())
    }

    /// Takes what the driver has made available.
    fn take(&self, state: &mut State) {
        for (queue, ring) in state.rings.iter_mut().enumerate().filter(|(_, ring)| ring.enabled) {
            let [table, available, _] = ring.parts;
            while ring.taken != self.word(available + 2) {
                let head = self.word(available + 4 + u64::from(ring.taken % ring.size) * 2);
                ring.taken = ring.taken.wrapping_add(1);
                let (mut readable, mut writable) = (Vec::new(), Vec::new());
                self.follow(table, head, ring.size, &mut readable, &mut writable);
                state.pending.push(Request { queue: queue as u16, head, readable, writable });
            }
        }
    }

    fn follow(
        &self,
        table: u64,
        head: u16,
        size: u16,
        readable: &mut Vec<(u64, u32)>,
        writable: &mut Vec<(u64, u32)>,
    ) {
        let mut index = head;
        loop {
            let bytes = self.platform.read(table + u64::from(index) * 16, 16);
            let address = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
            if flags & 4 != 0 {
                assert_eq!(flags, 4);
                assert!(len / 16 <= u32::from(size), "the chain is longer than the ring");
                return self.follow(address, 0, size, readable, writable);
            }
            if flags & 2 != 0 {
                writable.push((address, len));
            } else {
                assert!(writable.is_empty(), "what is read comes first");
                readable.push((address, len));
            }
            assert!(readable.len() + writable.len() <= self.kind.pieces as usize + 2);
            if flags & 1 == 0 {
                return;
            }
            index = u16::from_le_bytes([bytes[14], bytes[15]]);
        }
    }

    /// Does a request; its status, and how many bytes were written before that.
    fn work(&self, state: &mut State, request: &Request) -> (u8, u32) {
        let header = self.platform.read(request.readable[0].0, 16);
        assert_eq!(request.readable[0].1, 16);
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        let readable = &request.readable[1..];
        let (status, writable) = request.writable.split_last().unwrap();
        assert_eq!(status.1, 1);
        let longest = if self.kind.longest == 0 { u32::MAX } else { self.kind.longest };
        assert!(readable.iter().chain(writable).all(|(_, len)| *len > 0 && *len <= longest));
        state.done.push((kind, sector, readable.len() + writable.len()));
        let has = |feature: BlockFeature| state.features & feature.bits() != 0;
        let mut at = sector as usize * 512;
        match kind {
            0 => {
                let start = at;
                for (address, len) in writable {
                    self.platform.write(*address, &state.image[at..at + *len as usize]);
                    at += *len as usize;
                }
                (0, (at - start) as u32)
            }
            1 => {
                for (address, len) in readable {
                    let bytes = self.platform.read(*address, *len as usize);
                    state.image[at..at + bytes.len()].copy_from_slice(&bytes);
                    at += bytes.len();
                }
                (0, 0)
            }
            4 if has(BlockFeature::FLUSH) => (0, 0),
            8 => {
                let [(address, 20)] = *writable else { panic!("a serial number has 20 bytes: {writable:?}") };
                let mut bytes = [0; 20];
                bytes[..self.kind.serial.len()].copy_from_slice(self.kind.serial);
                self.platform.write(address, &bytes);
                (0, 20)
            }
            11 | 13 if has(if kind == 11 { BlockFeature::DISCARD } else { BlockFeature::WRITE_ZEROES }) => {
                let [(address, 16)] = *readable else { panic!("one range: {readable:?}") };
                let range = self.platform.read(address, 16);
                let first = u64::from_le_bytes(range[..8].try_into().unwrap()) as usize * 512;
                let count = u32::from_le_bytes(range[8..12].try_into().unwrap()) as usize * 512;
                assert!(count <= 64 * 512 && range[12..] == [0; 4]);
                state.image[first..first + count].fill(if kind == 11 { 0x55 } else { 0 });
                (0, 0)
            }
            _ => (2, 0),
        }
    }

    /// Does the pending request of this number.
    fn serve(&self, state: &mut State, number: usize) {
        let request = state.pending.remove(number);
        let fault = state.fault;
        if matches!(fault, Some(Fault::Status(_) | Fault::Short(_) | Fault::WrongId(_) | Fault::TooMany(_))) {
            state.fault = None;
        }
        let (status, mut written) = match fault {
            Some(Fault::Status(status)) => (status, 0),
            _ => self.work(state, &request),
        };
        written += 1;
        let (mut id, mut more) = (u32::from(request.head), 1);
        match fault {
            Some(Fault::Short(less)) => written -= less,
            Some(Fault::WrongId(wrong)) => id = wrong,
            Some(Fault::TooMany(count)) => more += count,
            _ => {}
        }
        self.platform.write(request.writable.last().unwrap().0, &[status]);
        let ring = &mut state.rings[usize::from(request.queue)];
        let used = ring.parts[2];
        let entry = used + 4 + u64::from(ring.used % ring.size) * 8;
        self.platform.write(entry, &id.to_le_bytes());
        self.platform.write(entry + 4, &written.to_le_bytes());
        ring.used = ring.used.wrapping_add(more);
        self.platform.write(used + 2, &ring.used.to_le_bytes());
    }

    fn reset(&self, state: &mut State) {
        state.rings.fill(Ring::default());
        state.pending.clear();
        (state.features, state.status) = (0, 0);
        state.resets += 1;
        if matches!(state.fault, Some(Fault::Silent | Fault::NeedsReset)) {
            state.fault = None;
        }
    }
}

impl Device for Fake {
    fn step(&self, choice: usize) {
        let mut state = self.state.lock();
        let deaf =
            matches!(state.fault, Some(Fault::Silent | Fault::NeedsReset | Fault::Gone | Fault::Stubborn));
        if state.status & 4 == 0 || deaf {
            return;
        }
        self.take(&mut state);
        if !state.pending.is_empty() {
            let number = choice % state.pending.len();
            self.serve(&mut state, number);
        }
    }

    fn image(&self) -> Vec<u8> {
        self.state.lock().image.clone()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Common,
    Notify,
    Interrupts,
    Device,
}

struct Window {
    fake: Arc<Fake>,
    part: Part,
}

impl Window {
    fn read(&self, offset: usize, width: usize) -> u64 {
        let mut state = self.fake.state.lock();
        let state = &mut *state;
        if state.fault == Some(Fault::Gone) {
            return u64::MAX;
        }
        let kind = &self.fake.kind;
        let ring = state.rings.get(usize::from(state.selected)).cloned();
        match (self.part, offset, width) {
            (Part::Common, 0x04, 4) => kind.features >> (32 * state.feature_select[0]) & 0xffff_ffff,
            (Part::Common, 0x12, 2) => kind.queues.into(),
            (Part::Common, 0x14, 1) => {
                let needs = if state.fault == Some(Fault::NeedsReset) { 64 } else { 0 };
                (state.status | needs).into()
            }
            (Part::Common, 0x15, 1) => 0,
            (Part::Common, 0x18, 2) => ring.map_or(0, |_| kind.queue_size.into()),
            (Part::Common, 0x1a, 2) => ring.map_or(0xffff, |ring| ring.vector.into()),
            (Part::Common, 0x1e, 2) => state.selected.into(),
            (Part::Interrupts, 0, 1) => 1,
            (Part::Device, _, _) => {
                let mut bytes = [0; 60];
                let block = u64::from(kind.block_size);
                let sectors = state.image.len() as u64 / block * block / 512;
                bytes[..8].copy_from_slice(&sectors.to_le_bytes());
                bytes[8..12].copy_from_slice(&kind.longest.to_le_bytes());
                bytes[12..16].copy_from_slice(&kind.pieces.to_le_bytes());
                bytes[20..24].copy_from_slice(&kind.block_size.to_le_bytes());
                bytes[34..36].copy_from_slice(&kind.queues.to_le_bytes());
                bytes[36..40].copy_from_slice(&64_u32.to_le_bytes());
                bytes[48..52].copy_from_slice(&64_u32.to_le_bytes());
                (0..width).map(|n| u64::from(bytes[offset + n]) << (8 * n)).sum()
            }
            _ => panic!("nobody reads {width} bytes at {offset:#x}"),
        }
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        let mut state = self.fake.state.lock();
        let state = &mut *state;
        if state.fault == Some(Fault::Gone) {
            return;
        }
        let selected = usize::from(state.selected);
        match (self.part, offset, width) {
            (Part::Common, 0x00, 4) => state.feature_select[0] = value as u32,
            (Part::Common, 0x08, 4) => state.feature_select[1] = value as u32,
            (Part::Common, 0x0c, 4) => {
                let shift = 32 * state.feature_select[1];
                state.features = state.features & !(0xffff_ffff << shift) | value << shift;
            }
            (Part::Common, 0x10, 2) => assert_eq!(value, 0xffff),
            (Part::Common, 0x14, 1) if state.fault == Some(Fault::Stubborn) => {}
            (Part::Common, 0x14, 1) if value == 0 => self.fake.reset(state),
            (Part::Common, 0x14, 1) => {
                assert_eq!(state.features & !self.fake.kind.features, 0, "features that were not offered");
                state.status = value as u8;
            }
            (Part::Common, 0x16, 2) => state.selected = value as u16,
            (Part::Common, 0x18, 2) => state.rings[selected].size = value as u16,
            (Part::Common, 0x1a, 2) => state.rings[selected].vector = value as u16,
            (Part::Common, 0x1c, 2) => {
                assert_eq!(state.status, 0b1011, "queues begin between FEATURES_OK and DRIVER_OK");
                state.rings[selected].enabled = value == 1;
            }
            (Part::Common, 0x20..0x38, 4) => {
                let part = &mut state.rings[selected].parts[(offset - 0x20) / 8];
                let shift = (offset % 8) * 8;
                *part = *part & !(0xffff_ffff << shift) | value << shift;
            }
            (Part::Notify, _, 2) => {
                assert_eq!(offset, value as usize * 4);
                state.notifications.push(value as u16);
            }
            _ => panic!("nobody writes {width} bytes at {offset:#x}"),
        }
    }
}

impl Registers for Window {
    fn len(&self) -> usize {
        64
    }
    fn read_u8(&self, offset: usize) -> u8 {
        self.read(offset, 1) as u8
    }
    fn read_u16(&self, offset: usize) -> u16 {
        self.read(offset, 2) as u16
    }
    fn read_u32(&self, offset: usize) -> u32 {
        self.read(offset, 4) as u32
    }
    fn read_u64(&self, offset: usize) -> u64 {
        self.read(offset, 8)
    }
    fn write_u8(&self, offset: usize, value: u8) {
        self.write(offset, 1, value.into());
    }
    fn write_u16(&self, offset: usize, value: u16) {
        self.write(offset, 2, value.into());
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, 4, value.into());
    }
    fn write_u64(&self, offset: usize, value: u64) {
        self.write(offset, 8, value);
    }
}
