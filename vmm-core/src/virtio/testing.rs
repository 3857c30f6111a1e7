//! A driver's side, for tests: by the specification's text, and with what a driver may do wrong.

use super::Device;
use super::pci::VirtioPci;
use super::queue::{QueueLayout, RingFeatures};
use crate::chipset::{ApicBus, ApicMessage, Console, Context, PciFunction};
use crate::cpu::Width;
use crate::memory::{GuestMemory, GuestPhys, HeapBlock, Region};
use crate::requests::testing::Promise;
use crate::time::Instant;
use alloc::sync::Arc;
use core::cell::RefCell;
use core::task::Waker;
use spin::Mutex;
use std::collections::{BTreeMap, VecDeque};
use storage::testing::Bell;
use storage::{BlockDevice, BlockError, Buffer, Geometry, Reply};

/// Guest memory of `bytes` from zero on.
pub fn memory(bytes: usize) -> Arc<GuestMemory> {
    let block = Box::new(HeapBlock::zeroed(bytes, 4096).unwrap());
    Arc::new(GuestMemory::new(vec![Region::new(GuestPhys::new(0), block)]).unwrap())
}

pub fn at(address: u64) -> GuestPhys {
    GuestPhys::new(address)
}

/// A range of guest memory: address and length.
pub type Range = (u64, u32);

/// The driver of one queue.
pub struct Driver {
    memory: Arc<GuestMemory>,
    pub layout: QueueLayout,
    features: RingFeatures,
    /// Where indirect tables go, one for each ID.
    tables: u64,
    free_descriptors: Vec<u16>,
    /// The descriptors that each chain holds, by its ID.
    chains: BTreeMap<u16, Vec<u16>>,
    available: (u16, bool),
    used: (u16, bool),
}

const TABLE_DESCRIPTORS: u64 = 16;

impl Driver {
    /// A queue at `base` and on; it takes 64 KiB at most for up to 64 entries.
    pub fn new(memory: &Arc<GuestMemory>, base: u64, size: u16, features: RingFeatures) -> Self {
        let layout =
            QueueLayout { size, descriptors: at(base), driver: at(base + 0x1000), device: at(base + 0x2000) };
        Self {
            memory: Arc::clone(memory),
            layout,
            features,
            tables: base + 0x3000,
            free_descriptors: (0..size).rev().collect(),
            chains: BTreeMap::new(),
            available: (0, true),
            used: (0, true),
        }
    }

    /// How many descriptors are free.
    pub fn free(&self) -> usize {
        self.free_descriptors.len()
    }

    /// Makes a buffer available; says its ID. `None` when there is no room.
    pub fn offer(&mut self, readable: &[Range], writable: &[Range], indirect: bool) -> Option<u16> {
        let flagged =
            readable.iter().map(|range| (*range, 0)).chain(writable.iter().map(|range| (*range, 2)));
        let ranges: Vec<(Range, u16)> = flagged.collect();
        let indirect = indirect && self.features.indirect;
        let wanted = if indirect { 1 } else { ranges.len() };
        if wanted > self.free() {
            return None;
        }
        if !indirect {
            return Some(self.publish(&ranges));
        }
        assert!(ranges.len() as u64 <= TABLE_DESCRIPTORS);
        let next = self.free_descriptors.last().copied()?;
        let table = self.tables + u64::from(next) * TABLE_DESCRIPTORS * 16;
        for (n, ((address, len), flags)) in ranges.iter().enumerate() {
            let last = n + 1 == ranges.len();
            let here = table + n as u64 * 16;
            if self.features.packed {
                self.write(here, *address, *len, 0xdead, *flags);
            } else {
                self.write(here, *address, *len, flags | u16::from(!last), n as u16 + 1);
            }
        }
        self.offer_table((table, ranges.len() as u32 * 16))
    }

    /// Makes the buffer of an indirect table available that lies there; says its ID. `None` when there is no room.
    pub fn offer_table(&mut self, table: Range) -> Option<u16> {
        (self.free() > 0).then(|| self.publish(&[(table, 4)]))
    }

    /// Puts these descriptors, for which there is room, into the ring; says the buffer's ID.
    fn publish(&mut self, ranges: &[(Range, u16)]) -> u16 {
        let own: Vec<u16> = self.free_descriptors.split_off(self.free() - ranges.len());
        let id = own[0];
        if self.features.packed {
            self.offer_packed(id, ranges)
        } else {
            self.offer_split(&own, ranges)
        }
        self.chains.insert(id, own);
        id
    }

    fn offer_split(&mut self, own: &[u16], ranges: &[(Range, u16)]) {
        for (n, ((address, len), flags)) in ranges.iter().enumerate() {
            let next = own.get(n + 1);
            let flags = flags | u16::from(next.is_some());
            let here = self.layout.descriptors.get() + u64::from(own[n]) * 16;
            self.write(here, *address, *len, flags, next.copied().unwrap_or(0xbeef));
        }
        let slot = u64::from(self.available.0 % self.layout.size);
        self.memory.write_u16(at(self.layout.driver.get() + 4 + slot * 2), own[0]).unwrap();
        self.available.0 = self.available.0.wrapping_add(1);
        self.memory.write_u16(at(self.layout.driver.get() + 2), self.available.0).unwrap();
    }

    fn offer_packed(&mut self, id: u16, ranges: &[(Range, u16)]) {
        let first = self.available;
        let mut first_flags = 0;
        for (n, ((address, len), flags)) in ranges.iter().enumerate() {
            let more = u16::from(n + 1 < ranges.len());
            let (index, wrap) = self.available;
            let whose = if wrap { 1 << 7 } else { 1 << 15 };
            let flags = flags | more | whose;
            let here = self.layout.descriptors.get() + u64::from(index) * 16;
            if n == 0 {
                first_flags = flags;
                let stale = self.memory.read_u16(at(here + 14)).unwrap();
                self.write(here, *address, *len, id, stale);
            } else {
                self.write(here, *address, *len, id, flags);
            }
            self.available = if index + 1 == self.layout.size { (0, !wrap) } else { (index + 1, wrap) };
        }
        let here = self.layout.descriptors.get() + u64::from(first.0) * 16;
        self.memory.write_u16(at(here + 14), first_flags).unwrap();
    }

    fn write(&self, here: u64, address: u64, len: u32, third: u16, fourth: u16) {
        self.memory.write_u64(at(here), address).unwrap();
        self.memory.write_u32(at(here + 8), len).unwrap();
        self.memory.write_u16(at(here + 12), third).unwrap();
        self.memory.write_u16(at(here + 14), fourth).unwrap();
    }

    /// Takes the next used buffer: its ID, and how many bytes were written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        let (id, written) = if self.features.packed { self.take_packed()? } else { self.take_split()? };
        let own = self.chains.remove(&id).expect("a buffer that was offered is used once");
        self.free_descriptors.extend(own);
        Some((id, written))
    }

    fn take_split(&mut self) -> Option<(u16, u32)> {
        let used = self.layout.device.get();
        if self.memory.read_u16(at(used + 2)).unwrap() == self.used.0 {
            return None;
        }
        let entry = used + 4 + u64::from(self.used.0 % self.layout.size) * 8;
        self.used.0 = self.used.0.wrapping_add(1);
        let id = self.memory.read_u32(at(entry)).unwrap();
        Some((id.try_into().unwrap(), self.memory.read_u32(at(entry + 4)).unwrap()))
    }

    fn take_packed(&mut self) -> Option<(u16, u32)> {
        let (index, wrap) = self.used;
        let here = self.layout.descriptors.get() + u64::from(index) * 16;
        let flags = self.memory.read_u16(at(here + 14)).unwrap();
        if (flags & 1 << 7 != 0) != wrap || (flags & 1 << 15 != 0) != wrap {
            return None;
        }
        let id = self.memory.read_u16(at(here + 12)).unwrap();
        let written = self.memory.read_u32(at(here + 8)).unwrap();
        assert_eq!(flags & 2 != 0, written > 0, "the length counts where the flag is set");
        let entries = self.chains[&id].len() as u16;
        let next = index + entries;
        self.used = if next >= self.layout.size { (next - self.layout.size, !wrap) } else { (next, wrap) };
        Some((id, written))
    }

    /// Wants no interrupt but for the buffer used `after` this many more: 0 is the next.
    pub fn want_interrupt_after(&mut self, after: u16) {
        if self.features.packed {
            let index = self.used.0 + after;
            let (index, wrap) = if index >= self.layout.size {
                (index - self.layout.size, !self.used.1)
            } else {
                (index, self.used.1)
            };
            let event = index | if wrap { 1 << 15 } else { 0 };
            self.memory.write_u32(self.layout.driver, 2 << 16 | u32::from(event)).unwrap();
        } else {
            let place = self.layout.driver.get() + 4 + u64::from(self.layout.size) * 2;
            self.memory.write_u16(at(place), self.used.0.wrapping_add(after)).unwrap();
        }
    }

    /// Wants interrupts, or none; without an event index.
    pub fn want_interrupts(&mut self, wanted: bool) {
        if self.features.packed {
            self.memory.write_u32(self.layout.driver, u32::from(!wanted) << 16).unwrap();
        } else {
            self.memory.write_u16(self.layout.driver, u16::from(!wanted)).unwrap();
        }
    }

    /// Whether the device asked to be told of the buffer offered last.
    pub fn is_to_notify(&self) -> bool {
        if self.features.packed {
            let suppression = self.memory.read_u32(self.layout.device).unwrap();
            if suppression >> 16 != 2 {
                return suppression >> 16 == 0;
            }
            let event = (suppression as u16 & 0x7fff, suppression & 1 << 15 != 0);
            // The device's place is the one where what was offered last begins.
            event == self.before_last()
        } else if self.features.event_index {
            let place = self.layout.device.get() + 4 + u64::from(self.layout.size) * 8;
            self.memory.read_u16(at(place)).unwrap() == self.available.0.wrapping_sub(1)
        } else {
            self.memory.read_u16(self.layout.device).unwrap() & 1 == 0
        }
    }

    fn before_last(&self) -> (u16, bool) {
        match self.available {
            (0, wrap) => (self.layout.size - 1, !wrap),
            (index, wrap) => (index - 1, wrap),
        }
    }
}

/// What became of a storage request in a test.
pub type Outcome = Result<(), BlockError>;

/// Storage in memory that answers at once or, held, when a test says so.
pub struct Disk {
    geometry: Geometry,
    state: Mutex<DiskState>,
}

#[derive(Default)]
struct DiskState {
    bytes: Vec<u8>,
    held: bool,
    waiting: Vec<Promise<Outcome>>,
    /// What it was asked, in words.
    asked: Vec<String>,
    fail: Option<BlockError>,
    /// Done with each request.
    meanwhile: Option<Box<dyn FnMut() + Send>>,
}

impl Disk {
    pub fn new(block_size: u32, blocks: u64) -> Arc<Self> {
        Self::with(Geometry { block_size, blocks, read_only: false, discards: true })
    }

    pub fn with(geometry: Geometry) -> Arc<Self> {
        let bytes = (0..geometry.size()).map(|n| (n / 512 * 7 + n) as u8).collect();
        Arc::new(Self { geometry, state: Mutex::new(DiskState { bytes, ..DiskState::default() }) })
    }

    /// Answers nothing from here on until told.
    pub fn hold(&self) {
        self.state.lock().held = true;
    }

    /// How many requests it holds.
    pub fn held(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Lets the held request of this number end.
    pub fn end(&self, number: usize) {
        let promise = self.state.lock().waiting.remove(number);
        promise.end(Ok(()));
    }

    /// Lets all that follow fail.
    pub fn fail(&self, error: Option<BlockError>) {
        self.state.lock().fail = error;
    }

    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        self.state.lock().bytes[at..at + len].to_vec()
    }

    /// What it was asked since.
    pub fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().asked)
    }

    /// Does this with each request that it is asked.
    pub fn meanwhile(&self, work: impl FnMut() + Send + 'static) {
        self.state.lock().meanwhile = Some(Box::new(work));
    }

    fn answer(&self, what: String, buffer: Option<Buffer>, work: impl FnOnce(&mut [u8])) -> Reply<'_> {
        let meanwhile = self.state.lock().meanwhile.take();
        if let Some(mut meanwhile) = meanwhile {
            meanwhile();
            self.state.lock().meanwhile = Some(meanwhile);
        }
        let mut state = self.state.lock();
        state.asked.push(what);
        let result = state.fail.map_or(Ok(()), Err);
        if result.is_ok() {
            work(&mut state.bytes);
        }
        if !state.held {
            return Box::pin(std::future::ready(result));
        }
        let promise = Promise::new();
        // The device keeps the buffer for as long as it is at work.
        let reply = Box::pin(promise.kept(buffer));
        state.waiting.push(promise);
        reply
    }
}

impl BlockDevice for Disk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.geometry.check(at, into.len() as u64).unwrap();
        let what = format!("read {at:#x}+{:#x}", into.len());
        self.answer(what, Some(into.clone()), |bytes| into.write(0, &bytes[at as usize..][..into.len()]))
    }
    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        self.geometry.check(at, from.len() as u64).unwrap();
        let what = format!("write {at:#x}+{:#x}", from.len());
        self.answer(what, Some(from.clone()), |bytes| from.read(0, &mut bytes[at as usize..][..from.len()]))
    }
    fn flush(&self) -> Reply<'_> {
        self.answer("flush".into(), None, |_| ())
    }
    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.geometry.check(at, len).unwrap();
        self.answer(format!("discard {at:#x}+{len:#x}"), None, |_| ())
    }
    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.geometry.check(at, len).unwrap();
        let work = |bytes: &mut [u8]| bytes[at as usize..][..len as usize].fill(0);
        self.answer(format!("zero {at:#x}+{len:#x}"), None, work)
    }
}

/// Where a guest's messages and output went.
#[derive(Default)]
struct Outside {
    vectors: RefCell<Vec<u8>>,
}

impl ApicBus for Outside {
    fn deliver(&self, message: ApicMessage) -> bool {
        self.vectors.borrow_mut().push(message.vector);
        true
    }
    fn set_intr(&self, _high: bool) {}
}

/// A guest's terminal.
#[derive(Default)]
pub struct Terminal {
    pub sent: Vec<u8>,
    pub typed: VecDeque<u8>,
    pub room: usize,
}

impl Console for Terminal {
    fn transmit(&mut self, byte: u8) -> bool {
        self.sent.push(byte);
        self.room = self.room.saturating_sub(1);
        self.room > 0
    }
    fn has_room(&mut self) -> bool {
        self.room > 0
    }
    fn receive(&mut self) -> Option<u8> {
        self.typed.pop_front()
    }
    fn debug(&mut self, _byte: u8) {}
}

/// A virtio function in a machine of its own, as its driver reaches it.
pub struct Function {
    pub pci: VirtioPci,
    pub memory: Arc<GuestMemory>,
    pub terminal: Terminal,
    outside: Outside,
    pub bell: Arc<Bell>,
    pub complaints: Vec<String>,
}

/// The BAR's parts.
pub const COMMON: u64 = 0;
pub const DEVICE: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;
pub const MSIX: u64 = 0x4000;

/// VERSION_1.
pub const VERSION_1: u64 = 1 << 32;

impl Function {
    pub fn new(device: impl Device + 'static) -> Self {
        Self::with_memory(device, memory(1 << 20))
    }

    pub fn with_memory(device: impl Device + 'static, memory: Arc<GuestMemory>) -> Self {
        let mut pci = VirtioPci::new(Box::new(device)).unwrap();
        let bell = Arc::new(Bell::default());
        pci.connect(Waker::from(Arc::clone(&bell)));
        Self {
            pci,
            memory,
            terminal: Terminal { room: usize::MAX, ..Terminal::default() },
            outside: Outside::default(),
            bell,
            complaints: Vec::new(),
        }
    }

    pub fn with<R>(&mut self, work: impl FnOnce(&mut VirtioPci, &mut Context) -> R) -> R {
        let mut ctx = Context {
            now: Instant::ZERO,
            console: &mut self.terminal,
            apics: &self.outside,
            memory: &self.memory,
            complaint: None,
        };
        let result = work(&mut self.pci, &mut ctx);
        self.complaints.extend(ctx.complaint.map(|complaint| complaint.what));
        result
    }

    pub fn read(&mut self, offset: u64, width: Width) -> u64 {
        self.with(|pci, ctx| pci.bar_read(0, offset, width, ctx))
    }

    pub fn write(&mut self, offset: u64, width: Width, value: u64) {
        self.with(|pci, ctx| pci.bar_write(0, offset, width, value, ctx));
    }

    pub fn poll(&mut self) {
        self.with(|pci, ctx| pci.poll(ctx));
    }

    pub fn status(&mut self) -> u8 {
        self.read(COMMON + 0x14, Width::Byte) as u8
    }

    pub fn set_status(&mut self, value: u8) {
        self.write(COMMON + 0x14, Width::Byte, value.into());
    }

    /// The vectors that came since.
    pub fn vectors(&self) -> Vec<u8> {
        self.outside.vectors.take()
    }

    pub fn offered(&mut self) -> u64 {
        let half = |function: &mut Self, select| {
            function.write(COMMON, Width::Dword, select);
            function.read(COMMON + 4, Width::Dword)
        };
        half(self, 1) << 32 | half(self, 0)
    }

    /// Up to FEATURES_OK with these features, and MSI-X on: vector 0x40 for changes, 0x41 for queue 0, and so on.
    pub fn negotiate(&mut self, features: u64) {
        self.set_status(1);
        self.set_status(3);
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(COMMON + 8, Width::Dword, select);
            self.write(COMMON + 0xc, Width::Dword, half);
        }
        self.set_status(0xb);
        let queues = self.read(COMMON + 0x12, Width::Word);
        for vector in 0..=queues {
            let entry = MSIX + vector * 16;
            self.write(entry, Width::Dword, 0xfee0_0000);
            self.write(entry + 8, Width::Dword, 0x40 + vector);
            self.write(entry + 12, Width::Dword, 0);
        }
        self.enable_msix(true);
        self.write(COMMON + 0x10, Width::Word, 0);
    }

    pub fn enable_msix(&mut self, on: bool) {
        let at = self.capability(0x11, |_| true);
        self.with(|pci, ctx| {
            pci.config_mut().set(at + 3, &[if on { 0x80 } else { 0 }]);
            pci.config_written(at + 2, ctx);
        });
    }

    /// Where the first capability of this ID is that `which` wants.
    pub fn capability(&self, id: u8, which: impl Fn([u8; 20]) -> bool) -> u8 {
        self.find_capability(id, which).unwrap()
    }

    pub fn has_capability(&self, id: u8, which: impl Fn([u8; 20]) -> bool) -> bool {
        self.find_capability(id, which).is_some()
    }

    fn find_capability(&self, id: u8, which: impl Fn([u8; 20]) -> bool) -> Option<u8> {
        let [first] = self.pci.config().get(0x34);
        let next = |at: &u8| Some(self.pci.config().get::<2>(*at)[1]).filter(|next| *next != 0);
        core::iter::successors(Some(first), next).find(|at| {
            let bytes = self.pci.config().get(*at);
            bytes[0] == id && which(bytes)
        })
    }

    /// Sets queue `n` up at `base`, with `size` entries, and enables it.
    pub fn enable_queue(&mut self, n: u16, base: u64, size: u16, features: RingFeatures) -> Driver {
        let driver = Driver::new(&self.memory, base, size, features);
        let layout = driver.layout;
        self.write(COMMON + 0x16, Width::Word, n.into());
        self.write(COMMON + 0x18, Width::Word, size.into());
        self.write(COMMON + 0x1a, Width::Word, u64::from(n) + 1);
        for (offset, part) in [(0x20, layout.descriptors), (0x28, layout.driver), (0x30, layout.device)] {
            self.write(COMMON + offset, Width::Dword, part.get() & 0xffff_ffff);
            self.write(COMMON + offset + 4, Width::Dword, part.get() >> 32);
        }
        self.write(COMMON + 0x1c, Width::Word, 1);
        driver
    }

    pub fn notify(&mut self, queue: u16) {
        self.write(NOTIFY + u64::from(queue) * 4, Width::Word, queue.into());
    }
}
