//! virtio-blk: disks of virtual machines (virtio 1.2, 5.2).

mod commands;
mod configuration;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use crate::driver::{Disk, Driver, Error};
use crate::list::Entry;
use crate::pci::{Function, Kind};
use crate::platform::Platform;
use crate::requests::{Blocks, Engine, Overlap, Request, Shared, Unit};
use crate::task::{Recovery, finish};
use crate::virtio::{Feature, Status, Transport};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use commands::Commands;
use configuration::{BlockFeature, Configuration};
use storage::Geometry;

const NAME: &str = "virtio-blk";

/// virtio's maker number, and the device numbers: of version 1, and of devices that know earlier ones too (4.1.2).
const VENDOR: u16 = 0x1af4;
const DEVICES: [u16; 2] = [0x1042, 0x1001];

/// How the driver is found.
pub(crate) const ENTRY: Entry = Entry {
    name: NAME,
    drives: |function| {
        let identity = function.identity();
        identity.vendor == VENDOR && DEVICES.contains(&identity.device)
    },
    start,
};

/// A disk that is up.
pub struct VirtioBlk {
    controller: Arc<Controller>,
    disk: Disk,
}

/// What serves the disk.
struct Controller {
    platform: Arc<dyn Platform>,
    transport: Arc<Transport>,
    /// What driver and device agreed on.
    features: u64,
    /// A queue for each core, or for several.
    queues: Vec<Shared<Commands>>,
    wiring: Wiring,
    recovery: Recovery<Result<(), Error>>,
    /// Lets the device reach memory, or not.
    reach: ReachMemory,
}

/// How the device interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wiring {
    /// So many messages, each of which is some queues'. None where it has a line, or is polled.
    messages: u16,
    /// How many interrupts come here apart, the line being one.
    sources: usize,
}

/// Lets a device reach memory, or keeps it from all: what stops one that does not stop by itself.
type ReachMemory = Box<dyn Fn(bool) + Send + Sync>;

/// Brings up a function's disk.
///
/// # Errors
/// It does not come up, or is none that we know how to use.
pub fn start(function: &Arc<Function>, platform: &Arc<dyn Platform>) -> Result<Arc<dyn Driver>, Error> {
    let transport = Transport::find(function, &**platform)?;
    function.decode();
    let cores: Vec<usize> = (0..platform.cores()).collect();
    let interrupts = function.start_interrupts(&**platform, &cores);
    // MSI without the X is for a device's queues nothing but its line.
    let messages = if interrupts.kind == Kind::MsiX { interrupts.count } else { 0 };
    let messages = u16::try_from(messages).unwrap_or(u16::MAX);
    let wiring = Wiring { messages, sources: interrupts.count };
    let function = Arc::clone(function);
    let reach = Box::new(move |may| if may { function.enable() } else { function.quiet() });
    Ok(Arc::new(start_at(Arc::clone(platform), transport, wiring, reach)?))
}

/// Brings up the disk behind `transport`.
fn start_at(
    platform: Arc<dyn Platform>,
    transport: Transport,
    wiring: Wiring,
    reach: ReachMemory,
) -> Result<VirtioBlk, Error> {
    let transport = Arc::new(transport);
    // What does not come up may still be at work in their memory, which goes with them.
    let mut queues = Vec::new();
    let started = finish(&*platform, bring_up(&platform, &transport, &mut queues, wiring, &reach));
    let (features, unit) = started.inspect_err(|_| reach(false))?;
    let shared = Arc::clone(&platform);
    let recovery = Recovery::new();
    let controller = Controller { platform: shared, transport, features, queues, wiring, recovery, reach };
    let controller = Arc::new(controller);
    let disk = Blocks::disk(&*platform, Arc::clone(&controller) as Arc<dyn Engine>, unit)?;
    Ok(VirtioBlk { controller, disk })
}

async fn bring_up(
    platform: &Arc<dyn Platform>,
    transport: &Arc<Transport>,
    queues: &mut Vec<Shared<Commands>>,
    wiring: Wiring,
    reach: &ReachMemory,
) -> Result<(u64, Unit), Error> {
    transport.reset(&**platform).await?;
    // Firmware may have left it with queues of its own.
    reach(true);
    let features = transport.agree(BlockFeature::WANTED.bits() | Feature::INDIRECT_DESCRIPTORS.bits())?;
    let configuration = transport.configuration(|registers| Configuration::read(registers, features))?;
    let geometry = configuration.geometry()?;

    let cores = u16::try_from(platform.cores()).unwrap_or(u16::MAX).max(1);
    let count = configuration.queues.min(transport.queues()).clamp(1, cores);
    for number in 0..count {
        match Commands::new(platform, transport, number, &configuration, features) {
            Ok(commands) => queues.push(Shared::new(commands)),
            Err(error) if queues.is_empty() => return Err(error),
            // Less memory than cores: so be it.
            Err(_) => break,
        }
    }
    begin(transport, queues, wiring)?;
    let first = queues.first().ok_or(Error::Unusable("it has no queue"))?;
    let serial = serial(&**platform, first).await?;
    let unit = unit(&configuration, geometry, serial, features, first.with(|commands| commands.transfer()))?;
    Ok((features, unit))
}

/// Starts all queues, and with them the device.
fn begin(transport: &Transport, queues: &[Shared<Commands>], wiring: Wiring) -> Result<(), Error> {
    for (number, commands) in (0_u16..).zip(queues) {
        let (size, parts) = commands.with(|commands| commands.ring());
        transport.start_queue(number, size, parts, number.checked_rem(wiring.messages))?;
    }
    transport.begin();
    Ok(())
}

/// The serial number that the device says it has.
async fn serial(platform: &dyn Platform, commands: &Shared<Commands>) -> Result<String, Error> {
    let plain = |bytes: [u8; 20]| {
        let text = bytes.into_iter().take_while(|byte| *byte != 0).filter(|byte| (0x20..0x7f).contains(byte));
        String::from(text.map(char::from).collect::<String>().trim())
    };
    commands.with(Commands::ask_serial);
    let mut answer = None;
    let answered = crate::task::until(platform, commands::SERIAL_PATIENCE, || {
        answer = commands.with(Commands::serial_answer);
        answer.is_some()
    });
    match (answered.await, answer) {
        (true, Some(Ok(bytes))) => Ok(bytes.map(plain).unwrap_or_default()),
        (true, Some(Err(broken))) => Err(broken.into()),
        _ => Err(Error::Silent("its serial number")),
    }
}

fn unit(
    configuration: &Configuration,
    geometry: Geometry,
    serial: String,
    features: u64,
    transfer: u64,
) -> Result<Unit, Error> {
    let block = u64::from(geometry.block_size).max(1);
    let whole = |bytes: u64| bytes.saturating_sub(bytes.checked_rem(block).unwrap_or(0));
    let transfer = whole(transfer);
    if transfer == 0 {
        return Err(Error::Unusable("a block does not fit into a request"));
    }
    Ok(Unit {
        number: 0,
        model: String::new(),
        serial,
        geometry,
        transfer,
        discard: whole(configuration.discard),
        zeroes: whole(configuration.zeroes),
        volatile_cache: features & BlockFeature::FLUSH.bits() != 0,
        overlap: Overlap::All,
    })
}

impl Engine for Controller {
    fn submit(&self, request: Request) {
        let now = self.platform.now();
        let queue = self.platform.core().checked_rem(self.queues.len());
        if let Some(commands) = queue.and_then(|number| self.queues.get(number)) {
            commands.with(|commands| commands.submit(request, now));
        }
    }
}

impl Controller {
    fn serve(&self, source: usize) {
        let now = self.platform.now();
        if self.wiring.messages == 0 {
            self.transport.acknowledge();
        }
        let messages = usize::from(self.wiring.messages);
        for (number, commands) in self.queues.iter().enumerate() {
            let came =
                source >= self.wiring.sources || number.checked_rem(messages).is_none_or(|own| own == source);
            if came {
                commands.with(|commands| commands.serve(now));
            }
        }
    }

    /// When the first of the commands under way must have ended; at once where a queue is broken.
    fn deadline(&self) -> Option<u64> {
        self.queues.iter().filter_map(Shared::deadline).min()
    }

    fn each(&self, what: impl Fn(&mut Commands, u64)) {
        let now = self.platform.now();
        self.queues.iter().for_each(|commands| commands.with(|commands| what(commands, now)));
    }

    /// Resets the device, and has it do again what was under way and is not overdue.
    async fn restart(self: Arc<Self>) -> Result<(), Error> {
        self.transport.reset(&*self.platform).await?;
        // Only now the memory of what was under way is not the device's any more.
        self.each(Commands::forgotten);
        if self.transport.agree(self.features)? != self.features {
            return Err(Error::Unusable("it can do less than before"));
        }
        begin(&self.transport, &self.queues, self.wiring)?;
        self.each(Commands::resume);
        Ok(())
    }

    /// Gives the device up.
    fn close(&self) {
        (self.reach)(false);
        self.each(|commands, _| commands.close());
    }
}

impl Driver for VirtioBlk {
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
            let Some(status) = controller.transport.status() else {
                controller.close();
                return true;
            };
            let overdue = controller.deadline().is_some_and(|deadline| deadline <= now);
            if !overdue && !status.contains(Status::NEEDS_RESET) {
                return false;
            }
            controller.recovery.begin(|| {
                controller.each(|commands, _| commands.stop());
                Box::pin(Arc::clone(controller).restart())
            });
        }
        if let Some(Err(_)) = controller.recovery.proceed(now) {
            controller.close();
        }
        begins
    }

    fn disks(&self) -> Vec<Disk> {
        [self.disk.clone()].into()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // Its memory goes with it.
        (self.reach)(false);
    }
}
