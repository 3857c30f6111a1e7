//! Inodes, and the two ways in which they say where their blocks are (Linux's documentation, "Index Nodes").

use super::Ext4;
use super::checksum::crc32c;
use crate::fields;
use crate::files::FileKind;
use crate::files::error::FileError;
use crate::files::extents::Extents;
use alloc::vec::Vec;

/// Flag: its bytes are compressed.
pub const COMPRESSED: u32 = 0x4;
/// Flag: it must not be changed.
pub const IMMUTABLE: u32 = 0x10;
/// Flag: its bytes are encrypted.
pub const ENCRYPTED: u32 = 0x800;
/// Flag: its blocks are in a tree of extents.
pub const EXTENTS: u32 = 0x8_0000;
/// Flag: its bytes are signed.
pub const VERITY: u32 = 0x10_0000;
/// Flag: its bytes are in the inode.
pub const INLINE_DATA: u32 = 0x1000_0000;

/// Where an inode has its tree, its map, or its first bytes, and how many these are.
const BLOCK: usize = 0x28;
const BLOCK_LEN: usize = 60;
/// Links that are longer have blocks.
const SHORT_LINK: u64 = 59;

/// What a node of the tree begins with.
const TREE_MAGIC: u16 = 0xf30a;
/// Linux makes no deeper trees.
const DEEPEST: u16 = 5;
/// The length of a node's header, and of each entry, in bytes.
const ENTRY: usize = 12;
/// An extent that is longer is one of so many blocks less, and unwritten.
const LONGEST: u16 = 0x8000;
/// How many entries of trees and maps are read for one file, so that a damaged one has an end: enough for 64 GiB
/// in blocks of 4 KiB that no extent joins.
const MOST_ENTRIES: usize = 1 << 24;
/// How many blocks of a tree or map are read for one file.
const MOST_NODES: usize = 1 << 16;

/// The magic number before the attributes in an inode.
const ATTRIBUTES_MAGIC: u32 = 0xea02_0000;
/// The name space of the attribute `system.data`.
const SYSTEM: u8 = 7;

/// A file, a directory, or a link.
pub struct Inode {
    /// What it is and who may do what.
    mode: u16,
    /// Its length in bytes.
    pub size: u64,
    /// What is special about it.
    pub flags: u32,
    /// What the checksums of its blocks begin with, where they have any.
    pub seed: Option<u32>,
    bytes: Vec<u8>,
}

impl Inode {
    /// The inode that `bytes` are.
    pub fn parse(number: u32, bytes: &[u8], seed: Option<u32>) -> Result<Self, FileError> {
        let seed =
            seed.map(|seed| crc32c(crc32c(seed, &number.to_le_bytes()), &fields::array::<4>(bytes, 0x64)));
        if let Some(seed) = seed {
            // The upper half of the checksum is where older inodes end.
            let wide = bytes.len() > 128 && fields::u16(bytes, 0x80) >= 4;
            let mut own = bytes.to_vec();
            let high = if wide { 0x82..0x84 } else { 0..0 };
            for place in [0x7c..0x7e, high] {
                own.get_mut(place).unwrap_or_default().fill(0);
            }
            let sum = crc32c(seed, &own);
            let high_fits = !wide || fields::u16(bytes, 0x82) == (sum >> 16) as u16;
            if fields::u16(bytes, 0x7c) != sum as u16 || !high_fits {
                return Err(FileError::Checksum { what: "inode", number: u64::from(number) });
            }
        }
        let mode = fields::u16(bytes, 0);
        let size = u64::from(fields::u32(bytes, 0x6c)) << 32 | u64::from(fields::u32(bytes, 4));
        Ok(Self { mode, size, flags: fields::u32(bytes, 0x20), seed, bytes: bytes.to_vec() })
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        match self.mode >> 12 {
            0x8 => FileKind::File,
            0x4 => FileKind::Directory,
            0xa => FileKind::Link,
            _ => FileKind::Special,
        }
    }

    /// Whether it is a link whose target is in the inode, though no flag says so.
    pub fn is_short_link(&self) -> bool {
        self.kind() == FileKind::Link && self.size <= SHORT_LINK && self.flags & EXTENTS == 0
    }

    /// Where the tree, the map or the first bytes are.
    pub fn block_field(&self) -> &[u8] {
        self.bytes.get(BLOCK..).and_then(|rest| rest.get(..BLOCK_LEN)).unwrap_or_default()
    }

    /// The bytes that are in the inode: the first ones in place of the tree, the rest in an attribute.
    pub fn inline(&self) -> Result<Vec<u8>, FileError> {
        let mut bytes = self.block_field().to_vec();
        bytes.extend_from_slice(self.data_attribute());
        let size = usize::try_from(self.size).ok().filter(|size| *size <= bytes.len());
        let wrong = FileError::Damaged { what: "length of a file in its inode", found: self.size };
        bytes.truncate(size.ok_or(wrong)?);
        Ok(bytes)
    }

    /// The attribute `system.data`; nothing where there is none.
    pub fn data_attribute(&self) -> &[u8] {
        let start = 128_usize.saturating_add(usize::from(fields::u16(&self.bytes, 0x80)));
        let area = self.bytes.get(start..).unwrap_or_default();
        if fields::u32(area, 0) != ATTRIBUTES_MAGIC {
            return &[];
        }
        let area = area.get(4..).unwrap_or_default();
        let mut rest = area;
        while let Some((entry, after)) = rest.split_at_checked(16) {
            let (name_len, space) =
                (usize::from(fields::array::<1>(entry, 0)[0]), fields::array::<1>(entry, 1)[0]);
            if fields::u32(entry, 0) == 0 {
                break;
            }
            if space == SYSTEM && after.get(..name_len) == Some(b"data") {
                let (offset, len) = (usize::from(fields::u16(entry, 2)), fields::u32(entry, 8) as usize);
                return area.get(offset..).and_then(|value| value.get(..len)).unwrap_or_default();
            }
            rest = after.get(name_len.next_multiple_of(4)..).unwrap_or_default();
        }
        &[]
    }
}

/// How much of a file's tree or map may still be read.
struct Budget {
    entries: usize,
    nodes: usize,
}

impl Budget {
    const fn new() -> Self {
        Self { entries: MOST_ENTRIES, nodes: MOST_NODES }
    }

    fn take(&mut self, entries: usize) -> Result<(), FileError> {
        let left = self.entries.checked_sub(entries).zip(self.nodes.checked_sub(1));
        let (entries, nodes) = left.ok_or(FileError::Unsupported("a file in so many pieces"))?;
        *self = Self { entries, nodes };
        Ok(())
    }
}

impl Ext4 {
    /// The extents of a file that has a tree of them ("Extent Tree").
    pub(super) async fn extent_tree(&self, inode: &Inode) -> Result<Extents, FileError> {
        let mut extents = Extents::new(inode.size);
        let mut budget = Budget::new();
        let root = inode.block_field().to_vec();
        let depth = fields::u16(&root, 6);
        if depth > DEEPEST {
            return Err(FileError::Damaged { what: "depth of a tree of extents", found: u64::from(depth) });
        }
        // The blocks that are still to be read, the next one last, and how deep the tree is below each.
        let mut below: Vec<(u64, u16)> = Vec::new();
        self.tree_node(&root, depth, &mut extents, &mut below)?;
        while let Some((number, depth)) = below.pop() {
            let node = self.block(number).await?;
            budget.take(usize::from(fields::u16(&node, 2)))?;
            if fields::u16(&node, 2) == 0 {
                return Err(FileError::Damaged { what: "number of extents in a block", found: 0 });
            }
            if let Some(seed) = inode.seed {
                let len = usize::from(fields::u16(&node, 4)).saturating_add(1).saturating_mul(ENTRY);
                let signed = node.get(..len).unwrap_or_default();
                if crc32c(seed, signed) != fields::u32(&node, len) {
                    return Err(FileError::Checksum { what: "block of extents", number });
                }
            }
            self.tree_node(&node, depth, &mut extents, &mut below)?;
        }
        Ok(extents)
    }

    /// Takes in one node, above which the tree is `depth` deep.
    fn tree_node(
        &self,
        node: &[u8],
        depth: u16,
        extents: &mut Extents,
        below: &mut Vec<(u64, u16)>,
    ) -> Result<(), FileError> {
        let damaged = |what, found: u16| FileError::Damaged { what, found: u64::from(found) };
        if fields::u16(node, 0) != TREE_MAGIC {
            return Err(damaged("beginning of a node of extents", fields::u16(node, 0)));
        }
        if fields::u16(node, 6) != depth {
            return Err(damaged("depth of a node of extents", fields::u16(node, 6)));
        }
        let count = fields::u16(node, 2);
        let entries = node.get(ENTRY..).and_then(|rest| rest.get(..usize::from(count).saturating_mul(ENTRY)));
        let entries = entries.ok_or(damaged("number of extents in a node", count))?.chunks_exact(ENTRY);
        if depth > 0 {
            let child = |entry: &[u8]| {
                let place = u64::from(fields::u16(entry, 8)) << 32 | u64::from(fields::u32(entry, 4));
                (place, depth.saturating_sub(1))
            };
            below.extend(entries.rev().map(child));
            return Ok(());
        }
        for entry in entries {
            let len = fields::u16(entry, 4);
            let (len, written) =
                if len > LONGEST { (len.saturating_sub(LONGEST), false) } else { (len, true) };
            let place = u64::from(fields::u16(entry, 6)) << 32 | u64::from(fields::u32(entry, 8));
            let at = self.place(place, u64::from(len))?;
            let size = self.superblock.block_size;
            let start = u64::from(fields::u32(entry, 0)).saturating_mul(size);
            extents.push(start, u64::from(len).saturating_mul(size), written.then_some(at))?;
        }
        Ok(())
    }

    /// The extents of a file that has a map of its blocks ("Direct/Indirect Block Addressing").
    pub(super) async fn block_map(&self, inode: &Inode) -> Result<Extents, FileError> {
        let size = self.superblock.block_size;
        let in_a_block = size.checked_div(4).unwrap_or(1);
        let mut extents = Extents::new(inode.size);
        let mut budget = Budget::new();
        // The numbers that are still to be followed, the next one last, and how many maps are above the data.
        let mut below: Vec<(u32, u8)> = Vec::new();
        let top = inode.block_field().chunks_exact(4).enumerate();
        let levels = |index: usize| index.saturating_sub(11) as u8;
        below.extend(top.rev().map(|(index, number)| (fields::u32(number, 0), levels(index))));
        let mut place = 0_u64;
        while let Some((number, level)) = below.pop() {
            if place >= inode.size {
                break;
            }
            let blocks = (0..level).fold(1, |blocks: u64, _| blocks.saturating_mul(in_a_block));
            let len = blocks.saturating_mul(size);
            match (number, level) {
                (0, _) => {}
                (_, 0) => extents.push(place, size, Some(self.place(u64::from(number), 1)?))?,
                _ => {
                    budget.take(in_a_block as usize)?;
                    let map = self.block(u64::from(number)).await?;
                    let numbers = map.chunks_exact(4).rev().map(|number| fields::u32(number, 0));
                    below.extend(numbers.map(|number| (number, level.saturating_sub(1))));
                    continue;
                }
            }
            place = place.saturating_add(len);
        }
        if place < inode.size {
            return Err(FileError::Damaged { what: "length of a file", found: inode.size });
        }
        Ok(extents)
    }
}
