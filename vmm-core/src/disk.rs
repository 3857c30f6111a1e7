//! A guest's disks: what stores their blocks, and as what the guest sees them.

use crate::chipset::{PciConfigError, PciFunction};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use storage::BlockDevice;

/// One disk of a guest.
#[derive(Clone)]
pub struct GuestDisk {
    /// What stores its blocks, from one life of the guest to the next.
    pub device: Arc<dyn BlockDevice>,
    /// As what the guest sees it.
    pub model: DiskModel,
    /// Its serial number: as much of it as the model has room for.
    pub serial: String,
    /// Whether what was written may be lost with the power until the guest flushes it.
    pub write_back: bool,
}

/// As what a guest sees a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskModel {
    /// A virtio block device.
    Virtio,
    /// An NVMe controller with one namespace.
    Nvme,
}

impl fmt::Display for DiskModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Virtio => "virtio",
            Self::Nvme => "nvme",
        })
    }
}

/// Why a guest cannot have a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// This build cannot show disks as that.
    NoModel(DiskModel),
    /// Its controller does not fit its configuration space.
    Config(PciConfigError),
    /// There are so many before it that no slot of the bus is left.
    NoSlot,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoModel(model) => write!(f, "this build has no {model} disks for guests"),
            Self::Config(error) => error.fmt(f),
            Self::NoSlot => f.write_str("its PCI bus has no slot left for another disk"),
        }
    }
}

impl core::error::Error for DiskError {}

impl GuestDisk {
    /// The controller through which a guest with so many virtual CPUs reaches it, new after power-on. `slot` is where
    /// on the bus it will be.
    ///
    /// # Errors
    /// This build has no such model.
    pub fn controller(&self, slot: u8, vcpus: u32) -> Result<Box<dyn PciFunction>, DiskError> {
        match self.model {
            #[cfg(feature = "virtio")]
            DiskModel::Virtio => {
                let device = Arc::clone(&self.device);
                let block = crate::virtio::Block::new(device, &self.serial, self.write_back, vcpus as usize);
                let function =
                    crate::virtio::pci::VirtioPci::new(Box::new(block)).map_err(DiskError::Config)?;
                Ok(Box::new(function))
            }
            #[cfg(feature = "nvme-device")]
            DiskModel::Nvme => {
                use crate::nvme::{Identity, Nvme};
                let identity = Identity { serial: self.serial.clone(), slot, write_back: self.write_back };
                // A queue for each of the CPUs, so that they need not wait for each other.
                let queues = u16::try_from(vcpus).unwrap_or(u16::MAX);
                let nvme =
                    Nvme::new(Arc::clone(&self.device), identity, queues).map_err(DiskError::Config)?;
                Ok(Box::new(nvme))
            }
            #[allow(unreachable_patterns, reason = "builds without one of the models")]
            _ => {
                let _ = (slot, vcpus);
                Err(DiskError::NoModel(self.model))
            }
        }
    }
}
