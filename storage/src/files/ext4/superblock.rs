//! The superblock (Linux's documentation, "Super Block").

use super::checksum::crc32c;
use crate::fields;
use crate::files::error::FileError;

/// Where it lies.
pub const PLACE: u64 = 1024;
/// Its length in bytes.
pub const LEN: usize = 1024;

const MAGIC: u16 = 0xef53;
/// State: it was unmounted cleanly.
const CLEAN: u16 = 1;

/// Compatible feature: where its only two copies are is said.
const SPARSE_SUPER_2: u32 = 0x200;

/// Incompatible feature: the journal was not replayed.
const RECOVER: u32 = 0x4;
/// Incompatible feature: group descriptors lie in their groups.
const META_GROUPS: u32 = 0x10;
/// Incompatible feature: block numbers of 64 bits.
const WIDE: u32 = 0x80;
/// Incompatible feature: the checksums' seed is said.
const SEED: u32 = 0x2000;
/// What may be there: types in directories, recovery, meta groups, extents, 64 bits, protection from multiple
/// mounts, flexible groups, attributes in inodes, the seed, large directories, inline data, encryption, case folding.
const KNOWN: u32 =
    0x2 | RECOVER | META_GROUPS | 0x40 | WIDE | 0x100 | 0x200 | 0x400 | SEED | 0x4000 | 0x8000 | 0x30000;

/// Read-only feature: few groups have a copy of the superblock.
const SPARSE_SUPER: u32 = 0x1;
/// Read-only feature: metadata have checksums.
const CHECKSUMS: u32 = 0x400;
/// What others may write beside: sparse copies, large files, huge files, checksums of descriptors, many links, large
/// inodes, quotas, clusters, checksums, project quotas, verity, orphans in a file.
const WRITABLE: u32 =
    SPARSE_SUPER | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | CHECKSUMS | 0x2000 | 0x8000 | 0x1_0000;

/// What it says.
#[derive(Debug)]
pub struct Superblock {
    /// The size of a block in bytes.
    pub block_size: u64,
    /// How many blocks there are.
    pub blocks: u64,
    /// How many inodes there are.
    pub inodes: u32,
    /// How many inodes a group has.
    pub inodes_per_group: u32,
    /// The size of an inode in bytes.
    pub inode_size: u16,
    /// The size of a group's descriptor in bytes.
    pub descriptor_size: usize,
    /// What checksums begin with, where there are any.
    pub seed: Option<u32>,
    /// The journal's inode.
    pub journal: u32,
    /// The journal is on another disk, if this is not zero.
    pub journal_elsewhere: bool,
    /// The identifier.
    pub uuid: [u8; 16],
    /// The label, ended by a zero where it is shorter.
    pub label: [u8; 16],
    first_block: u32,
    blocks_per_group: u32,
    first_meta_group: u32,
    backups: [u32; 2],
    state: u16,
    compatible: u32,
    incompatible: u32,
    read_only: u32,
}

impl Superblock {
    /// What `bytes` say of a file system on a device of `size` bytes; `None` if they are no superblock.
    pub fn parse(bytes: &[u8], size: u64) -> Result<Option<Self>, FileError> {
        let damaged = |what, found| Err(FileError::Damaged { what, found });
        if fields::u16(bytes, 0x38) != MAGIC {
            return Ok(None);
        }
        let incompatible = fields::u32(bytes, 0x60);
        if incompatible & !KNOWN != 0 {
            return Err(FileError::Features("incompatible", incompatible & !KNOWN));
        }
        let read_only = fields::u32(bytes, 0x64);
        let uuid = fields::array(bytes, 0x68);
        let seed = if incompatible & SEED != 0 { fields::u32(bytes, 0x270) } else { crc32c(!0, &uuid) };
        let seed = (read_only & CHECKSUMS != 0).then_some(seed);
        if seed.is_some() && crc32c(!0, bytes.get(..0x3fc).unwrap_or_default()) != fields::u32(bytes, 0x3fc) {
            return Err(FileError::Checksum { what: "superblock", number: 0 });
        }
        let shift = fields::u32(bytes, 0x18);
        if shift > 6 {
            return damaged("size of a block", u64::from(shift));
        }
        let block_size = 1024_u64 << shift;
        let high = if incompatible & WIDE != 0 { fields::u32(bytes, 0x150) } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(fields::u32(bytes, 4));
        if blocks.checked_mul(block_size).is_none_or(|len| len > size) {
            return damaged("number of blocks", blocks);
        }
        // The first revision had no field for it.
        let inode_size = if fields::u32(bytes, 0x4c) == 0 { 128 } else { fields::u16(bytes, 0x58) };
        if !inode_size.is_power_of_two() || inode_size < 128 || u64::from(inode_size) > block_size {
            return damaged("size of an inode", u64::from(inode_size));
        }
        let descriptor_size = if incompatible & WIDE != 0 { fields::u16(bytes, 0xfe) } else { 32 };
        if !descriptor_size.is_power_of_two() || !(32..=1024).contains(&descriptor_size) {
            return damaged("size of a group's descriptor", u64::from(descriptor_size));
        }
        let (blocks_per_group, inodes_per_group) = (fields::u32(bytes, 0x20), fields::u32(bytes, 0x28));
        if blocks_per_group == 0 || inodes_per_group == 0 {
            return damaged("size of a group", 0);
        }
        Ok(Some(Self {
            block_size,
            blocks,
            inodes: fields::u32(bytes, 0),
            inodes_per_group,
            inode_size,
            descriptor_size: usize::from(descriptor_size),
            seed,
            journal: fields::u32(bytes, 0xe0),
            journal_elsewhere: fields::u32(bytes, 0xe4) != 0,
            uuid,
            label: fields::array(bytes, 0x78),
            first_block: fields::u32(bytes, 0x14),
            blocks_per_group,
            first_meta_group: fields::u32(bytes, 0x104),
            backups: [fields::u32(bytes, 0x24c), fields::u32(bytes, 0x250)],
            state: fields::u16(bytes, 0x3a),
            compatible: fields::u32(bytes, 0x5c),
            incompatible,
            read_only,
        }))
    }

    /// Whether the journal has something that is not in its place yet.
    pub fn needs_recovery(&self) -> bool {
        self.incompatible & RECOVER != 0
    }

    /// Whether others may use blocks of this file system as it lies, and write them if `writable`.
    pub fn check_in_place(&self, writable: bool) -> Result<(), FileError> {
        let unknown = self.read_only & !WRITABLE;
        if self.needs_recovery() || self.state & CLEAN == 0 {
            return Err(FileError::NotClean);
        }
        if writable && unknown != 0 {
            return Err(FileError::Features("read-only", unknown));
        }
        Ok(())
    }

    /// The block that has a group's descriptor, and where in it.
    pub fn descriptor(&self, group: u32) -> Option<(u64, usize)> {
        let in_a_block = u32::try_from(self.block_size).ok()?.checked_div(self.descriptor_size as u32)?;
        let meta_group = group.checked_div(in_a_block)?;
        let offset = (group.checked_rem(in_a_block)? as usize).checked_mul(self.descriptor_size)?;
        // The superblock is in block 1 if blocks have 1 KiB.
        let superblock = PLACE.checked_div(self.block_size)?;
        if self.incompatible & META_GROUPS == 0 || meta_group < self.first_meta_group {
            return Some((superblock.checked_add(1)?.checked_add(u64::from(meta_group))?, offset));
        }
        let first = meta_group.checked_mul(in_a_block)?;
        let start = u64::from(first).checked_mul(u64::from(self.blocks_per_group))?;
        // The first group begins where the superblock is; with clusters that is block 0 even so.
        let start = if first == 0 { superblock } else { start.checked_add(u64::from(self.first_block))? };
        Some((start.checked_add(u64::from(self.has_superblock(first)))?, offset))
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_superblock(&self, group: u32) -> bool {
        let power_of = |base: u32| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        if self.compatible & SPARSE_SUPER_2 != 0 {
            return group == 0 || self.backups.contains(&group);
        }
        group <= 1 || self.read_only & SPARSE_SUPER == 0 || [3, 5, 7].into_iter().any(power_of)
    }
}
