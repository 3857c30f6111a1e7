//! Directories (Linux's documentation, "Directory Entries"). Hashed ones are read from one end to the other too: to
//! those that do not know of it, the hash tree looks like entries that nobody uses.

use super::checksum::crc32c;
use super::inode::{INLINE_DATA, Inode};
use super::{Content, Ext4};
use crate::fields;
use crate::files::error::FileError;
use crate::files::{FileKind, Found, MOST_ENTRIES, Node};
use alloc::vec::Vec;

/// The longest directory that is read, in bytes: its blocks may all be the same one, as often as somebody likes.
const LONGEST: u64 = 16 << 20;
/// The length of an entry without its name.
const HEADER: usize = 8;
/// The length of the checksum at the end of a block, which looks like an entry of nobody's.
const TAIL: usize = 12;
/// What that entry has as its kind.
const TAIL_KIND: u8 = 0xde;
/// A directory in its inode begins with its parent's number.
const PARENT: usize = 4;

impl Ext4 {
    /// The entries of a directory, or the one that is called `wanted`.
    pub async fn entries(&self, directory: &Node, wanted: Option<&[u8]>) -> Result<Vec<Found>, FileError> {
        let inode = self.inode(directory.place).await?;
        let mut found = Vec::new();
        if inode.flags & INLINE_DATA != 0 {
            let first = inode.block_field().get(PARENT..).unwrap_or_default();
            for part in [first, inode.data_attribute()] {
                self.scan(part, wanted, &mut found).await?;
            }
            return Ok(found);
        }
        if inode.size > LONGEST {
            return Err(FileError::Unsupported("so long a directory"));
        }
        let Content::Extents(extents) = self.content(&inode).await? else { return Ok(found) };
        let size = self.superblock.block_size;
        let mut place = 0;
        while let Some((at, _)) = extents.piece(place, size) {
            let number = at.and_then(|at| at.checked_div(size));
            let number = number.ok_or(FileError::Damaged { what: "block of a directory", found: place })?;
            let block = self.block_on_disk(number).await?;
            self.scan(checked(&block, &inode, number)?, wanted, &mut found).await?;
            if wanted.is_some() && !found.is_empty() {
                break;
            }
            if found.len() > MOST_ENTRIES {
                return Err(FileError::Unsupported("so many names in a directory"));
            }
            place = place.saturating_add(size);
        }
        Ok(found)
    }

    /// Adds what is in one block.
    async fn scan(
        &self,
        block: &[u8],
        wanted: Option<&[u8]>,
        found: &mut Vec<Found>,
    ) -> Result<(), FileError> {
        let mut rest = block;
        while rest.len() >= HEADER {
            // 64 KiB do not fit into the field.
            let len = match fields::u16(rest, 4) {
                0 | u16::MAX if self.superblock.block_size == 1 << 16 => rest.len(),
                len => usize::from(len),
            };
            let damaged = FileError::Damaged { what: "length of a directory's entry", found: len as u64 };
            let (entry, after) = rest.split_at_checked(len).ok_or(damaged.clone())?;
            let name = entry.get(HEADER..).unwrap_or_default();
            let [name_len, kind] = fields::array(entry, 6);
            let number = fields::u32(entry, 0);
            rest = after;
            if len < HEADER || !len.is_multiple_of(4) {
                return Err(damaged);
            }
            let Some(name) = name.get(..usize::from(name_len)) else { return Err(damaged) };
            let uninteresting = matches!(name, b"" | b"." | b"..");
            if number == 0 || uninteresting || wanted.is_some_and(|wanted| wanted != name) {
                continue;
            }
            let kind = match kind {
                1 => FileKind::File,
                2 => FileKind::Directory,
                7 => FileKind::Link,
                // ext2's directories may not know.
                0 => self.inode(number).await?.kind(),
                _ => FileKind::Special,
            };
            found.push(Found { name: name.to_vec(), node: Node { kind, size: 0, place: number } });
            if wanted.is_some() {
                break;
            }
        }
        Ok(())
    }
}

/// The entries of a block, without the checksum, if that fits.
fn checked<'a>(block: &'a [u8], inode: &Inode, number: u64) -> Result<&'a [u8], FileError> {
    let Some(seed) = inode.seed else { return Ok(block) };
    let Some((entries, tail)) = block.split_at_checked(block.len().saturating_sub(TAIL)) else {
        return Ok(block);
    };
    let is_tail = fields::u32(tail, 0) == 0 && fields::array(tail, 4) == [TAIL as u8, 0, 0, TAIL_KIND];
    if !is_tail {
        // A node of a hash tree has its checksum elsewhere, and no names.
        return Ok(block);
    }
    if crc32c(seed, entries) != fields::u32(tail, 8) {
        return Err(FileError::Checksum { what: "block of a directory", number });
    }
    Ok(entries)
}
