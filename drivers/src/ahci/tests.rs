use super::fake::{Fake, Fault, PORT};
use super::*;
use crate::acs::Identity;
use crate::acs::tests::{modern, old};
use crate::testing::{FakePlatform, poll};
use crate::trial::{self, Device, Rig};
use core::sync::atomic::{AtomicBool, Ordering};
use proptest::prelude::*;
use spin::Mutex;
use storage::{BlockError, Buffer};

const SECOND: u64 = 1_000_000_000;

struct Set {
    platform: Arc<FakePlatform>,
    fake: Arc<Fake>,
    driver: Ahci,
    silenced: Arc<AtomicBool>,
}

fn try_start(identity: Identity, prepare: impl FnOnce(&Arc<Fake>)) -> Result<Set, Error> {
    let platform = FakePlatform::new();
    let fake = Fake::new(&platform, identity);
    prepare(&fake);
    let shared = Arc::clone(&platform) as Arc<dyn Platform>;
    let hba = take(&*shared, Arc::clone(&fake) as Arc<dyn Registers>)?;
    let silenced = Arc::new(AtomicBool::new(false));
    let (flag, device) = (Arc::clone(&silenced), Arc::clone(&fake));
    let silence = move || {
        device.finish();
        flag.store(true, Ordering::Relaxed);
    };
    let driver = start_at(&shared, hba, Box::new(silence))?;
    fake.state.lock().done.clear();
    Ok(Set { platform, fake, driver, silenced })
}

fn set(identity: Identity) -> Set {
    try_start(identity, |_| ()).unwrap_or_else(|error| panic!("{error}"))
}

fn usual() -> Set {
    set(modern(4096, 512))
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
fn a_port_with_a_disk_is_found() {
    let set = usual();
    let disks = set.driver.disks();
    let seen: Vec<_> = disks.iter().map(|disk| (disk.unit, &*disk.model, &*disk.serial)).collect();
    assert_eq!(seen, [(PORT as u32, "A model", "SER1AL")]);
    assert!(disks[0].device.geometry().discards);
    assert_eq!(set.reads(), Ok(()));
    assert_eq!(set.wait(set.disk().flush()), Ok(()));
    assert_eq!(set.fake.state.lock().done, [0x60, 0xea], "queued, and a flush");
}

#[test]
fn firmware_is_asked_for_the_controller() {
    let set = try_start(modern(8, 512), |fake| fake.state.lock().owned = Some(true)).ok().unwrap();
    assert_eq!(set.fake.state.lock().owned, Some(false));
    // And a port of its that does not stop is reset with all others.
    let set = try_start(modern(8, 512), |fake| fake.state.lock().stuck = true).ok().unwrap();
    assert_eq!(set.driver.disks().len(), 1);
}

#[test]
fn without_queued_commands_there_is_one_at_a_time() {
    for set in [
        set(Identity { queue: 0, ..modern(4096, 512) }),
        set(old(4096)),
        try_start(modern(4096, 512), |fake| fake.state.lock().capabilities = 1 << 31).ok().unwrap(),
    ] {
        let disk = set.disk();
        let replies: Vec<_> = (0..3).map(|n| disk.write(n * 512, Buffer::holding(&[n as u8; 512]))).collect();
        replies.into_iter().for_each(|reply| assert_eq!(set.wait(reply), Ok(())));
        let image = set.fake.image();
        assert_eq!([image[0], image[512], image[1024]], [0, 1, 2]);
        assert!(set.fake.state.lock().done.iter().all(|command| matches!(command, 0x35 | 0xca)));
    }
}

#[test]
fn blocks_of_4096_bytes_are_served() {
    let set = set(modern(100, 4096));
    assert_eq!(set.disk().geometry().block_size, 4096);
    let buffer = Buffer::zeroed(8192);
    assert_eq!(set.wait(set.disk().read(4096, buffer.clone())), Ok(()));
    assert_eq!(buffer.to_vec(), set.fake.image()[4096..12288]);
}

#[test]
fn what_is_no_disk_is_left_alone() {
    let none = |prepare: &dyn Fn(&Arc<Fake>)| {
        let set = try_start(modern(8, 512), prepare).unwrap_or_else(|error| panic!("{error}"));
        assert!(set.driver.disks().is_empty());
        // The port has nowhere to put what comes later.
        set.fake.plug();
    };
    none(&|fake| fake.state.lock().signature = 0xeb14_0101);
    none(&|fake| fake.state.lock().pulled = true);
    let refused = |prepare: &dyn Fn(&Arc<Fake>)| try_start(modern(8, 512), prepare).err();
    let unknown = Mutex::new(None);
    let refuses = |fake: &Arc<Fake>| {
        fake.state.lock().refuses = true;
        *unknown.lock() = Some(Arc::clone(fake));
    };
    assert_eq!(try_start(modern(8, 512), refuses).err(), Some(Error::Refused("identify itself")));
    unknown.lock().iter().for_each(|fake| fake.plug());
    assert_eq!(refused(&|fake| fake.state.lock().gone = true), Some(Error::Gone));
    let stuck = |fake: &Arc<Fake>| {
        let mut state = fake.state.lock();
        (state.stuck, state.obeys_reset) = (true, false);
    };
    assert_eq!(refused(&stuck), Some(Error::Silent("reset")));
}

#[test]
fn a_failure_costs_its_request_only() {
    for set in [usual(), set(old(4096))] {
        let queued = set.driver.ports[0].queues();
        for (faults, result) in [
            // The first try of queued ones says only that one has failed.
            (vec![Fault::Error; if queued { 2 } else { 1 }], Err(BlockError::Failed)),
            (vec![Fault::Link], Ok(())),
            (vec![Fault::Again], Ok(())),
            (vec![Fault::Silence], Err(BlockError::TimedOut)),
        ] {
            set.fake.state.lock().faults.extend(&faults);
            assert_eq!(set.reads(), result, "{faults:?}");
            set.fake.state.lock().faults.clear();
            assert_eq!(set.reads(), Ok(()), "after {faults:?}");
        }
        assert!(!set.silenced.load(Ordering::Relaxed));
    }
    let set = set(old(4096));
    set.fake.state.lock().faults.push_back(Fault::Short);
    assert_eq!(set.reads(), Err(BlockError::Failed), "too few bytes");
    assert_eq!(set.reads(), Ok(()));
}

#[test]
fn of_many_commands_only_the_bad_one_fails() {
    let set = usual();
    let disk = set.disk();
    // Blocks that the disk says it has, but has not: the command fails whenever it is tried.
    set.fake.state.lock().bytes.truncate(2048 * 512);
    let mut replies: Vec<_> = (0..20)
        .map(|n| disk.read(if n == 11 { 3000 * 512 } else { n * 512 }, set.platform.scattered(&[512])))
        .collect();
    let bad = replies.remove(11);
    assert_eq!(set.wait(bad), Err(BlockError::Failed));
    replies.into_iter().for_each(|reply| assert_eq!(set.wait(reply), Ok(())));
    assert_eq!(set.fake.state.lock().resets, 3, "one at the start, one for all, one for it alone");
}

#[test]
fn a_disk_that_is_pulled_is_gone() {
    let set = usual();
    let disk = set.disk();
    let mut replies: Vec<_> = (0..50).map(|_| disk.read(0, Buffer::zeroed(512))).collect();
    set.fake.state.lock().pulled = true;
    let began = set.platform.now();
    assert_eq!(set.wait(replies.remove(0)), Err(BlockError::Gone));
    assert!(set.platform.now() - began < 5 * SECOND);
    assert!(replies.iter_mut().all(|reply| poll(reply) == Poll::Ready(Err(BlockError::Gone))));
    assert_eq!(set.driver.deadline(), None);
    assert_eq!(poll(&mut disk.flush()), Poll::Ready(Err(BlockError::Gone)));

    // Another one in its place is not it.
    let set = usual();
    set.fake.state.lock().identity.serial = "OTHER".into();
    set.fake.state.lock().faults.push_back(Fault::Link);
    assert_eq!(set.reads(), Err(BlockError::Gone));
}

#[test]
fn a_controller_that_vanishes_is_gone() {
    let set = usual();
    let disk = set.disk();
    let reply = disk.read(0, Buffer::zeroed(512));
    set.fake.state.lock().gone = true;
    assert_eq!(set.wait(reply), Err(BlockError::Gone));
    assert_eq!(poll(&mut disk.flush()), Poll::Ready(Err(BlockError::Gone)));
}

#[test]
fn a_port_that_does_not_stop_is_kept_from_memory() {
    let set = usual();
    let (disk, memory) = (set.disk(), set.platform.scattered(&[512]));
    {
        let mut state = set.fake.state.lock();
        state.faults.push_back(Fault::Silence);
        state.stuck = true;
        state.at_work = memory.pieces().flatten().next().map(|piece| piece.address);
    }
    // The memory is the request's alone, and is given back with the answer.
    assert_eq!(set.wait(disk.read(0, memory)), Err(BlockError::Gone));
    assert!(set.silenced.load(Ordering::Relaxed));
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
    fn a_disk_holds_what_was_written(steps in trial::steps(300, 290), kind in 0..4, slots in 0_u32..32) {
        let identity = match kind {
            0 => modern(300, 512),
            1 => modern(300, 4096),
            2 => Identity { queue: 5, ..modern(300, 512) },
            _ => old(300),
        };
        let capable = |fake: &Arc<Fake>| fake.state.lock().capabilities = 1 << 31 | 1 << 30 | slots << 8;
        let set = try_start(identity, capable).ok().unwrap();
        trial::run(&set.platform, &set.driver, &*set.disk(), &*set.fake, &steps);
    }

    #[test]
    fn interrupts_for_nothing_cost_nothing(steps in trial::steps(256, 64), faults in 0..40_usize) {
        let set = usual();
        set.fake.state.lock().faults.extend(core::iter::repeat_n(Fault::Again, faults));
        trial::run(&set.platform, &set.driver, &*set.disk(), &*set.fake, &steps);
    }
}
