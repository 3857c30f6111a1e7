//! What a guest starts from that its own disks hold.

use crate::host::dma::{FrozenFrames, SharedFrames};
use crate::host::memory::FrameAllocator;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use storage::Memory;
use storage::boot_entries::{BootDisk, BootError, Entry, Image as OnDisk, Menu};
use vmm_core::disk::GuestDisk;
use vmm_core::provision::{BootFiles, Image};

/// Files are read in pieces of so many bytes.
const PIECE: usize = 256 << 10;
/// What several ramdisks are padded to, so that Linux finds the next archive.
const ALIGNMENT: u64 = 4;

/// What there is to boot on the first of these disks that has anything.
pub async fn menu(disks: &[GuestDisk]) -> Result<(BootDisk, Menu), String> {
    let mut nothing = String::new();
    for (number, disk) in disks.iter().enumerate() {
        let found = async {
            let disk = BootDisk::open(Arc::clone(&disk.device)).await?;
            let menu = disk.menu().await?;
            Ok::<_, BootError>((disk, menu))
        };
        match found.await {
            Ok(found) => return Ok(found),
            Err(error) => {
                nothing += if number == 0 { "" } else { "; " };
                nothing += &format!("{}: {error}", disk.serial);
            }
        }
    }
    Err(nothing)
}

/// The entry that is called so, by its place in the list (from 1), its name or its title; else the default.
pub fn choose<'a>(menu: &'a Menu, wanted: Option<&str>) -> Result<&'a Entry, String> {
    let Some(wanted) = wanted else {
        return menu.entries.get(menu.default).ok_or_else(|| "there is no default entry".into());
    };
    let by_number = wanted.parse::<usize>().ok().and_then(|number| menu.entries.get(number.checked_sub(1)?));
    let by_name = || menu.entries.iter().find(|entry| entry.id == wanted || entry.title == wanted);
    by_number.or_else(by_name).ok_or_else(|| {
        let mut there = String::new();
        for entry in &menu.entries {
            there += if there.is_empty() { "" } else { ", " };
            there += &entry.id;
        }
        format!("there is no boot entry `{wanted}`; there are {there}")
    })
}

/// An entry's files in memory, and its command line with `more` behind it.
pub async fn load(
    disk: &BootDisk,
    entry: &Entry,
    more: &str,
    frames: &'static FrameAllocator,
) -> Result<BootFiles, String> {
    let kernel = files(disk, core::slice::from_ref(&entry.kernel), frames).await?;
    let ramdisk = match entry.ramdisks.as_slice() {
        [] => None,
        ramdisks => Some(files(disk, ramdisks, frames).await?),
    };
    let bootargs = format!("{} {more}", entry.arguments).trim().into();
    Ok(BootFiles { kernel, ramdisk, modules: Vec::new(), bootargs })
}

/// These, one behind the other, in memory of their own.
async fn files(disk: &BootDisk, images: &[OnDisk], frames: &'static FrameAllocator) -> Result<Image, String> {
    let mut parts = Vec::new();
    let mut size = 0_u64;
    for image in images {
        let image = disk.image(image).await.map_err(|error| format!("{error}"))?;
        let place = aligned(size);
        size = place.saturating_add(image.size());
        parts.push((image, place));
    }
    let memory = usize::try_from(size).ok().filter(|_| size <= frames.longest());
    let memory = memory.and_then(|size| SharedFrames::anywhere(frames, size));
    let memory =
        memory.ok_or_else(|| format!("its boot files have {size} bytes, more than there is free memory"))?;
    for (image, place) in parts {
        let mut done = 0;
        while done < image.size() {
            let piece = (image.size() - done).min(PIECE as u64);
            let bytes = image.read(done, piece as usize).await.map_err(|error| format!("{error}"))?;
            memory.write((place + done) as usize, &bytes);
            done += piece;
        }
    }
    Ok(Image::Memory(Arc::new(FrozenFrames::from(memory))))
}

/// Where the file behind so many bytes begins; as far as 64 bits can say, for its guest writes what sizes files have.
fn aligned(size: u64) -> u64 {
    size.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_begins_before_the_end_of_the_last_one() {
        assert_eq!([0, 1, 4, 5].map(aligned), [0, 4, 4, 8]);
        assert!((0..6).all(|less| aligned(u64::MAX - less) >= u64::MAX - less));
    }
}
