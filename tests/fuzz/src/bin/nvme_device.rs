//! A guest's NVMe controller under any registers, doorbells, commands and memory, with a disk that answers late: it goes
//! on, and nothing keeps the guest's memory once all requests have ended.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slow_disk::SlowDisk;
use std::sync::Arc;
use std::task::Waker;
use vmm_core::chipset::{ApicBus, ApicMessage, Chipset, ChipsetConfig, Console, Context, PciAddress, layout};
use vmm_core::cpu::Width;
use vmm_core::disk::{DiskModel, GuestDisk};
use vmm_core::memory::{GuestMemory, GuestPhys, HeapBlock, Region};
use vmm_core::time::Instant;

#[path = "../slow_disk.rs"]
mod slow_disk;

struct Nobody;

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

impl ApicBus for Nobody {
    fn deliver(&self, _message: ApicMessage) -> bool {
        true
    }
    fn set_intr(&self, _high: bool) {}
}

const MEMORY: u64 = 256 << 10;
/// Queue `n`, for commands and for answers.
const fn submission(n: u64) -> u64 {
    0x1000 + n * 0x2000
}
const fn completion(n: u64) -> u64 {
    0x2000 + n * 0x2000
}

struct Board {
    chipset: Chipset,
    memory: Arc<GuestMemory>,
}

impl Board {
    fn with<R>(&mut self, work: impl FnOnce(&mut Chipset, &mut Context) -> R) -> R {
        let (mut console, memory) = (Nobody, &self.memory);
        let mut context =
            Context { now: Instant::ZERO, console: &mut console, apics: &Nobody, memory, complaint: None };
        work(&mut self.chipset, &mut context)
    }

    fn write(&mut self, offset: u64, width: Width, value: u64) {
        let at = GuestPhys::new(layout::PCI_WINDOW_BASE.get() + offset);
        self.with(|chipset, context| chipset.mmio_write(at, width, value, context));
    }

    /// Puts a command to the place `index` of queue `n`.
    fn command(&mut self, n: u64, index: u64, words: [u32; 16]) {
        let bytes = words.map(u32::to_le_bytes);
        let at = GuestPhys::new(submission(n) + index % 16 * 64);
        self.memory.write(at, bytes.as_flattened()).unwrap();
    }

    /// A controller that works, with a queue pair for I/O, whose doorbells are `shadowed` in memory or not.
    fn set_up(&mut self, shadowed: bool) {
        self.write(0x24, Width::Dword, 0x000f_000f);
        self.write(0x28, Width::Qword, submission(0));
        self.write(0x30, Width::Qword, completion(0));
        self.write(0x14, Width::Dword, 0x46_0001);
        let mut create = [0; 16];
        (create[0], create[6], create[10], create[11]) = (5, completion(1) as u32, 0x000f_0001, 3);
        self.command(0, 0, create);
        (create[0], create[6], create[10], create[11]) = (1, submission(1) as u32, 0x000f_0001, 0x1_0001);
        self.command(0, 1, create);
        let mut shadows = [0; 16];
        (shadows[0], shadows[6], shadows[8]) = (0x7c, 0x6000, 0x7000);
        self.command(0, 2, shadows);
        let commands = if shadowed { 3 } else { 2 };
        self.write(0x1000, Width::Dword, commands);
        self.write(0x1004, Width::Dword, commands);
    }
}

fuzz_target!(|data: &[u8]| {
    let disk = Arc::new(SlowDisk::default());
    let config = ChipsetConfig {
        start: Instant::ZERO,
        unix_time: 0,
        memory_bytes: MEMORY,
        debug_port: false,
        watchdog: false,
    };
    let mut chipset = Chipset::new(&config, Waker::noop().clone());
    let guest_disk = GuestDisk {
        device: Arc::clone(&disk) as _,
        model: DiskModel::Nvme,
        serial: "fuzz".into(),
        write_back: true,
    };
    chipset.add_pci_function(PciAddress::new(0, 2, 0), guest_disk.controller(2, 2).unwrap()).unwrap();
    let block = Box::new(HeapBlock::zeroed(MEMORY as usize, 4096).unwrap());
    let memory = Arc::new(GuestMemory::new(vec![Region::new(GuestPhys::new(0), block)]).unwrap());
    let mut board = Board { chipset, memory };
    board.set_up(data.first().is_some_and(|byte| byte & 0x80 != 0));
    let (steps, _) = data.as_chunks::<12>();
    for [action, a, b, c, value @ ..] in steps.iter().take(512) {
        let (value, at) = (u64::from_le_bytes(*value), u64::from(*b) | u64::from(*c) << 8);
        match action % 8 {
            0 => {
                let mut words = [0; 16];
                words[0] = u32::from(*b) | u32::from(*c) << 16;
                words[1] = u32::from(a >> 4 != 15);
                (words[6], words[8]) = (value as u32 & 0x3_ffff, (value >> 18) as u32 & 0x3_fff8);
                (words[10], words[12]) = ((value >> 40) as u32 & 0xff, (value >> 48) as u32);
                board.command(u64::from(a & 1), u64::from(a >> 1), words);
            }
            1 => board.write(0x1000 + u64::from(a & 7) * 4, Width::Dword, value & 0x1f),
            2 => board.write(at & 0x3ff8, Width::from_bytes(1 << (a & 3)).unwrap(), value),
            3 => _ = board.memory.write_u64(GuestPhys::new(at << 2 & 0x3_fff8), value),
            4 => _ = disk.end(value as usize, a & 7 != 0),
            5 => board.with(|chipset, context| chipset.poll(context)),
            6 => {
                let from = GuestPhys::new(layout::PCI_WINDOW_BASE.get() + (at & 0x3fff));
                board.with(|chipset, context| chipset.mmio_read(from, Width::Dword, context));
            }
            _ => board.command(u64::from(a & 1), u64::from(a >> 1), [value as u32; 16]),
        }
    }
    while !board.with(|chipset, context| chipset.wind_down(context)) {
        assert!(disk.end(0, true), "requests are under way of which the disk knows nothing");
    }
    assert_eq!(Arc::strong_count(&board.memory), 1);
});
