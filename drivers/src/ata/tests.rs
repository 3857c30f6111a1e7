use super::fake::{Drive, Fake, Fault};
use super::*;
use crate::acs::Identity;
use crate::acs::tests::{modern, old};
use crate::testing::{FakePlatform, poll};
use crate::trial::{self, Device, Rig};
use core::task::Poll;
use proptest::prelude::*;
use storage::{BlockError, Buffer};

const SECOND: u64 = 1_000_000_000;

struct Set {
    platform: Arc<FakePlatform>,
    fake: Arc<Fake>,
    driver: Ata,
}

fn drive(identity: Identity) -> Drive {
    let len = identity.blocks as usize * identity.block_size as usize;
    Drive { identity, bytes: (0..len).map(|n| (n / 5) as u8).collect(), packets: false }
}

fn set(drives: [Option<Drive>; 2]) -> Set {
    let platform = FakePlatform::new();
    let fake = Fake::new(&platform, drives);
    let shared = Arc::clone(&platform) as Arc<dyn Platform>;
    let driver = start_at(&shared, vec![fake.ports()], true).unwrap_or_else(|error| panic!("{error}"));
    Set { platform, fake, driver }
}

fn usual() -> Set {
    set([Some(drive(modern(4096, 512))), None])
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
fn master_and_slave_are_disks_and_packet_drives_are_not() {
    let set = set([Some(drive(modern(100, 512))), Some(drive(old(50)))]);
    let units: Vec<_> =
        set.driver.disks().iter().map(|disk| (disk.unit, disk.device.geometry().blocks)).collect();
    assert_eq!(units, [(0, 100), (1, 50)]);
    let replies =
        [0, 1, 0].map(|unit| set.driver.disks[unit].device.write(0, Buffer::holding(&[unit as u8 + 1; 512])));
    replies.into_iter().for_each(|reply| assert_eq!(set.wait(reply), Ok(())));
    let state = set.fake.state.lock();
    assert_eq!(state.drives.each_ref().map(|drive| drive.as_ref().unwrap().bytes[511]), [1, 2]);
    assert_eq!(state.done, [0x35, 0xca, 0x35]);
    drop(state);

    let packets = Drive { packets: true, ..drive(old(50)) };
    let set = self::set([Some(packets), Some(drive(old(50)))]);
    assert_eq!(set.driver.disks().iter().map(|disk| disk.unit).collect::<Vec<_>>(), [1]);
    assert_eq!(set.reads(), Ok(()));
}

#[test]
fn a_bus_without_drives_has_none() {
    let set = set([None, None]);
    assert!(set.driver.disks().is_empty());
    assert_eq!(set.driver.deadline(), None);
    set.driver.serve(0);
}

#[test]
fn the_slave_alone_is_found() {
    let set = set([None, Some(drive(modern(100, 4096)))]);
    assert_eq!(set.driver.disks().iter().map(|disk| disk.unit).collect::<Vec<_>>(), [1]);
    let buffer = Buffer::zeroed(8192);
    assert_eq!(set.wait(set.disk().read(4096, buffer.clone())), Ok(()));
    assert_eq!(buffer.to_vec(), set.fake.image()[4096..12288]);
}

#[test]
fn interrupts_come_to_their_channel() {
    let platform = FakePlatform::new();
    let fakes = [0, 1].map(|_| Fake::new(&platform, [Some(drive(modern(8, 512))), None]));
    let shared = Arc::clone(&platform) as Arc<dyn Platform>;
    let driver = start_at(&shared, fakes.iter().map(Fake::ports).collect(), true).unwrap();
    assert_eq!(driver.disks().iter().map(|disk| disk.unit).collect::<Vec<_>>(), [0, 2]);
    let second = driver.disks()[1].device.clone();
    let mut reply = second.read(0, Buffer::zeroed(512));
    fakes[1].step(0);
    driver.serve(0);
    assert_eq!(poll(&mut reply), Poll::Pending);
    driver.serve(1);
    assert_eq!(poll(&mut reply), Poll::Ready(Ok(())));
}

#[test]
fn large_requests_are_split() {
    let set = set([Some(drive(old(4096))), None]);
    let buffer = set.platform.scattered(&[1 << 20]);
    assert_eq!(set.wait(set.disk().read(0, buffer.clone())), Ok(()));
    assert_eq!(buffer.to_vec(), set.fake.image()[..1 << 20]);
    assert_eq!(set.fake.state.lock().done, [0xc8; 8], "256 blocks each");
}

#[test]
fn a_failure_costs_its_request_only() {
    let set = usual();
    for (fault, result) in [
        (Fault::Error, Err(BlockError::Failed)),
        (Fault::Master, Err(BlockError::Failed)),
        (Fault::Short, Err(BlockError::Failed)),
        (Fault::Long, Err(BlockError::Failed)),
        (Fault::Crc, Ok(())),
        (Fault::Early, Ok(())),
        (Fault::Again, Ok(())),
        (Fault::Silence, Err(BlockError::TimedOut)),
    ] {
        set.fake.state.lock().faults.push_back(fault);
        assert_eq!(set.reads(), result, "{fault:?}");
        set.fake.state.lock().faults.clear();
        assert_eq!(set.reads(), Ok(()), "after {fault:?}");
    }
    set.fake.state.lock().faults.extend([Fault::Crc; 3]);
    assert_eq!(set.reads(), Err(BlockError::Failed), "not for ever");
    assert_eq!(set.wait(set.disk().flush()), Ok(()));
}

#[test]
fn a_drive_that_is_silent_is_reset_and_the_other_goes_on() {
    let set = set([Some(drive(modern(100, 512))), Some(drive(modern(100, 512)))]);
    let resets = set.fake.state.lock().resets;
    set.fake.state.lock().faults.push_back(Fault::Silence);
    let disks = set.driver.disks();
    let mut lost = disks[0].device.read(0, Buffer::zeroed(512));
    let kept = disks[1].device.read(0, Buffer::zeroed(512));
    set.fake.step(0);
    set.platform.pass(31 * SECOND);
    set.fake.state.lock().faults.clear();
    assert!(set.driver.recover());
    assert_eq!(poll(&mut lost), Poll::Ready(Err(BlockError::TimedOut)));
    assert_eq!(set.wait(kept), Ok(()));
    assert_eq!(set.fake.state.lock().resets, resets + 1);
}

#[test]
fn what_vanishes_is_gone() {
    let set = usual();
    let disk = set.disk();
    let mut replies: Vec<_> = (0..5).map(|_| disk.read(0, Buffer::zeroed(512))).collect();
    set.fake.state.lock().gone = true;
    assert_eq!(set.wait(replies.remove(0)), Err(BlockError::Gone));
    assert!(replies.iter_mut().all(|reply| poll(reply) == Poll::Ready(Err(BlockError::Gone))));
    assert_eq!(poll(&mut disk.flush()), Poll::Ready(Err(BlockError::Gone)));
    assert_eq!(set.driver.deadline(), None);

    // One that takes no reset is no use either.
    let set = usual();
    {
        let mut state = set.fake.state.lock();
        state.faults.push_back(Fault::Silence);
        state.stuck = true;
    }
    assert_eq!(set.reads(), Err(BlockError::TimedOut));
    assert_eq!(set.reads(), Err(BlockError::Gone));

    // And one drive may go while the other stays.
    let set = self::set([Some(drive(modern(100, 512))), Some(drive(modern(100, 512)))]);
    let disks = set.driver.disks();
    set.fake.state.lock().drives[1] = None;
    set.fake.state.lock().faults.push_back(Fault::Silence);
    let lost = disks[0].device.read(0, Buffer::zeroed(512));
    set.fake.step(0);
    set.platform.pass(31 * SECOND);
    set.driver.recover();
    set.fake.state.lock().faults.clear();
    assert_eq!(set.wait(lost), Err(BlockError::TimedOut));
    assert_eq!(set.wait(disks[1].device.read(0, Buffer::zeroed(512))), Err(BlockError::Gone));
    assert_eq!(set.reads(), Ok(()));
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
    fn a_disk_holds_what_was_written(steps in trial::steps(300, 290), kind in 0..3) {
        let identity = match kind {
            0 => modern(300, 512),
            1 => modern(300, 4096),
            _ => old(300),
        };
        let set = set([Some(drive(identity)), None]);
        trial::run(&set.platform, &set.driver, &*set.disk(), &*set.fake, &steps);
    }

    #[test]
    fn faults_cost_their_requests_at_most(
        steps in trial::steps(256, 64),
        faults in proptest::collection::vec(prop_oneof![Just(Fault::Early), Just(Fault::Again)], 0..40),
    ) {
        let set = usual();
        set.fake.state.lock().faults.extend(faults);
        trial::run(&set.platform, &set.driver, &*set.disk(), &*set.fake, &steps);
    }
}
