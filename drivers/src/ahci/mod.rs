//! SATA disks on AHCI controllers (Serial ATA Advanced Host Controller Interface 1.3.1).

#[cfg(test)]
mod fake;
mod list;
mod port;
mod registers;
#[cfg(test)]
mod tests;

use crate::acs;
use crate::driver::{Disk, Driver, Error};
use crate::list::Entry;
use crate::pci::Function;
use crate::platform::{Platform, Registers};
use crate::requests::{Blocks, Engine, Overlap};
use crate::task::{MILLISECOND, Task, finish, until};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;
use port::Port;
use registers::{Hba, handoff};

const NAME: &str = "ahci";

/// How the driver is found: class mass storage, SATA, AHCI.
pub(crate) const ENTRY: Entry = Entry {
    name: NAME,
    drives: |function| {
        let class = function.identity().class;
        class.pair() == (0x01, 0x06) && class.interface == 0x01
    },
    start,
};

/// The base address register of a controller's registers.
const BAR: u8 = 5;

/// A controller that is up.
pub struct Ahci {
    hba: Hba,
    ports: Vec<Arc<Port>>,
    disks: Vec<Disk>,
    /// Keeps the device from all memory: what stops a port that does not stop.
    silence: Box<dyn Fn() + Send + Sync>,
}

/// Brings up a function's ports.
///
/// # Errors
/// It does not come up, or has disks of which none can be used.
pub fn start(function: &Arc<Function>, platform: &Arc<dyn Platform>) -> Result<Arc<dyn Driver>, Error> {
    let window = function.registers(&**platform, BAR)?;
    function.decode();
    let hba = take(&**platform, window)?;
    function.enable();
    function.start_interrupts(&**platform, &[0]);
    let function = Arc::clone(function);
    Ok(Arc::new(start_at(platform, hba, Box::new(move || function.quiet()))?))
}

/// Takes the controller from firmware, all of whose ports have stopped then: none works on firmware's memory any more.
fn take(platform: &dyn Platform, window: Arc<dyn Registers>) -> Result<Hba, Error> {
    /// How long firmware may take to let go, and how long if it says that it is busy (AHCI 1.3.1, 10.6.3).
    const LET_GO: u64 = 25 * MILLISECOND;
    const FINISH: u64 = 2_000 * MILLISECOND;
    /// How long a reset may take (AHCI 1.3.1, 10.4.3).
    const RESET: u64 = 1_000 * MILLISECOND;
    let hba = Hba::new(window).ok_or(Error::Gone)?;
    hba.enable();
    if hba.handoff().is_some_and(|owner| owner & handoff::FIRMWARE != 0) {
        hba.request();
        let free = || hba.handoff().is_none_or(|owner| owner & (handoff::FIRMWARE | handoff::BUSY) == 0);
        if !finish(platform, until(platform, LET_GO, free)) {
            // Who does not let go in time has it taken away.
            finish(platform, until(platform, FINISH, free));
        }
    }
    if hba.ports().any(|port| finish(platform, port::stop(platform, &port)).is_err()) {
        hba.reset();
        if !finish(platform, until(platform, RESET, || !hba.is_resetting())) {
            return Err(Error::Silent("reset"));
        }
        hba.enable();
    }
    Ok(hba)
}

fn start_at(
    platform: &Arc<dyn Platform>,
    hba: Hba,
    silence: Box<dyn Fn() + Send + Sync>,
) -> Result<Ahci, Error> {
    let (wide, slots) = (hba.is_wide(), if hba.queues() { hba.slots() } else { 0 });
    let (mut ports, mut disks, mut refused) = (Vec::new(), Vec::new(), None);
    for found in all(platform, hba.ports().map(|port| find(platform, port, wide, slots)).collect()) {
        match found {
            Ok(Some(port)) => {
                let port = Arc::new(port);
                let overlap = if port.queues() { Overlap::Transfers } else { Overlap::None };
                let unit = acs::unit(u32::from(port.number()), port.identity(), overlap);
                let disk = Blocks::disk(&**platform, Arc::clone(&port) as Arc<dyn Engine>, unit);
                disks.push(disk.inspect_err(|_| silence())?);
                ports.push(port);
            }
            Ok(None) => (),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) if disks.is_empty() => {
            silence();
            Err(error)
        }
        _ => {
            hba.allow_interrupts();
            Ok(Ahci { hba, ports, disks, silence })
        }
    }
}

type Found = Result<Option<Port>, Error>;

fn find(platform: &Arc<dyn Platform>, port: registers::Port, wide: bool, slots: u8) -> Task<Found> {
    let platform = Arc::clone(platform);
    Box::pin(async move { Port::find(&platform, port, wide, slots).await })
}

/// What comes of tasks that wait at the same time.
fn all(platform: &Arc<dyn Platform>, tasks: Vec<Task<Found>>) -> Vec<Found> {
    let mut tasks: Vec<(Task<Found>, Option<Found>)> = tasks.into_iter().map(|task| (task, None)).collect();
    finish(
        &**platform,
        poll_fn(|context| {
            for (task, found) in tasks.iter_mut().filter(|(_, found)| found.is_none()) {
                if let Poll::Ready(done) = task.as_mut().poll(context) {
                    *found = Some(done);
                }
            }
            if tasks.iter().all(|(_, found)| found.is_some()) { Poll::Ready(()) } else { Poll::Pending }
        }),
    );
    tasks.into_iter().filter_map(|(_, found)| found).collect()
}

impl Driver for Ahci {
    fn name(&self) -> &'static str {
        NAME
    }

    fn serve(&self, _source: usize) {
        // These bits are there though nothing interrupts.
        let came = self.hba.interrupts();
        for port in self.ports.iter().filter(|port| came >> port.number() & 1 == 1) {
            port.serve();
        }
        if came != 0 {
            self.hba.clear(came);
        }
    }

    fn deadline(&self) -> Option<u64> {
        self.ports.iter().filter_map(|port| port.deadline()).min()
    }

    fn recover(&self) -> bool {
        if !self.hba.is_there() {
            (self.silence)();
            self.ports.iter().for_each(|port| port.close());
            return true;
        }
        self.ports.iter().fold(false, |had, port| port.recover(&*self.silence) | had)
    }

    fn disks(&self) -> Vec<Disk> {
        self.disks.clone()
    }
}
