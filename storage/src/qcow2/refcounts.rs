//! How many refer to each cluster of the image's file, and which are free.

use super::cache::Cache;
use super::header::{Header, MOST_REFCOUNT_BLOCKS, move_refcounts};
use super::layout::Layout;
use super::{Qcow2Error, WRITTEN_AT_ONCE, read_table};
use crate::block::{BlockDevice, BlockError, read_bytes_or_zeros, zero};
use crate::buffer::Buffer;
use crate::fields::{array, put};
use alloc::vec::Vec;
use core::ops::Range;

/// How many slices of refcount blocks are kept: 256 KiB, of 8 GiB in clusters of 64 KiB.
pub const SLICES: usize = 64;
/// The refcount table is written in sectors of so many bytes.
const SECTOR: u64 = 512;

/// The refcounts of an image that is written.
///
/// A count may be too high after a loss of power, which costs room until the image is opened again, but never too
/// low: it is raised before something on the disk refers to the cluster, and lowered when nothing does any more.
pub struct Refcounts {
    layout: Layout,
    table_at: u64,
    /// How many clusters the table has.
    clusters: u64,
    /// What of it counts clusters that the file has room for.
    table: Vec<u64>,
    blocks: Cache,
    /// No cluster before this one is free.
    next: u64,
    /// How many clusters the file has room for.
    limit: u64,
    /// Clusters to which the tables in memory refer no longer, but those on the disk do.
    freed: Vec<Range<u64>>,
}

impl Refcounts {
    /// The refcounts of the image with this header.
    pub async fn read(file: &dyn BlockDevice, header: &Header) -> Result<Self, Qcow2Error> {
        let layout = header.layout;
        let (table_at, clusters) = (header.refcounts_at, u64::from(header.refcount_clusters));
        let limit = layout.number(file.geometry().size());
        // What counts clusters behind the end of the file counts nothing.
        let needed = limit.wrapping_shr(layout.refcount_bits()).saturating_add(1);
        let len = needed.min(clusters.saturating_mul(layout.cluster_size() / 8));
        if len > MOST_REFCOUNT_BLOCKS {
            return Err(Qcow2Error::Field { name: "the refcount table's length", found: clusters });
        }
        let table = read_table(file, table_at, u32::try_from(len).unwrap_or(0)).await?;
        let blocks = Cache::new(layout.slice_size(), SLICES);
        Ok(Self { layout, table_at, clusters, table, blocks, next: 1, limit, freed: Vec::new() })
    }

    /// The clusters that the table lies in.
    pub fn table_clusters(&self) -> Range<u64> {
        let first = self.layout.number(self.table_at);
        first..first.saturating_add(self.clusters)
    }

    /// Where the blocks are that there are.
    pub fn blocks(&self) -> impl Iterator<Item = Result<u64, BlockError>> + '_ {
        let blocks = self.table.iter().map(|entry| self.layout.table(*entry, WRONG_BLOCK));
        blocks.filter_map(Result::transpose)
    }

    /// The number of the cluster behind the last that a block counts.
    pub fn counted(&self) -> u64 {
        let last = self.table.iter().rposition(|entry| *entry != 0);
        let blocks = last.map_or(0, |last| (last as u64).saturating_add(1));
        blocks.wrapping_shl(self.layout.refcount_bits())
    }

    /// Says that no cluster before this one is free.
    pub const fn start_at(&mut self, next: u64) {
        self.next = next;
    }

    /// The block that counts the cluster with this number; `None` where there is none.
    fn block(&self, number: u64) -> Result<Option<u64>, BlockError> {
        let index = usize::try_from(number.wrapping_shr(self.layout.refcount_bits())).unwrap_or(usize::MAX);
        self.layout.table(self.table.get(index).copied().unwrap_or(0), WRONG_BLOCK)
    }

    /// Whether some block counts it.
    pub fn is_counted(&self, number: u64) -> Result<bool, BlockError> {
        Ok(self.block(number)?.is_some())
    }

    /// Which of a block's counts it is.
    const fn in_block(&self, number: u64) -> u64 {
        number & 1_u64.wrapping_shl(self.layout.refcount_bits()).wrapping_sub(1)
    }

    /// Where the byte lies that its count begins in.
    fn place(&self, number: u64) -> Result<Option<u64>, BlockError> {
        let byte = self.in_block(number).wrapping_shl(self.layout.refcount_order) / 8;
        Ok(self.block(number)?.map(|block| block.saturating_add(byte)))
    }

    /// Brings the slice in that has the byte at `at`.
    async fn load(&mut self, file: &dyn BlockDevice, at: u64) -> Result<(), BlockError> {
        if self.blocks.get(at).is_some() {
            return Ok(());
        }
        if !self.blocks.make_room() {
            self.write_back(file).await?;
            self.blocks.make_room();
        }
        let start = self.blocks.start(at);
        let bytes = read_bytes_or_zeros(file, start, self.blocks.slice_size()).await?;
        self.blocks.insert(start, bytes);
        Ok(())
    }

    /// How many refer to a cluster.
    pub async fn get(&mut self, file: &dyn BlockDevice, number: u64) -> Result<u64, BlockError> {
        let Some(at) = self.place(number)? else { return Ok(0) };
        self.load(file, at).await?;
        let count = count_in(self.layout.refcount_order, self.in_block(number));
        Ok(self.blocks.get(at).map_or(0, |(bytes, offset)| count.read(bytes, offset)))
    }

    /// The counts from this number on that lie together, at most to `end`.
    pub async fn some(&mut self, file: &dyn BlockDevice, range: Range<u64>) -> Result<Vec<u64>, BlockError> {
        let order = self.layout.refcount_order;
        let in_slice = (self.blocks.slice_size() as u64).saturating_mul(8).wrapping_shr(order);
        let left = in_slice.saturating_sub(range.start & in_slice.wrapping_sub(1));
        let range = range.start..range.end.min(range.start.saturating_add(left));
        let Some(at) = self.place(range.start)? else {
            return Ok(range.map(|_| 0).collect());
        };
        self.load(file, at).await?;
        let Some((bytes, _)) = self.blocks.get(at) else { return Err(BlockError::Failed) };
        let each = range.map(|number| {
            let bit = (number & in_slice.wrapping_sub(1)).wrapping_shl(order);
            count_in(order, number).read(bytes, (bit / 8) as usize)
        });
        Ok(each.collect())
    }

    /// Says how many refer to a cluster that a block counts.
    pub async fn set(&mut self, file: &dyn BlockDevice, number: u64, value: u64) -> Result<(), BlockError> {
        let missing = BlockError::Damaged { what: "no refcount block counts the cluster", at: number };
        let at = self.place(number)?.ok_or(missing)?;
        self.load(file, at).await?;
        let count = count_in(self.layout.refcount_order, self.in_block(number));
        if value > count.most {
            return Err(BlockError::Damaged { what: "more references than can be counted to", at: number });
        }
        let Some((bytes, offset)) = self.blocks.get(at) else { return Err(BlockError::Failed) };
        let (value, len) = count.write(bytes, offset, value);
        self.blocks.put(at, value.get(..len).unwrap_or(&value));
        Ok(())
    }

    /// Takes up to `most` free clusters that lie in a row, at least one.
    pub async fn allocate(&mut self, file: &dyn BlockDevice, most: u64) -> Result<Range<u64>, BlockError> {
        let mut number = self.next;
        loop {
            if number >= self.limit {
                return Err(BlockError::NoRoom { size: file.geometry().size() });
            }
            if number.wrapping_shr(self.layout.refcount_bits()) >= self.table.len() as u64 {
                self.grow(file).await?;
            } else if !self.is_counted(number)? {
                self.add_block(file, number, number).await?;
            } else {
                match self.free_from(file, number).await? {
                    Ok(free) => {
                        number = free;
                        break;
                    }
                    Err(next) => {
                        number = next;
                        self.next = next;
                    }
                }
            }
        }
        let first = number;
        while number < self.limit.min(first.saturating_add(most.max(1)))
            && self.is_counted(number)?
            && self.get(file, number).await? == 0
        {
            self.set(file, number, 1).await?;
            number = number.saturating_add(1);
        }
        self.next = number;
        Ok(first..number)
    }

    /// The first free cluster that is counted together with this one, or else the number behind those.
    async fn free_from(
        &mut self,
        file: &dyn BlockDevice,
        number: u64,
    ) -> Result<Result<u64, u64>, BlockError> {
        let counts = self.some(file, number..self.limit).await?;
        let free = counts.iter().position(|count| *count == 0);
        let behind = number.saturating_add(counts.len() as u64);
        Ok(free.map(|free| number.saturating_add(free as u64)).ok_or(behind))
    }

    /// Puts a new block, for the counts of `number` and its neighbours, into the free cluster `place`. It is safe
    /// on the disk, with its own count if that is one of these, before the table refers to it.
    pub async fn add_block(
        &mut self,
        file: &dyn BlockDevice,
        number: u64,
        place: u64,
    ) -> Result<(), BlockError> {
        let bits = self.layout.refcount_bits();
        let index = number.wrapping_shr(bits);
        let at = self.layout.start(place);
        let own = self.in_block(place);
        self.write_block(
            file,
            at,
            if place.wrapping_shr(bits) == index { own..own.saturating_add(1) } else { 0..0 },
        )
        .await?;
        file.flush().await?;
        let sector = index.saturating_mul(8) / SECTOR;
        let first = sector.saturating_mul(SECTOR / 8);
        let entries = self.table.iter().zip(0..).skip(first as usize).take(SECTOR as usize / 8);
        let mut bytes: Vec<u8> =
            entries.flat_map(|(entry, n)| if n == index { at } else { *entry }.to_be_bytes()).collect();
        bytes.resize(SECTOR as usize, 0);
        let sector_at = self.table_at.saturating_add(sector.saturating_mul(SECTOR));
        file.write(sector_at, Buffer::holding(&bytes)).await?;
        self.blocks.forget(at..at.saturating_add(self.layout.cluster_size()));
        if let Some(entry) = usize::try_from(index).ok().and_then(|index| self.table.get_mut(index)) {
            *entry = at;
        }
        Ok(())
    }

    /// Writes a new block, whose counts are zero but for some of one.
    async fn write_block(&self, file: &dyn BlockDevice, at: u64, ones: Range<u64>) -> Result<(), BlockError> {
        let order = self.layout.refcount_order;
        zero(file, at, self.layout.cluster_size()).await?;
        // So many are in a sector.
        let some = (SECTOR * 8).wrapping_shr(order);
        let first = ones.start.saturating_sub(ones.start & some.wrapping_sub(1));
        for (number, sector) in
            (first..ones.end).step_by(some as usize).zip(first.wrapping_shl(order) / 8 / SECTOR..)
        {
            let mut bytes = [0; SECTOR as usize];
            for count in ones.start.max(number)..ones.end.min(number.saturating_add(some)) {
                set_in(&mut bytes, order, count.saturating_sub(number), 1);
            }
            let sector_at = at.saturating_add(sector.saturating_mul(SECTOR));
            file.write(sector_at, Buffer::holding(&bytes)).await?;
        }
        Ok(())
    }

    /// Moves the table to where it may be twice as long: behind everything that it counts now, together with the
    /// blocks that count the new place. The header is what makes it the table.
    async fn grow(&mut self, file: &dyn BlockDevice) -> Result<(), BlockError> {
        let layout = self.layout;
        let bits = layout.refcount_bits();
        let no_room = BlockError::NoRoom { size: file.geometry().size() };
        let old_clusters = self.table_clusters();
        let old_len = self.table.len() as u64;
        let covered = old_len.wrapping_shl(bits);
        let clusters = old_len.saturating_mul(16).div_ceil(layout.cluster_size());
        let mut blocks = 1_u64;
        while blocks.wrapping_shl(bits) < blocks.saturating_add(clusters) {
            blocks = blocks.saturating_add(1);
        }
        let used = blocks.saturating_add(clusters);
        let len = clusters.saturating_mul(layout.cluster_size() / 8);
        if covered.saturating_add(used) > self.limit
            || len > MOST_REFCOUNT_BLOCKS
            || old_len.saturating_add(blocks) > len
        {
            return Err(no_room);
        }
        self.write_back(file).await?;
        let mut table = self.table.clone();
        for index in 0..blocks {
            let first = index.wrapping_shl(bits);
            let at = layout.start(covered.saturating_add(index));
            let ones = used.saturating_sub(first).min(1_u64.wrapping_shl(bits));
            self.write_block(file, at, 0..ones).await?;
            table.push(at);
        }
        table.resize(len as usize, 0);
        let at = layout.start(covered.saturating_add(blocks));
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        file.write(at, Buffer::holding(&bytes)).await?;
        file.flush().await?;
        move_refcounts(file, at, u32::try_from(clusters).unwrap_or(u32::MAX)).await?;
        let new = layout.start(covered)..layout.start(covered.saturating_add(used));
        self.blocks.forget(new);
        (self.table, self.table_at, self.clusters) = (table, at, clusters);
        for number in old_clusters {
            self.lower(file, number).await?;
        }
        Ok(())
    }

    /// Gives back clusters that nothing on the disk refers to.
    pub async fn release(&mut self, file: &dyn BlockDevice, range: Range<u64>) -> Result<(), BlockError> {
        for number in range {
            self.lower(file, number).await?;
        }
        Ok(())
    }

    async fn lower(&mut self, file: &dyn BlockDevice, number: u64) -> Result<(), BlockError> {
        let count = self.get(file, number).await?;
        if count != 0 {
            self.set(file, number, count.saturating_sub(1)).await?;
        }
        if count == 1 {
            self.next = self.next.min(number);
        }
        Ok(())
    }

    /// Remembers that clusters are not referred to any more, once what is in memory is on the disk.
    pub fn free(&mut self, range: Range<u64>) {
        match self.freed.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.freed.push(range),
        }
    }

    /// How many such ranges there are.
    pub const fn freed(&self) -> usize {
        self.freed.len()
    }

    /// The disk refers to these no longer: they may be used again, but for where `keep` says that they may not.
    pub async fn give_back(&mut self, file: &dyn BlockDevice, keep: bool) -> Result<(), BlockError> {
        let freed = core::mem::take(&mut self.freed);
        for range in freed.into_iter().filter(|_| !keep) {
            self.release(file, range).await?;
        }
        Ok(())
    }

    /// Writes all changes; a flush makes them safe.
    pub async fn write_back(&mut self, file: &dyn BlockDevice) -> Result<(), BlockError> {
        let dirty: Vec<u64> = self.blocks.dirty().collect();
        for some in dirty.chunks(WRITTEN_AT_ONCE) {
            let slices = some.iter().filter_map(|at| Some((*at, self.blocks.get(*at)?.0.to_vec())));
            let slices: Vec<(u64, Vec<u8>)> = slices.collect();
            let writes = slices.iter().map(|(at, bytes)| file.write(*at, Buffer::holding(bytes)));
            crate::join::all(writes.collect()).await?;
        }
        self.blocks.clean();
        Ok(())
    }
}

const WRONG_BLOCK: &str = "the refcount table points into a cluster";

/// One count: where in its first byte it begins, and how long it is. Those that share a byte begin with its lowest
/// bits; of longer ones the high byte comes first.
struct Count {
    order: u32,
    shift: u32,
    most: u64,
}

const fn count_in(order: u32, number: u64) -> Count {
    let bits = 1_u32.wrapping_shl(order);
    let shift = if order < 3 { (number.wrapping_shl(order) & 7) as u32 } else { 0 };
    let most = u64::MAX.wrapping_shr(64_u32.saturating_sub(bits));
    Count { order, shift, most }
}

impl Count {
    fn read(&self, bytes: &[u8], offset: usize) -> u64 {
        match self.order {
            0..=2 => {
                let [byte] = array(bytes, offset);
                u64::from(byte).wrapping_shr(self.shift) & self.most
            }
            3 => u64::from(u8::from_be_bytes(array(bytes, offset))),
            4 => u64::from(u16::from_be_bytes(array(bytes, offset))),
            5 => u64::from(u32::from_be_bytes(array(bytes, offset))),
            _ => u64::from_be_bytes(array(bytes, offset)),
        }
    }

    /// The bytes that say `value`, and how many of them there are.
    fn write(&self, bytes: &[u8], offset: usize, value: u64) -> ([u8; 8], usize) {
        let (value, len) = match self.order {
            0..=2 => {
                let [byte] = array::<1>(bytes, offset);
                let mask = self.most.wrapping_shl(self.shift);
                (u64::from(byte) & !mask | value.wrapping_shl(self.shift) & mask, 1)
            }
            order => (value, 1_usize.wrapping_shl(order.saturating_sub(3))),
        };
        let unused = 64_u32.saturating_sub((len as u32).saturating_mul(8));
        (value.wrapping_shl(unused).to_be_bytes(), len)
    }
}

fn set_in(block: &mut [u8], order: u32, number: u64, value: u64) {
    let count = count_in(order, number);
    let offset = (number.wrapping_shl(order) / 8) as usize;
    let (bytes, len) = count.write(block, offset, value);
    put(block, offset, bytes.get(..len).unwrap_or(&bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_stand_side_by_side() {
        for order in 0..=6 {
            let mut block = vec![0; 512];
            let most = count_in(order, 0).most;
            let numbers = 0..(512 * 8) >> order;
            for number in numbers.clone() {
                set_in(&mut block, order, number, number & most);
            }
            for number in numbers {
                let offset = ((number << order) / 8) as usize;
                let found = count_in(order, number).read(&block, offset);
                assert_eq!(found, number & most, "{number} of order {order}");
            }
        }
        let mut block = vec![0; 8];
        set_in(&mut block, 4, 1, 0x0102);
        set_in(&mut block, 1, 1, 3);
        assert_eq!(block, [0b1100, 0, 1, 2, 0, 0, 0, 0]);
    }
}
