//! A machine for tests of drivers: memory that a fake device reaches by address, and a clock that tests set.
#![allow(clippy::panic, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::platform::{Message, Platform, Region, Registers, Trigger, Vector};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use core::task::{Context, Poll, Waker};
use spin::Mutex;
use storage::{Buffer, Memory, Piece};

/// A machine with RAM, a clock that stands still, and the registers that a test put in.
pub struct FakePlatform {
    ram: Arc<Mutex<Vec<Block>>>,
    next_address: AtomicU64,
    clock: AtomicU64,
    cores: AtomicUsize,
    core: AtomicUsize,
    next_vector: AtomicU8,
    memory_left: AtomicBool,
    windows: Mutex<Vec<(Region, Arc<dyn Registers>)>>,
    on_wait: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

/// RAM at an address.
struct Block {
    address: u64,
    bytes: Vec<u8>,
}

impl FakePlatform {
    /// One with a core and nothing else.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            ram: Arc::default(),
            next_address: AtomicU64::new(0x10_0000),
            clock: AtomicU64::new(1),
            cores: AtomicUsize::new(1),
            core: AtomicUsize::new(0),
            next_vector: AtomicU8::new(0x50),
            memory_left: AtomicBool::new(true),
            windows: Mutex::default(),
            on_wait: Mutex::default(),
        })
    }

    /// Lets so many nanoseconds pass.
    pub fn pass(&self, nanoseconds: u64) {
        self.clock.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Has so many cores, of which this one calls.
    pub fn set_cores(&self, cores: usize, this: usize) {
        self.cores.store(cores, Ordering::Relaxed);
        self.core.store(this, Ordering::Relaxed);
    }

    /// From now on there is no memory to allocate.
    pub fn run_out_of_memory(&self) {
        self.memory_left.store(false, Ordering::Relaxed);
    }

    /// Puts a device's registers at `region`.
    pub fn put(&self, region: Region, registers: Arc<dyn Registers>) {
        self.windows.lock().push((region, registers));
    }

    /// Does this whenever a driver waits: where a fake device gets on with its work.
    pub fn on_wait(&self, work: impl FnMut() + Send + 'static) {
        *self.on_wait.lock() = Some(Box::new(work));
    }

    /// What lies at `address`, as a device reads it.
    ///
    /// # Panics
    /// There is no RAM of the test's or the driver's: the driver gave its device a wrong address, or gave memory
    /// back too early.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let ram = self.ram.lock();
        let (block, at) = find(&ram, address, len);
        ram[block].bytes[at..at + len].to_vec()
    }

    /// Writes to `address`, as a device does.
    ///
    /// # Panics
    /// As [`FakePlatform::read`].
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let mut ram = self.ram.lock();
        let (block, at) = find(&ram, address, bytes.len());
        ram[block].bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A request's buffer with pieces of these lengths, no two of which lie together.
    pub fn scattered(&self, lengths: &[usize]) -> Buffer {
        let parts = lengths.iter().map(|len| self.take(*len)).collect();
        Buffer::new(Arc::new(Scattered { parts }))
    }

    fn take(&self, len: usize) -> Ram {
        let pages = (len as u64).next_multiple_of(0x1000) + 0x1000;
        let address = self.next_address.fetch_add(pages, Ordering::Relaxed);
        self.ram.lock().push(Block { address, bytes: vec![0; len] });
        Ram { ram: Arc::clone(&self.ram), address, len }
    }
}

/// Which block of RAM, and where in it.
fn find(ram: &[Block], address: u64, len: usize) -> (usize, usize) {
    ram.iter()
        .enumerate()
        .find_map(|(number, block)| {
            let at = usize::try_from(address.checked_sub(block.address)?).ok()?;
            (at.checked_add(len)? <= block.bytes.len()).then_some((number, at))
        })
        .unwrap_or_else(|| panic!("a device was sent to {len} bytes at {address:#x}, where nothing is"))
}

impl Platform for FakePlatform {
    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    fn wait(&self, nanoseconds: u64) {
        self.pass(nanoseconds);
        // The work may wait in turn, or touch the device: the lock is not held meanwhile.
        let work = self.on_wait.lock().take();
        if let Some(mut work) = work {
            work();
            self.on_wait.lock().get_or_insert(work);
        }
    }

    fn allocate(&self, len: usize) -> Option<Arc<dyn Memory>> {
        self.memory_left.load(Ordering::Relaxed).then(|| Arc::new(self.take(len)) as Arc<dyn Memory>)
    }

    fn registers(&self, region: Region) -> Option<Arc<dyn Registers>> {
        let windows = self.windows.lock();
        let window =
            windows.iter().find(|(there, _)| (there.space, there.start) == (region.space, region.start));
        window.map(|(_, registers)| Arc::clone(registers))
    }

    fn cores(&self) -> usize {
        self.cores.load(Ordering::Relaxed)
    }

    fn core(&self) -> usize {
        self.core.load(Ordering::Relaxed)
    }

    fn message_interrupt(&self, core: usize) -> Option<(Vector, Message)> {
        let vector = self.next_vector.fetch_add(1, Ordering::Relaxed);
        (vector < 0xf0).then(|| {
            (
                Vector { core, number: vector },
                Message { address: 0xfee0_0000 | (core as u64) << 12, data: u32::from(vector) },
            )
        })
    }

    fn line_interrupt(&self, line: u8, _trigger: Trigger) -> Option<Vector> {
        (line < 16).then_some(Vector { core: 0, number: 0x30 + line })
    }
}

/// A block of a [`FakePlatform`]'s RAM, which is gone once it is dropped.
struct Ram {
    ram: Arc<Mutex<Vec<Block>>>,
    address: u64,
    len: usize,
}

impl Memory for Ram {
    fn size(&self) -> usize {
        self.len
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        let ram = self.ram.lock();
        let (block, _) = find(&ram, self.address, 0);
        let there = ram[block].bytes.get(at..).unwrap_or_default();
        let len = there.len().min(bytes.len());
        bytes[..len].copy_from_slice(&there[..len]);
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let mut ram = self.ram.lock();
        let (block, _) = find(&ram, self.address, 0);
        let there = ram[block].bytes.get_mut(at..).unwrap_or_default();
        let len = there.len().min(bytes.len());
        there[..len].copy_from_slice(&bytes[..len]);
    }

    fn piece(&self, at: usize) -> Option<Piece> {
        let len = self.len.checked_sub(at)?;
        Some(Piece { address: self.address + at as u64, len })
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        self.ram.lock().retain(|block| block.address != self.address);
    }
}

/// Blocks of RAM one after the other.
struct Scattered {
    parts: Vec<Ram>,
}

impl Scattered {
    /// The part that the byte at `at` is in, and where in it.
    fn part(&self, at: usize) -> Option<(&Ram, usize)> {
        let mut at = at;
        for part in &self.parts {
            if at < part.len {
                return Some((part, at));
            }
            at -= part.len;
        }
        None
    }
}

impl Memory for Scattered {
    fn size(&self) -> usize {
        self.parts.iter().map(|part| part.len).sum()
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        let mut done = 0;
        while let Some((part, within)) = self.part(at + done).filter(|_| done < bytes.len()) {
            let len = (part.len - within).min(bytes.len() - done);
            part.read(within, &mut bytes[done..done + len]);
            done += len;
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let mut done = 0;
        while let Some((part, within)) = self.part(at + done).filter(|_| done < bytes.len()) {
            let len = (part.len - within).min(bytes.len() - done);
            part.write(within, &bytes[done..done + len]);
            done += len;
        }
    }

    fn piece(&self, at: usize) -> Option<Piece> {
        self.part(at).and_then(|(part, at)| part.piece(at))
    }
}

/// Registers that keep what is written: a device's where nothing comes of it, or that a test looks at.
pub struct RegisterFile(Mutex<Vec<u8>>);

impl RegisterFile {
    /// So many bytes, all zero.
    pub fn new(len: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![0; len])))
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let bytes = self.0.lock();
        let there = bytes.get(offset..).and_then(|rest| rest.first_chunk::<N>());
        there.filter(|_| offset.is_multiple_of(N)).copied().unwrap_or([0xff; N])
    }

    fn set<const N: usize>(&self, offset: usize, value: [u8; N]) {
        let mut bytes = self.0.lock();
        if let Some(there) = bytes.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<N>())
            && offset.is_multiple_of(N)
        {
            *there = value;
        }
    }
}

impl Registers for RegisterFile {
    fn len(&self) -> usize {
        self.0.lock().len()
    }
    fn read_u8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.get(offset))
    }
    fn read_u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }
    fn read_u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }
    fn read_u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.get(offset))
    }
    fn write_u8(&self, offset: usize, value: u8) {
        self.set(offset, value.to_le_bytes());
    }
    fn write_u16(&self, offset: usize, value: u16) {
        self.set(offset, value.to_le_bytes());
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.set(offset, value.to_le_bytes());
    }
    fn write_u64(&self, offset: usize, value: u64) {
        self.set(offset, value.to_le_bytes());
    }
}

/// What the future says if asked now.
pub fn poll<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Poll<T> {
    core::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// What comes of a future, with `work` done for as long as it waits.
///
/// # Panics
/// It is still waiting after the work was done 100,000 times.
pub fn run<T>(future: impl Future<Output = T>, mut work: impl FnMut()) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..100_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        work();
    }
    panic!("it waits for ever")
}
