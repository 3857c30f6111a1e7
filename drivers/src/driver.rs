//! What a driver is to those who use it.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use storage::BlockDevice;

/// A controller that was brought up, and serves its disks.
///
/// Its methods may be called on any core, and on several at once. None but [`Driver::recover`] waits for the device:
/// requests are submitted and answered later. Who asks and who serves hold no lock of the driver's while they wake
/// others.
pub trait Driver: Send + Sync {
    /// The driver's name for logs: `virtio-blk`, `nvme`, `ahci`, `ata`.
    fn name(&self) -> &'static str;

    /// Takes what the device has completed and answers it. `source` is which of the interrupts came that
    /// the driver asked for, from 0; a number that it does not know means all of them. It may be called though
    /// nothing has happened.
    fn serve(&self, source: usize);

    /// When the earliest request under way must have been answered, in nanoseconds on the platform's clock;
    /// `None` while none is under way. It is asked often, and takes no lock.
    fn deadline(&self) -> Option<u64>;

    /// Ends requests whose deadline is over: serves the device as if all of its interrupts had come, and where a
    /// request is still overdue, brings the device back and answers `TimedOut`. To be called once
    /// [`Driver::deadline`] is over. Whether a request was overdue.
    fn recover(&self) -> bool;

    /// The disks that it found, in the device's order.
    fn disks(&self) -> Vec<Disk>;
}

/// A disk, and how to tell it from others.
#[derive(Clone)]
pub struct Disk {
    /// Which of its controller's disks: a namespace, a port, or 0.
    pub unit: u32,
    /// What the device says it is, without padding; empty where it says nothing.
    pub model: String,
    /// Its serial number, without padding; empty where it says none.
    pub serial: String,
    /// Where its blocks are.
    pub device: Arc<dyn BlockDevice>,
}

/// Why a device could not be brought up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The base address register of this number is needed, and firmware left it without an address or cannot be
    /// reached.
    NoRegisters(u8),
    /// There is no memory left that the device could reach.
    NoMemory,
    /// The device did not do this in time.
    Silent(&'static str),
    /// The device does not have what the driver needs, or gave a value that cannot be.
    Unusable(&'static str),
    /// The device refused this command.
    Refused(&'static str),
    /// The device is not there any more: its registers read as ones.
    Gone,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRegisters(bar) => write!(f, "its registers at BAR {bar} cannot be reached"),
            Self::NoMemory => f.write_str("there is no memory for it"),
            Self::Silent(what) => write!(f, "it does not answer: {what}"),
            Self::Unusable(what) => write!(f, "it cannot be used: {what}"),
            Self::Refused(what) => write!(f, "it refused to {what}"),
            Self::Gone => f.write_str("it is gone"),
        }
    }
}

impl core::error::Error for Error {}
