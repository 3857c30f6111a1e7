//! Making empty images.

use super::Qcow2Error;
use super::header::{Header, MOST_L1, UNFINISHED, compose};
use super::layout::Layout;
use crate::block::{BlockDevice, BlockError, zero};
use crate::buffer::Buffer;
use crate::fields::put;
use crate::image::Base;

/// What qemu-img makes, too: version 3, clusters of 64 KiB, refcounts of 16 bits.
const LAYOUT: Layout = Layout { version: 3, cluster_bits: 16, refcount_order: 4 };
/// In which clusters the structures of an empty image lie, behind the header.
const REFCOUNT_TABLE: u64 = 1;
const REFCOUNT_BLOCK: u64 = 2;
const L1_TABLE: u64 = 3;

/// Makes `file` an empty image of a disk of `size` bytes, which shows `backing` if there is one. Whatever was there
/// is lost. Where the power is lost meanwhile, there is no image until this is done again.
///
/// # Errors
/// There is no room even for that, or it cannot be written.
pub async fn create(file: &dyn BlockDevice, size: u64, backing: Option<&Base>) -> Result<(), Qcow2Error> {
    let geometry = file.geometry();
    if geometry.block_size != 512 {
        return Err(Qcow2Error::BlockSize(geometry.block_size));
    }
    if geometry.read_only {
        return Err(BlockError::ReadOnly.into());
    }
    let wrong_size = Qcow2Error::Field { name: "the size", found: size };
    if !size.is_multiple_of(512) {
        return Err(wrong_size);
    }
    // As many as a reader takes: 32 TiB.
    let l1_len =
        u32::try_from(LAYOUT.l1_entries(size)).ok().filter(|len| *len <= MOST_L1).ok_or(wrong_size)?;
    let l1_at = LAYOUT.start(L1_TABLE);
    let used = LAYOUT.clusters(0, l1_at.saturating_add(u64::from(l1_len).saturating_mul(8))).end;
    let end = LAYOUT.start(used);
    if end > geometry.size() {
        return Err(BlockError::NoRoom { size: geometry.size() }.into());
    }
    let refcounts_at = LAYOUT.start(REFCOUNT_TABLE);
    let header = compose(size, LAYOUT, (l1_at, l1_len), (refcounts_at, 1), backing)?;
    let (first, rest) = header.split_at_checked(512).unwrap_or((&header, &[]));
    // Nobody takes what is half done for an image; but it says what it is to be, if a sector is enough for that.
    let mut unfinished = if rest.is_empty() { first.to_vec() } else { alloc::vec![0; 512] };
    put(&mut unfinished, 0, &UNFINISHED.to_be_bytes());
    file.write(0, Buffer::holding(&unfinished)).await?;
    file.flush().await?;
    zero(file, 512, end.saturating_sub(512)).await?;
    let block_at = LAYOUT.start(REFCOUNT_BLOCK);
    let mut table = [0; 512];
    put(&mut table, 0, &block_at.to_be_bytes());
    file.write(refcounts_at, Buffer::holding(&table)).await?;
    let ones = alloc::vec![1_u16.to_be_bytes(); usize::try_from(used).unwrap_or(0)].concat();
    let mut block = alloc::vec![0; ones.len().next_multiple_of(512)];
    put(&mut block, 0, &ones);
    file.write(block_at, Buffer::holding(&block)).await?;
    if !rest.is_empty() {
        file.write(512, Buffer::holding(rest)).await?;
    }
    file.flush().await?;
    file.write(0, Buffer::holding(first)).await?;
    file.flush().await?;
    Ok(())
}

/// Makes the overlay in `file` empty: its disk is what its backing is, and snapshots within it are lost. Where the
/// power was lost meanwhile, this can be done again.
///
/// # Errors
/// It is no image, or none with a backing, or it cannot be written.
pub async fn roll_back(file: &dyn BlockDevice) -> Result<(), Qcow2Error> {
    let (header, _) = Header::read_any(file).await?;
    let backing = header.backing.ok_or(Qcow2Error::NoOverlay)?;
    create(file, header.size, Some(&backing)).await
}
