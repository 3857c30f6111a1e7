//! Tests on file systems made here; `tests/cbfstool.rs` has those that cbfstool makes.

use super::*;
use proptest::prelude::*;

/// 4005 bytes of "peerboot\n", as `zstd -19` compresses them.
const ZSTD: &[u8] = &[
    0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x68, 0x85, 0x00, 0x00, 0x48, 0x70, 0x65, 0x65, 0x72, 0x62, 0x6f, 0x6f,
    0x74, 0x0a, 0x01, 0x00, 0x99, 0xa7, 0x5f, 0x8e, 0xd0, 0x5b, 0x59, 0x36,
];

fn peerboots() -> Vec<u8> {
    b"peerboot\n".iter().copied().cycle().take(4005).collect()
}

fn attribute(tag: u32, body: &[u8]) -> Vec<u8> {
    let len = body.len() as u32 + 8;
    [&tag.to_be_bytes(), &len.to_be_bytes(), body].concat()
}

fn compression(number: u32, size: u32) -> Vec<u8> {
    attribute(0x4243_5a4c, &[number.to_be_bytes(), size.to_be_bytes()].concat())
}

/// A file with its padding to the next one.
fn file(name: &str, attributes: &[u8], data: &[u8]) -> Vec<u8> {
    let name_len = (name.len() + 1).next_multiple_of(4);
    let attributes_at = 24 + name_len;
    let data_at = attributes_at + attributes.len();
    let mut bytes = b"LARCHIVE".to_vec();
    let attributes_field = if attributes.is_empty() { 0 } else { attributes_at };
    for word in [data.len(), 0x50, attributes_field, data_at] {
        bytes.extend((word as u32).to_be_bytes());
    }
    bytes.extend(name.bytes());
    bytes.resize(attributes_at, 0);
    bytes.extend(attributes);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(64), 0xff);
    bytes
}

fn fault(bytes: &[u8], name: &str) -> CbfsFault {
    let file = Cbfs::new(bytes).find(name);
    file.and_then(|file| file.contents(1 << 20)).unwrap_err().fault
}

#[test]
fn files_are_walked_and_found() {
    let bytes = [file("a", &[], b"first"), vec![0xff; 128], file("dir/b", &[], b"second")].concat();
    let cbfs = Cbfs::at(&bytes, 0x1000);
    let names: Vec<_> = cbfs.files().map(|file| file.unwrap().name).collect();
    assert_eq!(names, ["a", "dir/b"]);
    let found = cbfs.find("dir/b").unwrap();
    assert_eq!((found.data, found.kind, found.offset), (&b"second"[..], Kind::Raw, 0x1000 + 64 + 128));
    assert!(matches!(found.contents(6), Ok(alloc::borrow::Cow::Borrowed(b"second"))));
    assert_eq!(found.contents(5).unwrap_err().fault, CbfsFault::TooLarge { size: 6, limit: 5 });
    assert_eq!(cbfs.find("none").unwrap_err().to_string(), "CBFS file none at 0x1000: not in the ROM");
}

#[test]
fn a_corrupted_header_costs_its_file_and_names_it() {
    let good = [file("one", &[], &[1; 200]), file("two", &[], &[2; 300]), file("three", &[], b"3")].concat();
    let two = file("one", &[], &[1; 200]).len();
    for (field, at, value) in
        [("len", 8, u32::MAX), ("offset", 20, 23), ("offset", 20, 9999), ("attributes_offset", 16, 999)]
    {
        let mut bytes = good.clone();
        bytes[two + at..two + at + 4].copy_from_slice(&value.to_be_bytes());
        let cbfs = Cbfs::new(&bytes);
        assert_eq!(cbfs.find("one").unwrap().data, [1; 200]);
        assert_eq!(cbfs.find("three").unwrap().data, b"3");
        let error = cbfs.find("two").unwrap_err();
        assert_eq!((error.file.as_deref(), error.offset), (Some("two"), two as u64));
        assert!(
            matches!(error.fault, CbfsFault::Header { field: found, found: number, .. }
            if found == field && number == value),
            "{error}"
        );
    }
    let mut bytes = good.clone();
    bytes[two + 24] = 0xff;
    let walked: Vec<_> = Cbfs::new(&bytes).files().collect();
    assert_eq!(
        walked[1].clone().unwrap_err(),
        CbfsError { file: None, offset: two as u64, fault: CbfsFault::Name }
    );
    assert_eq!(walked.len(), 3);
}

#[test]
fn a_length_that_swallows_other_files_is_a_fault() {
    let one = file("one", &[], &[1; 200]);
    let mut bytes = [one.clone(), file("two", &[], &[2; 300]), file("three", &[], b"3")].concat();
    bytes[8..12].copy_from_slice(&400_u32.to_be_bytes());
    let cbfs = Cbfs::at(&bytes, 0x1000);
    let error = cbfs.find("one").unwrap_err();
    assert_eq!(error.fault, CbfsFault::RunsOver(0x1000 + one.len() as u64));
    assert_eq!(cbfs.find("two").unwrap().data, [2; 300]);
    assert_eq!(cbfs.find("three").unwrap().data, b"3");
}

#[test]
fn a_file_may_hold_a_file_system() {
    let inner = [file("inner", &[], b"in"), vec![0xff; 100]].concat();
    let bytes = [file("image", &[], &inner), file("next", &[], b"out")].concat();
    let names: Vec<_> = Cbfs::new(&bytes).files().map(|file| file.unwrap().name).collect();
    assert_eq!(names, ["image", "next"]);
}

#[test]
fn attributes_are_read() {
    let attributes = [
        compression(0, 5),
        attribute(0x4243_5350, &[0, 0, 0x10, 0]),
        attribute(0x4243_4c41, &[0, 0, 0, 64]),
        attribute(0x3249_4242, &[]),
        attribute(0x4744_4150, &[0; 4]),
        attribute(0x5374_6748, &[0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 4, 0, 0, 1, 0]),
        attribute(0x1234_5678, b"what"),
        vec![0xff; 8],
    ]
    .concat();
    let bytes = file("f", &attributes, b"plain");
    let file = Cbfs::new(&bytes).find("f").unwrap();
    let read: Vec<_> = file.attributes().map(Result::unwrap).collect();
    let stage = StageHeader { load_address: 0x10_0000, entry_offset: 4, memory_len: 256 };
    let none = Attribute::Compression { algorithm: Compression::None, decompressed_size: 5 };
    assert_eq!(
        read,
        [
            none,
            Attribute::Position(0x1000),
            Attribute::Alignment(64),
            Attribute::InitialBootBlock,
            Attribute::Padding,
            Attribute::StageHeader(stage),
            Attribute::Unknown(0x1234_5678, b"what"),
        ]
    );
    assert_eq!(*file.contents(100).unwrap(), *b"plain");
}

#[test]
fn corrupted_attributes_are_faults() {
    for len in [0_u32, 7, 200, u32::MAX] {
        let attributes = [&0x4243_5a4c_u32.to_be_bytes()[..], &len.to_be_bytes(), &[0; 8]].concat();
        let expected = CbfsFault::Attribute { tag: 0x4243_5a4c, len };
        assert_eq!(fault(&file("f", &attributes, b"x"), "f"), expected);
    }
    let short = attribute(0x4243_5a4c, &[0; 4]);
    assert_eq!(fault(&file("f", &short, b"x"), "f"), CbfsFault::Attribute { tag: 0x4243_5a4c, len: 12 });
}

#[test]
fn zstd_is_decompressed() {
    let bytes = file("z", &compression(3, 4005), ZSTD);
    assert_eq!(*Cbfs::new(&bytes).find("z").unwrap().contents(4005).unwrap(), peerboots());
    let smaller = file("z", &compression(3, 4004), ZSTD);
    assert_eq!(fault(&smaller, "z"), CbfsFault::Stream(StreamError::TooLong));
    let larger = file("z", &compression(3, 4006), ZSTD);
    assert_eq!(fault(&larger, "z"), CbfsFault::Size { found: 4005, expected: 4006 });
}

#[test]
fn corrupted_streams_never_panic_and_never_grow() {
    let lzma_header = [&[0x5d, 0, 0, 0x80, 0][..], &u64::MAX.to_le_bytes()].concat();
    let lz4 = [&[0x04, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73][..], &[5, 0, 0, 0x80], b"hello", &[0; 4]].concat();
    for (number, stream) in [(1, &lzma_header[..]), (2, &lz4), (3, ZSTD)] {
        for at in 0..stream.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut stream = stream.to_vec();
                stream[at] = value;
                let bytes = file("f", &compression(number, 4005), &stream);
                let _ = Cbfs::new(&bytes).find("f").unwrap().contents(1 << 20);
            }
            let bytes = file("f", &compression(number, 4005), &stream[..at]);
            assert!(Cbfs::new(&bytes).find("f").unwrap().contents(1 << 20).is_err(), "{number}: {at} bytes");
        }
    }
}

#[test]
fn lz4_frames_are_read_as_coreboot_does() {
    let frame = |flags: u8, rest: &[u8]| [&[0x04, 0x22, 0x4d, 0x18, flags, 0x70][..], rest].concat();
    let decompress = |stream: &[u8]| {
        let mut output = [0; 16];
        Compression::Lz4.decompress(stream, &mut output).map(|len| output[..len].to_vec())
    };
    let stored = [&[5, 0, 0, 0x80][..], b"hello", &[0; 4]].concat();
    assert_eq!(decompress(&frame(0x60, &[&[0], &stored[..]].concat())), Ok(b"hello".to_vec()));
    // With the content's size, and with a checksum behind each block.
    let sized = [&[5, 0, 0, 0, 0, 0, 0, 0, 0][..], &stored].concat();
    assert_eq!(decompress(&frame(0x68, &sized)), Ok(b"hello".to_vec()));
    let checked = [&[0, 5, 0, 0, 0x80][..], b"hello", &[1, 2, 3, 4], &[0; 4]].concat();
    assert_eq!(decompress(&frame(0x70, &checked)), Ok(b"hello".to_vec()));
    // Seven literals and a match of 18 bytes: more than the 16 there is room for.
    let long = [&[0, 11, 0, 0, 0][..], &[0x7e], b"1234567", &[7, 0], &[0], &[0; 4]].concat();
    assert_eq!(decompress(&frame(0x60, &long)), Err(StreamError::TooLong));
    let dependent = frame(0x40, &[&[0], &stored[..]].concat());
    assert_eq!(decompress(&dependent), Err(StreamError::Header("LZ4")));
    assert_eq!(decompress(&frame(0x60, &[0])), Err(StreamError::Corrupt("LZ4")));
}

#[test]
fn greedy_lzma_headers_are_refused() {
    // lc = 8, lp = 4 would want 12 MiB of tables.
    let header = [&[8 + 9 * 4, 0, 0, 0x80, 0][..], &5_u64.to_le_bytes(), &[0; 16]].concat();
    let bytes = file("f", &compression(1, 5), &header);
    assert_eq!(fault(&bytes, "f"), CbfsFault::Stream(StreamError::Header("LZMA")));
}

#[test]
fn unknown_algorithms_are_named() {
    let bytes = file("f", &compression(9, 5), b"x");
    let error = Cbfs::new(&bytes).find("f").unwrap().contents(100).unwrap_err();
    assert!(
        error.to_string().starts_with("CBFS file f at 0x0: found compression 9, expected one of none, LZMA")
    );
    let bytes = file("f", &attribute(0x6873_6148, &[0, 0, 0, 9, 1, 2]), b"x");
    assert_eq!(fault(&bytes, "f"), CbfsFault::UnknownHash(9));
    let short_digest = file("f", &attribute(0x6873_6148, &[0, 0, 0, 2, 1, 2]), b"x");
    assert_eq!(fault(&short_digest, "f"), CbfsFault::UnknownHash(2));
}

#[test]
fn images_without_a_file_system_say_so() {
    let error = Cbfs::in_image(&[0xff; 4096]).unwrap_err().to_string();
    assert_eq!(
        error,
        "CBFS at 0x0: no file system: the flash image holds no FMAP, and no legacy master header"
    );
    assert!(Cbfs::in_image(&[]).is_err());
}

proptest! {
    #[test]
    fn files_survive_a_round_trip(
        files in proptest::collection::vec(("[a-z/]{1,30}", proptest::collection::vec(any::<u8>(), 0..300)), 0..10),
    ) {
        let bytes: Vec<u8> = files.iter().flat_map(|(name, data)| file(name, &[], data)).collect();
        let read: Vec<_> = Cbfs::new(&bytes).files()
            .map(|file| file.map(|file| (file.name.to_owned(), file.data.to_vec())).unwrap()).collect();
        prop_assert_eq!(read, files);
    }

    #[test]
    fn mutated_file_systems_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut: prop::sample::Index,
    ) {
        let hash = attribute(0x6873_6148, &[&[0, 0, 0, 1][..], &[7; 20]].concat());
        let mut bytes = [
            file("zstd", &compression(3, 4005), ZSTD),
            file("hashed", &hash, b"data"),
            file("plain", &[], &[1; 100]),
        ].concat();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        for file in Cbfs::new(&bytes).files().flatten() {
            if let Ok(contents) = file.contents(8192) {
                prop_assert!(contents.len() <= 8192);
            }
        }
        let _ = Cbfs::in_image(&bytes);
    }
}
