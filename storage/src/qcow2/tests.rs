use super::*;
use crate::image::Base;
use crate::testing::{Image, RamDisk, Random, Slow, Story, Tape, Watch, pattern, sector, wait};
use core::future::Future;
use core::task::{Context, Waker};
use std::pin::pin;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn disk(mut bytes: Vec<u8>) -> Arc<RamDisk> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    Arc::new(RamDisk::new(512, bytes))
}

/// A container that cannot be written.
fn sealed(mut bytes: Vec<u8>) -> Arc<RamDisk> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    Arc::new(RamDisk::new(512, bytes).sealed())
}

fn open(file: &Arc<RamDisk>, backing: Option<Arc<dyn BlockDevice>>) -> Result<Qcow2, Qcow2Error> {
    wait(Qcow2::open(Arc::clone(file) as Arc<dyn BlockDevice>, backing))
}

fn read(disk: &dyn BlockDevice, at: u64, len: usize) -> Vec<u8> {
    let buffer = Buffer::holding(&vec![0xee; len]);
    wait(disk.read(at, buffer.clone())).unwrap();
    buffer.to_vec()
}

fn read_all(disk: &dyn BlockDevice) -> Vec<u8> {
    read(disk, 0, disk.geometry().size() as usize)
}

fn write(disk: &dyn BlockDevice, at: u64, bytes: &[u8]) {
    wait(disk.write(at, Buffer::holding(bytes))).unwrap();
}

/// An empty image as qemu-img makes it.
fn create_by_qemu(options: &str, size: &str) -> Image {
    let image = Image::holding(&[]);
    image.qemu_img(&["create", "-q", "-f", "qcow2", "-o", &format!("size={size},{options}")]);
    image
}

/// An image as qemu-img makes it of these bytes.
fn convert(content: &[u8], arguments: &[&str]) -> Vec<u8> {
    let (raw, image) = (Image::holding(content), Image::holding(&[]));
    raw.convert(&[&["-f", "raw", "-O", "qcow2"], arguments].concat(), &image);
    image.bytes()
}

/// qemu-img finds nothing wrong.
fn assert_clean(bytes: &[u8], what: &str) {
    let image = Image::holding(bytes);
    let output = image.try_qemu_img(&["check", "-f", "qcow2"]);
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{what}: {said}");
}

/// qemu-img finds nothing wrong but clusters that nothing refers to.
fn assert_at_most_leaks(bytes: &[u8], what: &str) {
    let image = Image::holding(bytes);
    let output = image.try_qemu_img(&["check", "-f", "qcow2"]);
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 3)), "{what}: {said}");
}

/// What qemu-img reads in an image without a backing.
fn raw(bytes: &[u8]) -> Vec<u8> {
    let (image, raw) = (Image::holding(bytes), Image::holding(&[]));
    image.convert(&["-f", "qcow2", "-O", "raw"], &raw);
    raw.bytes()
}

/// Some clusters that are full, some that are in part, some that compress badly.
fn content(len: usize) -> Vec<u8> {
    let mut content = vec![0; len];
    content[..len / 8].copy_from_slice(&pattern(len / 8, 1));
    let mut random = Random(3);
    content[len / 4..len / 4 + 100 * KIB].fill_with(|| random.below(256) as u8);
    content[len / 2 + 512..len / 2 + 1024].fill(0x5a);
    content[len - 512..].fill(0xa5);
    content
}

#[test]
fn what_qemu_writes_is_read() {
    let content = content(4 * MIB);
    let compressed: &[&str] = &["-c", "-o", "compression_type=zlib"];
    let cases: &[&[&str]] = &[
        &["-o", "compat=0.10"],
        &["-o", "compat=1.1"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=4k"],
        &["-o", "cluster_size=2M"],
        &["-o", "preallocation=metadata"],
        &["-o", "refcount_bits=1"],
        &["-o", "lazy_refcounts=on"],
        compressed,
        &["-c", "-o", "compression_type=zstd"],
        &["-c", "-o", "compat=0.10"],
        &["-c", "-o", "cluster_size=2M"],
        &["-c", "-o", "cluster_size=4k,compression_type=zstd"],
    ];
    for case in cases {
        for file in [sealed(convert(&content, case)), disk(convert(&content, case))] {
            let before = file.bytes();
            let image = open(&file, None).unwrap_or_else(|e| panic!("{case:?}: {e}"));
            assert_eq!(image.geometry().size(), content.len() as u64);
            assert_eq!(image.repaired(), Repaired::default(), "{case:?}");
            assert!(read_all(&image) == content, "{case:?}");
            // In small pieces that end anywhere.
            let mut at = 0;
            for len in [512, 3584, 65536, 512, 66048, 512 * 999].iter().cycle().take(40) {
                let len = (*len).min(content.len() - at);
                assert!(read(&image, at as u64, len) == content[at..at + len], "{case:?}: {len} at {at}");
                at += len;
            }
            assert!(file.bytes() == before, "{case:?}: reading writes nothing");
        }
    }
}

#[test]
fn a_request_takes_no_more_memory_where_an_image_is_in_pieces() {
    let mut bytes = create_by_qemu("cluster_size=512", "1M").bytes();
    bytes.resize(4 * MIB, 0);
    let watch = Watch::new(disk(bytes));
    let image = wait(Qcow2::open(Arc::clone(&watch) as Arc<dyn BlockDevice>, None)).unwrap();
    let content = pattern(MIB, 5);
    // From the end to the beginning, so that no cluster lies behind the one before.
    for at in (0..MIB).step_by(512).rev() {
        write(&image, at as u64, &content[at..at + 512]);
    }
    watch.take();
    assert!(read(&image, 512, MIB - 512) == content[512..]);
    assert!(watch.take().most <= 32);
    write(&image, 512, &content[..MIB - 512]);
    assert!(watch.take().most <= 32);
    assert!(read(&image, 512, MIB - 512) == content[..MIB - 512]);
}

#[test]
fn a_range_without_anything_is_not_looked_through_at_once() {
    let file = disk(create_by_qemu("cluster_size=64k", "8G").bytes());
    let image = open(&file, None).unwrap();
    let mut context = Context::from_waker(Waker::noop());
    for mut reply in [image.discard(0, 8 << 30), image.write_zeroes(0, 8 << 30)].map(Box::pin) {
        assert!(pin!(reply.as_mut()).poll(&mut context).is_pending(), "others get their turn");
        assert_eq!(wait(reply), Ok(()));
    }
}

#[test]
fn a_backing_shows_where_an_image_has_nothing() {
    let base = Image::holding(&content(2 * MIB));
    let image = Image::holding(&[]);
    let option = format!("backing_file={},backing_fmt=raw,size=3M", base.path());
    image.qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option]);
    image.qemu_io(&["write -P 7 64k 512", "write -z 128k 64k", "write -P 9 2560k 1k"]);
    let file = disk(image.bytes());
    let header = wait(Header::read(&*file)).unwrap();
    let backing = Base { name: base.path(), format: Some("raw".into()) };
    assert_eq!(header.backing, Some(backing));
    assert!(matches!(open(&file, None), Err(Qcow2Error::NoBacking { name }) if name == base.path()));
    let mut expected = base.bytes();
    expected.resize(3 * MIB, 0);
    expected[64 * KIB..64 * KIB + 512].fill(7);
    expected[128 * KIB..192 * KIB].fill(0);
    expected[2560 * KIB..2561 * KIB].fill(9);
    // Whatever the backing's blocks are.
    for block_size in [512, 4096] {
        let backing = Arc::new(RamDisk::new(block_size, base.bytes()));
        let image = open(&file, Some(backing)).unwrap();
        assert!(read_all(&image) == expected, "{block_size}");
        assert!(read(&image, 512, 66048) == expected[512..66560], "{block_size}");
    }
}

/// Does random things to an image and to a copy of what it is to hold.
fn play(image: &dyn BlockDevice, expected: &mut [u8], random: &mut Random, turns: usize) {
    let sectors = expected.len() as u64 / 512;
    for _ in 0..turns {
        let most = [8, 300][random.below(2) as usize];
        let start = random.below(sectors);
        let len = (1 + random.below(most)).min(sectors - start);
        let range = start as usize * 512..(start + len) as usize * 512;
        let (at, bytes) = (start * 512, len * 512);
        match random.below(10) {
            0..6 => {
                let seed = random.below(1000) as usize;
                expected[range.clone()].copy_from_slice(&pattern(range.len(), seed));
                write(image, at, &expected[range]);
            }
            6 => {
                expected[range].fill(0);
                wait(image.write_zeroes(at, bytes)).unwrap();
            }
            7 => {
                wait(image.discard(at, bytes)).unwrap();
                // What that gave is what it is from now on.
                expected[range.clone()].copy_from_slice(&read(image, at, range.len()));
            }
            8 => assert!(read(image, at, range.len()) == expected[range]),
            _ => wait(image.flush()).unwrap(),
        }
    }
}

#[test]
fn qemu_reads_what_we_write() {
    let content = content(4 * MIB);
    let cases: &[&[&str]] = &[
        &["-o", "compat=0.10"],
        &["-o", "compat=1.1"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=4k,refcount_bits=1"],
        &["-o", "cluster_size=2M,refcount_bits=64"],
        &["-o", "preallocation=metadata"],
        &["-o", "lazy_refcounts=on,refcount_bits=8"],
        &["-c", "-o", "compression_type=zlib"],
        &["-c", "-o", "compression_type=zstd,cluster_size=16k"],
        &["-c", "-o", "compat=0.10,cluster_size=4k"],
    ];
    for (seed, case) in cases.iter().enumerate() {
        let mut bytes = convert(&content, case);
        bytes.resize(bytes.len().next_multiple_of(512) + 24 * MIB, 0xdd);
        let file = disk(bytes);
        let image = open(&file, None).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        let mut expected = content.clone();
        play(&image, &mut expected, &mut Random(seed as u64), 200);
        assert!(read_all(&image) == expected, "{case:?}");
        wait(image.flush()).unwrap();
        drop(image);
        assert_clean(&file.bytes(), &format!("{case:?}"));
        let again = open(&file, None).unwrap();
        assert_eq!(again.repaired(), Repaired::default(), "{case:?}");
        assert!(read_all(&again) == expected, "{case:?}");
        assert!(raw(&file.bytes()) == expected, "{case:?}");
    }
}

#[test]
fn an_overlay_leaves_its_backing_alone() {
    let base = disk(content(2 * MIB));
    for (seed, options) in ["compat=0.10", "compat=1.1", "cluster_size=4k"].iter().enumerate() {
        let named = Image::holding(&base.bytes());
        let option = format!("backing_file={},backing_fmt=raw,{options}", named.path());
        let mut bytes = create_by_qemu(&option, "3M").bytes();
        bytes.resize(8 * MIB, 0xdd);
        let file = disk(bytes);
        let image = open(&file, Some(Arc::clone(&base) as Arc<dyn BlockDevice>)).unwrap();
        let mut expected = base.bytes();
        expected.resize(3 * MIB, 0);
        play(&image, &mut expected, &mut Random(seed as u64), 200);
        wait(image.flush()).unwrap();
        drop(image);
        let again = open(&file, Some(Arc::clone(&base) as Arc<dyn BlockDevice>)).unwrap();
        assert!(read_all(&again) == expected, "{options}");
        assert_clean(&file.bytes(), options);
        assert!(raw(&file.bytes()) == expected, "{options}");
        // qemu-img takes what is in the overlay into its backing.
        let overlay = Image::holding(&file.bytes());
        overlay.qemu_img(&["commit", "-q", "-f", "qcow2"]);
        assert!(named.bytes()[..2 * MIB] == expected[..2 * MIB], "{options}");
    }
    assert!(base.bytes() == content(2 * MIB));
}

#[test]
fn an_overlay_is_made_and_rolled_back() {
    let base = disk(content(2 * MIB));
    let named = Image::holding(&base.bytes());
    let backing = Base { name: named.path(), format: Some("raw".into()) };
    let file = disk(vec![0xdd; 4 * MIB]);
    let make = |size| wait(create(&*file, size, Some(&backing)));
    make(3 << 20).unwrap();
    let mut expected = base.bytes();
    expected.resize(3 * MIB, 0);
    for round in 0..2 {
        assert_clean(&file.bytes(), "a new overlay");
        assert!(raw(&file.bytes()) == expected, "round {round}");
        let image = open(&file, Some(Arc::clone(&base) as Arc<dyn BlockDevice>)).unwrap();
        assert_eq!(
            (image.repaired(), image.header().backing.as_ref()),
            (Repaired::default(), Some(&backing))
        );
        assert!(read_all(&image) == expected, "round {round}");
        play(&image, &mut expected.clone(), &mut Random(round), 100);
        wait(image.flush()).unwrap();
        drop(image);
        assert_clean(&file.bytes(), "an overlay");
        assert!(raw(&file.bytes()) != expected);
        wait(roll_back(&*file)).unwrap();
    }
    // Without a backing, with an L1 table of two clusters, and without room.
    wait(create(&*file, 8 << 40, None)).unwrap();
    assert_clean(&file.bytes(), "8 TiB");
    let image = open(&file, None).unwrap();
    write(&image, (8 << 40) - 512, &pattern(512, 1));
    assert!(read(&image, (8 << 40) - 1024, 1024) == [vec![0; 512], pattern(512, 1)].concat());
    let error = wait(create(&*disk(vec![0; 64 * KIB]), MIB as u64, None)).err().unwrap();
    assert_eq!(error, Qcow2Error::File(BlockError::NoRoom { size: 64 << 10 }));
    let long = Base { name: "x".repeat(2000), format: None };
    assert!(matches!(wait(create(&*file, 512, Some(&long))), Err(Qcow2Error::Field { found: 2000, .. })));
    assert!(matches!(wait(create(&*file, 100, None)), Err(Qcow2Error::Field { name: "the size", .. })));
}

#[test]
fn a_cut_while_rolling_back_can_be_made_good() {
    let base = disk(content(2 * MIB));
    let open = |file: &Arc<RamDisk>| open(file, Some(Arc::clone(&base) as Arc<dyn BlockDevice>));
    for name in ["base", &"a/long/way/".repeat(60)] {
        let backing = Base { name: name.into(), format: Some("raw".into()) };
        let file = disk(vec![0xdd; 2 * MIB]);
        wait(create(&*file, 2 << 20, Some(&backing))).unwrap();
        let image = open(&file).unwrap();
        write(&image, 0, &pattern(MIB, 2));
        wait(image.flush()).unwrap();
        drop(image);
        let tape = Tape::new(file.bytes());
        wait(roll_back(&tape)).unwrap();
        let mut random = Random(1);
        let rolled_back = base.bytes();
        for events in 0..=tape.events() {
            for _ in 0..20 {
                let file = disk(tape.cut(events, &mut random));
                match open(&file) {
                    Ok(image) => {
                        let found = read_all(&image);
                        let before = found[..MIB] == pattern(MIB, 2) && found[MIB..] == rolled_back[MIB..];
                        assert!(before || found == rolled_back, "after {events}");
                        assert_eq!(image.repaired(), Repaired::default());
                        continue;
                    }
                    // The name is longer than what is written at once.
                    Err(Qcow2Error::Unfinished) if name.len() < 400 => wait(roll_back(&*file)).unwrap(),
                    Err(_) if name.len() > 400 => wait(create(&*file, 2 << 20, Some(&backing))).unwrap(),
                    Err(error) => panic!("after {events}: {error}"),
                }
                let image = open(&file).unwrap();
                assert_eq!(image.header().backing.as_ref(), Some(&backing));
                assert!(read_all(&image) == rolled_back);
            }
        }
    }
    let alone = disk(vec![0; MIB]);
    wait(create(&*alone, 1 << 20, None)).unwrap();
    assert_eq!(wait(roll_back(&*alone)), Err(Qcow2Error::NoOverlay));
    assert_eq!(wait(roll_back(&*disk(vec![0; MIB]))), Err(Qcow2Error::NoHeader(0)));
}

#[test]
fn every_damage_is_named() {
    let good = convert(&content(MIB), &["-o", "cluster_size=4k"]);
    let error = |changes: &[(usize, u8)]| {
        let mut bytes = good.clone();
        changes.iter().for_each(|(at, value)| bytes[*at] = *value);
        open(&disk(bytes), None).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(error(&[]), "");
    assert_eq!(error(&[(0, 0)]), "no qcow2 header: it begins with 0x004649fb, expected 0x514649fb");
    assert_eq!(error(&[(7, 4)]), "it is qcow2 of version 4, expected 2 or 3");
    assert_eq!(error(&[(23, 22)]), "the number of bits in a cluster is 0x16, which cannot be");
    assert_eq!(error(&[(35, 1)]), "it uses encryption, which is not supported");
    assert_eq!(error(&[(79, 2)]), "it is marked as corrupt; `qemu-img check -r all` may repair it");
    assert_eq!(error(&[(79, 4)]), "it uses an external data file, which is not supported");
    assert_eq!(error(&[(79, 16)]), "it uses extended L2 entries, which is not supported");
    assert_eq!(error(&[(72, 0x80)]), "it uses unknown incompatible features 0x8000000000000000");
    assert_eq!(error(&[(99, 7)]), "the refcounts' order is 0x7, which cannot be");
    assert_eq!(error(&[(39, 0)]), "the L1 table's length is 0x0, which cannot be");
    assert_eq!(error(&[(47, 1)]), "the L1 table's place is 0x3001, which cannot be");
    assert_eq!(error(&[(55, 1)]), "the refcount table's place is 0x1001, which cannot be");
    assert_eq!(error(&[(59, 0)]), "the refcount table's length is 0x0, which cannot be");
    // The L1 table where the refcount table is; an L2 table behind the end; two clusters in one place.
    assert_eq!(error(&[(46, 0x10)]), "the image is damaged: two structures share the cluster at 0x1");
    assert!(error(&[(0x3004, 0x7f)]).ends_with("something points behind the end of the file at 0x3000"));
    // What cannot be mended is still read, as far as it is whole.
    let mut bytes = good.clone();
    bytes[46] = 0x10;
    assert!(open(&sealed(bytes), None).is_ok());
}

proptest::proptest! {
    /// Whatever was damaged, opening, reading and writing come to an end, and what is then there is whole.
    #[test]
    fn a_mutated_image_never_panics(
        changes in proptest::collection::vec((0_usize..0x6000, proptest::num::u8::ANY), 1..6),
    ) {
        thread_local!(static GOOD: Vec<u8> = convert(&content(MIB), &["-o", "cluster_size=4k"]));
        let mut bytes = GOOD.with(Clone::clone);
        for (offset, value) in changes {
            bytes[offset] = value;
        }
        bytes.resize(2 * MIB, 0);
        let file = disk(bytes);
        if let Ok(image) = open(&file, None) {
            let _ = wait(image.read(0, Buffer::zeroed(64 * KIB)));
            let _ = wait(image.write(0, Buffer::zeroed(64 * KIB)));
            if wait(image.flush()).is_ok() {
                drop(image);
                assert_eq!(open(&file, None).unwrap().repaired().uncounted, 0);
            }
        }
    }
}

#[test]
fn snapshots_are_listed_and_keep_what_they_have() {
    for options in [&["-o", "cluster_size=4k"][..], &["-o", "compat=0.10"], &["-c"]] {
        let first = content(4 * MIB);
        let image = Image::holding(&convert(&first, options));
        image.qemu_img(&["snapshot", "-q", "-c", "before the update"]);
        image.qemu_io(&["write -P 3 1M 64k"]);
        let mut second = first.clone();
        second[MIB..MIB + 64 * KIB].fill(3);
        image.qemu_img(&["snapshot", "-q", "-c", "after"]);
        let mut bytes = image.bytes();
        bytes.resize(bytes.len().next_multiple_of(512) + 12 * MIB, 0xdd);
        let file = disk(bytes);
        let opened = open(&file, None).unwrap();
        assert_eq!(opened.repaired(), Repaired::default());
        let names: Vec<&str> = opened.snapshots().iter().map(|snapshot| &*snapshot.name).collect();
        assert_eq!(names, ["before the update", "after"]);
        let mut expected = second.clone();
        assert!(read_all(&opened) == expected);
        play(&opened, &mut expected, &mut Random(17), 200);
        wait(opened.flush()).unwrap();
        drop(opened);
        assert!(read_all(&open(&file, None).unwrap()) == expected);
        assert_clean(&file.bytes(), "with snapshots");
        assert!(raw(&file.bytes()) == expected);
        for (name, content) in [("before the update", &first), ("after", &second)] {
            let (written, raw) = (Image::holding(&file.bytes()), Image::holding(&[]));
            written.convert(&["-f", "qcow2", "-l", name, "-O", "raw"], &raw);
            assert!(raw.bytes() == *content, "{name}");
        }
    }
}

#[test]
fn an_image_without_room_keeps_what_it_has() {
    let mut bytes = create_by_qemu("cluster_size=64k", "4M").bytes();
    bytes.resize(MIB, 0xdd);
    let file = disk(bytes);
    let image = open(&file, None).unwrap();
    let mut written = 0;
    let full = loop {
        match wait(image.write(written, Buffer::holding(&pattern(64 * KIB, written as usize)))) {
            Ok(()) => written += 64 << 10,
            Err(error) => break error,
        }
    };
    assert_eq!(full, BlockError::NoRoom { size: 1 << 20 });
    assert_eq!(full.to_string(), "all 1048576 bytes that the image can have are in use");
    assert!(written >= 512 << 10, "{written}");
    // What is there can be changed, and what is freed makes room.
    write(&image, 512, &pattern(512, 5));
    wait(image.discard(128 << 10, 64 << 10)).unwrap();
    write(&image, 3 << 20, &pattern(64 * KIB, 6));
    assert!(wait(image.write(2 << 20, Buffer::zeroed(512))).is_err());
    wait(image.flush()).unwrap();
    assert!(read(&image, 3 << 20, 64 * KIB) == pattern(64 * KIB, 6));
    assert!(read(&image, 192 << 10, 64 * KIB) == pattern(64 * KIB, 192 << 10));
    drop(image);
    assert_eq!(open(&file, None).unwrap().repaired().uncounted, 0);
    assert_clean(&file.bytes(), "a full image");
}

#[test]
fn a_refcount_table_grows() {
    // 64 refcount blocks for 256 clusters of 512 bytes each: 8 MiB.
    let mut bytes = create_by_qemu("cluster_size=512", "32M").bytes();
    bytes.resize(40 * MIB, 0xdd);
    let file = disk(bytes);
    let image = open(&file, None).unwrap();
    let mut expected = vec![0; 32 * MIB];
    for at in (0..20 * MIB).step_by(MIB) {
        expected[at..at + MIB].copy_from_slice(&pattern(MIB, at));
        write(&image, at as u64, &expected[at..at + MIB]);
    }
    wait(image.flush()).unwrap();
    drop(image);
    let again = open(&file, None).unwrap();
    assert_eq!(again.repaired(), Repaired::default());
    assert!(read_all(&again) == expected);
    assert_clean(&file.bytes(), "after growing");
    assert!(raw(&file.bytes()) == expected);
}

#[test]
fn a_cut_while_a_refcount_table_grows_harms_nothing() {
    // 64 refcount blocks for 64 clusters of 512 bytes each: 2 MiB.
    let mut bytes = create_by_qemu("cluster_size=512,refcount_bits=64", "3M").bytes();
    bytes.resize(6 * MIB, 0);
    let file = disk(bytes);
    let image = open(&file, None).unwrap();
    let content = pattern(3 * MIB, 1);
    let filled = 1800 * KIB;
    write(&image, 0, &content[..filled]);
    wait(image.flush()).unwrap();
    drop(image);
    let tape = Arc::new(Tape::new(file.bytes()));
    let image = wait(Qcow2::open(Arc::clone(&tape) as Arc<dyn BlockDevice>, None)).unwrap();
    let mut flushed = vec![(0, filled)];
    for at in (filled..2200 * KIB).step_by(40 * KIB) {
        write(&image, at as u64, &content[at..at + 40 * KIB]);
        wait(image.flush()).unwrap();
        flushed.push((tape.events(), at + 40 * KIB));
    }
    let mut random = Random(1);
    let table = |events| tape.at(events)[48..60].to_vec();
    let moved = (0..=tape.events()).find(|events| table(*events) != table(0)).expect("it grows");
    let often = (moved - 8..moved + 8).flat_map(|events| [events; 8]);
    for events in often.chain((0..=tape.events()).step_by(3)) {
        let file = disk(tape.cut(events, &mut random));
        let image = open(&file, None).unwrap_or_else(|e| panic!("after {events}: {e}"));
        assert_eq!(image.repaired().uncounted, 0, "after {events}");
        let (_, safe) = flushed.iter().rfind(|(then, _)| *then <= events).unwrap();
        assert!(read(&image, 0, *safe) == content[..*safe], "after {events}");
    }
}

#[test]
fn a_dirty_image_is_repaired() {
    for options in ["lazy_refcounts=on", "lazy_refcounts=on,cluster_size=512"] {
        let image = create_by_qemu(options, "4M");
        // It ends without writing the refcounts down.
        image.kill_qemu_io(&["write -P 5 0 1M", "write -P 6 2M 128k"]);
        let mut bytes = image.bytes();
        bytes.resize(8 * MIB, 0);
        assert!(!image.try_qemu_img(&["check", "-f", "qcow2"]).status.success());
        let mut expected = vec![0; 4 * MIB];
        expected[..MIB].fill(5);
        expected[2 * MIB..2 * MIB + 128 * KIB].fill(6);
        let read_only = sealed(bytes.clone());
        let unrepaired = open(&read_only, None).unwrap();
        assert!(unrepaired.header().dirty && read_all(&unrepaired) == expected);
        let file = disk(bytes);
        let repaired = open(&file, None).unwrap();
        assert!(repaired.repaired().uncounted > 10 && !repaired.header().dirty, "{:?}", repaired.repaired());
        assert!(read_all(&repaired) == expected);
        assert_clean(&file.bytes(), options);
        play(&repaired, &mut expected, &mut Random(1), 50);
        wait(repaired.flush()).unwrap();
        drop(repaired);
        assert!(read_all(&open(&file, None).unwrap()) == expected);
        assert_clean(&file.bytes(), options);
    }
}

#[test]
fn requests_at_once_do_not_disturb_each_other() {
    for seed in 0..20 {
        let options = ["cluster_size=4k", "cluster_size=64k", "cluster_size=512"][seed as usize % 3];
        let mut bytes = create_by_qemu(options, "2M").bytes();
        bytes.resize(8 * MIB, 0xdd);
        let file = disk(bytes);
        let slow = Arc::new(Slow::new(Arc::clone(&file) as Arc<dyn BlockDevice>, seed));
        let image = wait(Qcow2::open(slow, None)).unwrap();
        let mut expected = vec![0; 2 * MIB];
        let mut random = Random(seed);
        for _ in 0..12 {
            batch(&image, &mut expected, &mut random);
        }
        assert!(read_all(&image) == expected, "{seed}");
        wait(image.flush()).unwrap();
        drop(image);
        let again = open(&file, None).unwrap();
        assert_eq!(again.repaired(), Repaired::default());
        assert!(read_all(&again) == expected, "{seed}");
        assert_clean(&file.bytes(), options);
    }
}

/// Many requests at once, none about the same bytes as another.
fn batch(image: &dyn BlockDevice, expected: &mut [u8], random: &mut Random) {
    let sectors = expected.len() as u64 / 512;
    let mut replies: Vec<Reply<'_>> = vec![image.flush()];
    let mut reads = Vec::new();
    let mut start = random.below(32);
    while start < sectors {
        let most = [8, 8, 300][random.below(3) as usize];
        let len = (1 + random.below(most)).min(sectors - start);
        let range = start as usize * 512..(start + len) as usize * 512;
        let (at, bytes) = (start * 512, len * 512);
        match random.below(4) {
            0 => {
                let buffer = Buffer::zeroed(range.len());
                reads.push((range, buffer.clone()));
                replies.push(image.read(at, buffer));
            }
            1 => {
                expected[range].fill(0);
                replies.push(image.write_zeroes(at, bytes));
            }
            _ => {
                expected[range.clone()].copy_from_slice(&pattern(range.len(), random.below(1000) as usize));
                replies.push(image.write(at, Buffer::holding(&expected[range])));
            }
        }
        start += len + random.below(3) * random.below(200);
    }
    wait(join::all(replies)).unwrap();
    for (range, buffer) in reads {
        assert!(buffer.to_vec() == expected[range.clone()], "{range:?}");
    }
}

/// Cuts the power of such an image at random moments, and looks.
fn cut_power(options: &str, backing: Option<Vec<u8>>, snapshot: bool, seed: u64, cuts: u64) {
    // Enough for the refcount table to grow, where that is short.
    let sectors = if options.contains("refcount_bits=64") { 6144 } else { 2048 };
    let size = format!("{}k", sectors / 2);
    let base = backing.as_deref().map(Image::holding);
    let made = match &base {
        None => create_by_qemu(options, &size),
        Some(base) => {
            create_by_qemu(&format!("{options},backing_file={},backing_fmt=raw", base.path()), &size)
        }
    };
    let mut before = vec![0; sectors];
    for (sector, before) in backing.iter().flat_map(|content| content.chunks(512)).zip(&mut before) {
        *before = u32::from_be_bytes(sector[..4].try_into().unwrap());
    }
    if snapshot {
        made.qemu_io(&["write -P 0 0 600k", "write -z 640k 64k"]);
        made.qemu_img(&["snapshot", "-q", "-c", "kept"]);
        before[..1200].fill(0);
        before[1280..1408].fill(0);
    }
    let backing = backing.map(|content| disk(content) as Arc<dyn BlockDevice>);
    let mut bytes = made.bytes();
    // What nobody has written may look like anything, also like tables.
    bytes.resize(8 * MIB, if seed.is_multiple_of(2) { 0xdd } else { 0 });
    let story =
        Story::of(bytes, &before, seed, &|file| Arc::new(wait(Qcow2::open(file, backing.clone())).unwrap()));
    let mut random = Random(seed);
    for _ in 0..cuts {
        let cut = story.cut(&mut random);
        let what = format!("{options}, seed {seed}");
        if random.below(10) == 0 {
            assert_at_most_leaks(&cut.file.bytes(), &what);
        }
        let image = open(&cut.file, backing.clone()).unwrap_or_else(|e| panic!("{what}, {}: {e}", cut.what));
        assert_eq!((image.repaired().uncounted, image.repaired().flags), (0, 0), "{what}, {}", cut.what);
        cut.check(&image, &what);
        // And it goes on.
        write(&image, 0, &sector(7));
        wait(image.flush()).unwrap();
        drop(image);
        if random.below(10) == 0 {
            assert_clean(&cut.file.bytes(), &what);
        }
    }
}

#[test]
fn a_loss_of_power_loses_nothing_that_was_flushed() {
    let base: Vec<u8> = (1..1500).flat_map(sector).collect();
    for seed in 0..4 {
        cut_power("cluster_size=64k", None, false, seed, 40);
        cut_power("cluster_size=4k", Some(base.clone()), false, 10 + seed, 40);
        cut_power("cluster_size=512", None, false, 20 + seed, 20);
        cut_power("cluster_size=512,refcount_bits=64", None, false, 50 + seed, 20);
        cut_power("cluster_size=4k", None, true, 30 + seed, 40);
        cut_power("cluster_size=16k,compat=0.10", Some(base.clone()), true, 40 + seed, 40);
    }
}
