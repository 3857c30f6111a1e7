//! qcow2 images, versions 2 and 3 (QEMU's docs/interop/qcow2). An image lies at the start of another disk, a file
//! or a partition, whose size stays as it is: the image grows as far as that has room.
//!
//! What a loss of power leaves is an image whose refcounts are at most too high: new refcounts are safe on the disk
//! before anything refers to the cluster, data before the L2 entry that shows it, and nothing is used again before
//! the last reference on the disk is gone. Entries are kept in memory until a flush, which asks the file for two.

mod cache;
mod check;
mod compressed;
mod create;
mod header;
mod layout;
mod map;
mod memory;
mod refcounts;

pub use check::Repaired;
pub use create::{create, roll_back};
pub use header::{Compression, Header, Snapshot};

use crate::block::{BlockDevice, BlockError, Geometry, Reply, read_bytes_or_zeros, read_or_zeros, zero};
use crate::buffer::Buffer;
use crate::claims::Claims;
use crate::fields::be_u64;
use crate::image::QCOW2_MAGIC;
use crate::join;
use crate::lock::{Guarded, Lock};
use crate::turn::pause;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use layout::{COPIED, Cluster, Layout, Place, Stream, ZERO};
use map::Map;
use refcounts::Refcounts;
use spin::Mutex;

/// The unit of everything that is read and written.
const SECTOR: u64 = 512;
/// Discarding looks at so many clusters at a time.
const CLEARED_AT_ONCE: u64 = 1024;
/// Reading and writing are about so many clusters at a time: each may lie elsewhere, and be a request of its own.
const CLUSTERS_AT_ONCE: u64 = 32;
/// Of which so many pieces that lie apart overlap.
const STRETCHES_AT_ONCE: usize = 8;
/// So many slices of tables are written at a time, 64 KiB.
const WRITTEN_AT_ONCE: usize = 16;
/// What is copied from cluster to cluster is in memory in pieces of at most so many bytes,
const COPIED_AT_ONCE: u64 = 64 << 10;
/// and that so many times.
const COPIERS: usize = 8;
/// With so many ranges of clusters to give back, a request does not wait for the next flush.
const MOST_FREED: usize = 4000;

/// Why an image cannot be opened or made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Qcow2Error {
    /// What it lies in cannot be read or written, or the image is damaged.
    File(BlockError),
    /// What it lies in has blocks of another size than 512 bytes.
    BlockSize(u32),
    /// It does not begin with the header's magic number, but with this one.
    NoHeader(u32),
    /// Its version is neither 2 nor 3.
    Version(u32),
    /// The power was lost while it was made or rolled back.
    Unfinished,
    /// It stands alone: there is nothing to roll it back to.
    NoOverlay,
    /// Who wrote it last found it damaged, and said so in it.
    Corrupt,
    /// It uses something that is known, but not supported.
    Unsupported(&'static str),
    /// It uses features that nobody knew when this was written: the bits in the header.
    Features(u64),
    /// A field has a value that is not possible here.
    Field {
        /// Which field.
        name: &'static str,
        /// What it holds.
        found: u64,
    },
    /// It differs from another image, and that was not given.
    NoBacking {
        /// The other's name.
        name: String,
    },
}

impl fmt::Display for Qcow2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::BlockSize(found) => write!(f, "it lies in blocks of {found} bytes, expected 512"),
            Self::NoHeader(found) => {
                write!(f, "no qcow2 header: it begins with {found:#010x}, expected {QCOW2_MAGIC:#010x}")
            }
            Self::Version(found) => write!(f, "it is qcow2 of version {found}, expected 2 or 3"),
            Self::Unfinished => {
                f.write_str("it was being rolled back when the power was lost; do that again")
            }
            Self::NoOverlay => f.write_str("it has no backing file that it could be rolled back to"),
            Self::Corrupt => f.write_str("it is marked as corrupt; `qemu-img check -r all` may repair it"),
            Self::Unsupported(what) => write!(f, "it uses {what}, which is not supported"),
            Self::Features(bits) => write!(f, "it uses unknown incompatible features {bits:#x}"),
            Self::Field { name, found } => write!(f, "{name} is {found:#x}, which cannot be"),
            Self::NoBacking { name } => write!(f, "its backing file `{name}` is missing"),
        }
    }
}

impl core::error::Error for Qcow2Error {}

impl From<BlockError> for Qcow2Error {
    fn from(error: BlockError) -> Self {
        Self::File(error)
    }
}

/// The disk in an image.
///
/// Requests that write must be waited for: where one was dropped before it ended, clusters that are freed later are
/// not used again until the image is opened anew, for the file may still be at work in one of them.
pub struct Qcow2 {
    file: Arc<dyn BlockDevice>,
    backing: Option<Arc<dyn BlockDevice>>,
    header: Header,
    snapshots: Vec<Snapshot>,
    repaired: Repaired,
    map: Mutex<Map>,
    /// Had by who changes the map, or brings something in. `None` where nothing is ever written.
    refcounts: Guarded<Option<Refcounts>>,
    /// The numbers of the disk's clusters that requests are at work in.
    claims: Claims,
    /// What the compressed cluster expands to that was read last: those who read on read it again.
    expanded: Mutex<Option<(Stream, Vec<u8>)>>,
    /// One cluster is expanded at a time, for the sake of memory;
    expanding: Lock,
    /// and so many are copied.
    copiers: [Lock; COPIERS],
    /// A request that writes was dropped before it ended.
    abandoned: AtomicBool,
}

impl fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2").field("header", &self.header).finish_non_exhaustive()
    }
}

impl Qcow2 {
    /// Opens the image in `file`, which differs from `backing` where its header says that it has one
    /// ([`Header::read`]). Where `file` can be written, all refcounts are checked and, where they are wrong, mended.
    ///
    /// # Errors
    /// It is none, is damaged beyond what can be mended, uses what is not supported, or lacks its backing.
    pub async fn open(
        file: Arc<dyn BlockDevice>,
        backing: Option<Arc<dyn BlockDevice>>,
    ) -> Result<Self, Qcow2Error> {
        let geometry = file.geometry();
        if u64::from(geometry.block_size) != SECTOR {
            return Err(Qcow2Error::BlockSize(geometry.block_size));
        }
        let mut header = Header::read(&*file).await?;
        let backing = match (&header.backing, backing) {
            (None, _) => None,
            (Some(_), Some(backing)) => Some(backing),
            (Some(named), None) => return Err(Qcow2Error::NoBacking { name: named.name.clone() }),
        };
        let mut l1 = read_table(&*file, header.l1_at, header.l1_len).await?;
        let (snapshots, snapshots_len) = header::read_snapshots(&*file, &header).await?;
        let mut repaired = Repaired::default();
        let mut refcounts = None;
        if !geometry.read_only {
            let mut counts = Refcounts::read(&*file, &header).await?;
            let (header, snapshots) = (&header, snapshots.as_slice());
            let mut image = check::Image { file: &*file, header, l1: &mut l1, snapshots, snapshots_len };
            repaired = image.repair(&mut counts).await?;
            refcounts = Some(counts);
        }
        if !geometry.read_only {
            header.mark_clean(&*file).await?;
        }
        let map = Mutex::new(Map::new(header.layout, header.l1_at, l1));
        Ok(Self {
            file,
            backing,
            header,
            snapshots,
            repaired,
            map,
            refcounts: Guarded::new(refcounts),
            claims: Claims::default(),
            expanded: Mutex::new(None),
            expanding: Lock::default(),
            copiers: Default::default(),
            abandoned: AtomicBool::new(false),
        })
    }

    /// What the image says of itself.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The snapshots that are kept within it. What is written now does not change them.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// What was wrong when it was opened.
    pub const fn repaired(&self) -> Repaired {
        self.repaired
    }

    const fn layout(&self) -> &Layout {
        &self.header.layout
    }

    /// The clusters' entries in the L2 tables.
    async fn clusters(&self, numbers: Range<u64>) -> Result<Vec<Cluster>, BlockError> {
        let mut clusters = Vec::new();
        for number in numbers {
            let known = self.map.lock().find(number)?;
            let entry = match known {
                Some(entry) => entry,
                None => self.load(&mut *self.refcounts.lock().await, number).await?,
            };
            clusters.push(self.layout().cluster(entry)?);
        }
        Ok(clusters)
    }

    /// A cluster's entry, brought in where it is not known.
    async fn load(&self, refcounts: &mut Option<Refcounts>, number: u64) -> Result<u64, BlockError> {
        loop {
            let (known, place) = {
                let mut map = self.map.lock();
                (map.find(number)?, map.place(number)?)
            };
            let at = match (known, place) {
                (Some(entry), _) => return Ok(entry),
                (None, None) => return Ok(0),
                (None, Some(at)) => at,
            };
            if at >= self.file.geometry().size() {
                return Err(BlockError::Damaged { what: "an L2 table lies behind the end of the file", at });
            }
            let (room, (start, len)) = {
                let mut map = self.map.lock();
                (map.make_room(), map.slice(at))
            };
            if room {
                let bytes = read_bytes_or_zeros(&*self.file, start, len).await?;
                self.map.lock().insert(start, bytes);
            } else {
                self.sync(refcounts.as_mut().ok_or(BlockError::ReadOnly)?).await?;
            }
        }
    }

    /// Makes everything safe that ended before: refcounts and data first, then what refers to them.
    async fn sync(&self, refcounts: &mut Refcounts) -> Result<(), BlockError> {
        let file = &*self.file;
        refcounts.write_back(file).await?;
        let dirty = self.map.lock().dirty();
        file.flush().await?;
        if !dirty.is_empty() {
            for some in dirty.chunks(WRITTEN_AT_ONCE) {
                let writes =
                    some.iter().map(|at| file.write(*at, Buffer::holding(&self.map.lock().bytes(*at))));
                join::all(writes.collect()).await?;
            }
            file.flush().await?;
            self.map.lock().clean();
        }
        if refcounts.freed() != 0 {
            refcounts.give_back(file, self.abandoned.load(Ordering::Relaxed)).await?;
            // Nobody needs these to be safe, but who looks at the image now finds nothing wrong.
            refcounts.write_back(file).await?;
        }
        Ok(())
    }

    /// Free clusters, up to `most` in a row.
    async fn allocate(&self, refcounts: &mut Refcounts, most: u64) -> Result<Range<u64>, BlockError> {
        match refcounts.allocate(&*self.file, most).await {
            // There may be some that are only waiting for a flush.
            Err(BlockError::NoRoom { .. }) if refcounts.freed() != 0 => {
                self.sync(refcounts).await?;
                refcounts.allocate(&*self.file, most).await
            }
            answer => answer,
        }
    }

    /// Sees to it that the L2 table with this cluster's entry is there, and that no snapshot has it too.
    async fn own_table(&self, refcounts: &mut Refcounts, number: u64) -> Result<(), BlockError> {
        let table = self.map.lock().table(number)?;
        if table.is_some_and(|table| table.own) {
            return Ok(());
        }
        let new = self.allocate(refcounts, 1).await?;
        let at = self.layout().start(new.start);
        let len = self.layout().cluster_size();
        let copied = match table {
            Some(old) => {
                let place = Place { at: old.at, own: false };
                self.copy(Cluster::Data(place), 0..len, at).await
            }
            None => zero(&*self.file, at, len).await,
        };
        if let Err(error) = copied {
            refcounts.release(&*self.file, new).await?;
            return Err(error);
        }
        self.map.lock().set_table(number, at);
        if let Some(old) = table {
            let old = self.layout().number(old.at);
            refcounts.free(old..old.saturating_add(1));
        }
        Ok(())
    }

    /// Gives a cluster another entry, and back what the old one referred to.
    async fn enter(
        &self,
        refcounts: &mut Option<Refcounts>,
        number: u64,
        entry: u64,
    ) -> Result<(), BlockError> {
        let old = self.load(refcounts, number).await?;
        self.map.lock().set(number, entry)?;
        let (old, new) = (self.layout().cluster(old)?, self.layout().cluster(entry)?);
        let (old_range, new_range) = (self.layout().referred(old), self.layout().referred(new));
        if old_range == new_range {
            return Ok(());
        }
        if matches!(old, Cluster::Compressed(_)) {
            *self.expanded.lock() = None;
        }
        let counts = refcounts.as_mut().ok_or(BlockError::ReadOnly)?;
        // Once for each, as they were counted.
        counts.free(old_range);
        if counts.freed() > MOST_FREED {
            self.sync(counts).await?;
        }
        Ok(())
    }

    /// Whether the backing may have something else than zeros there.
    fn is_backed(&self, at: u64) -> bool {
        self.backing.as_ref().is_some_and(|backing| at < backing.geometry().size())
    }

    /// Whether a cluster that begins at `at` is zero.
    fn is_zero(&self, cluster: Cluster, at: u64) -> bool {
        match cluster {
            Cluster::Absent => !self.is_backed(at),
            Cluster::Zero(_) => true,
            Cluster::Data(_) | Cluster::Compressed(_) => false,
        }
    }

    /// Reads what lies at `at`, in one cluster or in several that follow each other in the file or in none.
    async fn read_from(&self, cluster: Cluster, at: u64, into: &Buffer) -> Result<(), BlockError> {
        let within = self.layout().within(at);
        match (cluster, &self.backing) {
            (Cluster::Absent, Some(backing)) => read_or_zeros(&**backing, at, into).await,
            (Cluster::Absent, None) | (Cluster::Zero(_), _) => {
                into.fill(0, 0);
                Ok(())
            }
            (Cluster::Data(place), _) => {
                read_or_zeros(&*self.file, place.at.saturating_add(within), into).await
            }
            (Cluster::Compressed(stream), _) => self.read_compressed(stream, within, into).await,
        }
    }

    async fn read_compressed(&self, stream: Stream, within: u64, into: &Buffer) -> Result<(), BlockError> {
        let part = |cluster: &[u8]| {
            let from = cluster.get(within as usize..).unwrap_or(&[]);
            into.write(0, from.get(..into.len()).unwrap_or(from));
        };
        if let Some((_, cluster)) = self.expanded.lock().as_ref().filter(|(known, _)| *known == stream) {
            part(cluster);
            return Ok(());
        }
        let _one = self.expanding.hold().await;
        // Another's memory is given back first.
        *self.expanded.lock() = None;
        // What had become longer than a cluster would not have been compressed.
        let len = stream.len.min(self.layout().cluster_size().saturating_add(SECTOR));
        let bytes = read_bytes_or_zeros(&*self.file, stream.at, len as usize).await?;
        let mut cluster = vec![0; self.layout().cluster_size() as usize];
        if !compressed::expand(self.header.compression, &bytes, &mut cluster) {
            let what = "a compressed cluster expands to something else than one";
            return Err(BlockError::Damaged { what, at: stream.at });
        }
        part(&cluster);
        *self.expanded.lock() = Some((stream, cluster));
        Ok(())
    }

    /// The `len` bytes at `at`, whose clusters these are, in stretches that can be handled as one.
    fn stretches(&self, at: u64, len: usize, clusters: &[Cluster]) -> impl Iterator<Item = Stretch> {
        let layout = self.layout();
        let end = at.saturating_add(len as u64);
        let mut pieces = clusters.iter().zip(layout.number(at)..).map(move |(cluster, number)| {
            let start = layout.start(number);
            let piece = at.max(start)..end.min(start.saturating_add(layout.cluster_size()));
            Stretch {
                at: piece.start,
                offset: usize::try_from(piece.start.saturating_sub(at)).unwrap_or(usize::MAX),
                len: usize::try_from(piece.end.saturating_sub(piece.start)).unwrap_or(0),
                clusters: 1,
                first: *cluster,
                last: *cluster,
            }
        });
        let mut next = pieces.next();
        core::iter::from_fn(move || {
            let mut stretch = next.take()?;
            for piece in pieces.by_ref() {
                if !self.continues(&stretch, piece.first) {
                    next = Some(piece);
                    break;
                }
                stretch.len = stretch.len.saturating_add(piece.len);
                stretch.clusters = stretch.clusters.saturating_add(1);
                stretch.last = piece.last;
            }
            Some(stretch)
        })
    }

    /// Whether a cluster can be handled as one with those before it.
    fn continues(&self, stretch: &Stretch, cluster: Cluster) -> bool {
        match (stretch.first, cluster) {
            (Cluster::Absent, Cluster::Absent) | (Cluster::Zero(None), Cluster::Zero(None)) => true,
            (Cluster::Data(first), Cluster::Data(place)) => {
                let behind = first.at.saturating_add(self.layout().start(stretch.clusters));
                place.own == first.own && place.at == behind
            }
            _ => false,
        }
    }

    /// A request's bytes in pieces of as many clusters as are looked at at a time.
    fn pieces(&self, at: u64, buffer: &Buffer) -> impl Iterator<Item = (u64, Result<Buffer, BlockError>)> {
        let most = self.layout().start(CLUSTERS_AT_ONCE);
        let (end, within) = (at.saturating_add(buffer.len() as u64), at & most.wrapping_sub(1));
        // All but the first begin with a cluster.
        let starts = (at.saturating_sub(within)..end).step_by(usize::try_from(most).unwrap_or(usize::MAX));
        starts.map(move |start| {
            let (first, behind) = (start.max(at), start.saturating_add(most).min(end));
            let offset = usize::try_from(first.saturating_sub(at)).unwrap_or(usize::MAX);
            let len = usize::try_from(behind.saturating_sub(first)).unwrap_or(usize::MAX);
            (first, part(buffer, offset, len))
        })
    }

    async fn read_all(&self, at: u64, into: &Buffer) -> Result<(), BlockError> {
        for (at, part) in self.pieces(at, into) {
            self.read_at(at, &part?).await?;
        }
        Ok(())
    }

    async fn write_all(&self, at: u64, from: &Buffer) -> Result<(), BlockError> {
        for (at, part) in self.pieces(at, from) {
            self.write_at(at, &part?).await?;
        }
        Ok(())
    }

    async fn read_at(&self, at: u64, into: &Buffer) -> Result<(), BlockError> {
        let numbers = self.layout().clusters(at, into.len() as u64);
        let _claim = self.claims.share(numbers.clone()).await;
        let clusters = self.clusters(numbers).await?;
        if let [cluster] = clusters.as_slice() {
            return self.read_from(*cluster, at, into).await;
        }
        let mut stretches = self.stretches(at, into.len(), &clusters).peekable();
        while stretches.peek().is_some() {
            let mut reads: Vec<Reply<'_>> = Vec::with_capacity(STRETCHES_AT_ONCE);
            for stretch in stretches.by_ref().take(STRETCHES_AT_ONCE) {
                let part = stretch.part(into)?;
                reads.push(Box::pin(async move { self.read_from(stretch.first, stretch.at, &part).await }));
            }
            join::all(reads).await?;
        }
        Ok(())
    }

    async fn write_at(&self, at: u64, from: &Buffer) -> Result<(), BlockError> {
        let numbers = self.layout().clusters(at, from.len() as u64);
        let own = |clusters: &[Cluster]| {
            clusters.iter().all(|cluster| matches!(cluster, Cluster::Data(place) if place.own))
        };
        let mut claim = self.claims.share(numbers.clone()).await;
        let mut clusters = self.clusters(numbers.clone()).await?;
        if !own(&clusters) {
            // What lies where will change: nobody else may be there meanwhile.
            drop(claim);
            claim = self.claims.take(numbers.clone()).await;
            clusters = self.clusters(numbers).await?;
        }
        let mut writes: Vec<Reply<'_>> = Vec::new();
        for stretch in self.stretches(at, from.len(), &clusters) {
            let part = stretch.part(from)?;
            match stretch.first {
                Cluster::Data(place) if place.own => {
                    let within = self.layout().within(stretch.at);
                    writes.push(self.file.write(place.at.saturating_add(within), part));
                    if writes.len() == STRETCHES_AT_ONCE {
                        join::all(core::mem::take(&mut writes)).await?;
                    }
                }
                // One at a time: each is much of our memory.
                _ => self.write_new(&stretch, &part).await?,
            }
        }
        let result = join::all(writes).await;
        drop(claim);
        result
    }

    /// Writes to clusters that have no place of their own yet.
    async fn write_new(&self, stretch: &Stretch, from: &Buffer) -> Result<(), BlockError> {
        let layout = self.layout();
        let numbers = layout.clusters(stretch.at, stretch.len as u64);
        let mut number = numbers.start;
        while number < numbers.end {
            let hosts = {
                let mut refcounts = self.refcounts.lock().await;
                let refcounts = refcounts.as_mut().ok_or(BlockError::ReadOnly)?;
                self.own_table(refcounts, number).await?;
                match stretch.first {
                    // A place is kept for it.
                    Cluster::Zero(Some(Place { at, own: true })) => {
                        let kept = layout.number(at);
                        kept..kept.saturating_add(1)
                    }
                    _ => self.allocate(refcounts, numbers.end.saturating_sub(number)).await?,
                }
            };
            let count = hosts.end.saturating_sub(hosts.start);
            let filled = self.fill(stretch, from, number, &hosts).await;
            let mut refcounts = self.refcounts.lock().await;
            if let Err(error) = filled {
                let kept = matches!(stretch.first, Cluster::Zero(Some(place)) if place.own);
                if let Some(refcounts) = refcounts.as_mut().filter(|_| !kept) {
                    refcounts.release(&*self.file, hosts).await?;
                }
                return Err(error);
            }
            for (host, number) in hosts.zip(number..) {
                if let Some(refcounts) = refcounts.as_mut() {
                    self.own_table(refcounts, number).await?;
                }
                self.enter(&mut refcounts, number, layout.start(host) | COPIED).await?;
            }
            number = number.saturating_add(count);
        }
        Ok(())
    }

    /// Fills new clusters of the file, which become those of the disk from `number` on: with what is written, and
    /// around it with what was there.
    async fn fill(
        &self,
        stretch: &Stretch,
        from: &Buffer,
        number: u64,
        hosts: &Range<u64>,
    ) -> Result<(), BlockError> {
        let layout = self.layout();
        let host = layout.start(hosts.start);
        let start = layout.start(number);
        let end = start.saturating_add(layout.start(hosts.end.saturating_sub(hosts.start)));
        let from_at = stretch.at.max(start);
        let from_end = stretch.at.saturating_add(stretch.len as u64).min(end);
        let len = usize::try_from(from_end.saturating_sub(from_at)).unwrap_or(0);
        let offset = usize::try_from(from_at.saturating_sub(stretch.at)).unwrap_or(usize::MAX);
        let data = part(from, offset, len)?;
        let to = |at: u64| host.saturating_add(at.saturating_sub(start));
        let before = self.copy(stretch.first, start..from_at, to(start));
        let behind = self.copy(stretch.last, from_end..end, to(from_end));
        join::all(vec![Box::pin(before), Box::pin(behind), self.file.write(to(from_at), data)]).await
    }

    /// Copies what the disk has in a range of one cluster.
    async fn copy(&self, cluster: Cluster, range: Range<u64>, to: u64) -> Result<(), BlockError> {
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Ok(());
        }
        let start = self.layout().start(self.layout().number(range.start));
        if self.is_zero(cluster, start) {
            return zero(&*self.file, to, len).await;
        }
        // There is not memory for all that want to copy.
        let copier = self.layout().number(to) as usize % COPIERS;
        let _one = match self.copiers.get(copier) {
            Some(copier) => Some(copier.hold().await),
            None => None,
        };
        let buffer = Buffer::zeroed(len.min(COPIED_AT_ONCE) as usize);
        for at in range.clone().step_by(COPIED_AT_ONCE as usize) {
            let piece = part(&buffer, 0, range.end.saturating_sub(at).min(COPIED_AT_ONCE) as usize)?;
            self.read_from(cluster, at, &piece).await?;
            self.file.write(to.saturating_add(at.saturating_sub(range.start)), piece).await?;
        }
        Ok(())
    }

    /// Makes whole clusters zero without writing zeros; where it cannot be said that they are, zeros are written if
    /// `exact`. What lies in parts of clusters is written too if `exact`, and else is left.
    async fn clear(&self, at: u64, len: u64, exact: bool) -> Result<(), BlockError> {
        let layout = self.layout();
        let end = at.saturating_add(len);
        let first = layout.number(at.saturating_add(layout.cluster_size().wrapping_sub(1)));
        // What of the last cluster the disk has is all of it.
        let last = if end == self.header.size { layout.clusters(0, end).end } else { layout.number(end) };
        if exact {
            let behind = layout.start(last).min(end);
            if first > last || layout.start(first) > end {
                return self.write_zeros(at, len).await;
            }
            self.write_zeros(at, layout.start(first).saturating_sub(at)).await?;
            self.write_zeros(behind, end.saturating_sub(behind)).await?;
        }
        let mut number = first;
        while number < last {
            let behind = last.min(number.saturating_add(CLEARED_AT_ONCE));
            self.clear_clusters(number..behind, exact).await?;
            number = behind;
            if number < last {
                // Where nothing is, all of a disk would be looked through at once.
                pause().await;
            }
        }
        Ok(())
    }

    async fn clear_clusters(&self, numbers: Range<u64>, exact: bool) -> Result<(), BlockError> {
        let layout = self.layout();
        let claim = self.claims.take(numbers.clone()).await;
        let clusters = self.clusters(numbers.clone()).await?;
        let mut rest = Vec::new();
        let mut refcounts = self.refcounts.lock().await;
        for (number, cluster) in numbers.zip(clusters) {
            let start = layout.start(number);
            let entry = match (self.is_backed(start), layout.version) {
                (false, _) => 0,
                (true, 3..) => ZERO,
                (true, _) => {
                    rest.push(start);
                    continue;
                }
            };
            let done = self.is_zero(cluster, start) && layout.referred(cluster).is_empty();
            if done {
                continue;
            }
            let counts = refcounts.as_mut().ok_or(BlockError::ReadOnly)?;
            self.own_table(counts, number).await?;
            self.enter(&mut refcounts, number, entry).await?;
        }
        drop(refcounts);
        drop(claim);
        if exact {
            for start in rest {
                let left = self.header.size.saturating_sub(start);
                self.write_zeros(start, left.min(layout.cluster_size())).await?;
            }
        }
        Ok(())
    }

    /// Writes zeros where there are none yet. There are fewer than two clusters of them.
    async fn write_zeros(&self, at: u64, len: u64) -> Result<(), BlockError> {
        let layout = self.layout();
        let mut done = 0;
        while done < len {
            let at = at.saturating_add(done);
            let number = layout.number(at);
            let cluster_end = layout.start(number).saturating_add(layout.cluster_size());
            let piece = cluster_end.saturating_sub(at).min(len.saturating_sub(done));
            let clusters = self.clusters(number..number.saturating_add(1)).await?;
            let zero = clusters.first().is_some_and(|cluster| self.is_zero(*cluster, layout.start(number)));
            if !zero {
                self.write_at(at, &Buffer::zeros(usize::try_from(piece).unwrap_or(0))).await?;
            }
            done = done.saturating_add(piece);
        }
        Ok(())
    }

    /// Whether a request can be done at all.
    fn check(&self, at: u64, len: u64, writes: bool) -> Result<(), BlockError> {
        let geometry = self.geometry();
        geometry.check(at, len)?;
        if writes && geometry.read_only { Err(BlockError::ReadOnly) } else { Ok(()) }
    }
}

/// A part of a request, in clusters that can be handled as one.
struct Stretch {
    /// On the disk.
    at: u64,
    /// In the request's buffer.
    offset: usize,
    len: usize,
    /// How many clusters.
    clusters: u64,
    /// Where the first lies.
    first: Cluster,
    /// Where the last lies.
    last: Cluster,
}

impl Stretch {
    fn part(&self, buffer: &Buffer) -> Result<Buffer, BlockError> {
        part(buffer, self.offset, self.len)
    }
}

fn part(buffer: &Buffer, offset: usize, len: usize) -> Result<Buffer, BlockError> {
    let size = buffer.len() as u64;
    buffer.slice(offset, len).ok_or(BlockError::OutOfRange { at: offset as u64, len: len as u64, size })
}

/// Says so if it is dropped.
struct Unfinished<'a>(&'a AtomicBool);

impl Unfinished<'_> {
    /// Waits for a request's end, and says so if nobody does.
    async fn watch<T>(self, request: impl Future<Output = T>) -> T {
        let answer = request.await;
        core::mem::forget(self);
        answer
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A table of `len` entries at `at`.
async fn read_table(file: &dyn BlockDevice, at: u64, len: u32) -> Result<Vec<u64>, BlockError> {
    if len != 0 && at >= file.geometry().size() {
        return Err(BlockError::Damaged { what: "a table lies behind the end of the file", at });
    }
    let bytes = read_bytes_or_zeros(file, at, (len as usize).saturating_mul(8)).await?;
    Ok((0..len as usize).map(|index| be_u64(&bytes, index.saturating_mul(8))).collect())
}

impl BlockDevice for Qcow2 {
    fn geometry(&self) -> Geometry {
        let read_only = self.file.geometry().read_only;
        let blocks = self.header.size / SECTOR;
        Geometry { block_size: SECTOR as u32, blocks, read_only, discards: !read_only }
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        Box::pin(async move {
            self.check(at, into.len() as u64, false)?;
            self.read_all(at, &into).await
        })
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        Box::pin(async move {
            self.check(at, from.len() as u64, true)?;
            Unfinished(&self.abandoned).watch(self.write_all(at, &from)).await
        })
    }

    fn flush(&self) -> Reply<'_> {
        Box::pin(async move {
            // Who changes the map meanwhile has not ended, and is not promised anything.
            let dirty = self.map.lock().is_dirty();
            if dirty && let Some(refcounts) = self.refcounts.lock().await.as_mut() {
                return self.sync(refcounts).await;
            }
            self.file.flush().await
        })
    }

    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        Box::pin(async move {
            self.check(at, len, true)?;
            Unfinished(&self.abandoned).watch(self.clear(at, len, false)).await
        })
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        Box::pin(async move {
            self.check(at, len, true)?;
            Unfinished(&self.abandoned).watch(self.clear(at, len, true)).await
        })
    }
}

#[cfg(test)]
mod tests;
