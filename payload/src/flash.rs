//! The flash as the CPU sees it: mapped so that it ends at 4 GiB.

use crate::host::memory::Range;
use crate::host::paging::{Cache, DeviceError, map_read_only};
use core::fmt;
use coreboot_config::cbfs::{Cbfs, CbfsError};
use coreboot_config::tables::CorebootTable;

/// Where the flash ends in memory.
const END: u64 = 1 << 32;
/// How much of it chipsets decode there at most.
const WINDOW: u64 = 16 << 20;

/// Why the CBFS cannot be read.
#[derive(Debug)]
pub enum FlashError {
    /// The table says that the CBFS lies there, which is not in the part that memory shows.
    OutOfWindow {
        /// The CBFS's offset in the flash.
        offset: u64,
        /// The CBFS's size in bytes.
        size: u64,
        /// The flash's size in bytes.
        flash: u64,
    },
    /// The flash cannot be mapped.
    Device(DeviceError),
    /// There is no CBFS in it.
    Cbfs(CbfsError),
}

impl fmt::Display for FlashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfWindow { offset, size, flash } => write!(
                f,
                "the CBFS has {size:#x} bytes at {offset:#x} of a flash of {flash:#x} bytes; only the last \
                 {WINDOW:#x} can be read"
            ),
            Self::Device(error) => error.fmt(f),
            Self::Cbfs(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for FlashError {}

/// The CBFS we were loaded from: where the table's boot media record says, else where the flash's own map says.
pub fn cbfs(table: &CorebootTable) -> Result<Cbfs<'static>, FlashError> {
    let Some(media) = table.boot_media() else {
        let window = Range::new(END - WINDOW, END);
        let image = map_read_only(window, Cache::WriteProtected).map_err(FlashError::Device)?;
        return Cbfs::in_image(image).map_err(FlashError::Cbfs);
    };
    let (offset, size, flash) = (media.cbfs_offset, media.cbfs_size, media.boot_media_size);
    // The CBFS's distance from the flash's end is its distance from 4 GiB.
    let start = flash.checked_sub(offset).filter(|distance| size <= *distance && *distance <= WINDOW);
    let start = END - start.ok_or(FlashError::OutOfWindow { offset, size, flash })?;
    let range = Range::with_len(start, size);
    let bytes = map_read_only(range, Cache::WriteProtected).map_err(FlashError::Device)?;
    Ok(Cbfs::at(bytes, offset))
}
