use super::*;
use crate::chipset::PciFunction;
use crate::cpu::Width;
use crate::virtio::queue::RingFeatures;
use crate::virtio::testing::{COMMON, DEVICE, Disk, Driver, Function, Range, VERSION_1, at};
use proptest::prelude::*;

const ALL: u64 = feature::FLUSH | feature::CONFIG_WCE | feature::DISCARD | feature::WRITE_ZEROES;
const PACKED: u64 = 1 << 34;
const RING_RESET: u64 = 1 << 40;
const INDIRECT: u64 = 1 << 28;
/// Where headers, status bytes and data go.
const HEADERS: u64 = 0x100;
const STATUSES: u64 = 0x800;
const DATA: u64 = 0x1_0000;
const RINGS: u64 = 0x4_0000;

struct Guest {
    function: Function,
    disk: Arc<Disk>,
    driver: Driver,
}

impl Guest {
    fn new(disk: Arc<Disk>, features: u64) -> Self {
        Self::with_queues(disk, features, 1)
    }

    fn with_queues(disk: Arc<Disk>, features: u64, queues: usize) -> Self {
        let mut function =
            Function::new(Block::new(Arc::clone(&disk) as _, "serial-0123456789-0123456789", true, queues));
        function.negotiate(features | VERSION_1);
        let ring = RingFeatures { packed: features & PACKED != 0, ..RingFeatures::default() };
        let driver = function.enable_queue(0, RINGS, 64, ring);
        function.set_status(0xf);
        Self { function, disk, driver }
    }

    /// Makes a request available, the header and status of which are of number `n`.
    fn offer(&mut self, n: u64, kind: u32, sector: u64, readable: &[Range], writable: &[Range]) -> u16 {
        offer(&mut self.function, &mut self.driver, n, kind, sector, readable, writable)
    }

    /// Makes a request, which nothing keeps waiting; says its status and how many bytes were written.
    fn request(&mut self, kind: u32, sector: u64, readable: &[Range], writable: &[Range]) -> (u8, u32) {
        let id = self.offer(0, kind, sector, readable, writable);
        self.function.notify(0);
        let mut taken = self.driver.take();
        for _ in 0..MOST_RANGES {
            if taken.is_none() {
                // Between its ranges others go on.
                self.function.poll();
                taken = self.driver.take();
            }
        }
        let (taken, written) = taken.expect("it ends");
        assert_eq!(taken, id);
        assert_eq!(self.function.vectors(), [0x41]);
        (self.function.memory.read_u8(at(STATUSES)).unwrap(), written)
    }

    fn wind_down(&mut self) -> bool {
        self.function.with(PciFunction::wind_down)
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        for (n, (sector, sectors, flags)) in ranges.iter().enumerate() {
            let here = DATA + n as u64 * 16;
            self.function.memory.write_u64(at(here), *sector).unwrap();
            self.function.memory.write_u32(at(here + 8), *sectors).unwrap();
            self.function.memory.write_u32(at(here + 12), *flags).unwrap();
        }
        self.request(kind, 0, &[(DATA, ranges.len() as u32 * 16)], &[]).0
    }
}

fn offer(
    function: &mut Function,
    driver: &mut Driver,
    n: u64,
    kind: u32,
    sector: u64,
    readable: &[Range],
    writable: &[Range],
) -> u16 {
    let (header, status) = (HEADERS + n * 16, STATUSES + n);
    function.memory.write_u64(at(header), kind.into()).unwrap();
    function.memory.write_u64(at(header + 8), sector).unwrap();
    function.memory.write_u8(at(status), 0xaa).unwrap();
    let readable = [&[(header, 16)], readable].concat();
    driver.offer(&readable, &[writable, &[(status, 1)]].concat(), false).unwrap()
}

#[test]
fn blocks_are_read_and_written() {
    for packed in [0, PACKED] {
        let mut guest = Guest::new(Disk::new(512, 64), ALL | packed);
        let before = guest.disk.bytes(0x400, 0x600);
        assert_eq!(
            guest.request(kind::IN, 2, &[], &[(DATA, 0x200), (DATA + 0x1000, 0x400)]),
            (status::OK, 0x601)
        );
        let mut bytes = vec![0; 0x400];
        guest.function.memory.read(at(DATA + 0x1000), &mut bytes).unwrap();
        assert_eq!(bytes, before[0x200..]);
        guest.function.memory.read(at(DATA), &mut bytes[..0x200]).unwrap();
        assert_eq!(bytes[..0x200], before[..0x200]);

        guest.function.memory.fill(at(DATA), 0x400, 0x5a).unwrap();
        assert_eq!(guest.request(kind::OUT, 62, &[(DATA, 0x3ff), (DATA + 0x3ff, 1)], &[]), (status::OK, 1));
        assert_eq!(guest.disk.bytes(62 * 512, 1024), [0x5a; 1024]);
        assert_eq!(guest.request(kind::FLUSH, 0, &[], &[]), (status::OK, 1));
        assert_eq!(guest.disk.take_asked(), ["read 0x400+0x600", "write 0x7c00+0x400", "flush"]);

        assert_eq!(guest.request(kind::GET_ID, 0, &[], &[(DATA, 20)]), (status::OK, 21));
        let mut id = [0; 20];
        guest.function.memory.read(at(DATA), &mut id).unwrap();
        assert_eq!(&id, b"serial-0123456789-01");
    }
}

#[test]
fn what_is_long_is_done_in_pieces() {
    let mut guest = Guest::new(Disk::new(512, 16384), ALL);
    // The same memory several times: a driver may ask for far more than it has.
    let data = [(DATA, 0x3_0000); 28];
    for kind in [kind::IN, kind::OUT] {
        let (readable, writable): (&[Range], &[Range]) =
            if kind == kind::IN { (&[], &data) } else { (&data, &[]) };
        guest.offer(0, kind, 8, readable, writable);
        let before = guest.function.bell.rings();
        guest.function.notify(0);
        for n in 0..3 {
            let word = if kind == kind::IN { "read" } else { "write" };
            let (at, len) = (0x1000 + n * 0x20_0000, 0x20_0000.min(28 * 0x3_0000 - n * 0x20_0000));
            assert_eq!(guest.disk.take_asked(), [format!("{word} {at:#x}+{len:#x}")]);
            if n < 2 {
                assert_eq!((guest.driver.take(), guest.function.bell.rings()), (None, before + n + 1));
                guest.function.poll();
            }
        }
        let written = if kind == kind::IN { 28 * 0x3_0000 + 1 } else { 1 };
        assert_eq!(guest.driver.take().map(|(_, written)| written), Some(written));
    }
}

#[test]
fn a_driver_that_refills_its_queue_keeps_nobody_for_ever() {
    let disk = Disk::new(512, 64);
    let mut guest = Guest::new(Arc::clone(&disk), ALL);
    guest.offer(0, kind::FLUSH, 0, &[], &[]);
    // Another virtual CPU, which puts the next request in when the one before is done.
    let memory = Arc::clone(&guest.function.memory);
    let mut other =
        core::mem::replace(&mut guest.driver, Driver::new(&memory, 0x6_0000, 8, RingFeatures::default()));
    let mut count = 0;
    disk.meanwhile(move || {
        count += 1;
        assert!(count <= 1000, "it goes on and on");
        other.take();
        other.offer(&[(HEADERS, 16)], &[(STATUSES, 1)], false).unwrap();
    });
    guest.function.notify(0);
    let first = disk.take_asked().len();
    assert!(first > 1 && guest.function.bell.rings() == 1);
    guest.function.poll();
    assert_eq!((disk.take_asked().len(), guest.function.bell.rings()), (first, 2), "and then as many again");
}

#[test]
fn what_cannot_be_done_says_so() {
    let mut guest = Guest::new(Disk::new(4096, 8), ALL);
    assert_eq!(guest.request(kind::IN, 0, &[], &[(DATA, 4096)]).0, status::OK);
    for (sector, len) in [(64, 4096), (1, 4096), (0, 512), (u64::MAX, 4096), (1 << 55, 4096), (0, 9 * 4096)] {
        assert_eq!(
            guest.request(kind::IN, sector, &[], &[(DATA, len)]),
            (status::IO_ERROR, 0),
            "{sector} {len}"
        );
        assert_eq!(guest.request(kind::OUT, sector, &[(DATA, len)], &[]), (status::IO_ERROR, 0));
    }
    assert_eq!(guest.request(2, 0, &[], &[]), (status::UNSUPPORTED, 0));
    assert_eq!(guest.request(14, 0, &[(DATA, 16)], &[]), (status::UNSUPPORTED, 0));
    for (error, status) in [
        (BlockError::Failed, status::IO_ERROR),
        (BlockError::TimedOut, status::IO_ERROR),
        (BlockError::Unsupported, status::UNSUPPORTED),
    ] {
        guest.disk.fail(Some(error));
        assert_eq!(guest.request(kind::FLUSH, 0, &[], &[]), (status, 0));
        assert_eq!(guest.request(kind::IN, 0, &[], &[(DATA, 4096)]), (status, 0));
    }
    assert_eq!(guest.function.status() & 0x40, 0);

    let geometry = Geometry { block_size: 512, blocks: 64, read_only: true, discards: true };
    let mut guest = Guest::new(Disk::with(geometry), 0);
    assert_eq!(
        guest.function.offered() & (feature::READ_ONLY | feature::DISCARD | feature::WRITE_ZEROES),
        feature::READ_ONLY
    );
    assert_eq!(guest.request(kind::OUT, 0, &[(DATA, 512)], &[]).0, status::IO_ERROR);
    assert_eq!(guest.ranges(kind::WRITE_ZEROES, &[(0, 1, 0)]), status::UNSUPPORTED, "not accepted");
    assert_eq!(guest.disk.take_asked(), [""; 0]);
}

#[test]
fn ranges_are_discarded_and_made_zero() {
    let mut guest = Guest::new(Disk::new(512, 64), ALL);
    assert_eq!(guest.ranges(kind::DISCARD, &[(0, 8, 0), (16, 1, 0)]), status::OK);
    assert_eq!(guest.ranges(kind::WRITE_ZEROES, &[(8, 2, 1)]), status::OK);
    assert_eq!(guest.disk.bytes(8 * 512, 1024), [0; 1024]);
    assert_eq!(guest.disk.take_asked(), ["discard 0x0+0x1000", "discard 0x2000+0x200", "zero 0x1000+0x400"]);
    assert_eq!(guest.ranges(kind::DISCARD, &[(0, 1, 1)]), status::UNSUPPORTED, "it has no such flag");
    assert_eq!(guest.ranges(kind::WRITE_ZEROES, &[(0, 1, 2)]), status::UNSUPPORTED);
    for wrong in [(0, MOST_RANGE_SECTORS + 1, 0), (60, 5, 0), (u64::MAX, 1, 0)] {
        assert_eq!(guest.ranges(kind::WRITE_ZEROES, &[(0, 1, 0), wrong]), status::IO_ERROR, "{wrong:?}");
    }
    assert_eq!(guest.ranges(kind::DISCARD, &[(0, 1, 0); MOST_RANGES as usize + 1]), status::IO_ERROR);
    assert_eq!(guest.ranges(kind::DISCARD, &[]), status::IO_ERROR);
    assert_eq!(guest.request(kind::DISCARD, 0, &[(DATA, 17)], &[]).0, status::IO_ERROR);
    assert_eq!(guest.disk.take_asked(), [""; 0], "of what is wrong, nothing is done");
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let mut guest = Guest::with_queues(Disk::new(512, 64), ALL, 3);
    let mut read = |offset, width| guest.function.read(DEVICE + offset, width);
    assert_eq!(read(0, Width::Dword), 64);
    assert_eq!(read(0, Width::Qword), 64);
    assert_eq!((read(12, Width::Dword), read(20, Width::Dword)), (126, 512));
    assert_eq!((read(24, Width::Byte), read(26, Width::Word)), (3, 8), "4 KiB are good");
    assert_eq!((read(32, Width::Byte), read(34, Width::Word)), (1, 3));
    assert_eq!((read(36, Width::Dword), read(44, Width::Dword)), (1 << 17, 1));
    assert_eq!(read(60, Width::Dword), 0);
    assert_eq!(guest.function.read(COMMON + 0x12, Width::Word), 3);
    let mut large = Guest::new(Disk::new(4096, 8), ALL);
    let mut read = |offset, width| large.function.read(DEVICE + offset, width);
    assert_eq!((read(0, Width::Dword), read(20, Width::Dword)), (64, 4096));
    assert_eq!((read(24, Width::Byte), read(26, Width::Word), read(44, Width::Dword)), (0, 1, 8));
}

#[test]
fn a_cache_that_writes_through_flushes() {
    let mut guest = Guest::new(Disk::new(512, 64), ALL);
    let write = |guest: &mut Guest| {
        assert_eq!(guest.request(kind::OUT, 0, &[(DATA, 512)], &[]).0, status::OK);
        guest.disk.take_asked().len()
    };
    assert_eq!(write(&mut guest), 1);
    guest.function.write(DEVICE + 32, Width::Byte, 0);
    assert_eq!((write(&mut guest), guest.function.read(DEVICE + 32, Width::Byte)), (2, 0));
    guest.function.write(DEVICE + 32, Width::Byte, 1);
    assert_eq!(write(&mut guest), 1);
    let mut guest = Guest::new(Disk::new(512, 64), 0);
    assert_eq!(write(&mut guest), 2, "a driver that cannot flush");
    guest.function.write(DEVICE + 32, Width::Byte, 0);
    assert_eq!(guest.function.read(DEVICE + 32, Width::Byte), 1, "nothing it may write");
}

#[test]
fn requests_overlap_and_end_in_any_order() {
    for packed in [0, PACKED] {
        let mut guest = Guest::new(Disk::new(512, 64), ALL | packed);
        guest.disk.hold();
        let ids: Vec<u16> =
            (0..8).map(|n| guest.offer(n, kind::IN, n, &[], &[(DATA + n * 512, 512)])).collect();
        guest.function.notify(0);
        assert_eq!((guest.disk.held(), guest.driver.take()), (8, None));
        assert!(guest.function.vectors().is_empty());
        guest.disk.end(6);
        guest.disk.end(1);
        assert!(guest.function.bell.rings() > 0 && guest.driver.take().is_none());
        guest.function.poll();
        assert_eq!(guest.function.vectors(), [0x41], "one for both");
        let mut taken = [guest.driver.take().unwrap(), guest.driver.take().unwrap()];
        taken.sort_unstable();
        let mut expected = [(ids[1], 513), (ids[6], 513)];
        expected.sort_unstable();
        assert_eq!((taken, guest.driver.take()), (expected, None));
        assert_eq!(guest.function.memory.read_u8(at(STATUSES + 6)), Ok(0));
        assert_eq!(guest.function.memory.read_u8(at(STATUSES + 5)), Ok(0xaa));
        guest.function.poll();
        assert!(guest.function.vectors().is_empty());
    }
}

#[test]
fn more_than_there_is_room_for_wait() {
    let mut guest = Guest::with_queues(Disk::new(512, 64), ALL, 3);
    let ring = RingFeatures::default();
    let mut others =
        [1, 2].map(|n| guest.function.enable_queue(n, RINGS + u64::from(n) * 0x1_0000, 64, ring));
    guest.disk.hold();
    for _ in 0..32 {
        guest.offer(0, kind::FLUSH, 0, &[], &[]);
        for other in &mut others {
            offer(&mut guest.function, other, 0, kind::FLUSH, 0, &[], &[]);
        }
    }
    (0..3).for_each(|queue| guest.function.notify(queue));
    assert_eq!(guest.disk.held(), MOST, "of 96");
    let count = |driver: &mut Driver| core::iter::from_fn(|| driver.take()).count();
    let mut done = [0; 3];
    while guest.disk.held() > 0 {
        (0..8).for_each(|_| guest.disk.end(0));
        guest.function.poll();
        done[0] += count(&mut guest.driver);
        done[1] += count(&mut others[0]);
        done[2] += count(&mut others[1]);
        assert!(guest.disk.held() <= MOST);
    }
    assert_eq!(done, [32; 3], "none is forgotten");
}

#[test]
fn a_reset_waits_for_what_is_under_way() {
    let mut guest = Guest::new(Disk::new(512, 64), ALL);
    guest.disk.hold();
    guest.offer(0, kind::IN, 0, &[], &[(DATA, 512)]);
    guest.offer(1, kind::IN, 0, &[], &[(DATA + 512, 512)]);
    guest.function.notify(0);
    guest.function.set_status(0);
    assert_ne!(guest.function.status(), 0, "the storage still writes there");
    guest.function.set_status(1);
    guest.disk.end(0);
    guest.function.poll();
    assert_ne!(guest.function.status(), 0);
    guest.disk.end(0);
    guest.function.poll();
    assert_eq!((guest.function.status(), guest.driver.take()), (0, None));
    assert_eq!(guest.function.memory.read_u8(at(STATUSES)), Ok(0xaa), "nobody hears of it");
    assert!(guest.function.vectors().is_empty());

    guest.function.negotiate(ALL | VERSION_1);
    guest.function.memory.fill(at(RINGS), 0x3000, 0).unwrap();
    guest.driver = guest.function.enable_queue(0, RINGS, 64, RingFeatures::default());
    guest.function.set_status(0xf);
    guest.offer(0, kind::FLUSH, 0, &[], &[]);
    guest.function.notify(0);
    guest.disk.end(0);
    guest.function.poll();
    assert!(guest.driver.take().is_some());
}

#[test]
fn one_queue_is_reset_alone() {
    let mut guest = Guest::with_queues(Disk::new(512, 64), ALL | RING_RESET, 2);
    let mut second = guest.function.enable_queue(1, RINGS + 0x1_0000, 8, RingFeatures::default());
    guest.disk.hold();
    guest.offer(0, kind::IN, 0, &[], &[(DATA, 512)]);
    offer(&mut guest.function, &mut second, 1, kind::IN, 0, &[], &[(DATA, 512)]);
    guest.function.notify(0);
    guest.function.notify(1);
    let (select, enable, reset) = (COMMON + 0x16, COMMON + 0x1c, COMMON + 0x3a);
    guest.function.write(select, Width::Word, 1);
    guest.function.write(reset, Width::Word, 1);
    assert_eq!((guest.function.read(reset, Width::Word), guest.function.read(enable, Width::Word)), (1, 0));
    assert_eq!(guest.function.read(COMMON + 0x18, Width::Word), u64::from(QUEUE_SIZE));
    guest.function.write(enable, Width::Word, 1);
    assert_eq!(guest.function.read(enable, Width::Word), 0, "not before it is over");
    guest.disk.end(1);
    guest.function.poll();
    assert_eq!((guest.function.read(reset, Width::Word), second.take()), (0, None));
    guest.disk.end(0);
    guest.function.poll();
    assert!(guest.driver.take().is_some(), "the other goes on");
    let mut second = guest.function.enable_queue(1, RINGS + 0x2_0000, 8, RingFeatures::default());
    offer(&mut guest.function, &mut second, 1, kind::FLUSH, 0, &[], &[]);
    guest.function.notify(1);
    guest.disk.end(0);
    guest.function.poll();
    assert!(second.take().is_some());
}

#[test]
fn what_a_reset_queue_asked_for_counts_until_it_has_ended() {
    let ring = RingFeatures { indirect: true, ..RingFeatures::default() };
    let mut guest = Guest::with_queues(Disk::new(512, 128), ALL | RING_RESET | INDIRECT, 3);
    let mut enable =
        |n: u16| guest.function.enable_queue(n, RINGS + u64::from(n) * 0x1_0000, QUEUE_SIZE, ring);
    let mut queues = [enable(1), enable(2)];
    // A read into as many buffers as there may be, from a table that all requests share.
    let (table, last) = (RINGS + 0x3_0000, u64::from(MOST_SEGMENTS) + 1);
    for n in 0..=last {
        let (address, len, flags) = match n {
            0 => (HEADERS, 16, 1),
            n if n == last => (STATUSES, 1, 2),
            _ => (DATA, 512, 3_u64),
        };
        guest.function.memory.write_u64(at(table + n * 16), address).unwrap();
        guest.function.memory.write_u64(at(table + n * 16 + 8), len | flags << 32 | (n + 1) << 48).unwrap();
    }
    guest.function.memory.fill(at(HEADERS), 16, 0).unwrap();
    guest.disk.hold();
    let most = MANY_SEGMENTS.div_ceil(MOST_SEGMENTS as usize + 2);
    for (n, queue) in (1..).zip(&mut queues) {
        (0..most).for_each(|_| assert!(queue.offer_table((table, (last as u32 + 1) * 16)).is_some()));
        guest.function.notify(n);
        assert_eq!(guest.disk.held(), most);
        if n == 1 {
            guest.function.write(COMMON + 0x16, Width::Word, 1);
            guest.function.write(COMMON + 0x3a, Width::Word, 1);
        }
    }
    for left in (0..most).rev() {
        guest.disk.end(0);
        guest.function.poll();
        assert_eq!(guest.disk.held(), most, "one of the other queue's for each that ends, {left} are left");
    }
    assert!(queues[0].take().is_none() && queues[1].take().is_none());
    (0..most).for_each(|_| guest.disk.end(0));
    guest.function.poll();
    assert_eq!(core::iter::from_fn(|| queues[1].take()).count(), most);
}

#[test]
fn what_is_no_request_breaks_the_device_alone() {
    let refused = |readable: &[Range], writable: &[Range], what: &str| {
        let mut guest = Guest::new(Disk::new(512, 64), ALL);
        guest.offer(0, kind::FLUSH, 0, &[], &[]);
        guest.driver.offer(readable, writable, false).unwrap();
        guest.function.notify(0);
        assert_eq!(guest.function.status(), 0x4f);
        let complaint =
            format!("virtio block device: queue 0: {what}; it needs a reset by the guest's driver");
        assert_eq!(guest.function.complaints, [complaint]);
        assert_eq!(guest.function.vectors(), [0x41, 0x40], "what was done before, and the change");
        guest.function.notify(0);
        guest.function.poll();
        assert_eq!(guest.function.complaints.len(), 1);
        guest.function.set_status(0);
        assert_eq!(guest.function.status(), 0);
        guest.function.negotiate(VERSION_1);
        guest.driver = guest.function.enable_queue(0, RINGS + 0x1_0000, 8, RingFeatures::default());
        guest.function.set_status(0xf);
        assert_eq!(guest.request(kind::FLUSH, 0, &[], &[]), (status::OK, 1));
    };
    refused(&[(HEADERS, 15)], &[(STATUSES, 1)], "a request that is shorter than its header");
    refused(&[(HEADERS, 16)], &[], "a request without a byte for its status");
    refused(&[(1 << 20, 16)], &[(STATUSES, 1)], "16 bytes at guest-physical 0x100000 are not memory");
}

#[test]
fn a_life_ends_when_nothing_is_under_way() {
    let mut guest = Guest::new(Disk::new(512, 64), ALL);
    assert!(guest.wind_down());
    let mut guest = Guest::new(Disk::new(512, 64), ALL);
    guest.disk.hold();
    guest.offer(0, kind::IN, 0, &[], &[(DATA, 512)]);
    guest.function.notify(0);
    let users = Arc::strong_count(&guest.function.memory);
    assert!(!guest.wind_down());
    guest.disk.end(0);
    assert!(guest.wind_down());
    assert!(Arc::strong_count(&guest.function.memory) < users, "its buffers are let go");
}

proptest! {
    /// Any registers, rings and requests: the device answers, or is broken, and can be reset.
    #[test]
    fn no_driver_can_confuse_it(
        packed in any::<bool>(),
        steps in prop::collection::vec((0u8..6, 0..0x100_u64, 0u32..4, any::<u64>()), 0..200),
    ) {
        let mut guest = Guest::new(Disk::new(512, 64), ALL | RING_RESET | if packed { PACKED } else { 0 });
        guest.disk.hold();
        for (action, offset, width, value) in steps {
            let width = Width::from_bytes(1 << width).unwrap();
            match action {
                0 => guest.function.write(COMMON + offset % 0x40, width, value),
                1 => { guest.function.read(COMMON + offset % 0x40, width); }
                2 => guest.function.memory.write_u64(at(RINGS + (offset & 0x7f) * 8 + (value & 3) * 0x800), value).unwrap(),
                3 => guest.function.notify((value & 1) as u16),
                4 if guest.disk.held() > 0 => guest.disk.end(value as usize % guest.disk.held()),
                _ => guest.function.poll(),
            }
        }
        guest.function.set_status(0);
        while guest.disk.held() > 0 {
            guest.disk.end(0);
        }
        guest.function.poll();
        prop_assert_eq!(guest.function.status(), 0);
    }
}
