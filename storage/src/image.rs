//! Disk images of every format, opened alike.

use crate::block::{BlockDevice, BlockError, Geometry, Reply, read_bytes};
use crate::buffer::Buffer;
use crate::fields::be_u32;
use crate::qcow2::{self, Backing, Qcow2, Qcow2Error, Repaired, Snapshot};
use crate::sectors::Sectors;
use crate::vhd::{self, Vhd, VhdError};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::ready;

/// How an image lays its disk out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte by byte.
    Raw,
    /// [`crate::qcow2`].
    Qcow2,
    /// [`crate::vhd`].
    Vhd,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
        })
    }
}

/// Why an image cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// What it lies in cannot be read.
    Container(BlockError),
    /// As a qcow2 image.
    Qcow2(Qcow2Error),
    /// As a VHD image.
    Vhd(VhdError),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(error) => error.fmt(f),
            Self::Qcow2(error) => error.fmt(f),
            Self::Vhd(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ImageError {}

impl From<BlockError> for ImageError {
    fn from(error: BlockError) -> Self {
        Self::Container(error)
    }
}

impl From<Qcow2Error> for ImageError {
    fn from(error: Qcow2Error) -> Self {
        Self::Qcow2(error)
    }
}

impl From<VhdError> for ImageError {
    fn from(error: VhdError) -> Self {
        Self::Vhd(error)
    }
}

/// An image that is open.
#[derive(Clone)]
pub struct Image {
    /// The disk in it.
    pub disk: Arc<dyn BlockDevice>,
    /// Its format.
    pub format: Format,
    /// What was wrong with a qcow2 image, and has been made right.
    pub repaired: Repaired,
    /// What a qcow2 image keeps of earlier times.
    pub snapshots: Vec<Snapshot>,
    /// What tells a VHD image from others.
    id: Option<[u8; 16]>,
}

/// The format that bytes look like which nobody has named. Only for what is trusted: a guest that writes a raw disk
/// can make it look like anything.
///
/// # Errors
/// `container` cannot be read.
pub async fn detect(container: &dyn BlockDevice) -> Result<Format, BlockError> {
    let size = container.geometry().size();
    let Some(last) = size.checked_sub(512) else { return Ok(Format::Raw) };
    let first = read_bytes(container, 0, 512).await?;
    if be_u32(&first, 0) == qcow2::MAGIC && (2..=3).contains(&be_u32(&first, 4)) {
        return Ok(Format::Qcow2);
    }
    let footers = [first, read_bytes(container, last, 512).await?];
    let is_vhd = footers.iter().any(|footer| vhd::is_footer(footer));
    Ok(if is_vhd { Format::Vhd } else { Format::Raw })
}

/// The image that the one in `container` differs from, if it says that there is one.
///
/// # Errors
/// It cannot be read, or is none of this format.
pub async fn base(format: Format, container: Arc<dyn BlockDevice>) -> Result<Option<Backing>, ImageError> {
    let container = sectors(format, container);
    match format {
        Format::Raw => Ok(None),
        Format::Qcow2 => Ok(qcow2::Header::read(&*container).await?.backing),
        Format::Vhd => {
            let name = Vhd::parent_name(&*container).await?;
            Ok(name.map(|name| Backing { name, format: Some("vpc".into()) }))
        }
    }
}

/// Opens the image in `container`, which differs from `base` where it says that it has one.
///
/// # Errors
/// It is none of this format, is damaged, uses what is not supported, or needs another base.
pub async fn open(
    format: Format,
    container: Arc<dyn BlockDevice>,
    base: Option<&Image>,
) -> Result<Image, ImageError> {
    let container = sectors(format, container);
    let (repaired, snapshots) = (Repaired::default(), Vec::new());
    Ok(match format {
        Format::Raw => Image { disk: container, format, repaired, snapshots, id: None },
        Format::Qcow2 => {
            let image = Qcow2::open(container, base.map(|base| Arc::clone(&base.disk))).await?;
            let (repaired, snapshots) = (image.repaired(), image.snapshots().to_vec());
            Image { disk: Arc::new(image), format, repaired, snapshots, id: None }
        }
        Format::Vhd => {
            let parent = base.and_then(|base| {
                Some(vhd::Parent { id: base.id?, disk: Sectors::of(Arc::clone(&base.disk)) })
            });
            let image = Vhd::open(container, parent).await?;
            let id = Some(image.id());
            Image { disk: Arc::new(image), format, repaired, snapshots, id }
        }
    })
}

/// A raw image has its container's blocks; the others know sectors alone.
fn sectors(format: Format, container: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
    if format == Format::Raw { container } else { Sectors::of(container) }
}

/// A device that is not to be written.
pub struct ReadOnly(pub Arc<dyn BlockDevice>);

impl BlockDevice for ReadOnly {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: true, discards: false, ..self.0.geometry() }
    }

    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.0.read(at, into)
    }

    fn write(&self, _at: u64, _from: Buffer) -> Reply<'_> {
        Box::pin(ready(Err(BlockError::ReadOnly)))
    }

    fn flush(&self) -> Reply<'_> {
        // Nothing was written.
        Box::pin(ready(Ok(())))
    }

    fn discard(&self, _at: u64, _len: u64) -> Reply<'_> {
        Box::pin(ready(Err(BlockError::ReadOnly)))
    }

    fn write_zeroes(&self, _at: u64, _len: u64) -> Reply<'_> {
        Box::pin(ready(Err(BlockError::ReadOnly)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Image as File, RamDisk, pattern, wait};

    const MIB: usize = 1 << 20;

    fn made(format: &str, content: &[u8], len: usize) -> Arc<dyn BlockDevice> {
        let (raw, file) = (File::holding(content), File::holding(&[]));
        raw.convert(&["-f", "raw", "-O", format], &file);
        let mut bytes = file.bytes();
        bytes.resize(len.max(bytes.len().next_multiple_of(4096)), 0);
        Arc::new(RamDisk::new(4096, bytes))
    }

    #[test]
    fn images_are_known_and_opened_whatever_their_container_s_blocks_are() {
        let content = pattern(2 * MIB, 3);
        for (name, format) in [("raw", Format::Raw), ("qcow2", Format::Qcow2), ("vpc", Format::Vhd)] {
            let container = made(name, &content, if name == "raw" { 0 } else { 8 * MIB });
            assert_eq!(wait(detect(&*container)), Ok(format));
            assert_eq!(wait(base(format, Arc::clone(&container))), Ok(None));
            let image = wait(open(format, Arc::clone(&container), None)).unwrap();
            assert_eq!(image.format, format);
            let sector = if format == Format::Raw { 4096 } else { 512 };
            assert_eq!(image.disk.geometry().block_size, sector as u32);
            assert_eq!(wait(read_bytes(&*image.disk, 0, content.len())), Ok(content.clone()), "{name}");
            wait(image.disk.write(sector, Buffer::holding(&[9; 4096]))).unwrap();
            wait(image.disk.flush()).unwrap();
            drop(image);
            let sealed = Arc::new(ReadOnly(Arc::clone(&container)));
            let image = wait(open(format, sealed, None)).unwrap();
            let mut expected = content.clone();
            expected[sector as usize..sector as usize + 4096].fill(9);
            assert_eq!(wait(read_bytes(&*image.disk, 0, content.len())), Ok(expected), "{name}");
            let refused = wait(image.disk.write(0, Buffer::zeroed(4096)));
            assert_eq!(refused, Err(BlockError::ReadOnly), "{name}");
        }
        let error = wait(open(Format::Qcow2, made("raw", &content, 0), None)).err().unwrap();
        assert_eq!(error.to_string(), "no qcow2 header: it begins with 0x151c232a, expected 0x514649fb");
    }

    #[test]
    fn a_base_of_any_format_serves() {
        let content = pattern(2 * MIB, 3);
        for (name, format) in [("raw", Format::Raw), ("qcow2", Format::Qcow2), ("vpc", Format::Vhd)] {
            let below = wait(open(format, Arc::new(ReadOnly(made(name, &content, 0))), None)).unwrap();
            let container: Arc<dyn BlockDevice> = Arc::new(RamDisk::new(4096, vec![0xdd; 4 * MIB]));
            let named = Backing { name: "base".into(), format: Some(name.into()) };
            let size = below.disk.geometry().size();
            wait(qcow2::create(&*Sectors::of(Arc::clone(&container)), size, Some(&named))).unwrap();
            assert_eq!(wait(base(Format::Qcow2, Arc::clone(&container))), Ok(Some(named)));
            let overlay = wait(open(Format::Qcow2, Arc::clone(&container), Some(&below))).unwrap();
            wait(overlay.disk.write(512, Buffer::holding(&[7; 512]))).unwrap();
            let mut expected = content.clone();
            expected[512..1024].fill(7);
            assert_eq!(wait(read_bytes(&*overlay.disk, 0, content.len())), Ok(expected), "{name}");
        }
    }
}
