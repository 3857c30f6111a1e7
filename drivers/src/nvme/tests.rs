use super::fake::{Fake, Fault, Kind, Namespace};
use super::*;
use crate::testing::{FakePlatform, poll};
use crate::trial::{self, Device, Rig};
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;
use proptest::prelude::*;
use storage::{BlockError, Buffer};

const SECOND: u64 = 1_000_000_000;

struct Set {
    platform: Arc<FakePlatform>,
    fake: Arc<Fake>,
    driver: Nvme,
    silenced: Arc<AtomicBool>,
}

fn disk_of(block_size: usize, blocks: usize) -> Namespace {
    let bytes = (0..block_size * blocks).map(|n| (n / 5) as u8).collect();
    Namespace { block_size, bytes, read_only: false }
}

fn try_start(platform: &Arc<FakePlatform>, fake: &Arc<Fake>) -> (Result<Nvme, Error>, Arc<AtomicBool>) {
    let silenced = Arc::new(AtomicBool::new(false));
    let (flag, device) = (Arc::clone(&silenced), Arc::clone(fake));
    let reach = Box::new(move |may: bool| {
        device.finish();
        flag.store(!may, Ordering::Relaxed);
    });
    let shared = Arc::clone(platform) as Arc<dyn Platform>;
    (start_at(shared, Arc::clone(fake) as Arc<dyn Window>, 1, reach), silenced)
}

fn set(kind: Kind, namespaces: Vec<(u32, Namespace)>) -> Set {
    let platform = FakePlatform::new();
    let fake = Fake::new(&platform, kind, namespaces);
    let (driver, silenced) = try_start(&platform, &fake);
    Set { platform, fake, driver: driver.unwrap_or_else(|error| panic!("{error}")), silenced }
}

fn usual() -> Set {
    set(Kind::default(), vec![(1, disk_of(512, 4096))])
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
fn a_controller_without_a_driver_is_kept_from_memory() {
    let Set { driver, silenced, .. } = usual();
    assert!(!silenced.load(Ordering::Relaxed));
    drop(driver);
    assert!(silenced.load(Ordering::Relaxed));
}

#[test]
fn all_active_namespaces_are_disks() {
    let namespaces = || vec![(1, disk_of(512, 100)), (5, disk_of(4096, 7)), (6, disk_of(1024, 1))];
    for lists in [true, false] {
        let set = set(Kind { lists, ..Kind::default() }, namespaces());
        let disks = set.driver.disks();
        let seen: Vec<_> = disks.iter().map(|disk| (disk.unit, &*disk.model, &*disk.serial)).collect();
        assert_eq!(
            seen,
            [(1, "model", "serial"), (5, "model", "serial-n5")],
            "blocks of 1024 bytes are not for us"
        );
        let geometry = disks[1].device.geometry();
        assert_eq!((geometry.block_size, geometry.blocks, geometry.discards), (4096, 7, true));
        let buffer = Buffer::zeroed(8192);
        assert_eq!(set.wait(disks[1].device.read(4096, buffer.clone())), Ok(()));
        assert_eq!(buffer.to_vec(), disk_of(4096, 7).bytes[4096..12288]);
    }
}

#[test]
fn a_write_protected_namespace_is_read_only() {
    let protected = Namespace { read_only: true, ..disk_of(512, 8) };
    let set = set(Kind::default(), vec![(1, protected)]);
    assert!(set.disk().geometry().read_only);
    assert_eq!(set.wait(set.disk().write(0, Buffer::zeroed(512))), Err(BlockError::ReadOnly));
    assert!(set.fake.state.lock().done.is_empty());
}

#[test]
fn cores_have_queues_as_far_as_there_are_some() {
    let platform = FakePlatform::new();
    platform.set_cores(6, 5);
    let fake = Fake::new(&platform, Kind::default(), vec![(1, disk_of(512, 8))]);
    let shared = Arc::clone(&platform) as Arc<dyn Platform>;
    let driver = start_at(shared, Arc::clone(&fake) as Arc<dyn Window>, 3, Box::new(|_| ())).unwrap();
    let vectors: Vec<_> = fake.state.lock().vectors.values().copied().collect();
    assert_eq!(vectors, [Some(0), Some(1), Some(2), Some(0)]);
    let reply = driver.disks[0].device.read(0, Buffer::zeroed(512));
    assert_eq!(fake.state.lock().pending[0].0, 2, "core 5 has the second of four");
    fake.step(0);
    driver.serve(0);
    driver.serve(2);
    let mut reply = reply;
    assert_eq!(poll(&mut reply), Poll::Pending, "these are not its interrupt");
    driver.serve(1);
    assert_eq!(poll(&mut reply), Poll::Ready(Ok(())));
}

#[test]
fn without_a_cache_there_is_nothing_to_flush() {
    let set = set(Kind { cache: 0, ..Kind::default() }, vec![(1, disk_of(512, 8))]);
    assert_eq!(poll(&mut set.disk().flush()), Poll::Ready(Ok(())));
    let set = usual();
    assert_eq!(set.wait(set.disk().flush()), Ok(()));
    assert_eq!(set.fake.state.lock().done, [0]);
}

#[test]
fn where_there_is_no_command_for_zeroes_they_are_written() {
    let set = set(Kind { commands: 0, ..Kind::default() }, vec![(1, disk_of(512, 4096))]);
    assert_eq!(set.wait(set.disk().write_zeroes(512, 1 << 20)), Ok(()));
    let image = set.fake.image();
    assert!(image[512..512 + (1 << 20)].iter().all(|byte| *byte == 0));
    assert_eq!(image[512 + (1 << 20)], disk_of(512, 4096).bytes[512 + (1 << 20)]);
    assert_eq!(set.fake.state.lock().done, [1; 8], "128 KiB each");
    assert_eq!(set.wait(set.disk().discard(0, 512)), Err(BlockError::Unsupported));
}

#[test]
fn refused_requests_do_not_reach_the_device() {
    let set = usual();
    let disk = set.disk();
    assert!(matches!(set.wait(disk.read(100, Buffer::zeroed(512))), Err(BlockError::Misaligned { .. })));
    assert!(matches!(
        set.wait(disk.read(4096 * 512, Buffer::zeroed(512))),
        Err(BlockError::OutOfRange { .. })
    ));
    assert_eq!(set.wait(disk.read(0, Buffer::zeroed(0))), Ok(()));
    assert!(set.fake.state.lock().done.is_empty());
}

#[test]
fn a_status_is_an_error_of_its_request_only() {
    let set = usual();
    for (status, error) in
        [(0x4281, BlockError::Failed), (0x4182, BlockError::ReadOnly), (0x4001, BlockError::Unsupported)]
    {
        set.fake.state.lock().faults.push_back(Fault::Status(status));
        assert_eq!(set.reads(), Err(error));
        assert_eq!(set.reads(), Ok(()));
    }
    // One that may go better another time is tried again, but not for ever.
    set.fake.state.lock().faults.extend([Fault::Status(0x22); 2]);
    assert_eq!(set.reads(), Ok(()));
    set.fake.state.lock().faults.extend([Fault::Status(0x22); 3]);
    assert_eq!(set.reads(), Err(BlockError::Failed));
    assert_eq!(set.reads(), Ok(()));
    // What the last of them said is what the request comes to.
    set.fake.state.lock().faults.extend([Fault::Status(0x22), Fault::Status(0x22), Fault::Status(0x20)]);
    assert_eq!(set.reads(), Err(BlockError::ReadOnly));
    assert_eq!(set.reads(), Ok(()));
}

#[test]
fn completions_of_nothing_are_nothing() {
    let set = usual();
    for fault in [Fault::Twice, Fault::WrongId] {
        for _ in 0..100 {
            set.fake.state.lock().faults.push_back(fault);
            assert_eq!(set.reads(), Ok(()));
        }
    }
}

#[test]
fn what_is_never_completed_times_out_and_the_rest_is_done_again() {
    let set = usual();
    set.fake.state.lock().faults.push_back(Fault::Silence);
    let disk = set.disk();
    let mut lost = disk.write(0, Buffer::holding(&[1; 512]));
    set.fake.step(0);
    set.platform.pass(20 * SECOND);
    let later = Buffer::zeroed(512);
    let mut kept = disk.read(1024, later.clone());
    set.platform.pass(11 * SECOND);
    assert!(set.driver.deadline().unwrap() <= set.platform.now());
    set.driver.recover();
    assert_eq!(poll(&mut lost), Poll::Ready(Err(BlockError::TimedOut)));
    assert_eq!(poll(&mut kept), Poll::Pending, "it has time left");
    assert_eq!(set.wait(kept), Ok(()));
    assert_eq!(later.to_vec(), set.fake.image()[1024..1536]);
    assert_eq!(set.reads(), Ok(()));
    assert!(!set.silenced.load(Ordering::Relaxed));
}

#[test]
fn requests_wait_while_the_controller_is_reset() {
    let set = usual();
    let disk = set.disk();
    set.fake.state.lock().faults.push_back(Fault::Fatal);
    let mut first = disk.read(0, Buffer::zeroed(512));
    set.fake.step(0);
    set.fake.state.lock().stuck = true;
    set.driver.recover();
    let second = disk.read(0, Buffer::zeroed(512));
    assert_eq!(poll(&mut first), Poll::Pending);
    set.fake.state.lock().stuck = false;
    // It does not hear of the reset until it is told again.
    set.fake.write_u32(0x14, 0);
    assert_eq!(set.wait(first), Ok(()));
    assert_eq!(set.wait(second), Ok(()));
    assert_eq!(set.reads(), Ok(()));
}

#[test]
fn a_controller_that_cannot_be_reset_is_kept_from_memory() {
    for mute in [true, false] {
        let set = usual();
        {
            let mut state = set.fake.state.lock();
            state.faults.push_back(Fault::Fatal);
            (state.mute, state.stuck) = (mute, !mute);
        }
        assert_eq!(set.reads(), Err(BlockError::Gone));
        assert!(set.silenced.load(Ordering::Relaxed));
        assert_eq!(poll(&mut set.disk().read(0, Buffer::zeroed(512))), Poll::Ready(Err(BlockError::Gone)));
        assert_eq!(set.driver.deadline(), None);
    }
}

#[test]
fn a_controller_that_vanishes_is_noticed_within_a_second() {
    let set = usual();
    let disk = set.disk();
    let mut replies: Vec<_> = (0..100).map(|_| disk.read(0, Buffer::zeroed(1 << 20))).collect();
    set.fake.state.lock().gone = true;
    set.driver.recover();
    assert!(replies.iter_mut().all(|reply| poll(reply) == Poll::Ready(Err(BlockError::Gone))));

    let set = usual();
    set.driver.recover();
    let began = set.platform.now();
    let disk = set.disk();
    let reply = disk.read(0, Buffer::zeroed(512));
    set.fake.state.lock().gone = true;
    assert_eq!(set.wait(reply), Err(BlockError::Gone));
    assert!(set.platform.now() - began <= 2 * SECOND);
}

#[test]
fn what_does_not_start_is_said() {
    let platform = FakePlatform::new();
    let fake = || Fake::new(&platform, Kind::default(), vec![(1, disk_of(512, 8))]);
    let fails = |fake: &Arc<Fake>| try_start(&platform, fake).0.err();
    let gone = fake();
    gone.state.lock().gone = true;
    assert_eq!(fails(&gone), Some(Error::Gone));
    let stuck = fake();
    stuck.state.lock().stuck = true;
    assert_eq!(fails(&stuck), Some(Error::Silent("become idle")));
    let mute = fake();
    mute.state.lock().mute = true;
    assert_eq!(fails(&mute), Some(Error::Silent("identify itself")));
    let odd = Fake::new(&platform, Kind::default(), vec![(1, disk_of(1024, 8))]);
    assert!(matches!(fails(&odd), Some(Error::Unusable(_))));
    let empty = Fake::new(&platform, Kind::default(), vec![]);
    assert_eq!(try_start(&platform, &empty).0.map(|driver| driver.disks().len()), Ok(0));
    let fine = fake();
    platform.run_out_of_memory();
    assert_eq!(fails(&fine), Some(Error::NoMemory));
}

#[test]
fn a_lost_interrupt_costs_a_second() {
    let set = usual();
    set.driver.recover();
    let disk = set.disk();
    let mut reply = disk.read(0, Buffer::zeroed(512));
    set.fake.step(0);
    assert_eq!(poll(&mut reply), Poll::Pending);
    set.platform.pass(SECOND);
    assert!(set.driver.deadline().is_some_and(|deadline| deadline <= set.platform.now()));
    assert!(!set.driver.recover(), "nothing is wrong");
    assert_eq!(poll(&mut reply), Poll::Ready(Ok(())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_disk_holds_what_was_written(
        steps in trial::steps(400, 300),
        mdts in 0_u8..8,
        commands in 0_u16..16,
        cache in 0_u8..2,
        entries in prop_oneof![Just(2_u16), Just(5), Just(64), Just(1024)],
        page in any::<bool>(),
    ) {
        let namespace = if page { disk_of(4096, 400) } else { disk_of(512, 400) };
        let set = set(Kind { mdts, commands, cache, entries, ..Kind::default() }, vec![(1, namespace)]);
        trial::run(&set.platform, &set.driver, &*set.disk(), &*set.fake, &steps);
    }

    #[test]
    fn faults_cost_their_requests_at_most(
        steps in trial::steps(256, 64),
        faults in proptest::collection::vec(
            prop_oneof![Just(Fault::Twice), Just(Fault::WrongId), Just(Fault::Status(0x22))], 0..40),
    ) {
        let set = usual();
        // No more than a command is given again.
        let (again, others): (Vec<_>, Vec<_>) = faults.into_iter().partition(|fault| matches!(fault, Fault::Status(_)));
        set.fake.state.lock().faults.extend(others.into_iter().chain(again.into_iter().take(2)));
        trial::run(&set.platform, &set.driver, &*set.disk(), &*set.fake, &steps);
    }
}
