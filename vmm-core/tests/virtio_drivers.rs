//! The virtio devices under the drivers of the crate virtio-drivers, which know nothing of them but the specification:
//! they find the function on the bus, its structures by its capabilities, and put rings and buffers into guest memory.
// Unsafe because that crate's drivers are told by an unsafe trait where memory for devices is.
#![allow(unsafe_code)]
#![cfg(feature = "virtio")]

use core::ptr::NonNull;
use core::task::{Poll, Waker};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use storage::{BlockDevice, Buffer, Geometry, Reply};
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr};
use vmm_core::chipset::{ApicBus, ApicMessage, Chipset, ChipsetConfig, Console, Context, PciAddress};
use vmm_core::cpu::Width;
use vmm_core::memory::{GuestMemory, GuestPhys, HeapBlock, Region};
use vmm_core::time::Instant;
use vmm_core::virtio::pci::VirtioPci;
use vmm_core::virtio::{Block, Device, Entropy, Rng};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const MEMORY: usize = 16 << 20;
/// The function's configuration space: 00:03.0 in the ECAM window.
const CONFIG: u64 = 0xb000_0000 + (3 << 15);

/// Nothing that a driver which polls has to know.
struct NoInterrupts;

impl ApicBus for NoInterrupts {
    fn deliver(&self, _message: ApicMessage) -> bool {
        true
    }
    fn set_intr(&self, _high: bool) {}
}

#[derive(Default)]
struct Line {
    sent: Vec<u8>,
    typed: VecDeque<u8>,
}

impl Console for Line {
    fn transmit(&mut self, byte: u8) -> bool {
        self.sent.push(byte);
        true
    }
    fn has_room(&mut self) -> bool {
        true
    }
    fn receive(&mut self) -> Option<u8> {
        self.typed.pop_front()
    }
    fn debug(&mut self, _byte: u8) {}
}

/// A guest's board with one virtio function, and its memory.
struct Board {
    chipset: Chipset,
    memory: Arc<GuestMemory>,
    line: Line,
    /// Where the next pages for the driver are, and those it gave back by how many.
    next_page: u64,
    free: BTreeMap<usize, Vec<u64>>,
}

impl Board {
    fn new(device: Box<dyn Device>) -> Self {
        let block = Box::new(HeapBlock::zeroed(MEMORY, PAGE_SIZE).unwrap());
        let memory = Arc::new(GuestMemory::new(vec![Region::new(GuestPhys::new(0), block)]).unwrap());
        let config = ChipsetConfig {
            start: Instant::ZERO,
            unix_time: 0,
            memory_bytes: MEMORY as u64,
            debug_port: false,
            watchdog: false,
        };
        let mut chipset = Chipset::new(&config, Waker::noop().clone());
        let function = Box::new(VirtioPci::new(device).unwrap());
        chipset.add_pci_function(PciAddress::new(0, 3, 0), function).unwrap();
        Self { chipset, memory, line: Line::default(), next_page: PAGE_SIZE as u64, free: BTreeMap::new() }
    }

    fn with<R>(&mut self, work: impl FnOnce(&mut Chipset, &mut Context) -> R) -> R {
        let mut ctx = Context {
            now: Instant::ZERO,
            console: &mut self.line,
            apics: &NoInterrupts,
            memory: &self.memory,
            complaint: None,
        };
        let result = work(&mut self.chipset, &mut ctx);
        assert_eq!(ctx.complaint, None);
        result
    }

    fn read(&mut self, at: u64, bytes: usize) -> u64 {
        let width = Width::from_bytes(bytes as u64).unwrap();
        self.with(|chipset, ctx| chipset.mmio_read(GuestPhys::new(at), width, ctx))
            .expect("a device is there")
    }

    fn write(&mut self, at: u64, bytes: usize, value: u64) {
        let width = Width::from_bytes(bytes as u64).unwrap();
        let done = self.with(|chipset, ctx| chipset.mmio_write(GuestPhys::new(at), width, value, ctx));
        done.expect("a device is there");
    }

    fn pages(&mut self, pages: usize) -> u64 {
        self.free.get_mut(&pages).and_then(Vec::pop).unwrap_or_else(|| {
            let at = self.next_page;
            self.next_page += (pages * PAGE_SIZE) as u64;
            assert!(self.next_page <= MEMORY as u64);
            at
        })
    }
}

thread_local! {
    /// The board that this test's driver is on.
    static BOARD: RefCell<Option<Rc<RefCell<Board>>>> = const { RefCell::new(None) };
}

fn on_board<R>(work: impl FnOnce(&mut Board) -> R) -> R {
    let board = BOARD.with_borrow(|board| Rc::clone(board.as_ref().expect("a board")));
    let mut board = board.borrow_mut();
    work(&mut board)
}

struct GuestHal;

// SAFETY: pages are in guest memory, page-aligned, and given to one owner at a time; what is shared is copied there.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        on_board(|board| {
            let at = GuestPhys::new(board.pages(pages));
            board.memory.fill(at, pages * PAGE_SIZE, 0).unwrap();
            let host = board.memory.host_address(at, (pages * PAGE_SIZE) as u64).unwrap();
            let pointer = core::ptr::with_exposed_provenance_mut(host.get() as usize);
            (at.get(), NonNull::new(pointer).unwrap())
        })
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        on_board(|board| board.free.entry(pages).or_default().push(paddr));
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("registers are reached through the board")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        on_board(|board| {
            let at = board.pages(buffer.len().div_ceil(PAGE_SIZE).max(1));
            if direction != BufferDirection::DeviceToDriver {
                // SAFETY: the caller's promise that the buffer is valid.
                board.memory.write(GuestPhys::new(at), unsafe { buffer.as_ref() }).unwrap();
            }
            at
        })
    }

    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        on_board(|board| {
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: the caller's promise that the buffer is valid, and nobody else's meanwhile.
                board.memory.read(GuestPhys::new(paddr), unsafe { buffer.as_mut() }).unwrap();
            }
            board.free.entry(buffer.len().div_ceil(PAGE_SIZE).max(1)).or_default().push(paddr);
        });
    }
}

/// The function, found by its capabilities.
struct Modern {
    common: u64,
    notify: u64,
    notify_multiplier: u64,
    isr: u64,
    device: u64,
}

impl Modern {
    /// Puts `device` on a board of this thread's and finds it there.
    fn find(device: impl Device + 'static) -> Self {
        let board = Board::new(Box::new(device));
        BOARD.set(Some(Rc::new(RefCell::new(board))));
        on_board(|board| {
            assert_eq!(board.read(CONFIG, 2), 0x1af4);
            let command = board.read(CONFIG + 4, 2);
            board.write(CONFIG + 4, 2, command | 0b110);
            let bar = board.read(CONFIG + 0x10, 4) & !0xf;
            let mut found = Self { common: 0, notify: 0, notify_multiplier: 0, isr: 0, device: 0 };
            let mut at = board.read(CONFIG + 0x34, 1);
            while at != 0 {
                if board.read(CONFIG + at, 1) == 9 {
                    let place = bar + board.read(CONFIG + at + 8, 4);
                    match board.read(CONFIG + at + 3, 1) {
                        1 => found.common = place,
                        2 => {
                            found.notify = place;
                            found.notify_multiplier = board.read(CONFIG + at + 16, 4);
                        }
                        3 => found.isr = place,
                        4 => found.device = place,
                        _ => {}
                    }
                }
                at = board.read(CONFIG + at + 1, 1);
            }
            found
        })
    }
}

fn read(at: u64, bytes: usize) -> u64 {
    on_board(|board| board.read(at, bytes))
}

fn write(at: u64, bytes: usize, value: u64) {
    on_board(|board| board.write(at, bytes, value));
}

impl Transport for Modern {
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from((read(CONFIG + 2, 2) - 0x1040) as u32).unwrap()
    }

    fn read_device_features(&mut self) -> u64 {
        let half = |select| {
            write(self.common, 4, select);
            read(self.common + 4, 4)
        };
        half(0) | half(1) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            write(self.common + 8, 4, select);
            write(self.common + 12, 4, half);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        write(self.common + 0x16, 2, queue.into());
        read(self.common + 0x18, 2) as u32
    }

    fn notify(&mut self, queue: u16) {
        write(self.common + 0x16, 2, queue.into());
        let at = self.notify + read(self.common + 0x1e, 2) * self.notify_multiplier;
        write(at, 2, queue.into());
        // As a monitor does after exits.
        on_board(|board| board.with(Chipset::poll));
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(read(self.common + 0x14, 1) as u32)
    }

    fn set_status(&mut self, status: DeviceStatus) {
        write(self.common + 0x14, 1, status.bits().into());
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        write(self.common + 0x16, 2, queue.into());
        write(self.common + 0x18, 2, size.into());
        for (offset, place) in [(0x20, descriptors), (0x28, driver), (0x30, device)] {
            write(self.common + offset, 8, place);
        }
        write(self.common + 0x1c, 2, 1);
        assert_eq!(read(self.common + 0x1c, 2), 1);
    }

    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        write(self.common + 0x16, 2, queue.into());
        read(self.common + 0x1c, 2) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_truncate(read(self.isr, 1) as u32)
    }

    fn read_config_generation(&self) -> u32 {
        read(self.common + 0x15, 1) as u32
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        let read = read(self.device + offset as u64, bytes.len()).to_le_bytes();
        bytes.copy_from_slice(&read[..bytes.len()]);
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<(), Error> {
        let bytes = value.as_bytes();
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        write(self.device + offset as u64, bytes.len(), u64::from_le_bytes(wide));
        Ok(())
    }
}

/// A disk in memory that answers when it is asked the second time.
struct SlowDisk(Mutex<Vec<u8>>);

impl SlowDisk {
    fn later(work: impl FnOnce() + Send + 'static) -> Reply<'static> {
        let (mut work, mut asked) = (Some(work), false);
        Box::pin(core::future::poll_fn(move |context| {
            if !core::mem::replace(&mut asked, true) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            work.take().into_iter().for_each(|work| work());
            Poll::Ready(Ok(()))
        }))
    }
}

struct Shared(Arc<SlowDisk>);

impl BlockDevice for Shared {
    fn geometry(&self) -> Geometry {
        let blocks = self.0.0.lock().unwrap().len() as u64 / 512;
        Geometry { block_size: 512, blocks, read_only: false, discards: false }
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        let disk = Arc::clone(&self.0);
        SlowDisk::later(move || into.write(0, &disk.0.lock().unwrap()[at as usize..][..into.len()]))
    }
    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        let disk = Arc::clone(&self.0);
        SlowDisk::later(move || from.read(0, &mut disk.0.lock().unwrap()[at as usize..][..from.len()]))
    }
    fn flush(&self) -> Reply<'_> {
        SlowDisk::later(|| ())
    }
    fn discard(&self, _at: u64, _len: u64) -> Reply<'_> {
        SlowDisk::later(|| ())
    }
    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.write(at, Buffer::zeroed(len as usize))
    }
}

fn disk(bytes: Vec<u8>) -> (Arc<SlowDisk>, VirtIOBlk<GuestHal, Modern>) {
    let disk = Arc::new(SlowDisk(Mutex::new(bytes)));
    let block = Block::new(Arc::new(Shared(Arc::clone(&disk))), "a-serial", true, 1);
    (disk, VirtIOBlk::new(Modern::find(block)).unwrap())
}

#[test]
fn its_block_driver_reads_and_writes() {
    let bytes: Vec<u8> = (0..64 * SECTOR_SIZE).map(|n| (n * 31 / 7) as u8).collect();
    let (disk, mut driver) = disk(bytes.clone());
    assert_eq!((driver.capacity(), driver.readonly()), (64, false));
    let mut id = [0; 20];
    driver.device_id(&mut id).unwrap();
    assert_eq!(&id[..9], b"a-serial\0");
    let mut read = vec![0; 5 * SECTOR_SIZE];
    driver.read_blocks(3, &mut read).unwrap();
    assert_eq!(read, bytes[3 * SECTOR_SIZE..8 * SECTOR_SIZE]);
    assert!(driver.ack_interrupt().contains(InterruptStatus::QUEUE_INTERRUPT));
    assert!(driver.ack_interrupt().is_empty());
    let written = vec![0x6b; 3 * SECTOR_SIZE];
    driver.write_blocks(61, &written).unwrap();
    driver.flush().unwrap();
    assert_eq!(disk.0.lock().unwrap()[61 * SECTOR_SIZE..], written);
    assert_eq!(disk.0.lock().unwrap()[..61 * SECTOR_SIZE], bytes[..61 * SECTOR_SIZE]);
    assert_eq!(driver.read_blocks(62, &mut read), Err(Error::IoError), "past the end");
    // The ring goes around many times.
    for n in 0..1000 {
        driver.read_blocks(n % 60, &mut read[..SECTOR_SIZE]).unwrap();
        assert_eq!(read[..SECTOR_SIZE], bytes[n % 60 * SECTOR_SIZE..][..SECTOR_SIZE], "{n}");
    }
}

#[test]
fn its_block_driver_has_many_requests_under_way() {
    const COUNT: usize = 16;
    let bytes: Vec<u8> = (0..64 * SECTOR_SIZE).map(|n| (n / 5) as u8).collect();
    let (_, mut driver) = disk(bytes.clone());
    let mut requests: Vec<BlkReq> = (0..COUNT).map(|_| BlkReq::default()).collect();
    let mut responses: Vec<BlkResp> = (0..COUNT).map(|_| BlkResp::default()).collect();
    let mut buffers = vec![[0; SECTOR_SIZE]; COUNT];
    let mut tokens = BTreeMap::new();
    for n in 0..COUNT {
        // SAFETY: all of them stay where they are until the request is completed below.
        let token =
            unsafe { driver.read_blocks_nb(n * 2, &mut requests[n], &mut buffers[n], &mut responses[n]) };
        tokens.insert(token.unwrap(), n);
    }
    while let Some(token) = driver.peek_used() {
        let n = tokens.remove(&token).unwrap();
        // SAFETY: the same as the request of this token was made with.
        unsafe { driver.complete_read_blocks(token, &requests[n], &mut buffers[n], &mut responses[n]) }
            .unwrap();
        assert_eq!(buffers[n], bytes[n * 2 * SECTOR_SIZE..][..SECTOR_SIZE]);
    }
    assert!(tokens.is_empty());
}

#[test]
fn its_console_driver_sends_and_receives() {
    let mut driver =
        VirtIOConsole::<GuestHal, _>::new(Modern::find(vmm_core::virtio::Console::default())).unwrap();
    driver.send_bytes(b"hello").unwrap();
    driver.emergency_write(b'!').unwrap();
    assert_eq!(on_board(|board| board.line.sent.clone()), b"hello!");
    assert_eq!(driver.recv(true), Ok(None));
    on_board(|board| {
        board.line.typed.extend(b"typed");
        board.with(Chipset::take_console_input);
    });
    let mut received = Vec::new();
    while let Some(byte) = driver.recv(true).unwrap() {
        received.push(byte);
    }
    assert_eq!(received, b"typed");
}

#[test]
fn its_entropy_driver_gets_random_bytes() {
    struct Fives;
    impl Entropy for Fives {
        fn fill(&mut self, bytes: &mut [u8]) {
            bytes.fill(5);
        }
    }
    let mut driver = VirtIORng::<GuestHal, _>::new(Modern::find(Rng::new(Box::new(Fives)))).unwrap();
    let mut bytes = [0; 100];
    assert_eq!(driver.request_entropy(&mut bytes), Ok(100));
    assert_eq!(bytes, [5; 100]);
}
