//! The flash, mapped so that it ends at 4 GiB.
#![allow(unsafe_code)] // Flash is memory that no allocator gave.

use coreboot_config::fmap::{Fmap, SIGNATURE};

use crate::physical;

const FOUR_GIB: u64 = 1 << 32;
/// Sizes that a ROM may have, in bytes: 16 MiB and its halves down to 1 MiB.
const SIZES: [u32; 5] = [16 << 20, 8 << 20, 4 << 20, 2 << 20, 1 << 20];

/// The whole flash, whose first bytes are an FMAP that gives its size.
pub fn find() -> Option<(&'static [u8], Fmap)> {
    SIZES.into_iter().find_map(|size| {
        // SAFETY: the last 16 MiB below 4 GiB are flash or nothing, never written to by the stage.
        let image: &[u8] = unsafe { physical::bytes(FOUR_GIB - u64::from(size), size as usize) };
        let map = image.starts_with(&SIGNATURE).then(|| Fmap::parse(image).ok())??;
        (map.size == size).then_some((image, map))
    })
}
