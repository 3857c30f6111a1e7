//! What drivers need of the machine below them.

use alloc::sync::Arc;
use storage::Memory;

/// The machine as drivers see it.
pub trait Platform: Send + Sync {
    /// Nanoseconds since some moment; it never goes back.
    fn now(&self) -> u64;

    /// Spends about so many nanoseconds, for what only ever waits while a device starts or is reset.
    fn wait(&self, nanoseconds: u64);

    /// So many bytes of memory of its own, zeroed: page-aligned, in one [`storage::Piece`] that lies below 4 GiB,
    /// and coherent with devices. Reads and writes of 1, 2, 4 or 8 bytes that are aligned are single accesses, and
    /// all happen in the order of the program, but that a read may overtake a write (see
    /// [`dma::barrier`](crate::dma::barrier)). It is given back when the last one drops it: a driver keeps it for
    /// as long as the device may use it. `None` where there is no such memory left.
    fn allocate(&self, len: usize) -> Option<Arc<dyn Memory>>;

    /// A window on a device's registers; `None` where it cannot be reached.
    fn registers(&self, region: Region) -> Option<Arc<dyn Registers>>;

    /// How many cores there are; drivers may have a queue for each.
    fn cores(&self) -> usize;

    /// The number of the core that this runs on, below [`Platform::cores`].
    fn core(&self) -> usize;

    /// A vector of its own at this core, and what a device writes where to raise it (SDM 3, 11.11); `None` where
    /// none is left.
    fn message_interrupt(&self, core: usize) -> Option<(Vector, Message)>;

    /// The vector that an interrupt line of the chipset's (as PCI's interrupt line register numbers them) raises
    /// at the boot core, maybe shared with others; `None` where nobody knows how the line is wired.
    fn line_interrupt(&self, line: u8, trigger: Trigger) -> Option<Vector>;
}

/// A vector that an interrupt comes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    /// The core that it comes to.
    pub core: usize,
    /// Its number there.
    pub number: u8,
}

/// What a device writes to raise an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where to, on the bus.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// How an interrupt line says that there is an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// By rising: ISA's lines.
    Edge,
    /// By being low for as long as there is one: PCI's lines.
    Level,
}

/// Where registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Ports or addresses.
    pub space: Space,
    /// The first one.
    pub start: u64,
    /// How many bytes.
    pub len: u64,
}

/// What registers are reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Physical addresses.
    Memory,
    /// x86's ports.
    Ports,
}

/// A device's registers. What lies outside reads as ones, and is not written: so does a device that is gone.
///
/// Each access is a single one of this width and happens in the order of the program. An offset that is no multiple of
/// the width is outside. Ports have no 64-bit accesses: there these are two of 32 bits, the lower first.
pub trait Registers: Send + Sync {
    /// How many bytes of registers there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads the byte at `offset`.
    fn read_u8(&self, offset: usize) -> u8;
    /// Reads the 16 bits at `offset`.
    fn read_u16(&self, offset: usize) -> u16;
    /// Reads the 32 bits at `offset`.
    fn read_u32(&self, offset: usize) -> u32;
    /// Reads the 64 bits at `offset`.
    fn read_u64(&self, offset: usize) -> u64;
    /// Writes the byte at `offset`.
    fn write_u8(&self, offset: usize, value: u8);
    /// Writes the 16 bits at `offset`.
    fn write_u16(&self, offset: usize, value: u16);
    /// Writes the 32 bits at `offset`.
    fn write_u32(&self, offset: usize, value: u32);
    /// Writes the 64 bits at `offset`.
    fn write_u64(&self, offset: usize, value: u64);
}
