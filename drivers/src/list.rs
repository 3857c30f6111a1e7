//! The drivers that there are.

use crate::driver::{Driver, Error};
use crate::pci::Function;
use crate::platform::Platform;
use alloc::sync::Arc;

/// A driver that may be asked to start.
pub struct Entry {
    /// Its name for logs, as [`Driver::name`] has it.
    pub name: &'static str,
    /// Whether it drives this function.
    pub drives: fn(&Function) -> bool,
    /// Brings the function up, which decodes nothing yet and is not enabled, and finds its disks. May wait for the
    /// device.
    pub start: fn(&Arc<Function>, &Arc<dyn Platform>) -> Result<Arc<dyn Driver>, Error>,
}

/// All drivers that were not left out.
pub const DRIVERS: &[Entry] = &[];

/// The driver for a function, if there is one.
pub fn driver_of(function: &Function) -> Option<&'static Entry> {
    DRIVERS.iter().find(|entry| (entry.drives)(function))
}
