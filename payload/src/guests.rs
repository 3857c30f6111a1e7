//! From the manifest in CBFS to guests that the monitor can build.

use crate::disks::{self, Start};
use crate::host::memory::{Claims, FrameAllocator, Range};
use crate::{error, warn};
use alloc::borrow::Cow;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use coreboot_config::cbfs::{Cbfs, CbfsError, Compression};
use coreboot_config::manifest::{self, Boot, Console, Entry, Manifest, ManifestError, Method, Source};
use vmm_core::boot::linux::LinuxEntry;
use vmm_core::boot::{BootProtocol, MultibootVersion};
use vmm_core::guest::{Action, GuestConfig};
use vmm_core::provision::{BootFiles, Image, Module, Provider, Provisions};
use vmm_core::schedule::{Affinity, Share};

/// How large a manifest may be once it is unpacked, in bytes.
const MANIFEST_LIMIT: usize = manifest::MAX_BLOB_LEN;

/// A guest as the manifest wants it, its files found.
pub struct Wanted {
    /// For the monitor.
    pub config: GuestConfig,
    /// Whether its console is shown.
    pub shown: bool,
    /// Whether it starts with the machine.
    pub starts: bool,
}

/// Why there is no manifest to read guests from.
#[derive(Debug)]
pub enum NoManifest {
    /// CBFS does not hold it, or holds it damaged.
    File(CbfsError),
    /// It is no manifest.
    Manifest(ManifestError),
}

impl fmt::Display for NoManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => write!(f, "manifest: {error}"),
            Self::Manifest(error) => write!(f, "manifest {}: {error}", manifest::FILE_NAME),
        }
    }
}

/// Why a guest's file cannot be used.
#[derive(Debug)]
enum FileError {
    Cbfs(CbfsError),
    /// This memory is no free RAM.
    Taken(Range),
    /// Unpacked it has this many bytes, for which there is no memory.
    NoMemory(u64),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cbfs(error) => error.fmt(f),
            Self::Taken(range) => {
                write!(f, "{range} is not all RAM, or partly firmware's or Peerboot's own")
            }
            Self::NoMemory(size) => write!(f, "unpacked it has {size} bytes, more than there is free memory"),
        }
    }
}

impl From<CbfsError> for FileError {
    fn from(error: CbfsError) -> Self {
        Self::Cbfs(error)
    }
}

/// The guests in the manifest's order. What is wrong with one is logged and costs only that one.
pub fn wanted(cbfs: &Cbfs<'static>, frames: &'static FrameAllocator) -> Result<Vec<Wanted>, NoManifest> {
    let file = cbfs.find(manifest::FILE_NAME).map_err(NoManifest::File)?;
    let blob = file.contents(MANIFEST_LIMIT).map_err(NoManifest::File)?;
    let manifest = Manifest::parse(&blob).map_err(NoManifest::Manifest)?;
    manifest.warnings.iter().for_each(|warning| warn!("{warning}"));
    let files = Files::new(cbfs, frames, &manifest);
    let guests = manifest.guests.into_iter().filter_map(|guest| match guest {
        Ok(guest) => resolve(&guest, &files),
        Err(error) => {
            error!("manifest: {error}");
            None
        }
    });
    Ok(guests.collect())
}

/// Where guests' files come from.
struct Files<'a> {
    cbfs: &'a Cbfs<'static>,
    frames: &'static FrameAllocator,
    /// What the manifest says lies in memory, and its bytes where that can be.
    placed: Vec<(Range, Option<&'static [u8]>)>,
}

impl<'a> Files<'a> {
    /// Keeps the memory that files lie in before anybody is given memory for anything else.
    fn new(cbfs: &'a Cbfs<'static>, frames: &'static FrameAllocator, manifest: &Manifest) -> Self {
        let mut claims = Claims::new(frames);
        let ranges =
            manifest.guests.iter().flatten().flat_map(|guest| guest.files()).filter_map(
                |source| match source {
                    Source::Memory { address, size } => Some(Range::with_len(*address, *size)),
                    Source::Cbfs(_) => None,
                },
            );
        let placed = ranges.map(|range| (range, claims.bytes(range))).collect();
        Self { cbfs, frames, placed }
    }

    /// A file's bytes: where they lie already if they are not compressed, else unpacked into memory of their own,
    /// which they keep.
    fn load(&self, source: &Source) -> Result<Image, FileError> {
        match source {
            Source::Cbfs(name) => self.unpack(name),
            Source::Memory { address, size } => {
                let range = Range::with_len(*address, *size);
                let bytes =
                    self.placed.iter().find(|(placed, _)| *placed == range).and_then(|(_, bytes)| *bytes);
                bytes.map(Image::Flash).ok_or(FileError::Taken(range))
            }
        }
    }

    fn unpack(&self, name: &str) -> Result<Image, FileError> {
        let file = self.cbfs.find(name)?;
        let (compression, size) = file.compression()?;
        if compression == Compression::None
            && let Cow::Borrowed(bytes) = file.contents(usize::MAX)?
        {
            return Ok(Image::Flash(bytes));
        }
        let memory =
            (size <= self.frames.longest()).then(|| self.frames.allocate(size, 1, u64::MAX)).flatten();
        let buffer = memory.ok_or(FileError::NoMemory(size))?.into_bytes();
        file.verify()?;
        file.decompress_into(buffer)?;
        Ok(Image::Flash(&buffer[..size as usize]))
    }
}

/// Finds a guest's files; says which one is wrong and how.
fn resolve(guest: &manifest::GuestConfig, files: &Files<'_>) -> Option<Wanted> {
    let image = |source: &Source| {
        files.load(source).map_err(|error| error!("{}: {source}: {error}", guest.name)).ok()
    };
    if !guest.networks.is_empty() {
        warn!("{}: this version gives guests no networks; {} left out", guest.name, guest.networks.len());
    }
    let (protocol, start) = match &guest.boot {
        Boot::Files(boot) => (protocol(boot.method), Start::Files(boot_files(boot, image)?)),
        Boot::Disk(boot) => (BootProtocol::Linux(None), Start::Disk(boot.clone())),
    };
    let config = GuestConfig {
        name: guest.name.clone(),
        memory: guest.memory,
        vcpus: guest.cpus,
        share: Share {
            weight: u32::from(guest.weight),
            affinity: match guest.cpu_affinity.as_slice() {
                [] => Affinity::Any,
                cores => Affinity::only(cores.iter().map(|core| *core as usize)),
            },
            dedicated: guest.dedicated_cpus,
            cap: guest.cap,
        },
        protocol,
        provider: provider(guest, start, files.frames, image)?,
        debug_port: guest.debug_port,
        watchdog: guest.watchdog,
        virtio_console: guest.console == Console::Virtio,
        entropy: guest.entropy,
        on_crash: action(guest.on_crash),
        on_reboot: action(guest.on_reboot),
        on_poweroff: action(guest.on_poweroff),
    };
    Some(Wanted { config, shown: guest.console != Console::None, starts: guest.autostart })
}

/// What a guest starts from that the manifest names.
fn boot_files(boot: &manifest::Files, image: impl Fn(&Source) -> Option<Image>) -> Option<BootFiles> {
    let module = |module: &manifest::Module| {
        Some(Module { image: image(&module.source)?, bootargs: module.bootargs.clone() })
    };
    // All of them, so that each that is wrong is named.
    let (kernel, ramdisk) = (image(&boot.kernel), boot.ramdisk.as_ref().map(&image));
    let modules: Vec<_> = boot.modules.iter().map(module).collect();
    Some(BootFiles {
        kernel: kernel?,
        ramdisk: match ramdisk {
            Some(image) => Some(image?),
            None => None,
        },
        modules: modules.into_iter().collect::<Option<_>>()?,
        bootargs: boot.bootargs.clone(),
    })
}

/// Who has what each life of a guest starts with.
fn provider(
    guest: &manifest::GuestConfig,
    start: Start,
    frames: &'static FrameAllocator,
    image: impl Fn(&Source) -> Option<Image>,
) -> Option<Arc<dyn Provider>> {
    match start {
        Start::Files(files) if guest.disks.is_empty() => {
            Some(Arc::new(Provisions { files, disks: Vec::new() }))
        }
        start => disks::provider(guest, start, frames, image),
    }
}

fn protocol(method: Method) -> BootProtocol {
    let entry = |entry| match entry {
        Entry::Bits16 => LinuxEntry::Bits16,
        Entry::Bits32 => LinuxEntry::Bits32,
        Entry::Bits64 => LinuxEntry::Bits64,
    };
    match method {
        Method::Linux(wanted) => BootProtocol::Linux(wanted.map(entry)),
        Method::Pvh => BootProtocol::Pvh,
        Method::Multiboot => BootProtocol::Multiboot(MultibootVersion::One),
        Method::Multiboot2 => BootProtocol::Multiboot(MultibootVersion::Two),
        Method::Hermit => BootProtocol::Hermit,
    }
}

fn action(action: manifest::Action) -> Action {
    match action {
        manifest::Action::Stop => Action::Stop,
        manifest::Action::Restart => Action::Restart,
    }
}
