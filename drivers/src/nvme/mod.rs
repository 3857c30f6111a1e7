//! NVMe controllers (NVM Express Base Specification 2.0; everything used was in 1.0 or is optional).

mod admin;
#[cfg(test)]
mod fake;
mod identify;
mod io;
mod registers;
mod ring;
#[cfg(test)]
mod tests;

use crate::driver::{Disk, Driver, Error};
use crate::list::Entry;
use crate::pci::Function;
use crate::platform::{Platform, Registers as Window};
use crate::requests::{Blocks, Engine, Overlap, Request, Shared, Unit};
use crate::task::{Recovery, finish};
use admin::Admin;
use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use io::Io;
use registers::{Health, Registers};
use ring::Ring;
use storage::Geometry;

const NAME: &str = "nvme";

/// How the driver is found: class mass storage, non-volatile memory, NVM Express.
pub(crate) const ENTRY: Entry = Entry {
    name: NAME,
    drives: |function| {
        let class = function.identity().class;
        class.pair() == (0x01, 0x08) && class.interface == 0x02
    },
    start,
};

/// The most namespaces that are looked at.
const MOST_NAMESPACES: usize = 64;

/// A controller that is up.
pub struct Nvme {
    controller: Arc<Controller>,
    disks: Vec<Disk>,
}

/// What the disks of a controller share.
struct Controller {
    platform: Arc<dyn Platform>,
    admin: Admin,
    /// A pair of queues for each core, or for several.
    queues: Vec<Shared<Io>>,
    /// How many interrupts it has.
    sources: u16,
    recovery: Recovery<Result<(), Error>>,
    /// Lets the device reach memory, or not.
    reach: ReachMemory,
}

/// Lets a device reach memory, or keeps it from all: what stops one that does not stop by itself.
type ReachMemory = Box<dyn Fn(bool) + Send + Sync>;

/// Brings up a function's controller.
///
/// # Errors
/// It does not come up, or has namespaces of which none can be used.
pub fn start(function: &Arc<Function>, platform: &Arc<dyn Platform>) -> Result<Arc<dyn Driver>, Error> {
    let window = function.registers(&**platform, 0)?;
    function.decode();
    let cores: Vec<usize> = (0..platform.cores()).collect();
    let interrupts = function.start_interrupts(&**platform, &cores);
    let function = Arc::clone(function);
    let reach = Box::new(move |may| if may { function.enable() } else { function.quiet() });
    let sources = u16::try_from(interrupts.count).unwrap_or(u16::MAX);
    Ok(Arc::new(start_at(Arc::clone(platform), window, sources, reach)?))
}

/// Brings up the controller whose registers are at `window`, with a pair of queues for each core as far as it has
/// them. Queue `n` raises the interrupt `n` modulo `sources`; with none it is polled.
fn start_at(
    platform: Arc<dyn Platform>,
    window: Arc<dyn Window>,
    sources: u16,
    reach: ReachMemory,
) -> Result<Nvme, Error> {
    let registers = Registers::new(window).ok_or(Error::Gone)?;
    if !registers.is_usable() {
        return Err(Error::Unusable("it has no NVM command set, or no pages of 4 KiB"));
    }
    // What does not come up may still be at work in their memory, which goes with them.
    let (admin, mut queues) = (Admin::new(Arc::clone(&platform), registers)?, Vec::new());
    let started = finish(&*platform, bring_up(&platform, &admin, &mut queues, sources, &reach));
    let units = started.inspect_err(|_| reach(false))?;
    let recovery = Recovery::new();
    let shared = Arc::clone(&platform);
    let controller = Controller { platform: shared, admin, queues, sources, recovery, reach };
    let controller = Arc::new(controller);
    let disk = |unit| Blocks::disk(&*platform, Arc::clone(&controller) as Arc<dyn Engine>, unit);
    let disks = units.into_iter().map(disk).collect::<Result<_, _>>()?;
    Ok(Nvme { controller, disks })
}

async fn bring_up(
    platform: &Arc<dyn Platform>,
    admin: &Admin,
    queues: &mut Vec<Shared<Io>>,
    sources: u16,
    reach: &ReachMemory,
) -> Result<Vec<Unit>, Error> {
    admin.disable().await?;
    // Firmware may have left it with queues of its own.
    reach(true);
    admin.enable().await?;
    let controller = admin.controller().await?;

    let cores = u16::try_from(platform.cores()).unwrap_or(u16::MAX).max(1);
    let given = admin.number_of_queues(cores).await?;
    let entries = io::MOST_ENTRIES.min(u16::try_from(admin.registers().queue_entries()).unwrap_or(u16::MAX));
    if entries < 2 {
        return Err(Error::Unusable("its queues have one entry"));
    }
    for number in 1..=given {
        // Fewer doorbells than queues, or less memory than cores: so be it.
        let made = Ring::new(&**platform, admin.registers(), number, entries)
            .and_then(|ring| Io::new(platform, ring));
        match made {
            Ok(io) => queues.push(Shared::new(io)),
            Err(error) if queues.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    create(admin, queues, sources).await?;

    let mut units = Vec::new();
    let mut refused = None;
    for number in admin.namespaces(&controller, MOST_NAMESPACES).await? {
        match admin.namespace(number).await {
            Ok(namespace) => units.push(unit(&controller, number, namespace)),
            Err(error @ (Error::Gone | Error::Silent(_))) => return Err(error),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) if units.is_empty() => Err(error),
        _ => Ok(units),
    }
}

/// Has the controller make the queues.
async fn create(admin: &Admin, queues: &[Shared<Io>], sources: u16) -> Result<(), Error> {
    for (number, io) in (0_u16..).zip(queues) {
        let rings = io.with(|io| io.rings());
        admin.create(number.saturating_add(1), rings, number.checked_rem(sources)).await?;
    }
    Ok(())
}

fn unit(controller: &identify::Controller, number: u32, namespace: identify::Namespace) -> Unit {
    let block_size = u64::from(namespace.block_size);
    // The fields for numbers of blocks have 16 bits, and say one less; a range's has 32.
    let zeroes = block_size.saturating_mul(0x1_0000);
    let discard = block_size.saturating_mul(u64::from(u32::MAX));
    Unit {
        number,
        model: controller.model.clone(),
        serial: if number == 1 {
            controller.serial.clone()
        } else {
            format!("{}-n{number}", controller.serial)
        },
        geometry: Geometry {
            block_size: namespace.block_size,
            blocks: namespace.blocks,
            read_only: namespace.read_only,
            discards: controller.discards,
        },
        transfer: controller.most.unwrap_or(io::MOST_BYTES).min(io::MOST_BYTES).max(block_size),
        discard: if controller.discards { discard } else { 0 },
        zeroes: if controller.zeroes { zeroes } else { 0 },
        volatile_cache: controller.volatile_cache,
        overlap: Overlap::All,
    }
}

impl Engine for Controller {
    fn submit(&self, request: Request) {
        let now = self.platform.now();
        let queue =
            self.platform.core().checked_rem(self.queues.len()).and_then(|number| self.queues.get(number));
        if let Some(io) = queue {
            io.with(|io| io.submit(request, now));
        }
    }
}

impl Controller {
    fn serve(&self, source: usize) {
        let now = self.platform.now();
        let sources = usize::from(self.sources);
        for (number, io) in self.queues.iter().enumerate() {
            if source >= sources || number.checked_rem(sources) == Some(source) {
                io.with(|io| io.serve(now));
            }
        }
    }

    fn deadline(&self) -> Option<u64> {
        self.queues.iter().filter_map(Shared::deadline).min()
    }

    fn close(&self) {
        self.each(|io, _| io.close());
    }

    fn each(&self, what: impl Fn(&mut Io, u64)) {
        let now = self.platform.now();
        self.queues.iter().for_each(|io| io.with(|io| what(io, now)));
    }

    /// Resets the controller, and has it do again what was under way and is not overdue.
    async fn restart(self: Arc<Self>) -> Result<(), Error> {
        self.admin.disable().await?;
        // Only now the memory of what was under way is not the controller's any more.
        self.each(Io::forgotten);
        self.admin.enable().await?;
        self.admin.number_of_queues(u16::try_from(self.queues.len()).unwrap_or(u16::MAX)).await?;
        create(&self.admin, &self.queues, self.sources).await?;
        self.each(Io::resume);
        Ok(())
    }
}

impl Driver for Nvme {
    fn name(&self) -> &'static str {
        NAME
    }

    fn serve(&self, source: usize) {
        self.controller.serve(source);
    }

    fn deadline(&self) -> Option<u64> {
        self.controller.recovery.deadline(self.controller.deadline())
    }

    fn recover(&self) -> bool {
        let controller = &self.controller;
        let now = controller.platform.now();
        controller.recovery.looked(now);
        controller.serve(usize::MAX);
        let begins = !controller.recovery.is_under_way();
        if begins {
            match controller.admin.registers().health() {
                Health::Gone => {
                    (controller.reach)(false);
                    controller.close();
                    return true;
                }
                Health::Ready if controller.deadline().is_none_or(|deadline| deadline > now) => return false,
                _ => controller.recovery.begin(|| {
                    controller.each(|io, _| io.stop());
                    Box::pin(Arc::clone(controller).restart())
                }),
            }
        }
        if let Some(Err(_)) = controller.recovery.proceed(now) {
            (controller.reach)(false);
            controller.close();
        }
        begins
    }

    fn disks(&self) -> Vec<Disk> {
        self.disks.clone()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // Its memory goes with it.
        (self.reach)(false);
    }
}
