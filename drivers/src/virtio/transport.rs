//! A device's registers on PCI (virtio 1.2, 4.1.4).

use crate::driver::Error;
use crate::pci::{Capability, Function};
use crate::platform::{Platform, Region, Registers};
use crate::task::until;
use alloc::sync::Arc;
use bitflags::bitflags;

bitflags! {
    /// How far driver and device have come with one another (2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The driver has seen the device.
        const ACKNOWLEDGE = 1;
        /// It knows how to drive it.
        const DRIVER = 2;
        /// It is ready.
        const DRIVER_OK = 4;
        /// It has said which features it uses.
        const FEATURES_OK = 8;
        /// The device cannot go on.
        const NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }

    /// What devices of all kinds can do (6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Feature: u64 {
        /// Tables of descriptors outside of the ring.
        const INDIRECT_DESCRIPTORS = 1 << 28;
        /// It is as this version of the standard has it.
        const VERSION_1 = 1 << 32;
        /// Its addresses are what the platform says they are: ours are physical ones.
        const ACCESS_PLATFORM = 1 << 33;
        const _ = !0;
    }
}

/// Registers of all devices (4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0c;
    pub const CONFIG_MSIX_VECTOR: usize = 0x10;
    pub const NUM_QUEUES: usize = 0x12;
    pub const DEVICE_STATUS: usize = 0x14;
    pub const CONFIG_GENERATION: usize = 0x15;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_MSIX_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
    /// How many bytes they are.
    pub const LEN: u64 = 0x38;
}

/// The vendor's capability, and what its kinds describe (4.1.4).
const VENDOR_CAPABILITY: u8 = 0x09;
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const INTERRUPTS: u8 = 3;
const DEVICE: u8 = 4;

/// No interrupt comes of this.
const NO_VECTOR: u16 = 0xffff;
/// How long a device may take to reset, in nanoseconds.
const RESET: u64 = 1_000_000_000;
/// How often a configuration that changes is read again.
const PATIENCE: u32 = 16;

/// A device's registers.
pub struct Transport {
    common: Arc<dyn Registers>,
    notify: Arc<dyn Registers>,
    notify_multiplier: usize,
    interrupts: Arc<dyn Registers>,
    /// What is the device's own.
    device: Arc<dyn Registers>,
}

impl Transport {
    /// By the registers that a function's capabilities name.
    ///
    /// # Errors
    /// It has no such capabilities (devices from before version 1), or they name what cannot be.
    pub fn find(function: &Function, platform: &dyn Platform) -> Result<Self, Error> {
        let kind = |capability: &Capability| (function.read(capability.offset) >> 24) as u8;
        let capabilities = function.capabilities();
        let vendors = capabilities.iter().filter(|capability| capability.id == VENDOR_CAPABILITY);
        // Of several of a kind, the first that can be used is preferred.
        let open = |wanted: u8, least: u64| {
            vendors
                .clone()
                .filter(|capability| kind(capability) == wanted)
                .find_map(|capability| Some((*capability, window(function, platform, capability, least)?)))
        };
        let missing = Error::Unusable("it has no registers of virtio 1.0");
        let (_, common) = open(COMMON, common::LEN).ok_or(missing.clone())?;
        let (capability, notify) = open(NOTIFY, 2).ok_or(missing.clone())?;
        let (_, interrupts) = open(INTERRUPTS, 1).ok_or(missing.clone())?;
        let (_, device) = open(DEVICE, 4).ok_or(missing)?;
        let multiplier = function.read(capability.offset.saturating_add(16));
        Ok(Self::new(common, notify, multiplier, interrupts, device))
    }

    /// By these registers; `multiplier` is how many bytes the queues' places among `notify` are apart.
    pub fn new(
        common: Arc<dyn Registers>,
        notify: Arc<dyn Registers>,
        multiplier: u32,
        interrupts: Arc<dyn Registers>,
        device: Arc<dyn Registers>,
    ) -> Self {
        Self { common, notify, notify_multiplier: multiplier as usize, interrupts, device }
    }

    /// What the device's status says; `None` where it is gone.
    pub fn status(&self) -> Option<Status> {
        let status = self.common.read_u8(common::DEVICE_STATUS);
        (status != 0xff).then(|| Status::from_bits_truncate(status))
    }

    fn set_status(&self, status: Status) {
        self.common.write_u8(common::DEVICE_STATUS, status.bits());
    }

    /// Has the device forget all, its queues first; from then on it touches no memory.
    ///
    /// # Errors
    /// It is gone, or does not do so.
    pub async fn reset(&self, platform: &dyn Platform) -> Result<(), Error> {
        self.set_status(Status::empty());
        if until(platform, RESET, || self.status().is_none_or(|status| status.is_empty())).await {
            self.status().map(drop).ok_or(Error::Gone)
        } else {
            Err(Error::Silent("reset"))
        }
    }

    /// Begins to drive a device that was reset, with those of the `wanted` features that it has, which are
    /// returned.
    ///
    /// # Errors
    /// It is no device of version 1, or does not take these features.
    pub fn agree(&self, wanted: u64) -> Result<u64, Error> {
        self.set_status(Status::ACKNOWLEDGE | Status::DRIVER);
        let mut offered = 0;
        for half in [0, 1] {
            self.common.write_u32(common::DEVICE_FEATURE_SELECT, half);
            let bits = u64::from(self.common.read_u32(common::DEVICE_FEATURE));
            offered |= if half == 0 { bits } else { bits << 32 };
        }
        let agreed = offered & (wanted | Feature::VERSION_1.bits() | Feature::ACCESS_PLATFORM.bits());
        if agreed & Feature::VERSION_1.bits() == 0 {
            return Err(Error::Unusable("it is from before virtio 1.0"));
        }
        for (half, bits) in [(0, agreed as u32), (1, (agreed >> 32) as u32)] {
            self.common.write_u32(common::DRIVER_FEATURE_SELECT, half);
            self.common.write_u32(common::DRIVER_FEATURE, bits);
        }
        let status = Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK;
        self.set_status(status);
        match self.status() {
            None => Err(Error::Gone),
            Some(status) if !status.contains(Status::FEATURES_OK) => {
                Err(Error::Unusable("it does not take the features that it offered"))
            }
            Some(_) => Ok(agreed),
        }
    }

    /// Has the device begin to work.
    pub fn begin(&self) {
        self.set_status(Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK | Status::DRIVER_OK);
    }

    /// How many queues it has.
    pub fn queues(&self) -> u16 {
        match self.common.read_u16(common::NUM_QUEUES) {
            u16::MAX => 0,
            count => count,
        }
    }

    /// The largest size of a queue, in descriptors; zero where there is no such queue.
    pub fn queue_size(&self, queue: u16) -> u16 {
        self.common.write_u16(common::QUEUE_SELECT, queue);
        match self.common.read_u16(common::QUEUE_SIZE) {
            u16::MAX => 0,
            size => size,
        }
    }

    /// Starts a queue of `size` descriptors, whose three parts lie at these addresses. `source` is the message that it
    /// interrupts by, where it interrupts by messages.
    ///
    /// # Errors
    /// The device has no place for the interrupt.
    pub fn start_queue(
        &self,
        queue: u16,
        size: u16,
        parts: [u64; 3],
        source: Option<u16>,
    ) -> Result<(), Error> {
        let common = &self.common;
        common.write_u16(common::QUEUE_SELECT, queue);
        common.write_u16(common::QUEUE_SIZE, size);
        common.write_u16(common::CONFIG_MSIX_VECTOR, NO_VECTOR);
        let vector = source.unwrap_or(NO_VECTOR);
        common.write_u16(common::QUEUE_MSIX_VECTOR, vector);
        if common.read_u16(common::QUEUE_MSIX_VECTOR) != vector {
            return Err(Error::Unusable("it has no place for its interrupt"));
        }
        let registers = [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE];
        for (register, address) in registers.into_iter().zip(parts) {
            common.write_u32(register, address as u32);
            common.write_u32(register.saturating_add(4), (address >> 32) as u32);
        }
        common.write_u16(common::QUEUE_ENABLE, 1);
        Ok(())
    }

    /// Where a queue's notifications go: an offset for [`Transport::notify`].
    pub fn notify_offset(&self, queue: u16) -> usize {
        self.common.write_u16(common::QUEUE_SELECT, queue);
        let place = self.common.read_u16(common::QUEUE_NOTIFY_OFF);
        self.notify_multiplier.saturating_mul(usize::from(place))
    }

    /// Says that there is something in a queue.
    pub fn notify(&self, queue: u16, offset: usize) {
        self.notify.write_u16(offset, queue);
    }

    /// Takes back the device's interrupt line.
    pub fn acknowledge(&self) {
        self.interrupts.read_u8(0);
    }

    /// Reads the device's own registers by `read`, all of them as of one moment.
    ///
    /// # Errors
    /// They do not stop changing.
    pub fn configuration<T>(&self, read: impl Fn(&dyn Registers) -> T) -> Result<T, Error> {
        for _ in 0..PATIENCE {
            let generation = self.common.read_u8(common::CONFIG_GENERATION);
            let value = read(&*self.device);
            if self.common.read_u8(common::CONFIG_GENERATION) == generation {
                return Ok(value);
            }
        }
        Err(Error::Unusable("its configuration does not stop changing"))
    }
}

/// The registers that a capability names (4.1.4): a place in a base address register, `least` bytes at least.
fn window(
    function: &Function,
    platform: &dyn Platform,
    capability: &Capability,
    least: u64,
) -> Option<Arc<dyn Registers>> {
    let word = |at: u16| function.read(capability.offset.saturating_add(at));
    let bar = function.bar(word(4) as u8)?;
    let (offset, len) = (u64::from(word(8)), u64::from(word(12)));
    let inside = len >= least && offset.checked_add(len)? <= bar.len;
    let region = Region { start: bar.start.checked_add(offset)?, len, ..bar };
    if inside { platform.registers(region) } else { None }
}
