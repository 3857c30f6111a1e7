//! What stands in for guests' disks where they are left out: no guest with one starts.

use crate::errands::Answer;
use crate::error;
use crate::host::memory::FrameAllocator;
use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use core::fmt::{self, Write};
use core::future::ready;
use coreboot_config::manifest::{self, DiskBoot, Source};
use vmm_core::provision::{BootFiles, Image, Provider};

/// What a guest starts from.
pub enum Start {
    /// Files that the manifest names.
    Files(BootFiles),
    /// What its disks have.
    #[allow(dead_code, reason = "nobody looks there")]
    Disk(DiskBoot),
}

/// Says that there are no disks.
pub fn provider(
    guest: &manifest::GuestConfig,
    _start: Start,
    _frames: &'static FrameAllocator,
    _load: impl Fn(&Source) -> Option<Image>,
) -> Option<Arc<dyn Provider>> {
    error!("{}: disks for guests were left out of this payload", guest.name);
    None
}

const LEFT_OUT: &str = "disks for guests were left out of this payload";

/// Says that there is no list.
pub fn list(out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "{LEFT_OUT}")
}

/// Says that there are none.
pub fn entries(_name: &str) -> Answer {
    Box::pin(ready(format!("{LEFT_OUT}\n")))
}

/// Says that there is nothing to choose from.
pub fn choose(_name: &str, _entry: &str) -> Result<(), &'static str> {
    Err(LEFT_OUT)
}

/// Says that there is nothing to roll back.
pub fn roll_back(name: &str) -> Answer {
    entries(name)
}
