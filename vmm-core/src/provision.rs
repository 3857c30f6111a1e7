//! What a guest has from outside the monitor, brought forth anew for each of its lives.

use crate::disk::GuestDisk;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, ready};
use core::pin::Pin;

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

/// What the next life has, once all of it was read; or why it cannot be had now, and the guest does not start.
pub type Providing = Pin<Box<dyn Future<Output = Result<Provisions, String>> + Send>>;

/// Who has a guest's provisions.
pub trait Provider: Send + Sync {
    /// How many disks each life has.
    fn disks(&self) -> usize;
    /// What each life takes of the monitor's own memory at most, beside what each disk does, in bytes. What it claims
    /// by itself in [`Self::provide`] comes in addition.
    fn own_memory(&self) -> u64 {
        0
    }
    /// Gets what the next life has. Other guests run while it waits.
    fn provide(self: Arc<Self>) -> Providing;
}

/// The same for each life.
impl Provider for Provisions {
    fn disks(&self) -> usize {
        self.disks.len()
    }

    fn provide(self: Arc<Self>) -> Providing {
        Box::pin(ready(Ok(Provisions::clone(&self))))
    }
}
