//! VHD images (Microsoft's Virtual Hard Disk Image Format Specification 1.0): fixed, dynamic, and differing from a
//! parent. An image lies at the start of another disk, a file or a partition, whose size stays as it is: a dynamic
//! image grows as far as that has room.

mod header;

use crate::block::{BlockDevice, BlockError, Geometry, Reply, read_bytes, read_or_zeros};
use crate::buffer::Buffer;
use crate::join;
use crate::lock::Lock;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::future::ready;
use core::sync::atomic::{AtomicU64, Ordering};
use header::{Footer, Kind, SparseHeader};
use spin::Mutex;

/// The unit of everything in an image.
const SECTOR: u64 = 512;
/// An entry of the block table whose block is not there.
const ABSENT: u32 = u32::MAX;
/// The number of the last entry in a sector of the block table.
const LAST_WORD: usize = SECTOR as usize / 4 - 1;
/// Blocks of 2 MiB are usual; a larger one than this is nobody's.
const LARGEST_BLOCK: u32 = 256 << 20;
/// Zeros are written in pieces of at most so many bytes.
const ZEROS: u64 = 64 << 10;
/// So many bytes of bitmaps wait for a flush, those of 512 MiB in the usual blocks.
const MOST_MARKED: u64 = 128 << 10;
/// The longest block table, for 512 GiB in the usual blocks.
const MOST_BLOCKS: u32 = 1 << 18;

/// Why an image cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VhdError {
    /// What it lies in cannot be read.
    File(BlockError),
    /// What it lies in has blocks of another size than 512 bytes.
    BlockSize(u32),
    /// There is no footer, neither at the start nor at the end.
    NoFooter,
    /// A structure's checksum is wrong.
    Sum {
        /// Which structure.
        what: &'static str,
        /// What it says.
        found: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// A field has a value that is not possible here.
    Field {
        /// Which field.
        name: &'static str,
        /// What it holds.
        found: u64,
    },
    /// It differs from a parent, and none was given.
    NoParent,
    /// The parent is another disk than the one that it differs from.
    OtherParent,
}

impl fmt::Display for VhdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::BlockSize(found) => write!(f, "it lies in blocks of {found} bytes, expected 512"),
            Self::NoFooter => f.write_str("no VHD footer at the start nor at the end"),
            Self::Sum { what, found, expected } => {
                write!(f, "the {what}'s checksum is {found:#010x}, expected {expected:#010x}")
            }
            Self::Field { name, found } => write!(f, "{name} is {found:#x}, which cannot be"),
            Self::NoParent => f.write_str("it differs from a parent image, which is missing"),
            Self::OtherParent => f.write_str("its parent is another image than the one it differs from"),
        }
    }
}

impl core::error::Error for VhdError {}

impl From<BlockError> for VhdError {
    fn from(error: BlockError) -> Self {
        Self::File(error)
    }
}

/// The disk in an image.
pub struct Vhd {
    file: Arc<dyn BlockDevice>,
    footer: Footer,
    sparse: Option<Sparse>,
}

/// What an image has that is not fixed.
struct Sparse {
    parent: Option<Arc<dyn BlockDevice>>,
    /// Where the block table lies.
    table_at: u64,
    block_size: u64,
    /// The length of the sector bitmap before each block, in bytes.
    bitmap_size: u64,
    /// For each block the sector where its bitmap begins.
    table: Mutex<Vec<u32>>,
    /// Where the next block goes, and the footer lies now.
    end: AtomicU64,
    /// Bitmaps of an image with a parent that are not written yet, by their places.
    marked: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// Blocks are allocated and bitmaps changed by one at a time.
    writing: Lock,
}

/// The image that another differs from.
#[derive(Clone)]
pub struct Parent {
    /// Its [`Vhd::id`].
    pub id: [u8; 16],
    /// What it holds.
    pub disk: Arc<dyn BlockDevice>,
}

impl fmt::Debug for Vhd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vhd").field("footer", &self.footer).finish_non_exhaustive()
    }
}

impl Vhd {
    /// Opens the image in `file`.
    ///
    /// # Errors
    /// It is none, is damaged, or differs from another image than `parent`.
    pub async fn open(file: Arc<dyn BlockDevice>, parent: Option<Parent>) -> Result<Self, VhdError> {
        let block_size = file.geometry().block_size;
        if u64::from(block_size) != SECTOR {
            return Err(VhdError::BlockSize(block_size));
        }
        let footer = read_footer(&*file).await?;
        let sparse = match footer.kind {
            Kind::Fixed => {
                check_fits(&*file, footer.size)?;
                None
            }
            Kind::Dynamic => Some(Sparse::open(&*file, &footer, None).await?),
            Kind::Differencing => Some(Sparse::open(&*file, &footer, Some(parent)).await?),
        };
        Ok(Self { file, footer, sparse })
    }

    /// The name of the parent of the image in `file`, where it has one: a file's, as who made it wrote it.
    ///
    /// # Errors
    /// It is none, or is damaged.
    pub async fn parent_name(file: &dyn BlockDevice) -> Result<Option<String>, VhdError> {
        let footer = read_footer(file).await?;
        if footer.kind != Kind::Differencing {
            return Ok(None);
        }
        let header = read_bytes(file, footer.header_at, header::SPARSE_SIZE).await?;
        SparseHeader::parse(&header)?;
        Ok(Some(header::parent_name(&header)))
    }

    /// What the image in `file` takes of the heap at most while it is open, with so many requests under way, in bytes.
    /// What the file takes comes in addition.
    ///
    /// # Errors
    /// It is none, or is damaged.
    pub async fn memory(file: &dyn BlockDevice, requests: u64) -> Result<u64, VhdError> {
        /// The block table is read twice as bytes; then there are its words, and the places among them.
        const WHILE_READ: u64 = 16;
        /// A request touches a block or two, one after the other.
        const REQUEST: u64 = 4 << 10;
        let footer = read_footer(file).await?;
        if footer.kind == Kind::Fixed {
            return Ok(requests.saturating_mul(REQUEST));
        }
        let header = SparseHeader::parse(&read_bytes(file, footer.header_at, header::SPARSE_SIZE).await?)?;
        let table = u64::from(header.entries.min(MOST_BLOCKS)).saturating_mul(WHILE_READ);
        // A bitmap is never longer than the zeros that are written.
        let kept = MOST_MARKED.saturating_mul(2).saturating_add(ZEROS.saturating_mul(4));
        let kept = kept.saturating_add(requests.saturating_mul(REQUEST));
        Ok(table.max(header::SPARSE_SIZE as u64).saturating_add(kept))
    }

    /// What tells the image from all others.
    pub fn id(&self) -> [u8; 16] {
        self.footer.id
    }

    /// How many bytes of what it lies in it needs.
    pub fn file_size(&self) -> u64 {
        let end = self.sparse.as_ref().map_or(self.footer.size, |sparse| sparse.end.load(Ordering::Relaxed));
        end.saturating_add(SECTOR)
    }
}

fn check_fits(file: &dyn BlockDevice, size: u64) -> Result<(), VhdError> {
    let end = size.checked_add(SECTOR).filter(|end| *end <= file.geometry().size());
    end.map(|_| ()).ok_or(VhdError::Field { name: "the size", found: size })
}

/// A fixed image has its footer at the end alone; others begin with a copy of it.
async fn read_footer(file: &dyn BlockDevice) -> Result<Footer, VhdError> {
    let last = file.geometry().size().checked_sub(SECTOR).ok_or(VhdError::NoFooter)?;
    let first = Footer::parse(&read_bytes(file, 0, SECTOR as usize).await?);
    if first.is_ok() {
        return first;
    }
    // What is wrong with the copy matters only where there is one.
    Footer::parse(&read_bytes(file, last, SECTOR as usize).await?).map_err(|error| match (first, error) {
        (Err(first), VhdError::NoFooter) => first,
        _ => error,
    })
}

impl Sparse {
    /// Reads header and block table. `parent` is the outer `Some` where the image differs from one.
    async fn open(
        file: &dyn BlockDevice,
        footer: &Footer,
        parent: Option<Option<Parent>>,
    ) -> Result<Self, VhdError> {
        let header = SparseHeader::parse(&read_bytes(file, footer.header_at, header::SPARSE_SIZE).await?)?;
        let (entries, block_size) = (header.entries, header.block_size);
        if !block_size.is_power_of_two() || !(SECTOR as u32..=LARGEST_BLOCK).contains(&block_size) {
            return Err(VhdError::Field { name: "the block size", found: block_size.into() });
        }
        let block_size = u64::from(block_size);
        if entries > MOST_BLOCKS || u64::from(entries).saturating_mul(block_size) < footer.size {
            return Err(VhdError::Field { name: "the number of blocks", found: entries.into() });
        }
        let parent = match parent {
            None => None,
            Some(None) => return Err(VhdError::NoParent),
            Some(Some(parent)) if parent.id != header.parent => return Err(VhdError::OtherParent),
            Some(Some(parent)) => match parent.disk.geometry().block_size {
                size if u64::from(size) == SECTOR => Some(parent.disk),
                size => return Err(VhdError::BlockSize(size)),
            },
        };
        let bitmap_size = block_size.div_ceil(SECTOR).div_ceil(8).next_multiple_of(SECTOR);
        let table_len = u64::from(entries).saturating_mul(4).next_multiple_of(SECTOR);
        let table_at = header.table_at;
        let table: Vec<u32> = {
            let bytes = read_bytes(file, table_at, usize::try_from(table_len).unwrap_or(usize::MAX)).await?;
            let (words, _) = bytes.as_chunks();
            words.iter().take(entries as usize).map(|word| u32::from_be_bytes(*word)).collect()
        };
        // Everything ends before the next block, and nothing lies in what came before the first.
        let header_end = footer.header_at.saturating_add(header::SPARSE_SIZE as u64);
        let mut end = table_at.saturating_add(table_len).max(header_end);
        let mut places: Vec<u32> = Vec::with_capacity(table.len());
        places.extend(table.iter().filter(|at| **at != ABSENT));
        places.sort_unstable();
        for at in places {
            let at = u64::from(at).saturating_mul(SECTOR);
            if at < end {
                return Err(VhdError::Field { name: "a block's place", found: at });
            }
            end = at.saturating_add(bitmap_size).saturating_add(block_size);
        }
        if end > file.geometry().size() {
            return Err(VhdError::Field { name: "the last block's end", found: end });
        }
        let (table, end) = (Mutex::new(table), AtomicU64::new(end));
        let (marked, writing) = (Mutex::default(), Lock::default());
        Ok(Self { parent, table_at, block_size, bitmap_size, table, end, marked, writing })
    }

    /// Where the bitmap of the block with this number begins.
    fn place(&self, block: u64) -> Option<u64> {
        let sector = usize::try_from(block).ok().and_then(|block| self.table.lock().get(block).copied())?;
        (sector != ABSENT).then(|| u64::from(sector).saturating_mul(SECTOR))
    }

    /// The `len` bytes at `at`, block by block.
    fn pieces(&self, at: u64, len: u64) -> impl Iterator<Item = Piece> + use<> {
        let (block_size, end) = (self.block_size, at.saturating_add(len));
        let mut next = at;
        core::iter::from_fn(move || {
            let left = end.checked_sub(next).filter(|left| *left > 0)?;
            let within = next & block_size.wrapping_sub(1);
            let len = left.min(block_size.saturating_sub(within));
            let piece = Piece {
                at: next,
                offset: usize::try_from(next.saturating_sub(at)).unwrap_or(usize::MAX),
                len: usize::try_from(len).unwrap_or(usize::MAX),
                block: next.checked_div(block_size).unwrap_or(0),
                within,
            };
            next = next.saturating_add(len);
            Some(piece)
        })
    }

    async fn read(&self, file: &dyn BlockDevice, at: u64, into: &Buffer) -> Result<(), BlockError> {
        for piece in self.pieces(at, into.len() as u64) {
            let buffer = part(into, piece.offset, piece.len)?;
            match self.place(piece.block) {
                None => self.read_parent(piece.at, &buffer).await?,
                Some(place) => self.read_block(file, place, &piece, buffer).await?,
            }
        }
        Ok(())
    }

    /// Reads from one block that is there; sectors that its bitmap lacks come from the parent.
    async fn read_block(
        &self,
        file: &dyn BlockDevice,
        place: u64,
        piece: &Piece,
        buffer: Buffer,
    ) -> Result<(), BlockError> {
        // First the bitmap: what it has then is written already.
        let bitmap = match self.parent {
            None => None,
            Some(_) => Some(self.read_bitmap(file, place).await?),
        };
        file.read(self.data(place, piece.within), buffer.clone()).await?;
        let Some(bitmap) = bitmap else { return Ok(()) };
        for (offset, number) in (0..piece.len).step_by(SECTOR as usize).zip(piece.within / SECTOR..) {
            if !is_set(&bitmap, number) {
                let at = piece.at.saturating_add(offset as u64);
                self.read_parent(at, &part(&buffer, offset, SECTOR as usize)?).await?;
            }
        }
        Ok(())
    }

    /// What is there without this image: the parent's bytes, and zeros where it ends or is none.
    async fn read_parent(&self, at: u64, buffer: &Buffer) -> Result<(), BlockError> {
        match &self.parent {
            Some(parent) => read_or_zeros(&**parent, at, buffer).await,
            None => {
                buffer.fill(0, 0);
                Ok(())
            }
        }
    }

    async fn write(
        &self,
        file: &dyn BlockDevice,
        footer: &Footer,
        at: u64,
        from: &Buffer,
    ) -> Result<(), BlockError> {
        let _one = self.writing.hold().await;
        for piece in self.pieces(at, from.len() as u64) {
            let place = match self.place(piece.block) {
                Some(place) => place,
                None => self.allocate(file, footer, piece.block).await?,
            };
            let buffer = part(from, piece.offset, piece.len)?;
            file.write(self.data(place, piece.within), buffer).await?;
            if self.parent.is_some() {
                self.mark(file, place, &piece).await?;
            }
        }
        Ok(())
    }

    /// Makes these bytes zero; what is not there and has no parent is already.
    async fn write_zeroes(
        &self,
        file: &dyn BlockDevice,
        footer: &Footer,
        at: u64,
        len: u64,
    ) -> Result<(), BlockError> {
        for piece in self.pieces(at, len) {
            if self.parent.is_none() && self.place(piece.block).is_none() {
                continue;
            }
            let end = piece.at.saturating_add(piece.len as u64);
            for at in (piece.at..end).step_by(ZEROS as usize) {
                let len = end.saturating_sub(at).min(ZEROS);
                self.write(file, footer, at, &Buffer::zeros(len as usize)).await?;
            }
        }
        Ok(())
    }

    /// Makes room for a block: behind the last, where the footer was. The table names it only when all of it and
    /// the new footer are safe, so that the image is whole at every moment.
    async fn allocate(&self, file: &dyn BlockDevice, footer: &Footer, block: u64) -> Result<u64, BlockError> {
        let place = self.end.load(Ordering::Relaxed);
        let len = self.bitmap_size.saturating_add(self.block_size);
        let end = place.saturating_add(len);
        let size = file.geometry().size();
        let no_room = BlockError::NoRoom { size };
        if end.saturating_add(SECTOR) > size {
            return Err(no_room);
        }
        let sector = u32::try_from(place / SECTOR).map_err(|_| no_room)?;
        file.write(end, Buffer::holding(&footer.bytes)).await?;
        // Without a parent all sectors are this image's, and zero; with one, none is yet.
        let mark = if self.parent.is_none() { 0xff } else { 0 };
        let bitmap = vec![mark; usize::try_from(self.bitmap_size).unwrap_or(0)];
        file.write(place, Buffer::holding(&bitmap)).await?;
        let data = self.data(place, 0);
        let zeros = Buffer::zeros(self.block_size.min(ZEROS) as usize);
        for at in (data..end).step_by(zeros.len().max(1)) {
            file.write(at, zeros.clone()).await?;
        }
        file.flush().await?;
        // Nobody else is given this place, even where it is not known what became of the entry.
        self.end.store(end, Ordering::Relaxed);
        self.enter(file, block, sector).await?;
        Ok(place)
    }

    /// Names a block's place in the table, on the disk first.
    async fn enter(&self, file: &dyn BlockDevice, block: u64, place: u32) -> Result<(), BlockError> {
        let number = usize::try_from(block).unwrap_or(usize::MAX);
        let in_sector = block.saturating_mul(4) / SECTOR;
        let at = self.table_at.saturating_add(in_sector.saturating_mul(SECTOR));
        let mut sector = read_bytes(file, at, SECTOR as usize).await?;
        let (words, _) = sector.as_chunks_mut();
        if let Some(word) = words.get_mut(number & LAST_WORD) {
            *word = place.to_be_bytes();
        }
        file.write(at, Buffer::holding(&sector)).await?;
        if let Some(entry) = self.table.lock().get_mut(number) {
            *entry = place;
        }
        Ok(())
    }

    /// Marks sectors of a block as this image's own: in memory, for their bytes have to be safe first.
    async fn mark(&self, file: &dyn BlockDevice, place: u64, piece: &Piece) -> Result<(), BlockError> {
        let mut bitmap = self.read_bitmap(file, place).await?;
        let first = piece.within / SECTOR;
        let mut news = false;
        for number in first..first.saturating_add(piece.len as u64 / SECTOR) {
            let byte = usize::try_from(number / 8).ok().and_then(|byte| bitmap.get_mut(byte));
            if let Some(byte) = byte {
                let bit = 0x80 >> (number % 8);
                news |= *byte & bit == 0;
                *byte |= bit;
            }
        }
        if !news {
            return Ok(());
        }
        let marked = {
            let mut marked = self.marked.lock();
            marked.insert(place, bitmap);
            marked.len()
        };
        if (marked as u64).saturating_mul(self.bitmap_size) > MOST_MARKED {
            self.write_marks(file).await
        } else {
            Ok(())
        }
    }

    /// Writes the bitmaps that are in memory, between two flushes. The caller alone changes them.
    async fn write_marks(&self, file: &dyn BlockDevice) -> Result<(), BlockError> {
        file.flush().await?;
        let marked = self.marked.lock().clone();
        let writes = marked.iter().map(|(place, bitmap)| file.write(*place, Buffer::holding(bitmap)));
        join::all(writes.collect()).await?;
        file.flush().await?;
        self.marked.lock().clear();
        Ok(())
    }

    /// Makes what has ended safe.
    async fn flush(&self, file: &dyn BlockDevice) -> Result<(), BlockError> {
        let marked = !self.marked.lock().is_empty();
        if marked {
            let _one = self.writing.hold().await;
            return self.write_marks(file).await;
        }
        file.flush().await
    }

    async fn read_bitmap(&self, file: &dyn BlockDevice, place: u64) -> Result<Vec<u8>, BlockError> {
        let marked = self.marked.lock().get(&place).cloned();
        if let Some(bitmap) = marked {
            return Ok(bitmap);
        }
        read_bytes(file, place, usize::try_from(self.bitmap_size).unwrap_or(usize::MAX)).await
    }

    /// Where a byte of the block lies whose bitmap begins at `place`.
    fn data(&self, place: u64, within: u64) -> u64 {
        place.saturating_add(self.bitmap_size).saturating_add(within)
    }
}

/// What of a request lies in one block.
struct Piece {
    /// On the disk.
    at: u64,
    /// In the request's buffer.
    offset: usize,
    len: usize,
    block: u64,
    /// In the block.
    within: u64,
}

/// The part of a buffer that a piece of the request is about.
fn part(buffer: &Buffer, offset: usize, len: usize) -> Result<Buffer, BlockError> {
    let size = buffer.len() as u64;
    buffer.slice(offset, len).ok_or(BlockError::OutOfRange { at: offset as u64, len: len as u64, size })
}

/// Whether a bitmap has the bit with this number; the highest bit of a byte is its first.
fn is_set(bitmap: &[u8], number: u64) -> bool {
    let byte = usize::try_from(number / 8).ok().and_then(|byte| bitmap.get(byte));
    byte.is_some_and(|byte| byte << (number % 8) & 0x80 != 0)
}

impl BlockDevice for Vhd {
    fn geometry(&self) -> Geometry {
        let read_only = self.file.geometry().read_only;
        Geometry { block_size: SECTOR as u32, blocks: self.footer.size / SECTOR, read_only, discards: false }
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        Box::pin(async move {
            self.geometry().check(at, into.len() as u64)?;
            match &self.sparse {
                None => self.file.read(at, into).await,
                Some(sparse) => sparse.read(&*self.file, at, &into).await,
            }
        })
    }

    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        Box::pin(async move {
            self.geometry().check(at, from.len() as u64)?;
            match &self.sparse {
                None => self.file.write(at, from).await,
                Some(sparse) => sparse.write(&*self.file, &self.footer, at, &from).await,
            }
        })
    }

    fn flush(&self) -> Reply<'_> {
        match &self.sparse {
            None => self.file.flush(),
            Some(sparse) => Box::pin(sparse.flush(&*self.file)),
        }
    }

    fn discard(&self, _at: u64, _len: u64) -> Reply<'_> {
        Box::pin(ready(Err(BlockError::Unsupported)))
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        Box::pin(async move {
            self.geometry().check(at, len)?;
            match &self.sparse {
                None => self.file.write_zeroes(at, len).await,
                Some(sparse) => sparse.write_zeroes(&*self.file, &self.footer, at, len).await,
            }
        })
    }
}

#[cfg(test)]
mod tests;
