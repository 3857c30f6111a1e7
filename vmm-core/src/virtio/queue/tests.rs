use super::*;
use crate::virtio::testing::{Driver, Range, at, memory};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const BASE: u64 = 0x1_0000;
const BYTES: usize = 1 << 20;

fn kinds() -> impl Iterator<Item = RingFeatures> {
    (0..8).map(|n| RingFeatures { packed: n & 1 != 0, indirect: n & 2 != 0, event_index: n & 4 != 0 })
}

fn pair(size: u16, features: RingFeatures) -> (Arc<GuestMemory>, Driver, Queue) {
    let memory = memory(BYTES);
    let driver = Driver::new(&memory, BASE, size, features);
    let queue = Queue::new(&driver.layout, features, &memory).unwrap();
    (memory, driver, queue)
}

fn ranges(segments: &Segments) -> Vec<Range> {
    segments.iter().map(|segment| (segment.address.get(), segment.len)).collect()
}

#[test]
fn a_buffer_goes_there_and_back() {
    for features in kinds() {
        let (memory, mut driver, mut queue) = pair(8, features);
        assert!(queue.pop(&memory).unwrap().is_none());
        assert!(!queue.ask_for_notification(&memory).unwrap());
        let id = driver.offer(&[(0x100, 16)], &[(0x200, 512), (0x400, 1)], true).unwrap();
        assert!(features.packed && !features.indirect || driver.is_to_notify(), "{features:?}");
        assert!(queue.ask_for_notification(&memory).unwrap(), "it came meanwhile");
        let chain = queue.pop(&memory).unwrap().unwrap();
        assert_eq!(ranges(&chain.readable), [(0x100, 16)]);
        assert_eq!(ranges(&chain.writable), [(0x200, 512), (0x400, 1)]);
        assert!(queue.pop(&memory).unwrap().is_none());
        assert!(driver.take().is_none());
        queue.push(chain.token, 513, &memory).unwrap();
        assert_eq!(driver.take(), Some((id, 513)));
        assert!(driver.take().is_none());
    }
}

#[test]
fn interrupts_come_when_wanted() {
    for features in kinds() {
        let (memory, mut driver, mut queue) = pair(4, features);
        // Around the ring a few times.
        for round in 0..10 {
            let mut chains = Vec::new();
            for _ in 0..3 {
                driver.offer(&[(0x100, 1)], &[], false).unwrap();
                chains.push(queue.pop(&memory).unwrap().unwrap());
            }
            assert!(!queue.wants_interrupt(&memory).unwrap(), "nothing was used");
            let expected: &[bool] = if features.event_index {
                driver.want_interrupt_after(1);
                &[false, true, false]
            } else {
                driver.want_interrupts(round % 2 == 0);
                &[round % 2 == 0; 3]
            };
            for (chain, expected) in chains.into_iter().zip(expected) {
                queue.push(chain.token, 0, &memory).unwrap();
                assert_eq!(queue.wants_interrupt(&memory).unwrap(), *expected, "{features:?} {round}");
                assert!(!queue.wants_interrupt(&memory).unwrap());
            }
            while driver.take().is_some() {}
        }
    }
}

#[test]
fn segments_split_where_asked() {
    let features = RingFeatures::default();
    let (memory, mut driver, mut queue) = pair(8, features);
    driver.offer(&[(0x100, 4), (0x200, 4), (0x300, 8)], &[], false).unwrap();
    let mut rest = queue.pop(&memory).unwrap().unwrap().readable;
    memory.write(at(0x200), b"abcd").unwrap();
    assert_eq!(ranges(&rest.split_front(6)), [(0x100, 4), (0x200, 2)]);
    assert_eq!((ranges(&rest), rest.len()), (vec![(0x202, 2), (0x300, 8)], 10));
    assert_eq!(rest.write(&memory, b"wxyz"), 4);
    let mut bytes = [0; 16];
    assert_eq!(rest.read(&memory, &mut bytes), 10);
    assert_eq!(&bytes[..5], b"wxyz\0");
    assert_eq!(memory.read_u32(at(0x200)), Ok(u32::from_le_bytes(*b"abwx")));
    assert!(rest.split_front(0).is_empty());
    assert_eq!(ranges(&rest.split_front(2)), [(0x202, 2)]);
    assert_eq!(ranges(&rest.split_front(100)), [(0x300, 8)]);
    assert!(rest.is_empty());
}

#[test]
fn queues_lie_in_memory_aligned() {
    let memory = memory(BYTES);
    for features in kinds() {
        let good = Driver::new(&memory, BASE, 64, features).layout;
        let error = |layout: QueueLayout| Queue::new(&layout, features, &memory).unwrap_err();
        assert_eq!(error(QueueLayout { size: 0, ..good }), RingError::Size(0));
        assert_eq!(error(QueueLayout { size: 0x8001, ..good }), RingError::Size(0x8001));
        let odd = QueueLayout { size: 48, ..good };
        assert_eq!(Queue::new(&odd, features, &memory).is_ok(), features.packed);
        for (n, misaligned) in [at(BASE + 8), at(0x101), at(0x1002 + 1)].into_iter().enumerate() {
            let mut layout = good;
            *[&mut layout.descriptors, &mut layout.driver, &mut layout.device][n] = misaligned;
            assert_eq!(error(layout), RingError::Misaligned(misaligned));
        }
        for outside in [at(BYTES as u64), at(!0xf)] {
            assert!(matches!(
                error(QueueLayout { descriptors: outside, ..good }),
                RingError::NotMemory { .. }
            ));
            assert!(matches!(error(QueueLayout { driver: outside, ..good }), RingError::NotMemory { .. }));
            assert!(matches!(error(QueueLayout { device: outside, ..good }), RingError::NotMemory { .. }));
        }
    }
}

/// Writes descriptor `n` of the table or ring at `base` as it stands in memory.
fn raw(memory: &GuestMemory, base: u64, n: u64, address: u64, len: u32, third: u16, fourth: u16) {
    memory.write_u64(at(base + n * 16), address).unwrap();
    memory.write_u32(at(base + n * 16 + 8), len).unwrap();
    memory.write_u16(at(base + n * 16 + 12), third).unwrap();
    memory.write_u16(at(base + n * 16 + 14), fourth).unwrap();
}

/// What a split ring of 4 says of these descriptors, with an indirect table at 0x100.
fn split_error(
    descriptors: &[(u64, u32, u16, u16)],
    table: &[(u64, u32, u16, u16)],
    indirect: bool,
) -> RingError {
    let (memory, driver, mut queue) = pair(4, RingFeatures { indirect, ..RingFeatures::default() });
    for (base, list) in [(driver.layout.descriptors.get(), descriptors), (0x100, table)] {
        for (n, (address, len, flags, next)) in list.iter().enumerate() {
            raw(&memory, base, n as u64, *address, *len, *flags, *next);
        }
    }
    memory.write_u16(at(driver.layout.driver.get() + 2), 1).unwrap();
    queue.pop(&memory).unwrap_err()
}

#[test]
fn malformed_split_chains_are_refused() {
    let end = BYTES as u64;
    let loops: [(u64, u32, u16, u16); 2] = [(0x1000, 1, 1, 1), (0x1000, 1, 1, 0)];
    assert_eq!(split_error(&loops, &[], false), RingError::TooLong);
    assert_eq!(split_error(&[(0x1000, 1, 1, 0)], &[], false), RingError::TooLong);
    assert_eq!(split_error(&[(0x1000, 1, 1, 4)], &[], false), RingError::NoSuchDescriptor(4));
    let backwards = [(0x1000, 1, 3, 1), (0x1000, 1, 0, 0)];
    assert_eq!(split_error(&backwards, &[], false), RingError::ReadableAfterWritable);
    let outside = |address, len| RingError::NotMemory { address: at(address), len };
    assert_eq!(split_error(&[(end - 1, 2, 0, 0)], &[], false), outside(end - 1, 2));
    assert_eq!(split_error(&[(u64::MAX, 2, 0, 0)], &[], false), outside(u64::MAX, 2));
    assert_eq!(split_error(&[(0, u32::MAX, 0, 0)], &[], false), outside(0, u32::MAX.into()));

    let table = |len| [(0x100, len, 4, 0)];
    assert_eq!(split_error(&table(16), &[(0, 1, 0, 0)], false), RingError::Indirect);
    assert_eq!(split_error(&[(0x100, 16, 5, 0)], &[(0, 1, 0, 0)], true), RingError::Indirect, "with NEXT");
    assert_eq!(split_error(&table(16), &[(0x100, 16, 4, 0)], true), RingError::Indirect, "nested");
    assert_eq!(split_error(&table(0), &[], true), RingError::IndirectLength(0));
    assert_eq!(split_error(&table(17), &[], true), RingError::IndirectLength(17));
    assert_eq!(split_error(&table(0xffff_fff0), &[], true), RingError::TooLong);
    assert_eq!(split_error(&[(end - 16, 32, 4, 0)], &[], true), outside(end - 16, 32));
    assert_eq!(split_error(&table(32), &loops, true), RingError::TooLong);
    assert_eq!(split_error(&table(32), &[(0, 1, 1, 2)], true), RingError::NoSuchDescriptor(2));
}

#[test]
fn a_chain_has_an_end_and_a_size() {
    let features = RingFeatures { indirect: true, ..RingFeatures::default() };
    for (descriptors, len, expected) in [
        (LONGEST_CHAIN as u64, 1, None),
        (LONGEST_CHAIN as u64 + 1, 1, Some(RingError::TooLong)),
        // Each is memory; all together are more than 4 GiB.
        (LONGEST_CHAIN as u64, BYTES as u32, None),
    ] {
        let (memory, driver, mut queue) = pair(4, features);
        for n in 0..descriptors {
            let more = u16::from(n + 1 < descriptors);
            let len = if len > 1 { len - 0x400 } else { len };
            raw(&memory, 0x2_0000, n, 0x400, len, more, n as u16 + 1);
        }
        raw(&memory, driver.layout.descriptors.get(), 0, 0x2_0000, descriptors as u32 * 16, 4, 0);
        memory.write_u16(at(driver.layout.driver.get() + 2), 1).unwrap();
        assert_eq!(queue.pop(&memory).err(), expected, "{descriptors} of {len}");
    }
    let memory = memory(8 << 20);
    let mut driver = Driver::new(&memory, BASE, 4, features);
    let mut queue = Queue::new(&driver.layout, features, &memory).unwrap();
    driver.offer(&[(0, 0)], &[], false).unwrap();
    assert!(queue.pop(&memory).unwrap().unwrap().readable.is_empty(), "nothing to read is nothing");
    for n in 0..LONGEST_CHAIN as u64 {
        raw(&memory, 0x2_0000, n, 0, 5 << 20, 1, n as u16 + 1);
    }
    driver.offer(&[(0, 1)], &[], false).unwrap();
    raw(&memory, driver.layout.descriptors.get(), 1, 0x2_0000, 1024 * 16, 4, 0);
    memory.write_u16(at(driver.layout.driver.get() + 6), 1).unwrap();
    assert_eq!(queue.pop(&memory).unwrap_err(), RingError::TooManyBytes);
}

#[test]
fn no_more_can_be_available_than_there_is_room_for() {
    for jump in [5, 0x7fff, 0xffff] {
        let (memory, driver, mut queue) = pair(4, RingFeatures::default());
        memory.write_u16(at(driver.layout.driver.get() + 2), jump).unwrap();
        assert_eq!(queue.pop(&memory).unwrap_err(), RingError::TooManyAvailable(jump));
    }
    let (memory, driver, mut queue) = pair(4, RingFeatures::default());
    let index = at(driver.layout.driver.get() + 2);
    memory.write_u16(index, 4).unwrap();
    for _ in 0..4 {
        queue.pop(&memory).unwrap().unwrap();
    }
    memory.write_u16(index, 5).unwrap();
    assert_eq!(queue.pop(&memory).unwrap_err(), RingError::TooManyAvailable(1), "all four are held");
    memory.write_u16(at(driver.layout.driver.get() + 4), 4).unwrap();
    let mut queue = Queue::new(&driver.layout, RingFeatures::default(), &memory).unwrap();
    memory.write_u16(index, 1).unwrap();
    assert_eq!(queue.pop(&memory).unwrap_err(), RingError::NoSuchDescriptor(4));
}

#[test]
fn malformed_packed_chains_are_refused() {
    const AVAILABLE: u16 = 1 << 7;
    let error = |descriptors: &[(u64, u32, u16)], indirect: bool| {
        let features = RingFeatures { packed: true, indirect, event_index: false };
        let (memory, driver, mut queue) = pair(3, features);
        for (n, (address, len, flags)) in descriptors.iter().enumerate() {
            raw(&memory, driver.layout.descriptors.get(), n as u64, *address, *len, 0, *flags | AVAILABLE);
        }
        queue.pop(&memory).unwrap_err()
    };
    assert_eq!(error(&[(0x1000, 1, 1); 3], false), RingError::TooLong);
    assert_eq!(error(&[(0x1000, 1, 3), (0x1000, 1, 0)], false), RingError::ReadableAfterWritable);
    assert_eq!(error(&[(0x1000, 16, 4)], false), RingError::Indirect);
    assert_eq!(error(&[(0x1000, 16, 5)], true), RingError::Indirect);
    assert_eq!(error(&[(0x1000, 1, 1), (0x1000, 16, 4)], true), RingError::Indirect);
    assert_eq!(error(&[(0x1000, 15, 4)], true), RingError::IndirectLength(15));
    assert!(matches!(error(&[(BYTES as u64, 1, 0)], false), RingError::NotMemory { .. }));
    assert!(matches!(error(&[(BYTES as u64, 16, 4)], true), RingError::NotMemory { .. }));

    let features = RingFeatures { packed: true, ..RingFeatures::default() };
    let (memory, driver, mut queue) = pair(2, features);
    let base = driver.layout.descriptors.get();
    raw(&memory, base, 0, 0, 1, 7, AVAILABLE);
    queue.pop(&memory).unwrap().unwrap();
    raw(&memory, base, 1, 0, 1, 7, AVAILABLE | 1);
    raw(&memory, base, 0, 0, 1, 7, 1 << 15);
    assert_eq!(queue.pop(&memory).unwrap_err(), RingError::TooManyAvailable(2));
}

/// What a test does next: offers a buffer, takes one as the device, gives one back, or collects as the driver.
#[derive(Clone, Debug)]
enum Step {
    Offer { readable: usize, writable: usize, indirect: bool },
    Pop,
    Push { which: usize, written: u32 },
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_usize, 0..4_usize, any::<bool>()).prop_map(|(readable, writable, indirect)| Step::Offer {
            readable,
            writable: writable.max(usize::from(readable == 0)),
            indirect
        }),
        Just(Step::Pop),
        (any::<usize>(), 0..9_u32).prop_map(|(which, written)| Step::Push { which, written }),
        Just(Step::Take),
    ]
}

proptest! {
    /// Whatever order buffers are used in, the driver gets back what it offered.
    #[test]
    fn buffers_come_back(size in 0..5_u32, kind in 0..8_usize, steps in prop::collection::vec(step(), 1..400)) {
        let features = kinds().nth(kind).unwrap();
        let (memory, mut driver, mut queue) = pair(1 << size, features);
        let (mut offered, mut held) = (Vec::<(u16, Vec<Range>, Vec<Range>)>::new(), Vec::new());
        let mut used = Vec::new();
        let mut ids = BTreeMap::new();
        let mut address = 0x100;
        for step in steps {
            match step {
                Step::Offer { readable, writable, indirect } => {
                    let mut range = |n: u32| { address = 0x100 + (address * 5 + 3) % 0x1000; (address, n + 1) };
                    let readable: Vec<Range> = (0..readable as u32).map(&mut range).collect();
                    let writable: Vec<Range> = (0..writable as u32).map(&mut range).collect();
                    if let Some(id) = driver.offer(&readable, &writable, indirect) {
                        offered.push((id, readable, writable));
                    }
                }
                Step::Pop => {
                    let chain = queue.pop(&memory).unwrap();
                    prop_assert_eq!(chain.is_some(), !offered.is_empty());
                    if let Some(chain) = chain {
                        let (id, readable, writable) = offered.remove(0);
                        prop_assert_eq!(ranges(&chain.readable), readable);
                        prop_assert_eq!(ranges(&chain.writable), writable);
                        held.push((id, chain.token));
                    }
                }
                Step::Push { which, written } if !held.is_empty() => {
                    let (id, token) = held.remove(which % held.len());
                    queue.push(token, written, &memory).unwrap();
                    used.push(id);
                    ids.insert(id, written);
                }
                Step::Push { .. } => {}
                Step::Take => {
                    let taken = driver.take();
                    prop_assert_eq!(taken.is_some(), !used.is_empty());
                    if let Some((id, written)) = taken {
                        prop_assert_eq!(id, used.remove(0));
                        prop_assert_eq!(ids[&id], written);
                    }
                }
            }
        }
    }

    /// Whatever memory holds, the ring answers, and no buffer lies outside.
    #[test]
    fn no_memory_can_confuse_it(
        kind in 0..8_usize,
        writes in prop::collection::vec((0..0x400_u64, any::<u64>(), any::<bool>()), 0..200),
    ) {
        let features = kinds().nth(kind).unwrap();
        let memory = memory(0x2000);
        let layout = QueueLayout { size: 16, descriptors: at(0), driver: at(0x100), device: at(0x200) };
        let mut queue = Queue::new(&layout, features, &memory).unwrap();
        for (place, value, narrow) in writes {
            // Small numbers are where it becomes interesting.
            let value = if narrow { value & 0x8f_8f07_0000_01ff } else { value };
            memory.write_u64(at(place), value).unwrap();
            let Ok(chain) = queue.pop(&memory) else { break };
            if let Some(chain) = chain {
                for segment in chain.readable.iter().chain(chain.writable.iter()) {
                    prop_assert!(memory.contains(segment.address, segment.len.into()) && segment.len > 0);
                }
                queue.push(chain.token, 1, &memory).unwrap();
                queue.wants_interrupt(&memory).unwrap();
                queue.ask_for_notification(&memory).unwrap();
            }
        }
    }
}
