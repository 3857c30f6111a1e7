//! Disk images of every format, opened alike.

use crate::block::{BlockDevice, BlockError, Geometry, Reply, read_bytes};
use crate::buffer::Buffer;
use crate::fields::be_u32;
#[cfg(feature = "qcow2")]
use crate::qcow2::{Header, Qcow2, Qcow2Error};
#[cfg(any(feature = "qcow2", feature = "vhd"))]
use crate::sectors::Sectors;
#[cfg(feature = "vhd")]
use crate::vhd::{Parent, Vhd, VhdError};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::future::ready;

/// What qcow2 images begin with: `QFI` and 0xFB.
pub(crate) const QCOW2_MAGIC: u32 = 0x5146_49fb;
/// What VHD images end with, and mostly begin with.
const VHD_COOKIE: &[u8] = b"conectix";

/// How an image lays its disk out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte by byte.
    Raw,
    /// As QEMU does: `qcow2`.
    Qcow2,
    /// As Virtual PC did: `vhd`.
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
    /// What reads this format was left out.
    LeftOut(Format),
    /// As a qcow2 image.
    #[cfg(feature = "qcow2")]
    Qcow2(Qcow2Error),
    /// As a VHD image.
    #[cfg(feature = "vhd")]
    Vhd(VhdError),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(error) => error.fmt(f),
            Self::LeftOut(format) => write!(f, "this build knows nothing of the format {format}"),
            #[cfg(feature = "qcow2")]
            Self::Qcow2(error) => error.fmt(f),
            #[cfg(feature = "vhd")]
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

#[cfg(feature = "qcow2")]
impl From<Qcow2Error> for ImageError {
    fn from(error: Qcow2Error) -> Self {
        Self::Qcow2(error)
    }
}

#[cfg(feature = "vhd")]
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
    /// The same disk, where it is a qcow2 image: what that has of its own.
    #[cfg(feature = "qcow2")]
    pub qcow2: Option<Arc<Qcow2>>,
    /// What tells a VHD image from others.
    #[cfg(feature = "vhd")]
    id: Option<[u8; 16]>,
}

/// The image that another differs from, as who made that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The file's name.
    pub name: String,
    /// What its format is called, `raw` or `qcow2` mostly, where that is said.
    pub format: Option<String>,
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
    if be_u32(&first, 0) == QCOW2_MAGIC && (2..=3).contains(&be_u32(&first, 4)) {
        return Ok(Format::Qcow2);
    }
    let footers = [first, read_bytes(container, last, 512).await?];
    let is_vhd = footers.iter().any(|footer| footer.starts_with(VHD_COOKIE));
    Ok(if is_vhd { Format::Vhd } else { Format::Raw })
}

/// The image that the one in `container` differs from, if it says that there is one.
///
/// # Errors
/// It cannot be read, or is none of this format.
pub async fn base(format: Format, container: Arc<dyn BlockDevice>) -> Result<Option<Base>, ImageError> {
    match format {
        Format::Raw => Ok(None),
        #[cfg(feature = "qcow2")]
        Format::Qcow2 => Ok(Header::read(&*Sectors::of(container)).await?.backing),
        #[cfg(feature = "vhd")]
        Format::Vhd => {
            let name = Vhd::parent_name(&*Sectors::of(container)).await?;
            Ok(name.map(|name| Base { name, format: Some("vpc".into()) }))
        }
        #[allow(unreachable_patterns, reason = "whatever was left out")]
        other => {
            drop(container);
            Err(ImageError::LeftOut(other))
        }
    }
}

/// What the image in `container` takes of the heap at most while it is open, with so many requests under way, in bytes.
/// What the container and what it differs from take comes in addition.
///
/// # Errors
/// It cannot be read, or is none of this format.
pub async fn memory(
    format: Format,
    container: Arc<dyn BlockDevice>,
    requests: u64,
) -> Result<u64, ImageError> {
    match format {
        Format::Raw => Ok(0),
        #[cfg(feature = "qcow2")]
        Format::Qcow2 => {
            let file = Sectors::of(container);
            Ok(Header::read(&*file).await?.memory(&file.geometry(), requests))
        }
        #[cfg(feature = "vhd")]
        Format::Vhd => Ok(Vhd::memory(&*Sectors::of(container), requests).await?),
        #[allow(unreachable_patterns, reason = "whatever was left out")]
        other => {
            let _ = (container, requests);
            Err(ImageError::LeftOut(other))
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
    match format {
        Format::Raw => Ok(Image::new(container, format)),
        #[cfg(feature = "qcow2")]
        Format::Qcow2 => {
            let backing = base.map(|base| Sectors::of(Arc::clone(&base.disk)));
            let image = Arc::new(Qcow2::open(Sectors::of(container), backing).await?);
            Ok(Image { qcow2: Some(Arc::clone(&image)), ..Image::new(image, format) })
        }
        #[cfg(feature = "vhd")]
        Format::Vhd => {
            let parent = base
                .and_then(|base| Some(Parent { id: base.id?, disk: Sectors::of(Arc::clone(&base.disk)) }));
            let image = Vhd::open(Sectors::of(container), parent).await?;
            Ok(Image { id: Some(image.id()), ..Image::new(Arc::new(image), format) })
        }
        #[allow(unreachable_patterns, reason = "whatever was left out")]
        other => {
            let _ = base;
            Err(ImageError::LeftOut(other))
        }
    }
}

impl Image {
    fn new(disk: Arc<dyn BlockDevice>, format: Format) -> Self {
        Self {
            disk,
            format,
            #[cfg(feature = "qcow2")]
            qcow2: None,
            #[cfg(feature = "vhd")]
            id: None,
        }
    }
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
    use crate::qcow2;
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
            let named = Base { name: "base".into(), format: Some(name.into()) };
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
