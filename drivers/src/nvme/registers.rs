//! The controller's registers (NVMe Base Specification 2.0, 3.1).

use crate::platform::Registers as Window;
use alloc::sync::Arc;

/// Controller capabilities, 64 bits.
const CAP: usize = 0x00;
/// Version.
const VS: usize = 0x08;
/// Controller configuration.
const CC: usize = 0x14;
/// Controller status.
const CSTS: usize = 0x1c;
/// Admin queue attributes.
const AQA: usize = 0x24;
/// Address of the admin submission queue, 64 bits.
const ASQ: usize = 0x28;
/// Address of the admin completion queue, 64 bits.
const ACQ: usize = 0x30;
/// The first doorbell.
const DOORBELLS: usize = 0x1000;

/// CC.EN.
const ENABLE: u32 = 1;
/// CC.IOSQES and CC.IOCQES: entries of 64 and 16 bytes. Pages of 4 KiB and the NVM command set are zeroes.
const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;

/// CSTS.RDY.
const READY: u32 = 1;
/// CSTS.CFS.
const FATAL: u32 = 2;

/// What a read gives where no device answers.
const NOTHING: u32 = u32::MAX;

/// What the controller says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does not take commands.
    Off,
    /// It takes commands.
    Ready,
    /// It has met an error that it cannot report otherwise, and must be reset.
    Fatal,
    /// It is not there any more.
    Gone,
}

/// The registers of a controller.
#[derive(Clone)]
pub struct Registers {
    window: Arc<dyn Window>,
    capabilities: u64,
}

impl Registers {
    /// The registers at `window`; `None` where no controller answers.
    pub fn new(window: Arc<dyn Window>) -> Option<Self> {
        let capabilities =
            u64::from(window.read_u32(CAP)) | u64::from(window.read_u32(CAP.wrapping_add(4))) << 32;
        let there = window.read_u32(VS) != NOTHING && capabilities != u64::MAX;
        there.then_some(Self { window, capabilities })
    }

    /// The most entries of a queue: CAP.MQES.
    pub const fn queue_entries(&self) -> u32 {
        (self.capabilities as u32 & 0xffff).saturating_add(1)
    }

    /// How long it may take to become ready or cease to be, in nanoseconds: CAP.TO, in units of 500 ms.
    pub const fn timeout(&self) -> u64 {
        let units = self.capabilities >> 24 & 0xff;
        // Some say zero, and mean that they are quick.
        if units == 0 { 500_000_000 } else { units.saturating_mul(500_000_000) }
    }

    /// Whether it has the NVM command set (CAP.CSS) and takes pages of 4 KiB (CAP.MPSMIN).
    pub const fn is_usable(&self) -> bool {
        self.capabilities >> 37 & 1 == 1 && self.capabilities >> 48 & 0xf == 0
    }

    /// What it says of itself.
    pub fn health(&self) -> Health {
        match self.window.read_u32(CSTS) {
            NOTHING => Health::Gone,
            status if status & FATAL != 0 => Health::Fatal,
            status if status & READY != 0 => Health::Ready,
            _ => Health::Off,
        }
    }

    /// Has it forget its queues and all that is under way. That is over once it is [`Health::Off`].
    pub fn disable(&self) {
        let configuration = self.window.read_u32(CC);
        self.window.write_u32(CC, configuration & !ENABLE);
    }

    /// Has it start with admin queues of so many entries.
    pub fn enable(&self, entries: u16, submissions: u64, completions: u64) {
        let last = u32::from(entries.saturating_sub(1));
        self.window.write_u32(AQA, last << 16 | last);
        self.write_address(ASQ, submissions);
        self.write_address(ACQ, completions);
        self.window.write_u32(CC, ENTRY_SIZES);
        self.window.write_u32(CC, ENTRY_SIZES | ENABLE);
    }

    /// Where queue `number`'s doorbells are: the submissions' tail and the completions' head. `None` where there are
    /// no registers for it.
    pub fn doorbells(&self, number: u16) -> Option<(usize, usize)> {
        let stride = 4_usize << (self.capabilities >> 32 & 0xf);
        let tail = stride.checked_mul(2)?.checked_mul(usize::from(number))?.checked_add(DOORBELLS)?;
        let head = tail.checked_add(stride)?;
        (head.checked_add(4)? <= self.window.len()).then_some((tail, head))
    }

    /// Writes a doorbell.
    pub fn ring(&self, doorbell: usize, value: u16) {
        self.window.write_u32(doorbell, u32::from(value));
    }

    /// Writes a 64-bit register in halves: not every controller takes it at once.
    fn write_address(&self, at: usize, address: u64) {
        self.window.write_u32(at, address as u32);
        self.window.write_u32(at.wrapping_add(4), (address >> 32) as u32);
    }
}
