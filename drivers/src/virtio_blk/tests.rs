use super::fake::{Fake, Fault, Kind};
use super::*;
use crate::testing::{FakePlatform, poll, run};
use crate::trial::{self, Device, Rig};
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;
use proptest::prelude::*;
use storage::{BlockError, Buffer, Reply};

const SECOND: u64 = 1_000_000_000;

struct Set {
    platform: Arc<FakePlatform>,
    fake: Arc<Fake>,
    driver: VirtioBlk,
    quiet: Arc<AtomicBool>,
}

fn image(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 5) as u8).collect()
}

fn try_start(
    platform: &Arc<FakePlatform>,
    fake: &Arc<Fake>,
    wiring: Wiring,
) -> (Result<VirtioBlk, Error>, Arc<AtomicBool>) {
    let quiet = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&quiet);
    let reach = Box::new(move |may: bool| flag.store(!may, Ordering::Relaxed));
    // The device gets on with its work while the driver waits.
    let worker = Arc::clone(fake);
    platform.on_wait(move || worker.step(0));
    (start_at(Arc::clone(platform) as Arc<dyn Platform>, fake.transport(), wiring, reach), quiet)
}

const ONE_MESSAGE: Wiring = Wiring { messages: 1, sources: 1 };

fn set(kind: Kind) -> Set {
    let platform = FakePlatform::new();
    let fake = Fake::new(&platform, kind, image(1 << 20));
    let (driver, quiet) = try_start(&platform, &fake, ONE_MESSAGE);
    fake.state.lock().done.clear();
    Set { platform, fake, driver: driver.unwrap_or_else(|error| panic!("{error}")), quiet }
}

/// A device without these features.
fn without(features: BlockFeature) -> Kind {
    let kind = Kind::default();
    Kind { features: kind.features & !features.bits(), ..kind }
}

impl Rig for Set {
    fn platform(&self) -> &FakePlatform {
        &self.platform
    }

    fn driver(&self) -> &dyn Driver {
        &self.driver
    }

    fn device(&self) -> &dyn Device {
        &*self.fake
    }
}

#[test]
fn a_disk_is_what_its_device_says() {
    let set = set(Kind::default());
    let [disk] = &*set.driver.disks() else { panic!("one disk") };
    assert_eq!((disk.unit, &*disk.model, &*disk.serial), (0, "", "serial"));
    let geometry = Geometry { block_size: 512, blocks: 2048, read_only: false, discards: true };
    assert_eq!(disk.device.geometry(), geometry);
    assert_eq!(set.reads(), Ok(()));
    assert_eq!(set.wait(set.disk().flush()), Ok(()));
    assert_eq!(set.wait(set.disk().discard(0, 512)), Ok(()));
    let kinds: Vec<u32> = set.fake.state.lock().done.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, [0, 4, 11]);
    assert_eq!(set.driver.deadline(), None);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let kind = Kind::default();
    let set = set(Kind { features: kind.features | BlockFeature::RO.bits(), ..kind });
    assert!(set.disk().geometry().read_only);
    assert_eq!(set.wait(set.disk().write(0, Buffer::zeroed(512))), Err(BlockError::ReadOnly));
    assert!(set.fake.state.lock().done.is_empty());
}

#[test]
fn a_serial_number_that_fills_its_field_or_holds_rubbish_is_cut_to_what_can_be_read() {
    assert_eq!(
        set(Kind { serial: b"12345678901234567890", ..Kind::default() }).driver.disk.serial,
        "12345678901234567890"
    );
    assert_eq!(set(Kind { serial: b"  a\x1b[2Jb \xff\x80", ..Kind::default() }).driver.disk.serial, "a[2Jb");
    assert_eq!(set(Kind { serial: b"", ..Kind::default() }).driver.disk.serial, "");
}

#[test]
fn a_device_without_a_cache_is_not_flushed() {
    let set = set(without(BlockFeature::FLUSH));
    assert_eq!(set.wait(set.disk().flush()), Ok(()));
    assert!(set.fake.state.lock().done.is_empty());
}

#[test]
fn zeroes_are_written_where_the_device_makes_none() {
    let set = set(without(BlockFeature::WRITE_ZEROES));
    assert_eq!(set.wait(set.disk().write_zeroes(512, 600 << 10)), Ok(()));
    let zeroed = 512..512 + (600 << 10);
    let expected: Vec<u8> = image(1 << 20)
        .into_iter()
        .enumerate()
        .map(|(n, byte)| if zeroed.contains(&n) { 0 } else { byte })
        .collect();
    assert!(set.fake.image() == expected);
}

#[test]
fn long_ranges_are_cut_as_the_device_wants_them() {
    let set = set(Kind { block_size: 4096, ..Kind::default() });
    assert_eq!(set.wait(set.disk().write_zeroes(4096, 100 << 10)), Ok(()));
    assert_eq!(set.wait(set.disk().discard(128 << 10, 40 << 10)), Ok(()));
    let state = set.fake.state.lock();
    assert_eq!(state.done.iter().filter(|(kind, ..)| *kind == 13).count(), 4);
    assert_eq!(state.done.iter().filter(|(kind, ..)| *kind == 11).count(), 2);
}

#[test]
fn many_requests_are_under_way_at_once_and_memory_is_used_in_place() {
    let set = set(Kind::default());
    let disk = set.disk();
    let buffers: Vec<Buffer> = (0..100).map(|_| set.platform.scattered(&[4096, 4096])).collect();
    let mut replies: Vec<Reply<'_>> =
        buffers.iter().enumerate().map(|(n, buffer)| disk.read(n as u64 * 8192, buffer.clone())).collect();
    assert_eq!(set.fake.waiting(), 64, "the others wait for room");
    assert_eq!(set.fake.state.lock().notifications.len(), 1 + 64);
    while !replies.is_empty() {
        set.fake.step(replies.len() * 7);
        set.driver.serve(0);
        replies.retain_mut(|reply| poll(reply) != Poll::Ready(Ok(())));
    }
    for (n, buffer) in buffers.iter().enumerate() {
        assert!(buffer.to_vec() == image(1 << 20)[n * 8192..][..8192]);
    }
    assert!(set.fake.state.lock().done.iter().all(|(_, _, pieces)| *pieces == 2), "in place");
}

#[test]
fn cores_have_queues_and_interrupts_as_far_as_there_are_some() {
    let platform = FakePlatform::new();
    platform.set_cores(6, 5);
    let fake = Fake::new(&platform, Kind { queues: 4, ..Kind::default() }, image(8192));
    let (driver, _) = try_start(&platform, &fake, Wiring { messages: 3, sources: 3 });
    let driver = driver.unwrap();
    assert_eq!(fake.vectors(), [0, 1, 2, 0]);
    let mut reply = driver.disk.device.read(0, Buffer::zeroed(512));
    assert_eq!(fake.state.lock().notifications.last(), Some(&1), "core 5 has the second of four");
    fake.step(0);
    driver.serve(0);
    driver.serve(2);
    assert!(poll(&mut reply).is_pending());
    driver.serve(1);
    assert_eq!(poll(&mut reply), Poll::Ready(Ok(())));
}

#[test]
fn a_line_is_every_queues() {
    let platform = FakePlatform::new();
    platform.set_cores(2, 1);
    let fake = Fake::new(&platform, Kind { queues: 2, ..Kind::default() }, image(8192));
    let (driver, _) = try_start(&platform, &fake, Wiring { messages: 0, sources: 1 });
    let driver = driver.unwrap();
    assert_eq!(fake.vectors(), [0xffff, 0xffff]);
    let mut reply = driver.disk.device.read(0, Buffer::zeroed(512));
    fake.step(0);
    driver.serve(0);
    assert_eq!(poll(&mut reply), Poll::Ready(Ok(())));
}

#[test]
fn what_the_device_says_of_a_request_is_its_answer() {
    let set = set(Kind::default());
    for (status, expected) in [
        (1, Err(BlockError::Failed)),
        (2, Err(BlockError::Unsupported)),
        (3, Err(BlockError::Failed)),
        (0xff, Err(BlockError::Failed)),
    ] {
        set.fake.fault(Fault::Status(status));
        assert_eq!(set.reads(), expected, "{status}");
        assert_eq!(set.reads(), Ok(()), "the next is not touched by it");
    }
}

#[test]
fn a_read_of_which_not_all_was_written_has_failed() {
    let set = set(Kind::default());
    set.fake.fault(Fault::Short(512));
    assert_eq!(set.reads(), Err(BlockError::Failed));
    assert_eq!(set.reads(), Ok(()));
}

#[test]
fn a_device_that_breaks_the_rules_is_reset_and_goes_on() {
    for fault in [
        Fault::WrongId(63),
        Fault::WrongId(5000),
        Fault::WrongId(u32::MAX),
        Fault::TooMany(1),
        Fault::TooMany(40000),
    ] {
        let set = set(Kind::default());
        set.fake.fault(fault);
        assert_eq!(set.reads(), Ok(()), "{fault:?}: it is asked again");
        assert_eq!(set.fake.state.lock().resets, 2, "{fault:?}");
        assert_eq!(set.reads(), Ok(()));
        assert!(!set.quiet.load(Ordering::Relaxed));
    }
}

#[test]
fn a_device_that_always_breaks_the_rules_fails() {
    let set = set(Kind::default());
    let disk = set.disk();
    let result = run(disk.read(0, Buffer::zeroed(512)), || {
        set.fake.fault(Fault::WrongId(77));
        set.fake.step(0);
        set.driver.serve(0);
        set.platform.pass(SECOND / 4);
        set.driver.recover();
    });
    assert_eq!(result, Err(BlockError::Failed));
}

#[test]
fn a_silent_device_is_reset_and_others_are_asked_again() {
    let set = set(Kind::default());
    set.fake.fault(Fault::Silent);
    let disk = set.disk();
    let mut early = disk.write(0, Buffer::holding(&[1; 512]));
    set.platform.pass(20 * SECOND);
    let buffer = Buffer::zeroed(512);
    let late = disk.read(4096, buffer.clone());
    assert_eq!(set.wait(late), Ok(()));
    assert_eq!(buffer.to_vec(), image(1 << 20)[4096..4608]);
    assert_eq!(poll(&mut early), Poll::Ready(Err(BlockError::TimedOut)));
    assert_eq!(set.fake.state.lock().resets, 2);
    assert_eq!(set.reads(), Ok(()));
}

#[test]
fn a_device_that_asks_for_a_reset_gets_it() {
    let set = set(Kind::default());
    set.fake.fault(Fault::NeedsReset);
    assert_eq!(set.reads(), Ok(()));
    assert_eq!(set.fake.state.lock().resets, 2);
}

#[test]
fn a_device_that_does_not_reset_is_kept_from_memory() {
    let set = set(Kind::default());
    set.fake.fault(Fault::Stubborn);
    assert_eq!(set.reads(), Err(BlockError::Gone));
    assert!(set.quiet.load(Ordering::Relaxed));
    assert_eq!(set.reads(), Err(BlockError::Gone));
    assert_eq!(set.driver.deadline(), None);
}

#[test]
fn a_device_that_vanishes_is_gone() {
    let set = set(Kind::default());
    set.fake.fault(Fault::Gone);
    let before = set.platform.now();
    assert_eq!(set.reads(), Err(BlockError::Gone));
    assert!(set.platform.now() - before < 5 * SECOND, "it is not waited for as for a slow one");
    assert!(set.quiet.load(Ordering::Relaxed));
    assert_eq!(set.reads(), Err(BlockError::Gone));
}

#[test]
fn a_device_that_does_not_start_is_kept_from_memory() {
    let cases: [(Kind, Option<Fault>, Error); 6] = [
        (Kind::default(), Some(Fault::Gone), Error::Gone),
        (Kind::default(), Some(Fault::Silent), Error::Silent("its serial number")),
        (Kind { features: 0, ..Kind::default() }, None, Error::Unusable("it is from before virtio 1.0")),
        (Kind { queue_size: 2, ..Kind::default() }, None, Error::Unusable("its queue is too small")),
        (
            Kind { block_size: 1000, ..Kind::default() },
            None,
            Error::Unusable("its blocks have neither 512 nor 4096 bytes"),
        ),
        (
            Kind::default(),
            Some(Fault::WrongId(5)),
            Error::Unusable("it completes what it was never asked for"),
        ),
    ];
    for (kind, fault, error) in cases {
        let platform = FakePlatform::new();
        let fake = Fake::new(&platform, kind, image(8192));
        if let Some(Fault::Silent) = fault {
            // A reset would cure it.
            fake.fault(Fault::Status(0));
            platform.on_wait(|| ());
            let (quiet, transport) = (Arc::new(AtomicBool::new(false)), fake.transport());
            let (flag, worker) = (Arc::clone(&quiet), Arc::clone(&fake));
            let reach = Box::new(move |may: bool| {
                if !may {
                    // The memory of what it was asked is there for as long as it may get on with it.
                    worker.step(0);
                }
                flag.store(!may, Ordering::Relaxed);
            });
            let started = start_at(Arc::clone(&platform) as Arc<dyn Platform>, transport, ONE_MESSAGE, reach);
            assert_eq!(started.err(), Some(error));
            assert!(quiet.load(Ordering::Relaxed));
            continue;
        }
        fault.into_iter().for_each(|fault| fake.fault(fault));
        let (started, quiet) = try_start(&platform, &fake, ONE_MESSAGE);
        assert_eq!(started.err(), Some(error));
        // What was never let to memory need not be kept from it.
        assert!(quiet.load(Ordering::Relaxed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_requests_in_any_order_are_done(
        steps in trial::steps(256, 256),
        large in any::<bool>(),
        indirect in any::<bool>(),
        small in any::<bool>(),
        zeroes in any::<bool>(),
    ) {
        let mut kind = Kind { block_size: if large { 4096 } else { 512 }, ..Kind::default() };
        if !indirect {
            kind.features &= !Feature::INDIRECT_DESCRIPTORS.bits();
        }
        if small {
            kind.features |= BlockFeature::SIZE_MAX.bits();
            (kind.queue_size, kind.longest, kind.pieces) = (8, 1000, 5);
        }
        if !zeroes {
            kind.features &= !BlockFeature::WRITE_ZEROES.bits();
        }
        let platform = FakePlatform::new();
        let fake = Fake::new(&platform, kind.clone(), image(256 * kind.block_size as usize));
        let (driver, _) = try_start(&platform, &fake, ONE_MESSAGE);
        let driver = driver.unwrap();
        let disk = Arc::clone(&driver.disk.device);
        trial::run(&platform, &driver, &*disk, &*fake, &steps);
    }
}
