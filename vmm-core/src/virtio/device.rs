//! What every virtio device is, whatever it is reached through.

use super::queue::{Chain, Queue, RingError, Token};
use crate::chipset::Context;
use crate::memory::GuestMemory;
use alloc::sync::Arc;
use core::fmt;
use core::task::Waker;

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What the log calls it.
    pub name: &'static str,
    /// Its device ID (virtio 1.2, 5).
    pub id: u16,
    /// Its PCI class: base class, subclass, programming interface.
    pub class: u32,
}

/// A device, behind its transport.
///
/// Its queues are the transport's; they are lent to it when there is something to do.
pub trait Device: Send {
    /// What kind of device it is.
    fn identity(&self) -> Identity;

    /// The feature bits of its own that it offers (0 to 23, and 50 to 63).
    fn features(&self) -> u64;

    /// How many entries each of its queues can have; at most 64 queues.
    fn queue_sizes(&self) -> &[u16];

    /// Its configuration structure.
    fn config(&self) -> &[u8];

    /// The driver writes byte `offset` of its configuration structure.
    fn write_config(&mut self, offset: usize, value: u8, ctx: &mut Context) {
        let _ = (offset, value, ctx);
    }

    /// Waking `waker`, from wherever, has [`Self::serve`] called soon. Called once, before anything else.
    fn connect(&mut self, waker: Waker) {
        let _ = waker;
    }

    /// The driver is ready, and accepted these features.
    fn start(&mut self, features: u64) {
        let _ = features;
    }

    /// There is something in the queue `notified`, or, where that is none, what the device waits for outside may have
    /// come. Called first when it has just started.
    fn serve(&mut self, notified: Option<u16>, queues: &mut Queues, ctx: &mut Context);

    /// Whether what is typed at the guest's terminal is for it now. It is served when something was.
    fn takes_typed(&self) -> bool {
        false
    }

    /// Whether it waits for room at the guest's terminal. It is served when there is some.
    fn awaits_room(&self) -> bool {
        false
    }

    /// The device was reset: it forgets everything about its driver and its requests.
    fn reset(&mut self);

    /// One queue was reset: it forgets the requests from there.
    fn reset_queue(&mut self, queue: u16) {
        let _ = queue;
    }

    /// Whether no request is under way outside any more of those that came from `queue`, or from any.
    fn is_idle(&self, queue: Option<u16>) -> bool {
        let _ = queue;
        true
    }
}

/// What a driver did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A ring makes no sense.
    Ring(RingError),
    /// A request does not look like one of this device.
    Request(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Request(what) => f.write_str(what),
        }
    }
}

/// One of a device's queues, as its transport has it.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// What the driver enabled.
    pub queue: Option<Queue>,
    /// Buffers were given back since interrupts were last considered.
    pub used: bool,
}

/// How many buffers a device takes at a time, so that no driver keeps it at it by refilling its queues.
pub(super) const BUFFERS_AT_ONCE: usize = 128;

/// A device's queues, for as long as it serves them.
pub struct Queues<'a> {
    slots: &'a mut [Slot],
    memory: &'a Arc<GuestMemory>,
    /// How many buffers may still be taken.
    left: usize,
    fault: Option<(u16, Fault)>,
}

impl<'a> Queues<'a> {
    pub(super) fn new(slots: &'a mut [Slot], memory: &'a Arc<GuestMemory>) -> Self {
        Self { slots, memory, left: BUFFERS_AT_ONCE, fault: None }
    }

    /// Whether as many buffers were taken as may be at a time. Others may be left, for which the device is served again.
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    /// What the driver did wrong meanwhile, and in which queue.
    pub(super) fn into_fault(self) -> Option<(u16, Fault)> {
        self.fault
    }

    /// The guest's memory.
    pub fn memory(&self) -> &'a Arc<GuestMemory> {
        self.memory
    }

    /// How many queues there are.
    pub fn count(&self) -> u16 {
        self.slots.len() as u16
    }

    /// The next buffer from `queue`; none once something was wrong, or enough were taken.
    pub fn pop(&mut self, queue: u16) -> Option<Chain> {
        if self.is_spent() {
            return None;
        }
        let memory = self.memory;
        let taken = self.ask(queue, |slot| slot.queue.as_mut().map_or(Ok(None), |ring| ring.pop(memory)));
        taken.flatten().inspect(|_| self.left = self.left.saturating_sub(1))
    }

    /// Gives a buffer of `queue` back, of which `written` bytes were written.
    pub fn push(&mut self, queue: u16, token: Token, written: u32) {
        let memory = self.memory;
        self.ask(queue, |slot| {
            let Some(ring) = slot.queue.as_mut() else { return Ok(()) };
            slot.used = true;
            ring.push(token, written, memory)
        });
    }

    /// Asks to be told of the next buffer in `queue`. True where one came meanwhile, of which nobody tells, and which
    /// may be taken now.
    pub fn ask_for_notification(&mut self, queue: u16) -> bool {
        if self.is_spent() {
            return false;
        }
        let memory = self.memory;
        let asked =
            |slot: &mut Slot| slot.queue.as_mut().map_or(Ok(false), |ring| ring.ask_for_notification(memory));
        self.ask(queue, asked).unwrap_or(false)
    }

    /// The driver put something into `queue` that is no request: the device is broken.
    pub fn refuse(&mut self, queue: u16, what: &'static str) {
        self.fault.get_or_insert((queue, Fault::Request(what)));
    }

    fn ask<T>(&mut self, queue: u16, work: impl FnOnce(&mut Slot) -> Result<T, RingError>) -> Option<T> {
        if self.fault.is_some() {
            return None;
        }
        let slot = self.slots.get_mut(usize::from(queue))?;
        work(slot).inspect_err(|error| self.fault = Some((queue, Fault::Ring(*error)))).ok()
    }
}
