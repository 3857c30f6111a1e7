//! The host's devices: found, listed, driven or kept quiet.

pub mod disks;
mod platform;
mod registers;
pub mod service;

pub use service::{block_on, look, next_look};

use crate::host::acpi::{Acpi, Ecam};
use crate::host::apic::io::IoApics;
use crate::host::memory::FrameAllocator;
use crate::host::time::Clock;
use crate::{debug, info, warn};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use drivers::pci::{self, ConfigAccess, Function};
use drivers::platform::{Platform, Region, Space};
use drivers::{Entry, driver_of};
use platform::ThisMachine;
use service::Running;
use spin::Once;

/// All functions, by address.
static FUNCTIONS: Once<Vec<Arc<Function>>> = Once::new();

/// Finds all devices, starts those that there are drivers for, and has their disks told apart. `screen` says that
/// firmware's framebuffer is in use.
pub fn start(
    acpi: Option<&Acpi>,
    frames: &'static FrameAllocator,
    clock: &'static Clock,
    io_apics: Option<&'static IoApics>,
    screen: bool,
) {
    let platform: Arc<dyn Platform> = Arc::new(ThisMachine::new(clock, frames, io_apics));
    let mut functions = Vec::new();
    for access in ways(acpi) {
        // What shows the screen reads it from memory.
        functions
            .extend(pci::enumerate(&access, |function| screen && function.identity().class.is_display()));
    }
    let mut running = Vec::new();
    for function in &functions {
        match driver_of(function) {
            Some(entry) => running.extend(start_driver(entry, function, &platform)),
            None => debug!("{}", Line(function)),
        }
    }
    info!("PCI: {} functions, {} with a driver", functions.len(), running.len());
    FUNCTIONS.call_once(|| functions);
    service::begin(clock, io_apics, running);
    disks::find();
}

/// The ways to all configuration space.
fn ways(acpi: Option<&Acpi>) -> Vec<Arc<dyn ConfigAccess>> {
    let mut ways: Vec<Arc<dyn ConfigAccess>> = Vec::new();
    for window in acpi.iter().flat_map(|acpi| &acpi.ecam) {
        match ecam(window) {
            Some(way) => ways.push(way),
            None => warn!("PCI: the configuration space at {:#x} cannot be reached", window.base),
        }
    }
    if ways.iter().all(|way| way.segment() != 0) {
        ways.push(Arc::new(pci::Ports::new(registers::configuration_ports())));
    }
    ways
}

/// Configuration space in memory, where ACPI says it is.
fn ecam(window: &Ecam) -> Option<Arc<dyn ConfigAccess>> {
    let buses = window.first_bus..=window.last_bus;
    let start = window.base.checked_add(u64::from(window.first_bus) * pci::Ecam::BUS)?;
    let len = buses.len() as u64 * pci::Ecam::BUS;
    let registers = registers::open(Region { space: Space::Memory, start, len })?;
    (!buses.is_empty())
        .then(|| Arc::new(pci::Ecam::new(window.segment, buses, registers)) as Arc<dyn ConfigAccess>)
}

/// Starts a function's driver.
fn start_driver(entry: &Entry, function: &Arc<Function>, platform: &Arc<dyn Platform>) -> Option<Running> {
    match (entry.start)(function, platform) {
        Ok(driver) => {
            info!("{}, {}, {}", Line(function), driver.name(), function.interrupt_kind());
            Some(Running { driver, function: Arc::clone(function) })
        }
        Err(error) => {
            function.stop();
            warn!("{}, {}: {error}", Line(function), entry.name);
            None
        }
    }
}

/// A function in a line.
struct Line<'a>(&'a Function);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.0.identity();
        let (address, class) = (self.0.address(), identity.class);
        write!(f, "PCI {address} {:04x}:{:04x} {class}", identity.vendor, identity.device)
    }
}

/// Writes a list of all devices: address, maker and number, class, driver, interrupts; and of disks.
pub fn list(out: &mut dyn Write) -> fmt::Result {
    for function in FUNCTIONS.get().into_iter().flatten() {
        write!(out, "{}", Line(function))?;
        let mut running = service::running().iter();
        match running.find(|running| Arc::ptr_eq(&running.function, function)) {
            Some(running) => writeln!(out, ", {}, {}", running.driver.name(), function.interrupt_kind())?,
            None => writeln!(out)?,
        }
    }
    disks::disks().iter().try_for_each(|disk| writeln!(out, "{disk}"))
}
