//! A virtio block device whose driver and memory are any bytes: registers and memory are written in any order, requests
//! end when the input says so. The storage is asked for nothing outside, and the device can always be reset.
#![no_main]

use core::future::poll_fn;
use core::task::{Poll, Waker};
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use storage::{BlockDevice, Buffer, Geometry, Reply};
use vmm_core::chipset::{ApicBus, ApicMessage, Chipset, ChipsetConfig, Console, Context, PciAddress};
use vmm_core::cpu::Width;
use vmm_core::memory::{GuestMemory, GuestPhys, HeapBlock, Region};
use vmm_core::time::Instant;
use vmm_core::virtio::Block;
use vmm_core::virtio::pci::VirtioPci;

const MEMORY: usize = 64 << 10;
/// The function's configuration space: 00:03.0 in the ECAM window.
const CONFIG: u64 = 0xb000_0000 + (3 << 15);
/// Rings of both queues lie there, each with its parts these bytes apart.
const RINGS: u64 = 0x1000;
const PART: u64 = 0x400;
const QUEUE_SIZE: u64 = 16;
/// VERSION_1, and all that the transport offers beside.
const VERSION_1: u64 = 1 << 32;
const TRANSPORT: u64 = 1 << 28 | 1 << 29 | 1 << 34 | 1 << 40;
/// FLUSH, CONFIG_WCE, DISCARD, WRITE_ZEROES.
const BLOCK: u64 = 1 << 9 | 1 << 11 | 1 << 13 | 1 << 14;

struct Nobody;

impl ApicBus for Nobody {
    fn deliver(&self, _message: ApicMessage) -> bool {
        true
    }
    fn set_intr(&self, _high: bool) {}
}

impl Console for Nobody {
    fn transmit(&mut self, _byte: u8) -> bool {
        true
    }
    fn has_room(&mut self) -> bool {
        true
    }
    fn receive(&mut self) -> Option<u8> {
        None
    }
    fn debug(&mut self, _byte: u8) {}
}

/// A request that waits for its end.
#[derive(Default)]
struct Held {
    over: bool,
    waker: Option<Waker>,
}

/// Storage that answers when it is told to.
struct Disk(Mutex<Vec<Arc<Mutex<Held>>>>);

impl Disk {
    fn hold(&self, at: u64, len: u64, work: impl FnOnce() + Send + 'static) -> Reply<'static> {
        assert_eq!(self.geometry().check(at, len), Ok(()), "asked for what is not there");
        let held = Arc::new(Mutex::new(Held::default()));
        let mut waiting = self.0.lock().unwrap();
        assert!(waiting.len() < 64, "too much is under way");
        waiting.push(Arc::clone(&held));
        let mut work = Some(work);
        Box::pin(poll_fn(move |context| {
            let mut held = held.lock().unwrap();
            if !held.over {
                held.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            work.take().into_iter().for_each(|work| work());
            Poll::Ready(Ok(()))
        }))
    }

    /// Ends one of the requests; false when there is none.
    fn end(&self, which: usize) -> bool {
        let mut waiting = self.0.lock().unwrap();
        if waiting.is_empty() {
            return false;
        }
        let place = which % waiting.len();
        let held = waiting.swap_remove(place);
        drop(waiting);
        let waker = {
            let mut held = held.lock().unwrap();
            held.over = true;
            held.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
        true
    }
}

impl BlockDevice for Disk {
    fn geometry(&self) -> Geometry {
        Geometry { block_size: 512, blocks: 1 << 20, read_only: false, discards: true }
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.hold(at, into.len() as u64, move || into.write(0, &vec![0x5a; into.len()]))
    }
    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        self.hold(at, from.len() as u64, move || drop(from.to_vec()))
    }
    fn flush(&self) -> Reply<'_> {
        self.hold(0, 0, || ())
    }
    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.hold(at, len, || ())
    }
    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.hold(at, len, || ())
    }
}

struct Board {
    chipset: Chipset,
    memory: Arc<GuestMemory>,
    /// Where the function's BAR is.
    bar: u64,
}

impl Board {
    fn new(disk: &Arc<Disk>) -> Self {
        let block = Box::new(HeapBlock::zeroed(MEMORY, 4096).unwrap());
        let memory = Arc::new(GuestMemory::new(vec![Region::new(GuestPhys::new(0), block)]).unwrap());
        let config = ChipsetConfig {
            start: Instant::ZERO,
            unix_time: 0,
            memory_bytes: MEMORY as u64,
            debug_port: false,
            watchdog: false,
        };
        let mut chipset = Chipset::new(&config, Waker::noop().clone());
        let device = Block::new(Arc::clone(disk) as _, "fuzz", true, 2);
        let function = Box::new(VirtioPci::new(Box::new(device)).unwrap());
        chipset.add_pci_function(PciAddress::new(0, 3, 0), function).unwrap();
        let mut board = Self { chipset, memory, bar: 0 };
        board.bar = board.read(CONFIG + 0x10, Width::Dword).unwrap() & !0xf;
        board
    }

    fn with<R>(&mut self, work: impl FnOnce(&mut Chipset, &mut Context) -> R) -> R {
        let memory = &self.memory;
        let mut ctx =
            Context { now: Instant::ZERO, console: &mut Nobody, apics: &Nobody, memory, complaint: None };
        work(&mut self.chipset, &mut ctx)
    }

    fn read(&mut self, at: u64, width: Width) -> Option<u64> {
        self.with(|chipset, ctx| chipset.mmio_read(GuestPhys::new(at), width, ctx))
    }

    fn write(&mut self, at: u64, width: Width, value: u64) {
        self.with(|chipset, ctx| chipset.mmio_write(GuestPhys::new(at), width, value, ctx));
    }

    fn common(&mut self, offset: u64, width: Width, value: u64) {
        self.write(self.bar + offset, width, value);
    }

    /// As a good driver does, up to DRIVER_OK.
    fn start(&mut self, features: u64) {
        self.common(0x14, Width::Byte, 1);
        self.common(0x14, Width::Byte, 3);
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.common(0x08, Width::Dword, select);
            self.common(0x0c, Width::Dword, half);
        }
        self.common(0x14, Width::Byte, 0xb);
        for queue in 0..2 {
            let base = RINGS + queue * 4 * PART;
            self.common(0x16, Width::Word, queue);
            self.common(0x18, Width::Word, QUEUE_SIZE);
            for (offset, part) in [(0x20, 0), (0x28, 1), (0x30, 2)] {
                self.common(offset, Width::Qword, base + part * PART);
            }
            self.common(0x1c, Width::Word, 1);
        }
        self.common(0x14, Width::Byte, 0xf);
    }
}

fuzz_target!(|data: &[u8]| {
    let [kind, rest @ ..] = data else { return };
    let disk = Arc::new(Disk(Mutex::default()));
    let mut board = Board::new(&disk);
    // What the rings hold from the start: up to half of the input.
    let (steps, image) = rest.split_at(rest.len() / 2);
    let image = &image[..image.len().min(8 * PART as usize)];
    board.memory.write(GuestPhys::new(RINGS), image).unwrap();
    let transport =
        [0, 1 << 28, 1 << 29, 1 << 28 | 1 << 29, 1 << 34, 1 << 34 | 1 << 28, 1 << 34 | 1 << 29, TRANSPORT];
    board.start(VERSION_1 | BLOCK | 1 << 40 | transport[usize::from(kind % 8)]);
    for queue in 0..2 {
        board.common(0x3000 + queue * 4, Width::Word, queue);
    }
    for step in steps.chunks_exact(12) {
        let [action, width, place @ ..] = step else { return };
        let width = Width::from_bytes(1 << (width & 3)).unwrap();
        let (place, value) = place.split_at(2);
        let place = u64::from(u16::from_le_bytes([place[0], place[1]]));
        let value = u64::from_le_bytes(value.try_into().unwrap());
        match action % 8 {
            0 => board.common(place % 0x40, width, value),
            1 => _ = board.read(board.bar + place % 0x8000, width),
            2 => board.common(place % 0x8000, width, value),
            3 => board.memory.write_u64(GuestPhys::new(RINGS + place % (8 * PART)), value).unwrap(),
            4 => board.common(0x3000 + place % 3 * 4, Width::Word, place % 3),
            5 => _ = disk.end(place as usize),
            6 => board.write(CONFIG + ((place % 0x100) & !3), Width::Dword, value),
            _ => board.with(Chipset::poll),
        }
    }
    // However it went, power comes back.
    while disk.end(0) {
        board.with(Chipset::poll);
    }
    assert!(board.with(Chipset::wind_down), "something is still under way");
});
