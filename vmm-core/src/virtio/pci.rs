//! virtio over PCI (virtio 1.2, 4.1): a modern function, without the legacy interface.
//!
//! All its structures and the MSI-X table lie in one BAR. It signals by MSI-X or, until a driver enables that, by
//! INTA#.

use super::device::{Device, Fault, Queues, Slot};
use super::queue::{Queue, QueueLayout, RingFeatures};
use crate::chipset::{BarLayout, ConfigSpace, Context, Msix, PciConfigError, PciFunction, PciIdentity};
use crate::cpu::Width;
use crate::memory::GuestPhys;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::task::Waker;

const VENDOR: u16 = 0x1af4;
/// Added to the device's own ID.
const FIRST_DEVICE: u16 = 0x1040;

/// VIRTIO_F_INDIRECT_DESC.
const INDIRECT: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
const EVENT_INDEX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_RING_PACKED.
const PACKED: u64 = 1 << 34;
/// VIRTIO_F_RING_RESET.
const RING_RESET: u64 = 1 << 40;
/// What the transport offers for every device.
const TRANSPORT_FEATURES: u64 = INDIRECT | EVENT_INDEX | VERSION_1 | PACKED | RING_RESET;

/// The device status field (2.1).
mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
    /// What a driver may set.
    pub const DRIVERS: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// Offsets in the common configuration structure (4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const QUEUE_NOTIFY_DATA: u64 = 0x38;
    pub const QUEUE_RESET: u64 = 0x3a;
    pub const BYTES: u64 = 0x3c;
}

/// No vector: nothing is signalled.
const NO_VECTOR: u16 = 0xffff;

/// The ISR status (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// The one BAR, and where in it what lies.
const BAR: u8 = 0;
const BAR_BYTES: u64 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x5000;
const PART_BYTES: u64 = 0x1000;
/// Bytes between two queues' notification addresses, as a power of two.
const NOTIFY_SHIFT: u32 = 2;
const NOTIFY_MULTIPLIER: u32 = 1 << NOTIFY_SHIFT;

/// The vendor capability's structure types (4.1.4).
mod structure {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const PCI_CONFIG: u8 = 5;
}
const VENDOR_CAPABILITY: u8 = 0x09;
/// In the window capability (4.1.4.9), from its header on: BAR, offset, length, data.
const WINDOW_BAR: u8 = 4;
const WINDOW_OFFSET: u8 = 8;
const WINDOW_LENGTH: u8 = 12;
const WINDOW_DATA: u8 = 16;

/// A queue as the driver sets it up.
#[derive(Debug)]
struct QueueRegisters {
    /// The most entries it can have.
    largest: u16,
    layout: QueueLayout,
    vector: u16,
    enabled: bool,
    /// It was reset, and what came from it is still under way.
    resetting: bool,
}

impl QueueRegisters {
    const fn new(largest: u16) -> Self {
        let nowhere = GuestPhys::new(0);
        let layout = QueueLayout { size: largest, descriptors: nowhere, driver: nowhere, device: nowhere };
        Self { largest, layout, vector: NO_VECTOR, enabled: false, resetting: false }
    }
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    config: ConfigSpace,
    msix: Msix,
    device: Box<dyn Device>,
    /// Where the window capability is in configuration space.
    window: u8,
    offered: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    accepted: u64,
    status: u8,
    /// The driver reset it, and some of its requests are still under way.
    resetting: bool,
    isr: u8,
    config_vector: u16,
    queue_select: u16,
    registers: Vec<QueueRegisters>,
    slots: Vec<Slot>,
    /// Has the device served again.
    waker: Waker,
}

impl VirtioPci {
    /// The function that is `device`.
    ///
    /// # Errors
    /// Its capabilities do not fit configuration space.
    pub fn new(device: Box<dyn Device>) -> Result<Self, PciConfigError> {
        let identity = device.identity();
        let id = FIRST_DEVICE.wrapping_add(identity.id);
        let mut config = ConfigSpace::new(PciIdentity {
            vendor: VENDOR,
            device: id,
            class: identity.class,
            revision: 1,
            subsystem_vendor: VENDOR,
            subsystem: id,
        })
        .with_interrupt_pin(1);
        config.add_bar(BAR, BarLayout { bytes: BAR_BYTES, wide: false, prefetchable: false })?;
        let config_bytes = device.config().len() as u32;
        let queues = device.queue_sizes().len();
        let notify_bytes = (queues as u32).saturating_mul(NOTIFY_MULTIPLIER);
        add_structure(&mut config, structure::COMMON, COMMON, common::BYTES as u32, &[])?;
        add_structure(&mut config, structure::ISR, ISR, 1, &[])?;
        if config_bytes > 0 {
            add_structure(&mut config, structure::DEVICE, DEVICE, config_bytes, &[])?;
        }
        add_structure(
            &mut config,
            structure::NOTIFY,
            NOTIFY,
            notify_bytes,
            &NOTIFY_MULTIPLIER.to_le_bytes(),
        )?;
        let window = add_structure(&mut config, structure::PCI_CONFIG, 0, 0, &[0; 4])?;
        config.allow(window.wrapping_add(WINDOW_BAR), &[0xff]);
        config.allow(window.wrapping_add(WINDOW_OFFSET), &[0xff; 12]);
        let vectors = (queues as u16).saturating_add(1);
        let msix = Msix::new(&mut config, vectors, BAR, (MSIX_TABLE, MSIX_PENDING))?;
        Ok(Self {
            config,
            msix,
            window,
            offered: TRANSPORT_FEATURES | device.features(),
            device_feature_select: 0,
            driver_feature_select: 0,
            accepted: 0,
            status: 0,
            resetting: false,
            isr: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            registers: device.queue_sizes().iter().copied().map(QueueRegisters::new).collect(),
            slots: (0..queues).map(|_| Slot::default()).collect(),
            waker: Waker::noop().clone(),
            device,
        })
    }

    /// Has the device serve its queues, and follows what came of it.
    fn serve(&mut self, notified: Option<u16>, ctx: &mut Context) {
        let memory = ctx.memory;
        // Before the driver is ready there is nothing to take from anywhere, but requests may still end.
        let slots = if self.is_running() { self.slots.as_mut_slice() } else { &mut [] };
        let mut queues = Queues::new(slots, memory);
        self.device.serve(notified, &mut queues, ctx);
        if queues.is_spent() {
            // The others on this core want to go on too.
            self.waker.wake_by_ref();
        }
        let fault = queues.into_fault();
        for n in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(n) else { break };
            if !core::mem::take(&mut slot.used) {
                continue;
            }
            let wanted = slot.queue.as_mut().map_or(Ok(false), |queue| queue.wants_interrupt(memory));
            if wanted != Ok(false) {
                let vector = self.registers.get(n).map_or(NO_VECTOR, |registers| registers.vector);
                self.signal(ISR_QUEUE, vector, ctx);
            }
        }
        if let Some((queue, fault)) = fault {
            self.break_down(queue, fault, ctx);
        }
    }

    /// The driver did what no driver may: nothing goes on until it resets the device.
    fn break_down(&mut self, queue: u16, fault: Fault, ctx: &mut Context) {
        self.device.reset();
        self.slots.iter_mut().for_each(|slot| *slot = Slot::default());
        let was_running = self.status & status::DRIVER_OK != 0;
        self.status |= status::NEEDS_RESET;
        let name = self.device.identity().name;
        ctx.complain(name, format!("{name}: queue {queue}: {fault}; it needs a reset by the guest's driver"));
        if was_running {
            self.signal(ISR_CONFIG, self.config_vector, ctx);
        }
    }

    fn signal(&mut self, reason: u8, vector: u16, ctx: &mut Context) {
        if self.msix.is_enabled() {
            if vector != NO_VECTOR {
                self.msix.signal(vector, ctx);
            }
        } else {
            self.isr |= reason;
        }
    }

    fn is_broken(&self) -> bool {
        self.status & status::NEEDS_RESET != 0
    }

    fn is_running(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && !self.is_broken() && !self.resetting
    }

    /// What the driver did so far is forgotten. What is under way outside ends unheard.
    fn reset(&mut self) {
        self.device.reset();
        self.slots.iter_mut().for_each(|slot| *slot = Slot::default());
        for registers in &mut self.registers {
            *registers = QueueRegisters::new(registers.largest);
        }
        self.accepted = 0;
        (self.device_feature_select, self.driver_feature_select, self.queue_select) = (0, 0, 0);
        (self.isr, self.config_vector) = (0, NO_VECTOR);
        self.resetting = true;
        self.finish_reset();
    }

    /// Ends a reset once nothing moves bytes in the guest's memory any more.
    fn finish_reset(&mut self) {
        if self.resetting && self.device.is_idle(None) {
            (self.resetting, self.status) = (false, 0);
        }
    }

    fn write_status(&mut self, value: u8, ctx: &mut Context) {
        if value == 0 {
            return self.reset();
        }
        if self.resetting {
            return;
        }
        // A driver only ever adds to it.
        let mut new = value & status::DRIVERS & !self.status;
        let acceptable = self.accepted & VERSION_1 != 0 && self.accepted & !self.offered == 0;
        if new & status::FEATURES_OK != 0 && !acceptable {
            new &= !status::FEATURES_OK;
        }
        if (self.status | new) & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        self.status |= new;
        if new & status::DRIVER_OK != 0 && !self.is_broken() {
            self.device.start(self.accepted);
            self.serve(None, ctx);
        }
    }

    fn enable_queue(&mut self, ctx: &mut Context) {
        let ready = self.status & status::FEATURES_OK != 0 && !self.is_broken() && !self.resetting;
        let n = usize::from(self.queue_select);
        let (Some(registers), Some(slot)) = (self.registers.get_mut(n), self.slots.get_mut(n)) else {
            return;
        };
        if !ready || registers.enabled || registers.resetting {
            return;
        }
        let features = RingFeatures {
            packed: self.accepted & PACKED != 0,
            indirect: self.accepted & INDIRECT != 0,
            event_index: self.accepted & EVENT_INDEX != 0,
        };
        registers.enabled = true;
        match Queue::new(&registers.layout, features, ctx.memory) {
            Ok(queue) => *slot = Slot { queue: Some(queue), used: false },
            Err(error) => self.break_down(self.queue_select, Fault::Ring(error), ctx),
        }
    }

    fn reset_queue(&mut self) {
        let n = usize::from(self.queue_select);
        let (Some(registers), Some(slot)) = (self.registers.get_mut(n), self.slots.get_mut(n)) else {
            return;
        };
        if self.accepted & RING_RESET == 0 || !registers.enabled || self.resetting {
            return;
        }
        *slot = Slot::default();
        *registers = QueueRegisters { resetting: true, ..QueueRegisters::new(registers.largest) };
        self.device.reset_queue(self.queue_select);
    }

    /// The registers of the selected queue, once what came from it before its reset has ended.
    fn selected(&mut self) -> Option<&mut QueueRegisters> {
        let registers = self.registers.get_mut(usize::from(self.queue_select))?;
        if registers.resetting && self.device.is_idle(Some(self.queue_select)) {
            registers.resetting = false;
        }
        Some(registers)
    }

    /// The field of the common configuration at `offset` or, of a wide field, its part from there on; with how many
    /// bytes it has.
    fn read_common(&mut self, offset: u64) -> (u64, u64) {
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        match offset {
            common::DEVICE_FEATURE_SELECT => (self.device_feature_select.into(), 4),
            common::DEVICE_FEATURE => (half(self.offered, self.device_feature_select), 4),
            common::DRIVER_FEATURE_SELECT => (self.driver_feature_select.into(), 4),
            common::DRIVER_FEATURE => (half(self.accepted, self.driver_feature_select), 4),
            common::CONFIG_VECTOR => (self.config_vector.into(), 2),
            common::NUM_QUEUES => (self.registers.len() as u64, 2),
            common::DEVICE_STATUS => {
                self.finish_reset();
                (self.status.into(), 1)
            }
            common::QUEUE_SELECT => (self.queue_select.into(), 2),
            _ => self.read_queue(offset),
        }
    }

    fn read_queue(&mut self, offset: u64) -> (u64, u64) {
        let select = self.queue_select;
        // A queue that does not exist has no entries.
        let Some(queue) = self.selected() else { return (0, 8) };
        let layout = &queue.layout;
        match offset {
            common::QUEUE_SIZE => (layout.size.into(), 2),
            common::QUEUE_VECTOR => (queue.vector.into(), 2),
            common::QUEUE_ENABLE => (queue.enabled.into(), 2),
            common::QUEUE_NOTIFY_OFF | common::QUEUE_NOTIFY_DATA => (select.into(), 2),
            common::QUEUE_DESCRIPTORS => (layout.descriptors.get(), 8),
            common::QUEUE_DRIVER => (layout.driver.get(), 8),
            common::QUEUE_DEVICE => (layout.device.get(), 8),
            common::QUEUE_RESET => (queue.resetting.into(), 2),
            // The upper halves.
            0x24 | 0x2c | 0x34 => (self.read_queue(offset.wrapping_sub(4)).0 >> 32, 4),
            _ => (0, 1),
        }
    }

    fn write_common(&mut self, offset: u64, width: Width, value: u64, ctx: &mut Context) {
        let (word, dword) = (value as u16, value as u32);
        match (offset, width) {
            (common::DEVICE_FEATURE_SELECT, Width::Dword) => self.device_feature_select = dword,
            (common::DRIVER_FEATURE_SELECT, Width::Dword) => self.driver_feature_select = dword,
            (common::DRIVER_FEATURE, Width::Dword) => self.accept_features(dword),
            (common::CONFIG_VECTOR, Width::Word) => self.config_vector = self.vector(word),
            (common::DEVICE_STATUS, _) => self.write_status(value as u8, ctx),
            (common::QUEUE_SELECT, Width::Word) => self.queue_select = word,
            (common::QUEUE_VECTOR, Width::Word) => {
                let vector = self.vector(word);
                self.selected().into_iter().for_each(|queue| queue.vector = vector);
            }
            (common::QUEUE_ENABLE, Width::Word) if word == 1 => self.enable_queue(ctx),
            (common::QUEUE_RESET, Width::Word) if word == 1 => self.reset_queue(),
            (_, Width::Word | Width::Dword | Width::Qword) => self.lay_out_queue(offset, width, value),
            _ => {}
        }
    }

    fn lay_out_queue(&mut self, offset: u64, width: Width, value: u64) {
        let Some(queue) = self.selected().filter(|queue| !queue.enabled && !queue.resetting) else { return };
        if (offset, width) == (common::QUEUE_SIZE, Width::Word) {
            if (1..=queue.largest).contains(&(value as u16)) {
                queue.layout.size = value as u16;
            }
            return;
        }
        let part = match offset & !7 {
            common::QUEUE_DESCRIPTORS => &mut queue.layout.descriptors,
            common::QUEUE_DRIVER => &mut queue.layout.driver,
            common::QUEUE_DEVICE => &mut queue.layout.device,
            _ => return,
        };
        *part = GuestPhys::new(match (offset & 7, width) {
            (0, Width::Qword) => value,
            (0, Width::Dword) => part.get() & !0xffff_ffff | value,
            (4, Width::Dword) => part.get() & 0xffff_ffff | value << 32,
            _ => return,
        });
    }

    /// The driver says which of the selected half of the features it takes; not once they are agreed on.
    fn accept_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_feature_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | u64::from(value),
            1 => self.accepted = self.accepted & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// The vector that becomes of this number: none where there is none of it.
    fn vector(&self, number: u16) -> u16 {
        if number < self.msix.vectors() { number } else { NO_VECTOR }
    }

    fn read_config(&self, offset: u64) -> u64 {
        let bytes = self.device.config().iter().skip(offset as usize).take(8);
        bytes.enumerate().fold(0, |value, (n, byte)| value | u64::from(*byte) << (n << 3))
    }

    /// What the window capability names: offset in the BAR, and width.
    fn window(&self) -> Option<(u64, Width)> {
        let [bar] = self.config.get(self.window.wrapping_add(WINDOW_BAR));
        let offset = u64::from(u32::from_le_bytes(self.config.get(self.window.wrapping_add(WINDOW_OFFSET))));
        let length = u32::from_le_bytes(self.config.get(self.window.wrapping_add(WINDOW_LENGTH)));
        let width = Width::from_bytes(length.into()).filter(|width| *width != Width::Qword)?;
        let fits = offset.checked_add(width.bytes())? <= BAR_BYTES && offset.is_multiple_of(width.bytes());
        (bar == BAR && fits).then_some((offset, width))
    }

    fn is_window_data(&self, offset: u8) -> bool {
        offset.wrapping_sub(self.window.wrapping_add(WINDOW_DATA)) < 4
    }
}

/// Adds a vendor capability for the structure of type `kind` with `more` behind; says where it is.
fn add_structure(
    config: &mut ConfigSpace,
    kind: u8,
    offset: u64,
    len: u32,
    more: &[u8],
) -> Result<u8, PciConfigError> {
    let bytes = 16_u8.saturating_add(more.len() as u8);
    let mut body = Vec::with_capacity(18);
    body.extend([bytes, kind, BAR, 0, 0, 0]);
    body.extend((offset as u32).to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more);
    config.add_capability(VENDOR_CAPABILITY, &body, &[])
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn connect(&mut self, waker: Waker) {
        self.waker = waker.clone();
        self.device.connect(waker);
    }

    fn poll(&mut self, ctx: &mut Context) {
        self.serve(None, ctx);
    }

    fn awaits_room(&self) -> bool {
        self.device.awaits_room()
    }

    fn takes_typed(&self) -> bool {
        self.device.takes_typed()
    }

    fn wind_down(&mut self, ctx: &mut Context) -> bool {
        self.reset();
        self.serve(None, ctx);
        self.device.is_idle(None)
    }

    fn interrupt(&self) -> bool {
        self.isr != 0 && !self.msix.is_enabled()
    }

    fn config_reading(&mut self, offset: u8, ctx: &mut Context) {
        if self.is_window_data(offset)
            && let Some((at, width)) = self.window()
        {
            let value = self.bar_read(BAR, at, width, ctx) as u32;
            self.config.set(self.window.wrapping_add(WINDOW_DATA), &value.to_le_bytes());
        }
    }

    fn config_written(&mut self, offset: u8, ctx: &mut Context) {
        self.msix.config_written(&self.config, ctx);
        if self.is_window_data(offset)
            && let Some((at, width)) = self.window()
        {
            let value = u32::from_le_bytes(self.config.get(self.window.wrapping_add(WINDOW_DATA)));
            self.bar_write(BAR, at, width, u64::from(value) & width.mask(), ctx);
        }
    }

    fn bar_read(&mut self, _bar: u8, offset: u64, width: Width, _ctx: &mut Context) -> u64 {
        let within = offset % PART_BYTES;
        let value = match offset.wrapping_sub(within) {
            COMMON => {
                let (value, bytes) = self.read_common(within);
                // Two dwords are read at once by nobody but of an address.
                if width.bytes() > bytes {
                    value | self.read_common(within.saturating_add(bytes)).0 << (bytes << 3)
                } else {
                    value
                }
            }
            ISR => u64::from(if within == 0 { core::mem::take(&mut self.isr) } else { 0 }),
            DEVICE => self.read_config(within),
            _ => self.msix.read(offset, width).unwrap_or(0),
        };
        value & width.mask()
    }

    fn bar_write(&mut self, _bar: u8, offset: u64, width: Width, value: u64, ctx: &mut Context) {
        let within = offset % PART_BYTES;
        match offset.wrapping_sub(within) {
            COMMON => self.write_common(within, width, value, ctx),
            DEVICE if !self.is_broken() => {
                for n in 0..width.bytes() {
                    let at = within.saturating_add(n) as usize;
                    self.device.write_config(at, (value >> (n << 3)) as u8, ctx);
                }
            }
            NOTIFY if self.is_running() => {
                self.serve(Some((within >> NOTIFY_SHIFT) as u16), ctx);
            }
            _ => {
                self.msix.write(offset, width, value, ctx);
            }
        }
    }
}

#[cfg(test)]
mod tests;
