//! ext4 and its forerunners, as far as reading them goes.
//!
//! The layout is that of Linux's documentation, `filesystems/ext4`. A journal that was not replayed is not written
//! back but read along: see [`journal`].

mod checksum;
mod directory;
mod inode;
mod journal;
mod superblock;

use super::error::FileError;
use super::{Content, Effort, FileKind, Node};
use crate::block::{BlockDevice, BlockError, read_bytes};
use crate::fields;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use checksum::crc32c;
use inode::Inode;
use superblock::Superblock;

/// The root directory.
pub const ROOT: Node = Node { kind: FileKind::Directory, size: 0, place: 2 };

/// An ext4 file system.
pub struct Ext4 {
    device: Arc<dyn BlockDevice>,
    superblock: Superblock,
    /// Where the journal has newer versions of blocks.
    moved: BTreeMap<u64, u64>,
    effort: Effort,
}

impl Ext4 {
    /// The file system on `device`, if it is one of this kind.
    pub async fn open(device: &Arc<dyn BlockDevice>) -> Result<Option<Self>, FileError> {
        let bytes = match read_bytes(&**device, superblock::PLACE, superblock::LEN).await {
            Err(BlockError::OutOfRange { .. }) => return Ok(None),
            other => other?,
        };
        let Some(superblock) = Superblock::parse(&bytes, device.geometry().size())? else {
            return Ok(None);
        };
        let (moved, effort) = (BTreeMap::new(), Effort::default());
        let mut ext4 = Self { device: Arc::clone(device), superblock, moved, effort };
        if ext4.superblock.needs_recovery() {
            ext4.moved = journal::read(&ext4).await?;
        }
        Ok(Some(ext4))
    }

    /// How many blocks are in the journal in newer versions.
    pub fn weight(&self) -> usize {
        self.moved.len()
    }

    pub fn id(&self) -> String {
        uuid::Uuid::from_bytes(self.superblock.uuid).to_string()
    }

    pub fn label(&self) -> String {
        let label = self.superblock.label;
        let text = label.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// A block, in its newest version.
    async fn block(&self, number: u64) -> Result<Vec<u8>, FileError> {
        let number = self.moved.get(&number).copied().unwrap_or(number);
        self.block_on_disk(number).await
    }

    async fn block_on_disk(&self, number: u64) -> Result<Vec<u8>, FileError> {
        let len = self.superblock.block_size;
        self.effort.spend(len)?;
        let at = self.place(number, 1)?;
        Ok(read_bytes(&*self.device, at, len as usize).await?)
    }

    /// Where `count` blocks from this one on lie on the device.
    fn place(&self, number: u64, count: u64) -> Result<u64, FileError> {
        let outside = FileError::Damaged { what: "number of a block", found: number };
        // Block 0 has the superblock, or what is before it: nobody's block.
        let there = number.checked_add(count).is_some_and(|end| end <= self.superblock.blocks);
        if number == 0 || !there {
            return Err(outside);
        }
        number.checked_mul(self.superblock.block_size).ok_or(outside)
    }

    /// An inode.
    pub async fn inode(&self, number: u32) -> Result<Inode, FileError> {
        let wrong = FileError::Damaged { what: "number of an inode", found: u64::from(number) };
        let sb = &self.superblock;
        let index = number.checked_sub(1).filter(|_| number <= sb.inodes).ok_or(wrong.clone())?;
        let group = index.checked_div(sb.inodes_per_group).ok_or(wrong.clone())?;
        let index = u64::from(index.checked_rem(sb.inodes_per_group).ok_or(wrong.clone())?);
        let table = self.inode_table(group).await?;
        let offset = index.saturating_mul(u64::from(sb.inode_size));
        let block =
            offset.checked_div(sb.block_size).and_then(|n| table.checked_add(n)).ok_or(wrong.clone())?;
        let within = offset.checked_rem(sb.block_size).unwrap_or(0) as usize;
        let bytes = self.block(block).await?;
        let bytes = bytes.get(within..).and_then(|rest| rest.get(..usize::from(sb.inode_size)));
        Inode::parse(number, bytes.ok_or(wrong)?, sb.seed)
    }

    /// The block in which a group's inodes begin.
    async fn inode_table(&self, group: u32) -> Result<u64, FileError> {
        let sb = &self.superblock;
        let wrong = FileError::Damaged { what: "number of a group", found: u64::from(group) };
        let (block, offset) = sb.descriptor(group).ok_or(wrong.clone())?;
        let block = self.block(block).await?;
        let bytes = block.get(offset..).and_then(|rest| rest.get(..sb.descriptor_size)).ok_or(wrong)?;
        if let Some(seed) = sb.seed {
            let found = fields::u16(bytes, 0x1e);
            let (before, after) = (bytes.get(..0x1e), bytes.get(0x20..));
            let sum =
                [&group.to_le_bytes()[..], before.unwrap_or_default(), &[0, 0], after.unwrap_or_default()];
            if sum.iter().fold(seed, |sum, part| crc32c(sum, part)) as u16 != found {
                return Err(FileError::Checksum {
                    what: "the descriptor of group",
                    number: u64::from(group),
                });
            }
        }
        // What is not there reads as zero.
        let high = if sb.descriptor_size >= 64 { fields::u32(bytes, 0x28) } else { 0 };
        Ok(u64::from(high) << 32 | u64::from(fields::u32(bytes, 8)))
    }

    /// What a directory's entry leads to.
    pub async fn node(&self, number: u32) -> Result<Node, FileError> {
        let inode = self.inode(number).await?;
        Ok(Node { kind: inode.kind(), size: inode.size, place: number })
    }

    /// Where the bytes of a file, a directory or a link are.
    pub async fn content(&self, inode: &Inode) -> Result<Content, FileError> {
        if inode.flags & inode::ENCRYPTED != 0 {
            return Err(FileError::Unsupported("an encrypted file"));
        }
        if inode.flags & inode::COMPRESSED != 0 {
            return Err(FileError::Unsupported("a compressed file"));
        }
        if inode.flags & inode::INLINE_DATA != 0 || inode.is_short_link() {
            return inode.inline().map(Content::Inline);
        }
        let extents = if inode.flags & inode::EXTENTS != 0 {
            self.extent_tree(inode).await?
        } else {
            self.block_map(inode).await?
        };
        extents.finish()?.moved(self.superblock.block_size, &self.moved).map(Content::Extents)
    }

    /// Whether the blocks of a file may be used as they lie, and written if `writable`.
    pub async fn check_in_place(&self, node: &Node, writable: bool) -> Result<(), FileError> {
        self.superblock.check_in_place(writable)?;
        let inode = self.inode(node.place).await?;
        if inode.flags & inode::VERITY != 0 {
            return Err(FileError::Unsupported("a disk in a file that is signed with fs-verity"));
        }
        if writable && inode.flags & inode::IMMUTABLE != 0 {
            return Err(FileError::Unsupported("writing to a file that is marked as immutable"));
        }
        Ok(())
    }
}
