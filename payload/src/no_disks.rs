//! What stands in for guests' disks where they are left out: no guest with one starts.

use crate::error;
use alloc::string::String;
use core::fmt::{self, Write};
use coreboot_config::manifest::{self, Source};
use vmm_core::provision::{BootFiles, Image, Provider, Provisions};

/// A guest's disks, of which there are none.
pub enum GuestDisks {}

impl GuestDisks {
    /// Says that there are none.
    pub fn new(
        guest: &manifest::GuestConfig,
        _files: BootFiles,
        _load: impl Fn(&Source) -> Option<Image>,
    ) -> Option<Self> {
        error!("{}: disks for guests were left out of this payload", guest.name);
        None
    }
}

impl Provider for GuestDisks {
    fn disks(&self) -> usize {
        match *self {}
    }
    fn provide(&self) -> Result<Provisions, String> {
        match *self {}
    }
}

/// Says that there is no list.
#[cfg_attr(not(feature = "prompt"), allow(dead_code, reason = "nobody asks"))]
pub fn list(out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "disks for guests were left out of this payload")
}
