//! The drivers that there are.

use crate::driver::{Driver, Error};
use crate::pci::Function;
use crate::platform::Platform;
use alloc::sync::Arc;

/// Brings a function up, which decodes nothing yet and is not enabled, and finds its disks. It may wait for the device.
pub type Start = fn(&Arc<Function>, &Arc<dyn Platform>) -> Result<Arc<dyn Driver>, Error>;

/// A driver that may be asked to start.
pub struct Entry {
    /// Its name for logs, as [`Driver::name`] has it.
    pub name: &'static str,
    /// Whether it drives this function.
    pub drives: fn(&Function) -> bool,
    /// How to bring it up.
    pub start: Start,
}

/// All drivers that were not left out.
pub const DRIVERS: &[Entry] = &[
    #[cfg(feature = "virtio-blk")]
    crate::virtio_blk::ENTRY,
    #[cfg(feature = "nvme")]
    crate::nvme::ENTRY,
    #[cfg(feature = "ahci")]
    crate::ahci::ENTRY,
    #[cfg(feature = "ata")]
    crate::ata::ENTRY,
];

/// The driver for a function, if there is one.
pub fn driver_of(function: &Function) -> Option<&'static Entry> {
    DRIVERS.iter().find(|entry| (entry.drives)(function))
}
