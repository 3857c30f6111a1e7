//! Disks on IDE controllers with a bus master: Intel's PIIX and ICH, and those that look like them.

mod channel;
#[cfg(test)]
mod fake;
mod registers;
#[cfg(test)]
mod tests;

use crate::acs;
use crate::driver::{Disk, Driver, Error};
use crate::list::Entry;
use crate::pci::Function;
use crate::platform::{Platform, Region, Space};
use crate::requests::{Blocks, Engine, Overlap};
use crate::task::finish;
use alloc::sync::Arc;
use alloc::vec::Vec;
use channel::Channel;
use registers::Ports;

const NAME: &str = "ata";

/// The programming interface: the first and the second channel are at base address registers, and have an interrupt
/// line of PCI's (else they are where ISA had them); there is a bus master.
const NATIVE: [u8; 2] = [1 << 0, 1 << 2];
const BUS_MASTER: u8 = 1 << 7;

/// Where ISA has the two channels: the drives' registers, device control, and the interrupt line.
const LEGACY: [(u64, u64, u8); 2] = [(0x1f0, 0x3f6, 14), (0x170, 0x376, 15)];

/// Intel's vendor number, and the register of its controllers that has a channel answer, by bit 15 of each half.
const INTEL: u16 = 0x8086;
const IDE_TIMING: u16 = 0x40;
const IDE_DECODE: u32 = 0x8000_8000;

/// How the driver is found: class mass storage, IDE, with a bus master.
pub(crate) const ENTRY: Entry = Entry {
    name: NAME,
    drives: |function| {
        let class = function.identity().class;
        class.pair() == (0x01, 0x01) && class.interface & BUS_MASTER != 0
    },
    start,
};

/// A controller that is up.
pub struct Ata {
    /// The channels with disks, and which one's interrupt is theirs.
    channels: Vec<(usize, Arc<Channel>)>,
    disks: Vec<Disk>,
    /// Each channel has an interrupt of its own.
    apart: bool,
}

/// Brings up a function's channels.
///
/// # Errors
/// Its registers cannot be reached, or there is no memory.
pub fn start(function: &Arc<Function>, platform: &Arc<dyn Platform>) -> Result<Arc<dyn Driver>, Error> {
    let identity = function.identity();
    let native = NATIVE.map(|bit| identity.class.interface & bit != 0);
    let master = function.registers(&**platform, 4)?;
    let mut ports = Vec::new();
    for (number, (native, legacy)) in native.into_iter().zip(LEGACY).enumerate() {
        let (task, control) = if native {
            let bar = if number == 0 { 0 } else { 2 };
            // Of the four control registers, the third is that of device control.
            (
                (function.registers(&**platform, bar)?, 0),
                (function.registers(&**platform, bar.saturating_add(1))?, 2),
            )
        } else {
            let (task, control, _) = legacy;
            let window = |start, len| {
                platform.registers(Region { space: Space::Ports, start, len }).ok_or(Error::NoRegisters(0))
            };
            ((window(task, 8)?, 0), (window(control, 1)?, 0))
        };
        let master = (Arc::clone(&master), number.saturating_mul(8));
        ports.push(Ports { task, control, master });
    }
    if identity.vendor == INTEL {
        function.write(IDE_TIMING, function.read(IDE_TIMING) | IDE_DECODE);
    }
    function.decode();
    ports.iter().for_each(Ports::stop);
    function.enable();
    let apart = native == [false, false];
    if apart {
        function.start_isa_interrupts(&**platform, &LEGACY.map(|(_, _, line)| line));
    } else if native == [true, true] {
        function.start_interrupts(&**platform, &[0]);
    }
    Ok(Arc::new(start_at(platform, ports, apart)?))
}

/// Brings up the channels at `ports`, which have interrupts apart or share one.
fn start_at(platform: &Arc<dyn Platform>, ports: Vec<Ports>, apart: bool) -> Result<Ata, Error> {
    let mut driver = Ata { channels: Vec::new(), disks: Vec::new(), apart };
    for (number, ports) in ports.into_iter().enumerate() {
        let Some(channel) = finish(&**platform, Channel::find(platform, ports))? else { continue };
        let channel = Arc::new(channel);
        for (drive, identity) in (0_u32..).zip(channel.drives()) {
            let Some(identity) = identity else { continue };
            let unit =
                acs::unit((number as u32).saturating_mul(2).saturating_add(drive), &identity, Overlap::None);
            driver.disks.push(Blocks::disk(&**platform, Arc::clone(&channel) as Arc<dyn Engine>, unit)?);
        }
        driver.channels.push((number, channel));
    }
    Ok(driver)
}

impl Driver for Ata {
    fn name(&self) -> &'static str {
        NAME
    }

    fn serve(&self, source: usize) {
        let all = !self.apart || source >= LEGACY.len();
        for (_, channel) in self.channels.iter().filter(|(number, _)| all || *number == source) {
            channel.serve();
        }
    }

    fn deadline(&self) -> Option<u64> {
        self.channels.iter().filter_map(|(_, channel)| channel.deadline()).min()
    }

    fn recover(&self) -> bool {
        // All of them, whatever the first one says.
        self.channels.iter().fold(false, |had, (_, channel)| channel.recover() | had)
    }

    fn disks(&self) -> Vec<Disk> {
        self.disks.clone()
    }
}
