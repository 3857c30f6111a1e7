//! A port with a disk: its bring-up, what is under way, and its recovery.

use super::list::{List, MOST_REGIONS};
use super::registers::{self, NOTHING, Register, command, interrupt};
use crate::acs::{self, Identity, TaskFile, status};
use crate::driver::Error;
use crate::platform::Platform;
use crate::requests::{Command, Engine, Operation, Queue, Reach, Request, Shape, Shared};
use crate::task::{MILLISECOND, Recovery, pause, until};
use alloc::boxed::Box;
use alloc::sync::Arc;
use storage::BlockError;

/// How long a port may take to stop (AHCI 1.3.1, 10.1.2: half a second).
const STOP: u64 = 1_000 * MILLISECOND;
/// How long a device may take to show itself after a reset (Serial ATA 3.0, 8.4.1), and then its link to come up:
/// more than any was seen to take.
const PRESENCE: u64 = 10 * MILLISECOND;
const LINK: u64 = 1_000 * MILLISECOND;
/// How long a device may take to be ready after its reset: disks spin up.
const READY: u64 = 30_000 * MILLISECOND;
/// How long IDENTIFY may take.
const IDENTIFY: u64 = 10_000 * MILLISECOND;

/// The signature of an ATA device.
const ATA: u32 = 0x0000_0101;

/// A port with a disk.
pub struct Port {
    platform: Arc<dyn Platform>,
    registers: registers::Port,
    inner: Shared<Inner>,
    recovery: Recovery<Result<(), Error>>,
    identity: Identity,
}

/// What is under way.
struct Inner {
    registers: registers::Port,
    list: Arc<List>,
    queue: Queue,
    identity: Identity,
    /// Commands may be queued.
    queues: bool,
    /// The slots that the port was given.
    issued: u32,
    /// These are queued commands.
    tagged: bool,
}

impl Port {
    /// The port's disk, if it has one that can be used. `wide`: it takes 64-bit addresses; `slots`: how many queued
    /// commands there can be, 0 where there are none.
    ///
    /// # Errors
    /// It does not stop, what is there does not answer or cannot be used, or there is no memory.
    pub async fn find(
        platform: &Arc<dyn Platform>,
        registers: registers::Port,
        wide: bool,
        slots: u8,
    ) -> Result<Option<Self>, Error> {
        let list = Arc::new(List::new(&**platform, usize::from(slots).max(1))?);
        stop(&**platform, &registers).await?;
        let found = Self::open(platform, &registers, &list, wide, slots).await;
        // Without a driver too, the port would write there what a disk says that comes later.
        if !matches!(found, Ok(Some(_)))
            && let Err(error) = stop(&**platform, &registers).await
        {
            core::mem::forget(list);
            return Err(error);
        }
        found
    }

    /// The disk of a port that has stopped.
    async fn open(
        platform: &Arc<dyn Platform>,
        registers: &registers::Port,
        list: &Arc<List>,
        wide: bool,
        slots: u8,
    ) -> Result<Option<Self>, Error> {
        let Some(identity) = bring_up(&**platform, registers, list).await? else { return Ok(None) };
        // With a queue of one, nothing is won.
        let queues = slots > 1 && identity.queue > 1;
        let reach = Reach {
            last: if wide { u64::MAX } else { u64::from(u32::MAX) },
            align: 2,
            page: 1,
            boundary: 1 << 63,
            longest: 4 << 20,
            pieces: MOST_REGIONS,
        };
        let slots = if queues { slots.min(identity.queue) } else { 1 };
        let shape = Shape { slots: usize::from(slots), reach, ranges: acs::ranges };
        let inner = Inner {
            registers: registers.clone(),
            list: Arc::clone(list),
            queue: Queue::new(Arc::clone(platform), shape)?,
            identity: identity.clone(),
            queues,
            issued: 0,
            tagged: false,
        };
        allow_interrupts(registers);
        let (platform, registers) = (Arc::clone(platform), registers.clone());
        let (inner, recovery) = (Shared::new(inner), Recovery::new());
        Ok(Some(Self { platform, registers, inner, recovery, identity }))
    }

    /// Which port it is.
    pub const fn number(&self) -> u8 {
        self.registers.number
    }

    /// What the disk says of itself.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether it takes several commands at once.
    pub fn queues(&self) -> bool {
        self.inner.with(|inner| inner.queues)
    }

    /// Takes what has ended.
    pub fn serve(&self) {
        let now = self.platform.now();
        self.inner.with(|inner| inner.serve(now));
    }

    /// When to look at it.
    pub fn deadline(&self) -> Option<u64> {
        self.recovery.deadline(self.inner.deadline())
    }

    /// Brings the port back if it has stopped, or what is under way is overdue, or the link is down. Whether it had
    /// to. A port that does not stop is kept from memory by `silence`.
    pub fn recover(self: &Arc<Self>, silence: &dyn Fn()) -> bool {
        let now = self.platform.now();
        self.recovery.looked(now);
        self.serve();
        let overdue = self.inner.deadline().is_some_and(|deadline| deadline <= now);
        let lost = || self.inner.deadline().is_some() && !self.registers.is_connected();
        let begins = !self.recovery.is_under_way() && (overdue || lost());
        if begins {
            self.inner.with(|inner| inner.queue.stop());
            self.registers.write(Register::InterruptEnable, 0);
            let port = Arc::clone(self);
            self.recovery.begin(|| Box::pin(async move { port.restart().await }));
        }
        if let Some(Err(error)) = self.recovery.proceed(now) {
            // One that is gone, or has stopped, works on no memory; who is answered takes his back.
            if error == Error::Silent(STOPPING) {
                silence();
            }
            self.close();
        }
        begins
    }

    /// There is no such disk any more.
    pub fn close(&self) {
        self.inner.with(|inner| inner.queue.close(BlockError::Gone));
    }

    async fn restart(&self) -> Result<(), Error> {
        let state = self.registers.read(Register::TaskFile) as u8;
        stop(&*self.platform, &self.registers).await?;
        let now = self.platform.now();
        // The port works on no memory any more.
        self.inner.with(|inner| inner.forgotten(state, now));
        let list = self.inner.with(|inner| Arc::clone(&inner.list));
        // Whatever is there now: the disk is only itself.
        if bring_up(&*self.platform, &self.registers, &list).await? != Some(self.identity.clone()) {
            return Err(Error::Gone);
        }
        allow_interrupts(&self.registers);
        let now = self.platform.now();
        self.inner.with(|inner| {
            inner.queue.resume();
            inner.proceed(now);
        });
        Ok(())
    }
}

impl Engine for Port {
    fn submit(&self, request: Request) {
        let now = self.platform.now();
        self.inner.with(|inner| {
            inner.queue.push(request);
            inner.proceed(now);
        });
    }
}

impl AsMut<Queue> for Inner {
    fn as_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }
}

impl Inner {
    fn serve(&mut self, now: u64) {
        if self.queue.is_stopped() {
            return;
        }
        let came = self.registers.read(Register::Interrupts);
        if came != 0 {
            self.registers.write(Register::Interrupts, came);
        }
        // Queued commands are active until they end; the device takes them long before.
        let under_way = self.registers.read(if self.tagged { Register::Active } else { Register::Issued });
        let ended = self.issued & !under_way;
        self.issued &= under_way;
        for slot in (0..32_usize).filter(|slot| ended >> slot & 1 == 1) {
            let result = if self.has_moved(slot) { Ok(()) } else { Err(BlockError::Failed) };
            self.queue.end(slot, result);
        }
        if came & (interrupt::ERRORS | interrupt::LINK) != 0 {
            self.queue.stop();
            // Nobody listens to it until it was brought back.
            self.registers.write(Register::InterruptEnable, 0);
        }
        self.proceed(now);
    }

    /// Whether the slot's command has moved as many bytes as it was to, as far as that is said.
    fn has_moved(&self, slot: usize) -> bool {
        self.tagged
            || self.queue.command(slot).is_none_or(|command| {
                let len: usize = command.pieces.iter().map(|piece| piece.len).sum();
                self.list.moved(slot) as usize == len
            })
    }

    /// The port has stopped, the device being in this state: the one command that failed is known if there was only
    /// one, else each is tried alone.
    fn forgotten(&mut self, state: u8, now: u64) {
        let failed = state & (status::ERROR | status::FAULT) != 0 && state & status::BUSY == 0;
        if failed && !self.tagged && self.issued.is_power_of_two() {
            self.queue.end(self.issued.trailing_zeros() as usize, Err(BlockError::Failed));
        }
        self.queue.forgotten(now);
        self.issued = 0;
    }

    /// Gives the port as many commands as there are and it has room for.
    fn proceed(&mut self, now: u64) {
        let mut given = 0;
        while let Some((slot, command)) = self.queue.next(now) {
            // Those that are alone are the device's only ones, and not queued, so that it is known which has failed.
            self.tagged = self.queues && !command.alone;
            let task = if self.tagged {
                TaskFile::queued(command, slot)
            } else {
                TaskFile::of(command, &self.identity)
            };
            self.list.put(slot, &task, writes(command), &command.pieces);
            given |= 1_u32 << (slot & 31);
        }
        if given != 0 {
            self.issued |= given;
            if self.tagged {
                self.registers.write(Register::Active, given);
            }
            self.registers.write(Register::Issued, given);
        }
    }
}

/// Whether bytes go to the device: a discard's ranges do.
fn writes(command: &Command) -> bool {
    matches!(command.operation, Operation::Write | Operation::Discard)
}

/// What a port that does not stop is said not to do.
const STOPPING: &str = "stop";

/// Stops the port: it works on no memory after this, if it ends well.
///
/// # Errors
/// It is gone, or does not stop.
pub async fn stop(platform: &dyn Platform, port: &registers::Port) -> Result<(), Error> {
    for (bit, shown) in [(command::START, command::RUNNING), (command::RECEIVE, command::RECEIVING)] {
        port.command(bit, 0);
        let mut state = 0;
        let stopped = until(platform, STOP, || {
            state = port.read(Register::Command);
            state == NOTHING || state & shown == 0
        })
        .await;
        if state == NOTHING {
            return Err(Error::Gone);
        }
        if !stopped {
            return Err(Error::Silent(STOPPING));
        }
    }
    Ok(())
}

/// Resets the device behind a port that has stopped, starts the port, and asks who is there; `None` if there is no
/// disk.
async fn bring_up(
    platform: &dyn Platform,
    port: &registers::Port,
    list: &List,
) -> Result<Option<Identity>, Error> {
    /// PxSCTL: no power saving of the link; a reset of the device.
    const NO_SAVING: u32 = 0x300;
    const RESET: u32 = 1;
    /// How long the reset is held: more than a millisecond.
    const HOLD: u64 = 2 * MILLISECOND;

    port.write(Register::InterruptEnable, 0);
    let (commands, received) = list.addresses();
    port.write_address(Register::CommandList, commands);
    port.write_address(Register::Received, received);
    // What the device says after its reset is to be received.
    port.command(command::LINK, command::POWER | command::SPIN_UP | command::ACTIVE | command::RECEIVE);
    port.write(Register::LinkControl, NO_SAVING | RESET);
    pause(platform, HOLD).await;
    port.write(Register::LinkControl, NO_SAVING);
    if !until(platform, PRESENCE, || port.is_occupied()).await
        || !until(platform, LINK, || port.is_connected()).await
    {
        return Ok(None);
    }
    port.write(Register::LinkErrors, NOTHING);
    let ready = || port.read(Register::TaskFile) as u8 & (status::BUSY | status::DATA_REQUEST) == 0;
    if !until(platform, READY, ready).await {
        return Err(Error::Silent("the disk is not ready"));
    }
    if port.read(Register::Signature) != ATA {
        return Ok(None);
    }
    port.write(Register::Interrupts, NOTHING);
    port.command(0, command::START);

    list.put(0, &TaskFile::plain(acs::IDENTIFY), false, &[list.answer()]);
    port.write(Register::Issued, 1);
    let mut failed = false;
    let done = until(platform, IDENTIFY, || {
        failed = port.read(Register::Interrupts) & interrupt::ERRORS != 0;
        failed || port.read(Register::Issued) & 1 == 0
    })
    .await;
    if failed || !done {
        stop(platform, port).await?;
        return Err(if failed {
            Error::Refused("identify itself")
        } else {
            Error::Silent("identify itself")
        });
    }
    Identity::read(&list.answered()).map(Some)
}

fn allow_interrupts(port: &registers::Port) {
    port.write(Register::Interrupts, NOTHING);
    port.write(Register::InterruptEnable, interrupt::MESSAGES | interrupt::LINK | interrupt::ERRORS);
}
