//! Guests' disks: from what the manifest says of them to what a life of a guest has.

mod boot;
mod flash;
mod held;
mod names;
mod open;
mod room;
mod write_through;

use crate::devices::disks::{FoundDisk, disks as found};
use crate::errands::Answer;
use crate::host::memory::FrameAllocator;
use crate::info;
use crate::machine::own_memory;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::future::ready;
use coreboot_config::manifest::{self, DiskBoot, DiskSource, Format, Source};
use flash::FlashDisk;
use held::Held;
use names::Names;
use spin::{LazyLock, Mutex};
use storage::boot_entries::Menu;
use storage::image::{self, ReadOnly};
use storage::overlay::PIECE;
use storage::share::{Access, Register};
use storage::{BlockDevice, Overlay};
#[cfg(feature = "qcow2")]
use storage::{image::Base, qcow2};
use vmm_core::disk::{DiskModel, GuestDisk};
use vmm_core::provision::{BootFiles, Image, Provider, Providing, Provisions};
use vmm_core::requests::MOST;
use write_through::WriteThrough;

/// What a guest may write to a disk that forgets it, in bytes.
const SNAPSHOT: u64 = 64 << 20;
/// What that takes of our own memory for each piece of [`PIECE`] bytes, in bytes.
const OWN_MEMORY_OF_PIECE: u64 = 160;

/// The machine's disks, and who has them.
struct Machine {
    /// In the order of [`found`].
    disks: Vec<Names>,
    register: Register,
}

static MACHINE: LazyLock<Machine> =
    LazyLock::new(|| Machine { disks: machine_disks(), register: Register::default() });
/// Every guest with disks.
static GUESTS: Mutex<Vec<Arc<Guest>>> = Mutex::new(Vec::new());

/// What the machine's disks are known by.
fn machine_disks() -> Vec<Names> {
    let names = |disk: &FoundDisk| Names {
        controller: disk.controller.clone(),
        unit: disk.disk.unit,
        function: format!("{}", disk.address),
        serial: disk.disk.serial.clone(),
    };
    found().iter().map(names).collect()
}

/// What a guest starts from.
pub enum Start {
    /// Files that the manifest names.
    Files(BootFiles),
    /// What its disks have.
    Disk(DiskBoot),
}

/// A guest with disks.
struct Guest {
    name: String,
    disks: Vec<Wanted>,
    start: Start,
    frames: &'static FrameAllocator,
    /// The boot entry that the user wants for the next life.
    chosen: Mutex<Option<String>>,
    /// What there was to boot the last time.
    menu: Mutex<Option<Menu>>,
}

/// A disk as the manifest wants it, the files that come with the machine found.
struct Wanted {
    config: manifest::Disk,
    file: Option<&'static [u8]>,
    base_file: Option<&'static [u8]>,
}

/// Who gives `guest`, which has disks, its provisions. `load` finds what comes with the machine, and says what is
/// wrong with that.
pub fn provider(
    guest: &manifest::GuestConfig,
    start: Start,
    frames: &'static FrameAllocator,
    load: impl Fn(&Source) -> Option<Image>,
) -> Option<Arc<dyn Provider>> {
    let find = |source: &DiskSource| match source {
        DiskSource::Disk(_) => Some(None),
        DiskSource::File(file) => match load(file)? {
            Image::Flash(bytes) => Some(Some(bytes)),
            Image::Memory(_) => None,
        },
    };
    let wanted = |disk: &manifest::Disk| {
        Some(Wanted {
            file: find(&disk.source)?,
            base_file: match &disk.base {
                Some(base) => find(&base.source)?,
                None => None,
            },
            config: disk.clone(),
        })
    };
    let guest = Arc::new(Guest {
        name: guest.name.clone(),
        disks: guest.disks.iter().map(wanted).collect::<Option<_>>()?,
        start,
        frames,
        chosen: Mutex::new(None),
        menu: Mutex::new(None),
    });
    GUESTS.lock().push(Arc::clone(&guest));
    Some(guest)
}

impl Guest {
    /// The disks of one life.
    async fn open_all(&self) -> Result<Vec<GuestDisk>, String> {
        let mut disks = Vec::new();
        for wanted in &self.disks {
            disks.push(wanted.open(&self.name, self.frames).await?);
        }
        Ok(disks)
    }

    /// What the next life starts from.
    async fn files(&self, disks: &[GuestDisk]) -> Result<BootFiles, String> {
        let boot = match &self.start {
            Start::Files(files) => return Ok(files.clone()),
            Start::Disk(boot) => boot,
        };
        let chosen = self.chosen.lock().take();
        let (disk, menu) = boot::menu(disks).await?;
        let entry = boot::choose(&menu, chosen.as_deref().or(boot.entry.as_deref()))?;
        info!("{}: boots \"{}\" ({}, {})", self.name, entry.title, entry.source, entry.path);
        let files = boot::load(&disk, entry, &boot.bootargs, self.frames).await;
        *self.menu.lock() = Some(menu);
        files
    }
}

impl Provider for Guest {
    fn disks(&self) -> usize {
        self.disks.len()
    }

    fn own_memory(&self) -> u64 {
        let snapshots = self.disks.iter().filter(|disk| disk.config.snapshot).count() as u64;
        snapshots * (SNAPSHOT / PIECE) * OWN_MEMORY_OF_PIECE
    }

    fn provide(self: Arc<Self>) -> Providing {
        Box::pin(async move {
            let disks = self.open_all().await?;
            let files = self.files(&disks).await?;
            Ok(Provisions { files, disks })
        })
    }
}

impl Wanted {
    /// The disk for one life of `guest`.
    async fn open(&self, guest: &str, frames: &'static FrameAllocator) -> Result<GuestDisk, String> {
        let config = &self.config;
        let holder = format!("{guest}'s {}", config.name);
        let failed =
            |source: &DiskSource, error: &dyn fmt::Display| format!("{}: {source}: {error}", config.name);
        let base = match &config.base {
            Some(base) => {
                let device = container(&base.source, self.base_file, Access::Read, &holder).await;
                let device = device.map_err(|error| failed(&base.source, &error))?;
                let opened = open_image(base.format, device, None).await;
                Some(opened.map_err(|error| failed(&base.source, &*error))?)
            }
            None => None,
        };
        // What is forgotten is not written there.
        let access = if config.read_only || config.snapshot { Access::Read } else { Access::Write };
        let device = container(&config.source, self.file, access, &holder).await;
        let device = device.map_err(|error| failed(&config.source, &error))?;
        let opened = open_image(config.format, device, base.as_ref()).await;
        let opened = opened.map_err(|error| failed(&config.source, &*error))?;
        #[cfg(feature = "qcow2")]
        if opened.qcow2.as_ref().is_some_and(|image| image.repaired() != qcow2::Repaired::default()) {
            crate::warn!("{holder}: {}: was not closed properly, and is mended", config.source);
        }
        let write_back = config.cache == manifest::Cache::WriteBack;
        let device: Arc<dyn BlockDevice> = if config.snapshot {
            Arc::new(Overlay::in_room(opened.disk, SNAPSHOT, Arc::new(room::Frames::new(frames))))
        } else if write_back {
            opened.disk
        } else {
            Arc::new(WriteThrough(opened.disk))
        };
        Ok(GuestDisk {
            device,
            model: match config.model {
                manifest::Model::Virtio => DiskModel::Virtio,
                manifest::Model::Nvme => DiskModel::Nvme,
            },
            serial: config.serial.clone().unwrap_or_else(|| config.name.clone()),
            write_back,
        })
    }

    /// Makes the image as empty as it was when it was new, so that it shows its base.
    #[cfg(feature = "qcow2")]
    async fn roll_back(&self, guest: &str) -> Result<(), String> {
        let config = &self.config;
        let Some(base) = &config.base else { return Ok(()) };
        let holder = format!("{guest}'s {}", config.name);
        let said = |error: &dyn fmt::Display| format!("{}: {error}", config.name);
        let below = container(&base.source, self.base_file, Access::Read, &holder).await;
        let below = open_image(base.format, below.map_err(|e| said(&e))?, None).await;
        let size = below.map_err(|e| said(&*e))?.disk.geometry().size();
        let device = container(&config.source, self.file, Access::Write, &holder).await;
        let device = device.map_err(|e| said(&e))?;
        // An image that was made elsewhere keeps the name that it has for its base.
        let named = image::base(format(config.format), Arc::clone(&device)).await.ok().flatten();
        let backing = named.unwrap_or_else(|| Base {
            name: format!("{}", base.source),
            format: Some(backing_format(base.format).into()),
        });
        qcow2::create(&*storage::Sectors::of(device), size, Some(&backing)).await.map_err(|e| said(&e))
    }
}

/// What holds an image, or is the disk itself.
async fn container(
    source: &DiskSource,
    file: Option<&'static [u8]>,
    access: Access,
    holder: &str,
) -> Result<Arc<dyn BlockDevice>, open::OpenError> {
    let device: Arc<dyn BlockDevice> = match (source, file) {
        (DiskSource::Disk(place), _) => open::place(place, access, holder).await?,
        (DiskSource::File(_), file) => Arc::new(FlashDisk(file.unwrap_or(&[]))),
    };
    Ok(if access == Access::Read { Arc::new(ReadOnly(device)) } else { device })
}

/// Opens the image in `container`, once there is memory for it.
async fn open_image(
    kind: Format,
    container: Arc<dyn BlockDevice>,
    base: Option<&image::Image>,
) -> Result<image::Image, Box<dyn fmt::Display>> {
    let kind = format(kind);
    if kind == image::Format::Raw {
        return image::open(kind, container, base).await.map_err(boxed);
    }
    let memory = image::memory(kind, Arc::clone(&container), MOST as u64).await.map_err(boxed)?;
    let claim = own_memory().claim(memory).map_err(boxed)?;
    image::open(kind, Arc::new(Held::new(container, claim)), base).await.map_err(boxed)
}

fn boxed<E: fmt::Display + 'static>(error: E) -> Box<dyn fmt::Display> {
    Box::new(error)
}

fn format(format: Format) -> image::Format {
    match format {
        Format::Raw => image::Format::Raw,
        Format::Qcow2 => image::Format::Qcow2,
        Format::Vhd => image::Format::Vhd,
    }
}

/// A format as qcow2's header names it.
#[cfg(feature = "qcow2")]
fn backing_format(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
        Format::Vhd => "vpc",
    }
}

/// The guest of this name, if it has disks.
fn guest(name: &str) -> Option<Arc<Guest>> {
    GUESTS.lock().iter().find(|guest| guest.name == name).cloned()
}

/// Writes which disks there are, and who has what of them.
pub fn list(out: &mut dyn Write) -> fmt::Result {
    let Machine { disks, register } = &*MACHINE;
    if disks.is_empty() {
        return writeln!(out, "this machine has no disks");
    }
    for (number, disk) in disks.iter().enumerate() {
        let size = found().get(number).map_or(0, |found| found.disk.device.geometry().size());
        writeln!(out, "{disk}, {} MiB", size >> 20)?;
        register.of_disk(number as u64).iter().try_for_each(|held| writeln!(out, "    {held}"))?;
    }
    Ok(())
}

/// What there is to boot on the disks of the guest of this name.
pub fn entries(name: &str) -> Answer {
    let guest = match guest(name) {
        Some(guest) => guest,
        None => return no_guest(name),
    };
    Box::pin(async move {
        // While the guest lives its disks are its own: what it was started from is known.
        let fresh = async { boot::menu(&guest.open_all().await?).await };
        let menu = match fresh.await {
            Ok((_, menu)) => menu,
            Err(error) => match guest.menu.lock().clone() {
                Some(menu) => menu,
                None => return error + "\n",
            },
        };
        let mut text = String::new();
        for (number, entry) in menu.entries.iter().enumerate() {
            let mark = if number == menu.default { '*' } else { ' ' };
            let (id, title, source) = (&entry.id, &entry.title, &entry.source);
            text += &format!("{mark}{:2} {id}  {title} ({source})\n", number + 1);
        }
        for remark in &menu.remarks {
            text += &format!("    {remark}\n");
        }
        text
    })
}

fn no_guest(name: &str) -> Answer {
    Box::pin(ready(format!("`{name}` is no guest with disks\n")))
}

/// Has the next life of the guest of this name start from this boot entry; why not, where it cannot.
pub fn choose(name: &str, entry: &str) -> Result<(), &'static str> {
    let guest = guest(name).ok_or("it is no guest with disks")?;
    if matches!(guest.start, Start::Files(_)) {
        return Err("it does not start from its disks");
    }
    *guest.chosen.lock() = Some(entry.into());
    Ok(())
}

/// Says that there is nothing to roll back.
#[cfg(not(feature = "qcow2"))]
pub fn roll_back(_name: &str) -> Answer {
    Box::pin(ready("qcow2 images were left out of this payload\n".into()))
}

/// Takes the images of the guest of this name that stand on a base back to it.
#[cfg(feature = "qcow2")]
pub fn roll_back(name: &str) -> Answer {
    let Some(guest) = guest(name) else { return no_guest(name) };
    Box::pin(async move {
        let mut text = String::new();
        for disk in &guest.disks {
            if disk.config.base.is_none() || disk.config.format != Format::Qcow2 {
                continue;
            }
            text += &match disk.roll_back(&guest.name).await {
                Ok(()) => format!("{} is as its base again\n", disk.config.name),
                Err(error) => error + "\n",
            };
        }
        if text.is_empty() { format!("`{}` has no qcow2 image with a base\n", guest.name) } else { text }
    })
}
