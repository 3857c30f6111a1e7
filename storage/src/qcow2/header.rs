//! The header, at the start of every image. Numbers have their high byte first.

use super::Qcow2Error;
use super::layout::Layout;
use crate::block::{BlockDevice, BlockError, read_bytes};
use crate::fields::{be_u16, be_u32, be_u64, put};
use crate::image::{Base, QCOW2_MAGIC};
use alloc::string::String;
use alloc::vec::Vec;

/// What an image begins with while it is made.
pub const UNFINISHED: u32 = !QCOW2_MAGIC;
/// The length of version 2's header, and of version 3's least one, in bytes.
const LENGTH_2: u32 = 72;
const LENGTH_3: u32 = 104;
/// The most that a backing file's name may have.
const LONGEST_NAME: u32 = 1023;
/// The most entries of an L1 table, 512 KiB: 32 TiB in the usual clusters of 64 KiB.
pub const MOST_L1: u32 = 1 << 16;
/// The most entries of a refcount table that are looked at, 512 KiB.
pub const MOST_REFCOUNT_BLOCKS: u64 = 1 << 16;
/// The most snapshots in one image.
const MOST_SNAPSHOTS: u32 = 256;
/// What is kept of a snapshot's name, in bytes.
pub const LONGEST_SNAPSHOT: usize = 255;

/// Bits of the features that a reader must know.
mod incompatible {
    pub const DIRTY: u64 = 1 << 0;
    pub const CORRUPT: u64 = 1 << 1;
    pub const EXTERNAL_DATA: u64 = 1 << 2;
    pub const COMPRESSION: u64 = 1 << 3;
    pub const EXTENDED_L2: u64 = 1 << 4;
    pub const KNOWN: u64 = DIRTY | COMPRESSION;
}

/// Types of header extensions.
mod extension {
    pub const END: u32 = 0;
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
}

/// What compressed clusters are compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw DEFLATE streams.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// What an image says of itself.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The size of the disk in bytes.
    pub size: u64,
    /// What it differs from.
    pub backing: Option<Base>,
    /// What compressed clusters are compressed with.
    pub compression: Compression,
    /// The refcounts may be wrong.
    pub dirty: bool,
    pub(super) autoclear: u64,
    pub(super) layout: Layout,
    pub(super) l1_at: u64,
    pub(super) l1_len: u32,
    pub(super) refcounts_at: u64,
    /// The refcount table's length in clusters.
    pub(super) refcount_clusters: u32,
    pub(super) snapshots_at: u64,
    pub(super) snapshots: u32,
}

impl Header {
    /// Reads the header of the image in `file`, which says what the image differs from.
    ///
    /// # Errors
    /// There is none, or it says what cannot be or is not supported.
    pub async fn read(file: &dyn BlockDevice) -> Result<Self, Qcow2Error> {
        match Self::read_any(file).await? {
            (header, QCOW2_MAGIC) => Ok(header),
            (_, UNFINISHED) => Err(Qcow2Error::Unfinished),
            (_, found) => Err(Qcow2Error::NoHeader(found)),
        }
    }

    /// Also of an image that was not finished; and what it begins with.
    pub(super) async fn read_any(file: &dyn BlockDevice) -> Result<(Self, u32), Qcow2Error> {
        let len = file.geometry().size().min(u64::from(LENGTH_3).saturating_add(8)) as usize;
        let start = read_bytes(file, 0, len).await?;
        let found = be_u32(&start, 0);
        if found != QCOW2_MAGIC && found != UNFINISHED {
            return Err(Qcow2Error::NoHeader(found));
        }
        let version = be_u32(&start, 4);
        if !(2..=3).contains(&version) {
            return Err(Qcow2Error::Version(version));
        }
        let cluster_bits = be_u32(&start, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(field("the number of bits in a cluster", cluster_bits));
        }
        if be_u32(&start, 32) != 0 {
            return Err(Qcow2Error::Unsupported("encryption"));
        }
        let mut order = 4;
        let mut length = LENGTH_2;
        let (mut incompatible, mut autoclear) = (0, 0);
        if version >= 3 {
            incompatible = be_u64(&start, 72);
            autoclear = be_u64(&start, 88);
            order = be_u32(&start, 96);
            length = be_u32(&start, 100);
        }
        check_features(incompatible)?;
        if order > 6 {
            return Err(field("the refcounts' order", order));
        }
        let layout = Layout { version, cluster_bits, refcount_order: order };
        if length < LENGTH_2 || version >= 3 && length < LENGTH_3 || u64::from(length) > layout.cluster_size()
        {
            return Err(field("the header's length", length));
        }
        let compression = match (incompatible & incompatible::COMPRESSION != 0, start.get(104)) {
            (true, Some(1)) if length > LENGTH_3 => Compression::Zstd,
            (true, Some(kind)) if length > LENGTH_3 => {
                return Err(field("the compression", u32::from(*kind)));
            }
            (true, _) => return Err(field("the header's length", length)),
            (false, _) => Compression::Zlib,
        };
        let mut header = Self {
            version,
            size: be_u64(&start, 24),
            backing: None,
            compression,
            dirty: incompatible & incompatible::DIRTY != 0,
            autoclear,
            layout,
            l1_at: be_u64(&start, 40),
            l1_len: be_u32(&start, 36),
            refcounts_at: be_u64(&start, 48),
            refcount_clusters: 0,
            snapshots_at: be_u64(&start, 64),
            snapshots: be_u32(&start, 60),
        };
        header.check_tables(be_u32(&start, 56))?;
        header.backing = read_backing(file, &start, length, layout.cluster_size()).await?;
        Ok((header, found))
    }

    /// Whether the tables can be where they are said to be, and are as long as they have to be.
    fn check_tables(&mut self, refcount_clusters: u32) -> Result<(), Qcow2Error> {
        let layout = self.layout;
        let wrong = |name, found| Err(Qcow2Error::Field { name, found });
        if !self.size.is_multiple_of(512) || self.size > i64::MAX as u64 {
            return wrong("the size", self.size);
        }
        if self.l1_len > MOST_L1 || u64::from(self.l1_len) < layout.l1_entries(self.size) {
            return wrong("the L1 table's length", self.l1_len.into());
        }
        if !layout.is_place(self.l1_at) && self.l1_len != 0 {
            return wrong("the L1 table's place", self.l1_at);
        }
        if refcount_clusters == 0 {
            return wrong("the refcount table's length", 0);
        }
        self.refcount_clusters = refcount_clusters;
        if !layout.is_place(self.refcounts_at) {
            return wrong("the refcount table's place", self.refcounts_at);
        }
        if self.snapshots > MOST_SNAPSHOTS {
            return wrong("the number of snapshots", self.snapshots.into());
        }
        if self.snapshots != 0 && !layout.is_place(self.snapshots_at) {
            return wrong("the snapshot table's place", self.snapshots_at);
        }
        Ok(())
    }

    /// Says on the disk that the image is whole, and that nobody knows features of its that may be dropped.
    pub(super) async fn mark_clean(&mut self, file: &dyn BlockDevice) -> Result<(), BlockError> {
        if self.version < 3 || !self.dirty && self.autoclear == 0 {
            return Ok(());
        }
        let mut sector = read_bytes(file, 0, 512).await?;
        let incompatible = be_u64(&sector, 72) & !incompatible::DIRTY;
        put(&mut sector, 72, &incompatible.to_be_bytes());
        put(&mut sector, 88, &[0; 8]);
        file.write(0, crate::Buffer::holding(&sector)).await?;
        file.flush().await?;
        (self.dirty, self.autoclear) = (false, 0);
        Ok(())
    }
}

/// Says on the disk where the refcount table lies now.
pub async fn move_refcounts(file: &dyn BlockDevice, at: u64, clusters: u32) -> Result<(), BlockError> {
    let mut sector = read_bytes(file, 0, 512).await?;
    put(&mut sector, 48, &at.to_be_bytes());
    put(&mut sector, 56, &clusters.to_be_bytes());
    file.write(0, crate::Buffer::holding(&sector)).await?;
    file.flush().await
}

fn field(name: &'static str, found: u32) -> Qcow2Error {
    Qcow2Error::Field { name, found: found.into() }
}

fn check_features(incompatible: u64) -> Result<(), Qcow2Error> {
    if incompatible & incompatible::CORRUPT != 0 {
        return Err(Qcow2Error::Corrupt);
    }
    let named = [
        (incompatible::EXTERNAL_DATA, "an external data file"),
        (incompatible::EXTENDED_L2, "extended L2 entries"),
    ];
    if let Some((_, name)) = named.iter().find(|(bit, _)| incompatible & bit != 0) {
        return Err(Qcow2Error::Unsupported(name));
    }
    match incompatible & !incompatible::KNOWN {
        0 => Ok(()),
        unknown => Err(Qcow2Error::Features(unknown)),
    }
}

/// The backing file's name, and its format from the extensions between header and name. All lie in the first
/// cluster.
async fn read_backing(
    file: &dyn BlockDevice,
    start: &[u8],
    length: u32,
    cluster: u64,
) -> Result<Option<Base>, Qcow2Error> {
    let (at, len) = (be_u64(start, 8), be_u32(start, 16));
    if at == 0 {
        return Ok(None);
    }
    if len == 0 || len > LONGEST_NAME {
        return Err(field("the length of the backing file's name", len));
    }
    if at < u64::from(length) || at.saturating_add(len.into()) > cluster {
        return Err(Qcow2Error::Field { name: "the place of the backing file's name", found: at });
    }
    let name = text(read_bytes(file, at, len as usize).await?);
    let mut format = None;
    let mut next = u64::from(length);
    while next.saturating_add(8) <= at {
        let head = read_bytes(file, next, 8).await?;
        let (kind, len) = (be_u32(&head, 0), be_u32(&head, 4));
        next = next.saturating_add(8);
        if kind == extension::END {
            break;
        }
        let end = next.saturating_add(u64::from(len).next_multiple_of(8));
        if end > cluster {
            return Err(Qcow2Error::Field { name: "the length of a header extension", found: len.into() });
        }
        if kind == extension::BACKING_FORMAT {
            format = Some(text(read_bytes(file, next, len.min(LONGEST_NAME) as usize).await?));
        }
        next = end;
    }
    Ok(Some(Base { name, format }))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first cluster's start for a new image of version 3 with 16-bit refcounts.
///
/// # Errors
/// The backing file's name or its format's is too long, or empty.
pub fn compose(
    size: u64,
    layout: Layout,
    l1: (u64, u32),
    refcounts: (u64, u32),
    backing: Option<&Base>,
) -> Result<Vec<u8>, Qcow2Error> {
    let mut bytes = alloc::vec![0; LENGTH_3 as usize];
    put(&mut bytes, 0, &QCOW2_MAGIC.to_be_bytes());
    put(&mut bytes, 4, &layout.version.to_be_bytes());
    put(&mut bytes, 20, &layout.cluster_bits.to_be_bytes());
    put(&mut bytes, 24, &size.to_be_bytes());
    put(&mut bytes, 36, &l1.1.to_be_bytes());
    put(&mut bytes, 40, &l1.0.to_be_bytes());
    put(&mut bytes, 48, &refcounts.0.to_be_bytes());
    put(&mut bytes, 56, &refcounts.1.to_be_bytes());
    put(&mut bytes, 96, &layout.refcount_order.to_be_bytes());
    put(&mut bytes, 100, &LENGTH_3.to_be_bytes());
    let extension = |bytes: &mut Vec<u8>, kind: u32, content: &[u8]| {
        bytes.extend(kind.to_be_bytes());
        bytes.extend((content.len() as u32).to_be_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    let fits = |text: &str| (1..=LONGEST_NAME as usize).contains(&text.len());
    if let Some(format) = backing.and_then(|backing| backing.format.as_deref()) {
        if !fits(format) {
            return Err(field("the length of the backing format's name", format.len() as u32));
        }
        extension(&mut bytes, extension::BACKING_FORMAT, format.as_bytes());
    }
    extension(&mut bytes, extension::END, &[]);
    if let Some(name) = backing.map(|backing| backing.name.as_str()) {
        if !fits(name) {
            return Err(field("the length of the backing file's name", name.len() as u32));
        }
        let at = bytes.len() as u64;
        put(&mut bytes, 8, &at.to_be_bytes());
        put(&mut bytes, 16, &(name.len() as u32).to_be_bytes());
        bytes.extend(name.as_bytes());
    }
    if bytes.len() as u64 > layout.cluster_size() {
        return Err(field("the length of the backing file's name", bytes.len() as u32));
    }
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    Ok(bytes)
}

/// A snapshot that is kept within the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What it is called for short, unique in the image.
    pub id: String,
    /// What its maker called it.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub seconds: u32,
    /// The disk's size then in bytes, where that is said.
    pub size: Option<u64>,
    pub(super) l1_at: u64,
    pub(super) l1_len: u32,
}

/// The snapshots that an image lists, and the length of the list in bytes.
pub async fn read_snapshots(
    file: &dyn BlockDevice,
    header: &Header,
) -> Result<(Vec<Snapshot>, u64), Qcow2Error> {
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_at;
    for _ in 0..header.snapshots {
        let head = read_bytes(file, at, 40).await?;
        let (id_len, name_len, extra) = (be_u16(&head, 12), be_u16(&head, 14), be_u32(&head, 36));
        // qemu-img writes 24 bytes of these.
        if extra > 1024 {
            return Err(field("the length of a snapshot's extra data", extra));
        }
        let len = extra.saturating_add(id_len.into()).saturating_add(name_len.into());
        let rest = read_bytes(file, at.saturating_add(40), len as usize).await?;
        let (extra_data, names) = rest.split_at_checked(extra as usize).unwrap_or((&rest, &[]));
        let (id, name) = names.split_at_checked(id_len.into()).unwrap_or((names, &[]));
        let (l1_at, l1_len) = (be_u64(&head, 0), be_u32(&head, 8));
        if !header.layout.is_place(l1_at) && l1_len != 0 {
            return Err(Qcow2Error::Field { name: "the place of a snapshot's L1 table", found: l1_at });
        }
        if l1_len > MOST_L1 {
            return Err(field("the length of a snapshot's L1 table", l1_len));
        }
        snapshots.push(Snapshot {
            id: text(id.get(..LONGEST_SNAPSHOT).unwrap_or(id).into()),
            name: text(name.get(..LONGEST_SNAPSHOT).unwrap_or(name).into()),
            seconds: be_u32(&head, 16),
            size: (extra >= 16).then(|| be_u64(extra_data, 8)),
            l1_at,
            l1_len,
        });
        at = at.saturating_add(40).saturating_add(u64::from(len)).next_multiple_of(8);
    }
    Ok((snapshots, at.saturating_sub(header.snapshots_at)))
}
