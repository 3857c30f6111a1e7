//! What a guest has from outside the monitor, brought forth anew for each of its lives.

use crate::disk::GuestDisk;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// A file a guest boots from.
#[derive(Clone)]
pub enum Image {
    /// Where it lay already, or lies for good: in memory-mapped flash, or in RAM.
    Flash(&'static [u8]),
    /// In memory that it gives back.
    Memory(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

impl Image {
    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Flash(bytes) => bytes,
            Self::Memory(bytes) => (**bytes).as_ref(),
        }
    }
}

/// A file that goes with a kernel.
#[derive(Clone)]
pub struct Module {
    /// The file.
    pub image: Image,
    /// Its command line.
    pub bootargs: String,
}

/// What a life starts from.
#[derive(Clone)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: Image,
    /// The initial ramdisk.
    pub ramdisk: Option<Image>,
    /// What else goes with the kernel.
    pub modules: Vec<Module>,
    /// The kernel's command line.
    pub bootargs: String,
}

/// What a life has from outside.
#[derive(Clone)]
pub struct Provisions {
    /// What it starts from.
    pub files: BootFiles,
    /// Its disks, in the order in which the guest finds them.
    pub disks: Vec<GuestDisk>,
}

/// Who has a guest's provisions.
pub trait Provider: Send + Sync {
    /// How many disks each life has.
    fn disks(&self) -> usize;
    /// What a life takes of the monitor's own memory at most, beside what each disk does, in bytes.
    fn own_memory(&self) -> u64 {
        0
    }
    /// What the next life has. It may take its time: nothing else on this core runs meanwhile.
    ///
    /// # Errors
    /// It cannot be had now, for this reason, and the guest does not start.
    fn provide(&self) -> Result<Provisions, String>;
}

/// The same for each life.
impl Provider for Provisions {
    fn disks(&self) -> usize {
        self.disks.len()
    }

    fn provide(&self) -> Result<Provisions, String> {
        Ok(self.clone())
    }
}
