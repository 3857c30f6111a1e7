//! Guests' disks: from what the manifest says of them to what a life of a guest has.

mod access;
mod flash;
mod holds;
mod names;
mod open;

use crate::devices::disks::disks as found;
use crate::devices::service::block_on;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use coreboot_config::manifest::{self, DiskSource, Source};
use flash::FlashDisk;
use holds::Holds;
use names::Names;
use spin::LazyLock;
use storage::BlockDevice;
use vmm_core::disk::{DiskModel, GuestDisk};
use vmm_core::provision::{BootFiles, Image, Provider, Provisions};

/// The machine's disks, and who has them.
struct Machine {
    /// In the order of [`found`].
    disks: Vec<Names>,
    holds: Arc<Holds>,
}

static MACHINE: LazyLock<Machine> =
    LazyLock::new(|| Machine { disks: machine_disks(), holds: Arc::default() });

/// What the machine's disks are known by.
fn machine_disks() -> Vec<Names> {
    let mut controllers: Vec<(&str, _)> = Vec::new();
    found()
        .iter()
        .map(|disk| {
            let controller = (disk.driver, disk.address);
            if !controllers.contains(&controller) {
                controllers.push(controller);
            }
            let of_kind = controllers.iter().filter(|(driver, _)| *driver == disk.driver);
            let number = of_kind.take_while(|one| **one != controller).count();
            // virtio-blk is called as the manifest calls it.
            let kind = disk.driver.split('-').next().unwrap_or_default();
            Names {
                controller: format!("{kind}{number}"),
                unit: disk.disk.unit,
                function: format!("{}", disk.address),
                serial: disk.disk.serial.clone(),
            }
        })
        .collect()
}

/// What a guest's disks are made of for each of its lives.
pub struct GuestDisks {
    guest: String,
    disks: Vec<Wanted>,
    files: BootFiles,
}

/// A disk as the manifest wants it, the files that come with the machine found.
struct Wanted {
    config: manifest::Disk,
    file: Option<&'static [u8]>,
}

impl GuestDisks {
    /// The disks of `guest`, which starts from `files`. `load` finds what comes with the machine.
    pub fn new(
        guest: &manifest::GuestConfig,
        files: BootFiles,
        load: impl Fn(&Source) -> Option<Image>,
    ) -> Option<Self> {
        let find = |source: &DiskSource| match source {
            DiskSource::Disk(_) => Some(None),
            DiskSource::File(file) => match load(file)? {
                Image::Flash(bytes) => Some(Some(bytes)),
                Image::Memory(_) => None,
            },
        };
        let wanted = |disk: &manifest::Disk| Some(Wanted { file: find(&disk.source)?, config: disk.clone() });
        let disks = guest.disks.iter().map(wanted).collect::<Option<_>>()?;
        Some(Self { guest: guest.name.clone(), disks, files })
    }

    /// One disk for a life.
    async fn open(&self, wanted: &Wanted) -> Result<GuestDisk, String> {
        let Wanted { config, file } = wanted;
        let device: Arc<dyn BlockDevice> = match (&config.source, file) {
            (DiskSource::Disk(place), _) => open::place(place, !config.read_only, &self.guest)
                .await
                .map_err(|error| format!("{}: {}: {error}", config.name, config.source))?,
            (_, file) => Arc::new(FlashDisk(file.unwrap_or(&[]))),
        };
        let write_back = config.cache == manifest::Cache::WriteBack;
        Ok(GuestDisk {
            device: access::limit(device, config.read_only, !write_back),
            model: match config.model {
                manifest::Model::Virtio => DiskModel::Virtio,
                manifest::Model::Nvme => DiskModel::Nvme,
            },
            serial: config.serial.clone().unwrap_or_else(|| config.name.clone()),
            write_back,
        })
    }
}

impl Provider for GuestDisks {
    fn disks(&self) -> usize {
        self.disks.len()
    }

    fn provide(&self) -> Result<Provisions, String> {
        let disks = block_on(async {
            let mut disks = Vec::new();
            for wanted in &self.disks {
                disks.push(self.open(wanted).await?);
            }
            Ok::<_, String>(disks)
        })?;
        Ok(Provisions { files: self.files.clone(), disks })
    }
}

/// Writes which disks there are, and who has what of them.
pub fn list(out: &mut dyn Write) -> fmt::Result {
    let Machine { disks, holds } = &*MACHINE;
    if disks.is_empty() {
        return writeln!(out, "this machine has no disks");
    }
    for (number, disk) in disks.iter().enumerate() {
        let size = found().get(number).map_or(0, |found| found.disk.device.geometry().size());
        writeln!(out, "{disk}, {} MiB", size >> 20)?;
        holds.of_disk(number).iter().try_for_each(|held| writeln!(out, "    {held}"))?;
    }
    Ok(())
}
