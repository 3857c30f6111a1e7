//! What the monitor needs of the machine it runs on, and of the one who watches its guests.

use crate::memory::HostBlock;
use crate::own_memory::OwnMemory;
use crate::time::Instant;
use alloc::boxed::Box;
use core::fmt;

/// Whom a line of the log is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Whoever watches the console.
    Everyone,
    /// Who reads the log to find out more.
    Expert,
}

/// The machine, as the payload runs it.
///
/// Physical interrupts are off while the monitor runs, but for the moments that this trait names.
pub trait Host: Sync {
    /// The time now.
    fn now(&self) -> Instant;
    /// The frequency of the time-stamp counter in kHz; the same on all cores, and constant.
    fn tsc_khz(&self) -> u64;
    /// The time now, and what the time-stamp counter of this core reads at that very moment: the two come from one
    /// reading, as this core may be kept from its next for milliseconds.
    fn now_and_tsc(&self) -> (Instant, u64);
    /// Seconds since 1970, now.
    fn unix_time(&self) -> u64;
    /// The number of the core this runs on; 0 is the one that booted.
    fn core(&self) -> usize;
    /// How many cores there are.
    fn cores(&self) -> usize;
    /// Has an interrupt end the guest or the wait of core `core`.
    fn interrupt_core(&self, core: usize);
    /// Has an interrupt end this core's guest or wait at `deadline`; `None` takes that back.
    fn arm_timer(&self, deadline: Option<Instant>);
    /// Serves the physical interrupts that wait.
    fn serve_interrupts(&self);
    /// Halts this core until an interrupt came, and serves it. Returns at once when one already waits.
    fn wait_for_interrupt(&self);
    /// Reports a machine check that struck while a guest ran.
    fn machine_check(&self);
    /// Zeroed memory for a guest, `len` bytes at a multiple of `align`; `None` when there is none left.
    fn allocate(&self, len: u64, align: u64) -> Option<Box<dyn HostBlock>>;
    /// How much memory is free for guests, in bytes, in pieces of any size.
    fn free_memory(&self) -> u64;
    /// The largest contiguous piece of memory that [`allocate`](Self::allocate) could give, in bytes.
    fn largest_block(&self) -> u64;
    /// What of the monitor's own memory guests may have, and what they are given from outside.
    fn own_memory(&self) -> &'static OwnMemory;
    /// Fills `bytes` with random ones, the best that the machine has.
    #[cfg(feature = "virtio")]
    fn fill_random(&self, bytes: &mut [u8]);
    /// A line for the log about the guest of this name.
    fn log(&self, detail: Detail, guest: &str, message: fmt::Arguments<'_>);
}

/// The other end of a guest's serial port.
pub trait Terminal: Send + Sync {
    /// The guest sent a byte; whether there is room for another. While there is none, the guest's transmitter is
    /// busy.
    fn transmit(&self, byte: u8) -> bool;
    /// Whether there is room for a byte from the guest.
    fn has_room(&self) -> bool;
    /// The guest wrote a byte to its debug port.
    fn debug(&self, byte: u8);
    /// Whether a byte waits for the guest, or there is room again after there was none.
    fn has_news(&self) -> bool;
    /// The next byte for the guest, if one waits.
    fn receive(&self) -> Option<u8>;
}
