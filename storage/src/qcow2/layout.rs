//! How an image divides itself, and what the entries of its tables say.

use crate::block::BlockError;
use core::ops::Range;

/// The bits of an entry that are a place: 9 to 55.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is referred to by nothing else, and may be written in place.
pub const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, wherever it lies. Version 3 alone has it.
pub const ZERO: u64 = 1;
/// Tables are read, kept and written in slices of at most so many bytes.
const LONGEST_SLICE: u64 = 4096;

/// How an image divides itself.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has two to the power of so many bytes: 9 to 21.
    pub cluster_bits: u32,
    /// A refcount has two to the power of so many bits: 0 to 6.
    pub refcount_order: u32,
}

/// Where the disk has a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// Where the backing has it; there are zeros without one.
    Absent,
    /// It is zero. A place may be kept for it all the same.
    Zero(Option<Place>),
    /// In the image.
    Data(Place),
    /// In the image, compressed.
    Compressed(Stream),
}

/// A cluster in the image's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it begins.
    pub at: u64,
    /// Nothing else refers to it.
    pub own: bool,
}

/// A compressed cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Where it begins, at any byte.
    pub at: u64,
    /// The most bytes it has; it may end before.
    pub len: u64,
}

impl Layout {
    /// In bytes.
    pub const fn cluster_size(&self) -> u64 {
        1_u64.wrapping_shl(self.cluster_bits)
    }

    /// The number of the cluster that a byte lies in.
    pub const fn number(&self, at: u64) -> u64 {
        at.wrapping_shr(self.cluster_bits)
    }

    /// Where the cluster with this number begins.
    pub const fn start(&self, number: u64) -> u64 {
        number.saturating_mul(self.cluster_size())
    }

    /// Where in its cluster a byte lies.
    pub const fn within(&self, at: u64) -> u64 {
        at & self.cluster_size().wrapping_sub(1)
    }

    /// The numbers of the clusters that `len` bytes at `at` touch.
    pub const fn clusters(&self, at: u64, len: u64) -> Range<u64> {
        let end = at.saturating_add(len);
        self.number(at)..self.number(end.saturating_add(self.cluster_size().wrapping_sub(1)))
    }

    /// Whether a table or cluster can begin there: with a cluster, and not with the first.
    pub const fn is_place(&self, at: u64) -> bool {
        at != 0 && self.within(at) == 0
    }

    /// How many entries an L2 table has, as a power of two.
    pub const fn l2_bits(&self) -> u32 {
        self.cluster_bits.saturating_sub(3)
    }

    /// How many entries the L1 table of a disk of this size must have.
    pub const fn l1_entries(&self, size: u64) -> u64 {
        let bits = self.cluster_bits.saturating_add(self.l2_bits());
        size.div_ceil(1_u64.wrapping_shl(bits))
    }

    /// The index in the L1 table of the cluster with this number.
    pub fn l1_index(&self, number: u64) -> usize {
        usize::try_from(number.wrapping_shr(self.l2_bits())).unwrap_or(usize::MAX)
    }

    /// Where in its L2 table a cluster's entry lies.
    pub const fn l2_offset(&self, number: u64) -> u64 {
        (number & 1_u64.wrapping_shl(self.l2_bits()).wrapping_sub(1)).saturating_mul(8)
    }

    /// The length of a slice of a table in bytes: a power of two, no more than a cluster.
    pub const fn slice_size(&self) -> u64 {
        let cluster = self.cluster_size();
        if cluster < LONGEST_SLICE { cluster } else { LONGEST_SLICE }
    }

    /// How many refcounts a refcount block has, as a power of two.
    pub const fn refcount_bits(&self) -> u32 {
        self.cluster_bits.saturating_add(3).saturating_sub(self.refcount_order)
    }

    /// Where an entry of an L1 or refcount table points to; `None` where it points nowhere.
    pub fn table(&self, entry: u64, what: &'static str) -> Result<Option<u64>, BlockError> {
        match entry & PLACE {
            0 => Ok(None),
            at if self.is_place(at) => Ok(Some(at)),
            at => Err(BlockError::Damaged { what, at }),
        }
    }

    /// What an entry of an L2 table says.
    pub fn cluster(&self, entry: u64) -> Result<Cluster, BlockError> {
        if entry & COMPRESSED != 0 {
            // What the place leaves of 62 bits is the number of further sectors.
            let bits = 70_u32.saturating_sub(self.cluster_bits);
            let at = entry & 1_u64.wrapping_shl(bits).wrapping_sub(1);
            let sectors = (entry & COMPRESSED.wrapping_sub(1)).wrapping_shr(bits);
            let len = sectors.saturating_add(1).saturating_mul(512).saturating_sub(at & 511);
            return Ok(Cluster::Compressed(Stream { at, len }));
        }
        let zero = entry & ZERO != 0;
        if zero && self.version < 3 {
            return Err(BlockError::Damaged {
                what: "an L2 entry of version 2 with a bit of version 3",
                at: entry,
            });
        }
        let place = self.table(entry, "an L2 entry points into a cluster")?;
        let place = place.map(|at| Place { at, own: entry & COPIED != 0 });
        Ok(match (zero, place) {
            (true, place) => Cluster::Zero(place),
            (false, None) => Cluster::Absent,
            (false, Some(place)) => Cluster::Data(place),
        })
    }

    /// The numbers of the file's clusters that an entry of an L2 table refers to.
    pub fn referred(&self, cluster: Cluster) -> Range<u64> {
        match cluster {
            Cluster::Absent | Cluster::Zero(None) => 0..0,
            Cluster::Zero(Some(place)) | Cluster::Data(place) => {
                let number = self.number(place.at);
                number..number.saturating_add(1)
            }
            Cluster::Compressed(stream) => self.clusters(stream.at, stream.len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { version: 3, cluster_bits: 16, refcount_order: 4 };

    #[test]
    fn entries_say_where_clusters_lie() {
        assert_eq!(LAYOUT.cluster(0), Ok(Cluster::Absent));
        assert_eq!(LAYOUT.cluster(1), Ok(Cluster::Zero(None)));
        let place = Place { at: 0x50_0000, own: true };
        assert_eq!(LAYOUT.cluster(COPIED | 0x50_0000), Ok(Cluster::Data(place)));
        assert_eq!(LAYOUT.cluster(0x50_0001), Ok(Cluster::Zero(Some(Place { own: false, ..place }))));
        assert!(LAYOUT.cluster(0x50_0200).is_err());
        // 54 bits of place, then sectors.
        let stream = Stream { at: 0x1_2345, len: 3 * 512 - 0x145 };
        assert_eq!(LAYOUT.cluster(COMPRESSED | 2 << 54 | 0x1_2345), Ok(Cluster::Compressed(stream)));
        assert_eq!(LAYOUT.referred(Cluster::Compressed(Stream { at: 0x1_ff00, len: 0x100 })), 1..2);
        assert_eq!(LAYOUT.referred(Cluster::Compressed(Stream { at: 0x1_ff00, len: 0x101 })), 1..3);
        assert!(Layout { version: 2, ..LAYOUT }.cluster(1).is_err());
    }

    #[test]
    fn tables_are_as_long_as_the_disk_needs() {
        assert_eq!(LAYOUT.l1_entries(0), 0);
        assert_eq!(LAYOUT.l1_entries(512 << 20), 1);
        assert_eq!(LAYOUT.l1_entries((512 << 20) + 1), 2);
        assert_eq!((LAYOUT.l1_index(8192), LAYOUT.l2_offset(8193)), (1, 8));
        assert_eq!(LAYOUT.clusters(0x1_0000, 0x1_0001), 1..3);
        assert_eq!(LAYOUT.clusters(0x1_ffff, 1), 1..2);
        assert_eq!(LAYOUT.clusters(0x1_ffff, 0), 1..2);
    }
}
