use super::*;
use crate::testing::{Image, RamDisk, Random, Story, pattern, sector, wait};

const MIB: usize = 1 << 20;

fn disk(bytes: Vec<u8>) -> Arc<RamDisk> {
    Arc::new(RamDisk::new(512, bytes))
}

fn open(file: &Arc<RamDisk>, parent: Option<Parent>) -> Result<Vhd, VhdError> {
    wait(Vhd::open(Arc::clone(file) as Arc<dyn BlockDevice>, parent))
}

fn read(disk: &dyn BlockDevice, at: u64, len: usize) -> Vec<u8> {
    let buffer = Buffer::holding(&vec![0xee; len]);
    wait(disk.read(at, buffer.clone())).unwrap();
    buffer.to_vec()
}

fn write(disk: &dyn BlockDevice, at: u64, bytes: &[u8]) {
    wait(disk.write(at, Buffer::holding(bytes))).unwrap();
}

/// Makes an empty image as qemu-img does, of 10 MiB or what it makes of that.
fn create(subformat: &str) -> Vec<u8> {
    let image = Image::holding(&[]);
    image.qemu_img(&["create", "-q", "-f", "vpc", "-o", &format!("subformat={subformat},size=10M")]);
    image.bytes()
}

/// What qemu-img reads in an image.
fn raw(image: &[u8]) -> Vec<u8> {
    let file = Image::holding(image);
    let raw = Image::holding(&[]);
    file.convert(&["-f", "vpc", "-O", "raw"], &raw);
    raw.bytes()
}

#[test]
fn qemu_reads_what_we_write() {
    for subformat in ["fixed", "dynamic"] {
        let mut bytes = create(subformat);
        if subformat == "dynamic" {
            // A partition that the image may grow in.
            bytes.resize(16 * MIB, 0xdd);
        }
        let file = disk(bytes);
        let vhd = open(&file, None).unwrap();
        let mut expected = vec![0; vhd.geometry().size() as usize];
        // Within a block, over the end of one, and to the end of all.
        let tail = vhd.geometry().size() as usize - 1536;
        for (at, len) in [(512, 1024), (2 * MIB - 512, 2048), (5 * MIB, 3 * MIB), (tail, 1536), (1024, 512)] {
            let bytes = pattern(len, at);
            write(&vhd, at as u64, &bytes);
            expected[at..at + len].copy_from_slice(&bytes);
        }
        // Zeros where something was, and where nothing was: no block for these.
        let needed = vhd.file_size();
        for (at, len) in [(5 * MIB + 512, MIB), (2 * MIB + 4096, MIB)] {
            wait(vhd.write_zeroes(at as u64, len as u64)).unwrap();
            expected[at..at + len].fill(0);
        }
        assert_eq!(vhd.file_size(), needed);
        assert_eq!(read(&vhd, 0, expected.len()), expected, "{subformat}");
        let image = &file.bytes()[..vhd.file_size() as usize];
        assert_eq!(raw(image), expected, "{subformat}");
        // Opened again it is the same, from its own end or from a partition's.
        for bytes in [image.to_vec(), file.bytes()] {
            let again = disk(bytes);
            assert_eq!(read(&open(&again, None).unwrap(), 0, expected.len()), expected, "{subformat}");
        }
    }
}

#[test]
fn what_qemu_writes_is_read() {
    let mut content = vec![0; 8 * MIB];
    content[MIB..2 * MIB].copy_from_slice(&pattern(MIB, 3));
    content[7 * MIB..7 * MIB + 512].fill(0x5a);
    let raw = Image::holding(&content);
    for subformat in ["fixed", "dynamic"] {
        let image = Image::holding(&[]);
        let option = format!("subformat={subformat},force_size=on");
        raw.convert(&["-f", "raw", "-O", "vpc", "-o", &option], &image);
        let file = disk(image.bytes());
        let vhd = open(&file, None).unwrap();
        assert_eq!(vhd.geometry().size(), content.len() as u64, "{subformat}");
        assert_eq!(read(&vhd, 0, content.len()), content, "{subformat}");
    }
}

#[test]
fn an_image_without_room_keeps_what_it_has() {
    let mut bytes = create("dynamic");
    bytes.resize(bytes.len() + 2 * MIB + 512, 0);
    let file = disk(bytes);
    let vhd = open(&file, None).unwrap();
    write(&vhd, 0, &[7; 512]);
    let full = wait(vhd.write(4 << 20, Buffer::zeroed(512)));
    assert!(matches!(full, Err(BlockError::NoRoom { .. })), "{full:?}");
    assert_eq!(read(&vhd, 0, 512), [7; 512]);
    assert_eq!(read(&vhd, 4 << 20, 512), [0; 512]);
    assert!(wait(vhd.read(vhd.geometry().size(), Buffer::zeroed(512))).is_err());
}

/// A disk of whose writes to one place it is not known whether they were done: this one says that they were not.
struct Doubtful {
    disk: Arc<RamDisk>,
    place: u64,
}

impl BlockDevice for Doubtful {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.disk.read(at, into)
    }
    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        let answer = self.disk.write(at, from);
        if at == self.place { Box::pin(ready(Err(BlockError::Failed))) } else { answer }
    }
    fn flush(&self) -> Reply<'_> {
        self.disk.flush()
    }
    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.disk.discard(at, len)
    }
    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.disk.write_zeroes(at, len)
    }
}

#[test]
fn no_place_is_given_twice_though_it_is_not_known_whether_the_table_has_it() {
    let mut bytes = create("dynamic");
    bytes.resize(16 * MIB, 0);
    let file = disk(bytes);
    let table = open(&file, None).unwrap().sparse.unwrap().table_at;
    let doubtful = Arc::new(Doubtful { disk: Arc::clone(&file), place: table });
    let vhd = wait(Vhd::open(doubtful, None)).unwrap();
    for at in [0, 2 * MIB] {
        assert_eq!(wait(vhd.write(at as u64, Buffer::holding(&[7; 512]))), Err(BlockError::Failed));
    }
    open(&file, None).unwrap();
}

/// Turns an empty dynamic image into one that differs from the image with this identity.
fn differing(parent: [u8; 16]) -> Vec<u8> {
    let mut bytes = create("dynamic");
    let len = bytes.len();
    bytes[512 + 40..512 + 56].copy_from_slice(&parent);
    let name = "base.vhd".encode_utf16().flat_map(u16::to_be_bytes);
    bytes.splice(512 + 64..512 + 80, name);
    let sum = header::sum(&bytes[512..1536], 36).to_be_bytes();
    bytes[512 + 36..512 + 40].copy_from_slice(&sum);
    for footer in [0, len - 512] {
        bytes[footer + 63] = 4;
        bytes[footer + 68..footer + 84].fill(0x77);
        let sum = header::sum(&bytes[footer..footer + 512], 64).to_be_bytes();
        bytes[footer + 64..footer + 68].copy_from_slice(&sum);
    }
    bytes.resize(16 * MIB, 0);
    bytes
}

#[test]
fn a_child_shows_its_parent_where_it_has_nothing_of_its_own() {
    let parent_file = disk(create("fixed"));
    let parent = Arc::new(open(&parent_file, None).unwrap());
    let base = pattern(parent.geometry().size() as usize, 1);
    write(&*parent, 0, &base);
    let before = parent_file.bytes();
    let named = Parent { id: parent.id(), disk: Arc::clone(&parent) as Arc<dyn BlockDevice> };

    let file = disk(differing(parent.id()));
    let child = open(&file, Some(named.clone())).unwrap();
    assert_eq!(read(&child, 0, base.len()), base);
    let mut expected = base;
    for (at, len) in [(3 * 512, 512), (2 * MIB - 1024, 4096), (6 * MIB, 512 * 9)] {
        let bytes = pattern(len, at + 100);
        write(&child, at as u64, &bytes);
        expected[at..at + len].copy_from_slice(&bytes);
    }
    assert_eq!(read(&child, 0, expected.len()), expected);
    wait(child.flush()).unwrap();
    assert_eq!(parent_file.bytes(), before, "the parent stays as it was");
    let again = disk(file.bytes());
    assert_eq!(read(&open(&again, Some(named.clone())).unwrap(), 0, expected.len()), expected);

    assert_eq!(wait(Vhd::parent_name(&*again)), Ok(Some("base.vhd".into())));
    assert_eq!(wait(Vhd::parent_name(&*parent_file)), Ok(None));
    assert_eq!(open(&again, None).err(), Some(VhdError::NoParent));
    let other = Parent { id: [1; 16], ..named };
    assert_eq!(open(&again, Some(other)).err(), Some(VhdError::OtherParent));
}

#[test]
fn every_damage_is_named() {
    let good = create("dynamic");
    let last = good.len() - 512;
    let error = |changes: &[usize]| {
        let mut bytes = good.clone();
        changes.iter().for_each(|at| bytes[*at] ^= 0x40);
        open(&disk(bytes), None).err().map(|error| error.to_string()).unwrap_or_default()
    };
    // One footer is enough.
    assert_eq!(error(&[30]), "");
    assert_eq!(error(&[last]), "");
    assert!(error(&[30, last]).starts_with("the footer's checksum is 0x"));
    assert_eq!(error(&[0, last]), "no VHD footer at the start nor at the end");
    assert!(error(&[512 + 30]).starts_with("the header's checksum is 0x"));
    assert!(error(&[512]).starts_with("the header's cookie is 0x23"));
    // An entry of the block table that points into the headers.
    assert!(error(&[1536, 1537, 1538, 1539]).contains("block's"), "{}", error(&[1536]));
    let small = Arc::new(RamDisk::new(4096, vec![0; 4096]));
    assert_eq!(open(&small, None).err(), Some(VhdError::BlockSize(4096)));
}

#[test]
fn a_loss_of_power_loses_nothing_that_was_flushed() {
    const SECTORS: usize = 16384;
    let base: Vec<u8> = (1..=SECTORS as u32).flat_map(sector).collect();
    let mut fixed = disk(create("fixed")).bytes();
    fixed[..base.len()].copy_from_slice(&base);
    let parent = Arc::new(open(&disk(fixed), None).unwrap());
    let named = Parent { id: parent.id(), disk: Arc::clone(&parent) as Arc<dyn BlockDevice> };
    for seed in 0..3 {
        let mut dynamic = create("dynamic");
        dynamic.resize(14 * MIB, if seed == 0 { 0 } else { 0xdd });
        let below: Vec<u32> = (1..=SECTORS as u32).collect();
        let cases = [
            ("dynamic", dynamic, vec![0; SECTORS], None),
            ("differing", differing(parent.id()), below, Some(named.clone())),
        ];
        for (what, bytes, before, parent) in cases {
            let open = |file| Arc::new(wait(Vhd::open(file, parent.clone())).unwrap());
            let story = Story::of(bytes, &before, seed, &|file| open(file));
            let mut random = Random(seed);
            for _ in 0..15 {
                let cut = story.cut(&mut random);
                cut.check(&*open(Arc::clone(&cut.file) as Arc<dyn BlockDevice>), what);
            }
        }
    }
}

proptest::proptest! {
    /// Whatever was damaged, opening and reading come to an end.
    #[test]
    fn a_mutated_image_never_panics(
        changes in proptest::collection::vec((0_usize..2048, proptest::num::u8::ANY), 1..6),
    ) {
        thread_local!(static GOOD: Vec<u8> = create("dynamic"));
        let mut bytes = GOOD.with(Clone::clone);
        for (offset, value) in changes {
            bytes[offset] = value;
        }
        if let Ok(vhd) = open(&disk(bytes), None) {
            let _ = wait(vhd.read(0, Buffer::zeroed(4096)));
        }
    }
}
