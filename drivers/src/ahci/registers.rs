//! A controller's registers, and a port's (Serial ATA AHCI 1.3.1, 3).

use crate::platform::Registers;
use alloc::sync::Arc;

/// What a read gives where no device answers.
pub const NOTHING: u32 = u32::MAX;

const CAPABILITIES: usize = 0x00;
const CONTROL: usize = 0x04;
const INTERRUPTS: usize = 0x08;
const IMPLEMENTED: usize = 0x0c;
const MORE_CAPABILITIES: usize = 0x24;
const HANDOFF: usize = 0x28;
const PORTS: usize = 0x100;
const PORT: usize = 0x80;

const RESET: u32 = 1 << 0;
const INTERRUPT_ENABLE: u32 = 1 << 1;
const AHCI_ENABLE: u32 = 1 << 31;
const HAS_HANDOFF: u32 = 1;

/// Bits of the handoff register.
pub mod handoff {
    /// Firmware owns the controller.
    pub const FIRMWARE: u32 = 1 << 0;
    /// The operating system wants to.
    pub const SYSTEM: u32 = 1 << 1;
    /// Firmware is still at it.
    pub const BUSY: u32 = 1 << 4;
}

/// The registers of a controller.
#[derive(Clone)]
pub struct Hba(Arc<dyn Registers>);

impl Hba {
    /// The registers at `window`; `None` where no controller answers.
    pub fn new(window: Arc<dyn Registers>) -> Option<Self> {
        let hba = Self(window);
        hba.is_there().then_some(hba)
    }

    /// Whether it still answers.
    pub fn is_there(&self) -> bool {
        self.0.read_u32(IMPLEMENTED) != NOTHING || self.0.read_u32(CAPABILITIES) != NOTHING
    }

    fn capabilities(&self) -> u32 {
        self.0.read_u32(CAPABILITIES)
    }

    /// Takes 64-bit addresses: CAP.S64A.
    pub fn is_wide(&self) -> bool {
        self.capabilities() >> 31 & 1 == 1
    }

    /// Has queued commands: CAP.SNCQ.
    pub fn queues(&self) -> bool {
        self.capabilities() >> 30 & 1 == 1
    }

    /// The command slots of a port: CAP.NCS.
    pub fn slots(&self) -> u8 {
        ((self.capabilities() >> 8 & 0x1f) as u8).saturating_add(1)
    }

    /// The ports that there are, by number.
    pub fn ports(&self) -> impl Iterator<Item = Port> + '_ {
        let implemented = self.0.read_u32(IMPLEMENTED);
        let fits = |number: &u8| {
            let end = usize::from(*number).saturating_add(1).saturating_mul(PORT).saturating_add(PORTS);
            end <= self.0.len()
        };
        (0..32_u8).filter(move |number| implemented >> number & 1 == 1).filter(fits).map(|number| {
            let base = usize::from(number).saturating_mul(PORT).saturating_add(PORTS);
            Port { window: Arc::clone(&self.0), base, number }
        })
    }

    /// The handoff register, if there is one.
    pub fn handoff(&self) -> Option<u32> {
        (self.0.read_u32(MORE_CAPABILITIES) & HAS_HANDOFF != 0).then(|| self.0.read_u32(HANDOFF))
    }

    /// Asks firmware for the controller.
    pub fn request(&self) {
        let before = self.0.read_u32(HANDOFF);
        self.0.write_u32(HANDOFF, before | handoff::SYSTEM);
    }

    /// Has it be an AHCI controller, without interrupts.
    pub fn enable(&self) {
        let before = self.0.read_u32(CONTROL);
        self.0.write_u32(CONTROL, before & !INTERRUPT_ENABLE | AHCI_ENABLE);
    }

    /// Has it begin a reset of itself.
    pub fn reset(&self) {
        self.0.write_u32(CONTROL, AHCI_ENABLE | RESET);
    }

    /// Whether that has not ended.
    pub fn is_resetting(&self) -> bool {
        self.0.read_u32(CONTROL) & RESET != 0
    }

    /// Lets it interrupt.
    pub fn allow_interrupts(&self) {
        self.clear(NOTHING);
        let before = self.0.read_u32(CONTROL);
        self.0.write_u32(CONTROL, before | INTERRUPT_ENABLE);
    }

    /// Which ports have interrupted, a bit each.
    pub fn interrupts(&self) -> u32 {
        self.0.read_u32(INTERRUPTS)
    }

    /// Forgets that these ports have interrupted; their own registers come first.
    pub fn clear(&self, ports: u32) {
        self.0.write_u32(INTERRUPTS, ports);
    }
}

/// A port's registers by offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Address of the command list, and 4 bytes on its upper half.
    CommandList = 0x00,
    /// Address of what the device sends, and 4 bytes on its upper half.
    Received = 0x08,
    /// What has interrupted.
    Interrupts = 0x10,
    /// What may interrupt.
    InterruptEnable = 0x14,
    /// Command and status.
    Command = 0x18,
    /// The device's status and error registers.
    TaskFile = 0x20,
    /// What kind of device there is.
    Signature = 0x24,
    /// The link's state.
    Link = 0x28,
    /// The link's control.
    LinkControl = 0x2c,
    /// The link's errors.
    LinkErrors = 0x30,
    /// Queued commands under way, a bit each.
    Active = 0x34,
    /// Commands given, a bit each.
    Issued = 0x38,
}

/// Bits of a port's command register.
pub mod command {
    /// It processes the command list.
    pub const START: u32 = 1 << 0;
    /// Spin up.
    pub const SPIN_UP: u32 = 1 << 1;
    /// Power on.
    pub const POWER: u32 = 1 << 2;
    /// It receives what the device sends.
    pub const RECEIVE: u32 = 1 << 4;
    /// It still receives.
    pub const RECEIVING: u32 = 1 << 14;
    /// It still processes.
    pub const RUNNING: u32 = 1 << 15;
    /// Asks for the link to be active.
    pub const ACTIVE: u32 = 1 << 28;
    /// What [`ACTIVE`] is a value of.
    pub const LINK: u32 = 0xf << 28;
}

/// Bits of a port's interrupt registers.
pub mod interrupt {
    /// The device has sent a register, PIO set-up, DMA set-up or device bits message.
    pub const MESSAGES: u32 = 0xf;
    /// The link went up or down: connect change, and ready change.
    pub const LINK: u32 = 1 << 6 | 1 << 22;
    /// Overflow, interface, host bus and task file errors, for which the port stops.
    pub const ERRORS: u32 = 1 << 24 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 30;
}

/// The registers of a port.
#[derive(Clone)]
pub struct Port {
    window: Arc<dyn Registers>,
    base: usize,
    /// Which port it is, from 0.
    pub number: u8,
}

impl Port {
    /// Reads a register.
    pub fn read(&self, register: Register) -> u32 {
        self.window.read_u32(self.base.wrapping_add(register as usize))
    }

    /// Writes a register.
    pub fn write(&self, register: Register, value: u32) {
        self.window.write_u32(self.base.wrapping_add(register as usize), value);
    }

    /// Writes an address.
    pub fn write_address(&self, register: Register, address: u64) {
        let at = self.base.wrapping_add(register as usize);
        self.window.write_u32(at, address as u32);
        self.window.write_u32(at.wrapping_add(4), (address >> 32) as u32);
    }

    /// Clears and sets bits of the command register.
    pub fn command(&self, clear: u32, set: u32) {
        let before = self.read(Register::Command);
        self.write(Register::Command, before & !clear | set);
    }

    /// Whether a device is there, be its link up or not: PxSSTS.DET.
    pub fn is_occupied(&self) -> bool {
        let link = self.read(Register::Link);
        link != NOTHING && matches!(link & 0xf, 1 | 3)
    }

    /// Whether a device is there and its link is up.
    pub fn is_connected(&self) -> bool {
        let link = self.read(Register::Link);
        link != NOTHING && link & 0xf == 3
    }
}
