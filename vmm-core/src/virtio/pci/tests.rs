use super::*;
use crate::virtio::queue::RingError;
use crate::virtio::testing::{Driver, Function, at, memory};
use crate::virtio::{Device, Identity};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};
use spin::Mutex;

const RINGS: u64 = 0x4_0000;

/// A device that gives every buffer back, with as many bytes written as there is room for.
struct Echo {
    features: u64,
    config: [u8; 8],
}

impl Device for Echo {
    fn identity(&self) -> Identity {
        Identity { name: "echo", id: 42, class: 0x00_ff_00 }
    }
    fn features(&self) -> u64 {
        1 << 5
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn config(&self) -> &[u8] {
        &self.config
    }
    fn write_config(&mut self, offset: usize, value: u8, _ctx: &mut Context) {
        self.config.get_mut(offset).into_iter().for_each(|byte| *byte = value);
    }
    fn start(&mut self, features: u64) {
        self.features = features;
    }
    fn serve(&mut self, notified: Option<u16>, queues: &mut Queues, _ctx: &mut Context) {
        for queue in notified.map_or(0..queues.count(), |queue| queue..queue.saturating_add(1)) {
            while let Some(chain) = queues.pop(queue) {
                queues.push(queue, chain.token, chain.writable.len() as u32);
            }
        }
    }
    fn reset(&mut self) {
        self.features = 0;
    }
}

/// A device that takes what there is, and whose driver puts in another buffer for each.
struct Endless {
    driver: Arc<Mutex<Driver>>,
    taken: Arc<AtomicUsize>,
}

impl Device for Endless {
    fn identity(&self) -> Identity {
        Identity { name: "endless", id: 42, class: 0x00_ff_00 }
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }
    fn config(&self) -> &[u8] {
        &[]
    }
    fn serve(&mut self, _notified: Option<u16>, queues: &mut Queues, _ctx: &mut Context) {
        loop {
            while let Some(chain) = queues.pop(0) {
                assert!(self.taken.fetch_add(1, Ordering::Relaxed) < 10_000, "it goes on and on");
                queues.push(0, chain.token, 0);
                let mut driver = self.driver.lock();
                driver.take();
                driver.offer(&[(0x1000, 0)], &[], false).unwrap();
            }
            if !queues.ask_for_notification(0) {
                return;
            }
        }
    }
    fn reset(&mut self) {}
}

#[test]
fn a_driver_that_refills_its_queue_lets_others_go_on() {
    for event_index in [false, true] {
        let ring = RingFeatures { event_index, ..RingFeatures::default() };
        let memory = memory(1 << 20);
        let driver = Arc::new(Mutex::new(Driver::new(&memory, RINGS, 8, ring)));
        let taken = Arc::new(AtomicUsize::new(0));
        let device = Endless { driver: Arc::clone(&driver), taken: Arc::clone(&taken) };
        let mut function = Function::with_memory(device, memory);
        function.negotiate(VERSION_1 | u64::from(event_index) << 29);
        function.enable_queue(0, RINGS, 8, ring);
        function.set_status(0xf);
        driver.lock().offer(&[(0x1000, 0)], &[], false).unwrap();
        function.notify(0);
        for round in 1..4 {
            assert_eq!(taken.load(Ordering::Relaxed), round * 128);
            assert_eq!(function.bell.rings(), round as u64, "it is asked for again");
            function.poll();
        }
    }
}

fn function() -> Function {
    Function::new(Echo { features: 0, config: *b"abcdefgh" })
}

#[test]
fn it_is_a_modern_function() {
    let function = function();
    let config = function.pci.config();
    assert_eq!(config.get::<4>(0), [0xf4, 0x1a, 0x6a, 0x10]);
    assert_eq!((config.get(8), config.get(0x2c)), ([1, 0, 0xff, 0], [0xf4, 0x1a, 0x6a, 0x10]));
    for (kind, offset, len) in
        [(1, 0_u32, 0x3c_u32), (2, 0x3000, 8), (3, 0x1000, 1), (4, 0x2000, 8), (5, 0, 0)]
    {
        let at = function.capability(9, |bytes| bytes[3] == kind);
        let bytes: [u8; 20] = config.get(at);
        assert_eq!(bytes[2], if kind == 2 || kind == 5 { 20 } else { 16 });
        assert_eq!(
            (bytes[4], &bytes[8..12], &bytes[12..16]),
            (0, &offset.to_le_bytes()[..], &len.to_le_bytes()[..])
        );
    }
    let at = function.capability(0x11, |_| true);
    assert_eq!(config.get(at + 2), [2, 0, 0, 0x40, 0, 0, 0, 0x50, 0, 0], "three vectors");
}

#[test]
fn only_what_is_offered_is_agreed_on() {
    const ALL: u64 = 1 << 5 | 1 << 28 | 1 << 29 | 1 << 32 | 1 << 34 | 1 << 40;
    let mut function = function();
    assert_eq!(function.offered(), ALL);
    function.write(COMMON, Width::Dword, 2);
    assert_eq!(function.read(COMMON + 4, Width::Dword), 0);
    for (features, accepted) in [
        (0, false),
        (ALL & !VERSION_1, false),
        (VERSION_1 | 1, false),
        (VERSION_1 | 1 << 60, false),
        (VERSION_1, true),
        (ALL, true),
    ] {
        function.negotiate(features);
        assert_eq!(function.status(), if accepted { 0xb } else { 3 }, "{features:#x}");
        function.set_status(0xf);
        assert_eq!(function.status(), if accepted { 0xf } else { 3 });
        function.set_status(0);
        assert_eq!(function.status(), 0);
    }
    function.negotiate(VERSION_1);
    function.write(COMMON + 8, Width::Dword, 0);
    function.write(COMMON + 0xc, Width::Dword, 1 << 5);
    assert_eq!(function.read(COMMON + 0xc, Width::Dword), 0, "too late");
    function.set_status(0x40 | 0x10);
    assert_eq!(function.status(), 0xb, "not a driver's to set");
    function.set_status(0x80);
    assert_eq!(function.status(), 0x8b);
}

#[test]
fn queues_are_laid_out_by_halves_or_at_once() {
    let mut function = function();
    assert_eq!(function.read(COMMON + 0x12, Width::Word), 2);
    assert_eq!(function.read(COMMON + 0x18, Width::Word), 16);
    function.write(COMMON + 0x16, Width::Word, 1);
    assert_eq!(
        (function.read(COMMON + 0x18, Width::Word), function.read(COMMON + 0x1e, Width::Word)),
        (8, 1)
    );
    for size in [0, 9, 0xffff] {
        function.write(COMMON + 0x18, Width::Word, size);
        assert_eq!(function.read(COMMON + 0x18, Width::Word), 8);
    }
    for offset in [0x20, 0x28, 0x30] {
        function.write(COMMON + offset, Width::Qword, 0x1122_3344_5566_7788);
        assert_eq!(function.read(COMMON + offset, Width::Qword), 0x1122_3344_5566_7788);
        function.write(COMMON + offset, Width::Dword, 0xaabb_ccdd);
        function.write(COMMON + offset + 4, Width::Dword, 0x1);
        assert_eq!(function.read(COMMON + offset, Width::Qword), 0x1_aabb_ccdd);
        assert_eq!(function.read(COMMON + offset + 4, Width::Dword), 1);
    }
    function.write(COMMON + 0x1c, Width::Word, 1);
    assert_eq!(function.read(COMMON + 0x1c, Width::Word), 0, "before features are agreed on");
    function.write(COMMON + 0x16, Width::Word, 2);
    assert_eq!(function.read(COMMON + 0x18, Width::Word), 0, "no such queue");
    for (vector, reads) in [(2, 2), (3, 0xffff), (0xffff, 0xffff)] {
        function.write(COMMON + 0x10, Width::Word, vector);
        assert_eq!(function.read(COMMON + 0x10, Width::Word), reads);
        function.write(COMMON + 0x16, Width::Word, 0);
        function.write(COMMON + 0x1a, Width::Word, vector);
        assert_eq!(function.read(COMMON + 0x1a, Width::Word), reads);
    }
    assert_eq!(function.read(0x2000, Width::Qword), u64::from_le_bytes(*b"abcdefgh"));
    assert_eq!(function.read(0x2006, Width::Dword), u64::from(u16::from_le_bytes(*b"gh")));
    function.write(0x2002, Width::Word, 0x3231);
    assert_eq!(function.read(0x2000, Width::Dword), u64::from(u32::from_le_bytes(*b"ab12")));
}

#[test]
fn a_queue_that_cannot_be_breaks_the_device() {
    for (place, error) in [
        (RINGS + 1, RingError::Misaligned(at(RINGS + 1))),
        (1 << 30, RingError::NotMemory { address: at(1 << 30), len: 256 }),
    ] {
        let mut function = function();
        function.negotiate(VERSION_1);
        function.write(COMMON + 0x20, Width::Qword, place);
        function.write(COMMON + 0x1c, Width::Word, 1);
        assert_eq!(function.status(), 0x4b);
        assert_eq!(
            function.complaints,
            [format!("echo: queue 0: {error}; it needs a reset by the guest's driver")]
        );
        assert!(function.vectors().is_empty(), "no driver listens yet");
    }
}

#[test]
fn vectors_wait_while_masked() {
    let mut function = function();
    function.negotiate(VERSION_1);
    let mut driver = function.enable_queue(1, RINGS, 8, RingFeatures::default());
    function.set_status(0xf);
    let round = |function: &mut Function, driver: &mut crate::virtio::testing::Driver| {
        driver.offer(&[], &[(0x100, 4)], false).unwrap();
        function.notify(1);
        assert_eq!(driver.take().unwrap().1, 4);
        function.vectors()
    };
    assert_eq!(round(&mut function, &mut driver), [0x42]);
    function.write(0x4000 + 2 * 16 + 12, Width::Dword, 1);
    assert_eq!(round(&mut function, &mut driver), [0; 0]);
    assert_eq!(function.read(0x5000, Width::Dword), 4);
    function.write(0x4000 + 2 * 16 + 12, Width::Dword, 0);
    assert_eq!((function.vectors(), function.read(0x5000, Width::Dword)), (vec![0x42], 0));
    driver.want_interrupts(false);
    assert_eq!(round(&mut function, &mut driver), [0; 0]);
    driver.want_interrupts(true);

    function.enable_msix(false);
    assert_eq!(round(&mut function, &mut driver), [0; 0]);
    assert!(function.pci.interrupt());
    assert_eq!((function.read(0x1000, Width::Byte), function.read(0x1000, Width::Byte)), (1, 0));
    assert!(!function.pci.interrupt(), "reading takes it back");
    driver.offer(&[(1 << 40, 1)], &[], false).unwrap();
    function.notify(1);
    assert_eq!(function.read(0x1000, Width::Byte), 2, "the device needs a reset");
}

#[test]
fn notices_count_once_the_driver_is_ready() {
    let mut function = function();
    function.negotiate(VERSION_1);
    let mut driver = function.enable_queue(0, RINGS, 16, RingFeatures::default());
    driver.offer(&[], &[(0x100, 4)], false).unwrap();
    function.notify(0);
    function.poll();
    assert_eq!(driver.take(), None);
    function.set_status(0xf);
    assert!(driver.take().is_some(), "what waited already is seen");
    for queue in [1, 2, 0x3ff] {
        function.notify(queue);
    }
    assert_eq!((function.status(), function.complaints.len()), (0xf, 0));
}

/// Guests whose firmware reaches no memory use it.
#[test]
fn the_window_in_configuration_space_reaches_the_structures() {
    let mut function = function();
    let window = function.capability(9, |bytes| bytes[3] == 5);
    let aim = |function: &mut Function, offset: u32, len: u32| {
        function.pci.config_mut().set(window + 8, &offset.to_le_bytes());
        function.pci.config_mut().set(window + 12, &len.to_le_bytes());
    };
    let read = |function: &mut Function| {
        function.with(|pci, ctx| pci.config_reading(window + 16, ctx));
        u32::from_le_bytes(function.pci.config().get(window + 16))
    };
    let write = |function: &mut Function, value: u32| {
        function.pci.config_mut().set(window + 16, &value.to_le_bytes());
        function.with(|pci, ctx| pci.config_written(window + 16, ctx));
    };
    aim(&mut function, 0x14, 1);
    write(&mut function, 3);
    assert_eq!((read(&mut function), function.status()), (3, 3));
    aim(&mut function, 0x2000, 4);
    assert_eq!(read(&mut function), u32::from_le_bytes(*b"abcd"));
    for (offset, len) in
        [(0x8000, 4), (0x7ffe, 4), (0x2001, 2), (0x2000, 3), (0x2000, 8), (u32::MAX, 1), (0, 0)]
    {
        aim(&mut function, offset, len);
        write(&mut function, 0x7777);
        assert_eq!(read(&mut function), 0x7777, "it is memory only");
    }
    assert_eq!(function.status(), 3);
}
