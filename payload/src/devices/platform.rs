//! This machine as drivers see it.

use super::registers;
use crate::host::apic::io::{IoApics, Line};
use crate::host::dma::SharedFrames;
use crate::host::interrupts::vector;
use crate::host::memory::FrameAllocator;
use crate::host::time::Clock;
use crate::host::{apic, cpu};
use alloc::sync::Arc;
use alloc::vec::Vec;
use drivers::platform::{Message, Platform, Region, Registers, Trigger, Vector};
use spin::Mutex;
use storage::Memory;

/// Where messages go: the local APICs' addresses, with the APIC's number from bit 12 on (SDM 3, 11.11.1).
const MESSAGE_BASE: u64 = 0xfee0_0000;
/// The highest APIC number that a message can name.
const HIGHEST_TARGET: u32 = 254;
/// ISA has this many lines; PCI's numbers from there on count the I/O APICs' pins.
const ISA_LINES: u8 = 16;

/// The machine.
pub struct ThisMachine {
    clock: &'static Clock,
    frames: &'static FrameAllocator,
    io_apics: Option<&'static IoApics>,
    given: Mutex<Given>,
}

/// Vectors that were given out.
#[derive(Default)]
struct Given {
    /// How many, by core.
    by_core: Vec<u8>,
    lines: Vec<(u8, Vector)>,
}

impl ThisMachine {
    /// With these parts.
    pub fn new(
        clock: &'static Clock,
        frames: &'static FrameAllocator,
        io_apics: Option<&'static IoApics>,
    ) -> Self {
        Self { clock, frames, io_apics, given: Mutex::default() }
    }
}

impl Given {
    /// The next vector of a core.
    fn next(&mut self, core: usize) -> Option<Vector> {
        if self.by_core.len() <= core {
            self.by_core.resize(core + 1, 0);
        }
        let given = &mut self.by_core[core];
        let number =
            vector::FIRST_OF_DEVICES.checked_add(*given).filter(|v| *v <= vector::LAST_OF_DEVICES)?;
        *given += 1;
        Some(Vector { core, number })
    }
}

/// The APIC of a core, if messages reach it.
fn apic_of(core: usize) -> Option<u32> {
    let id =
        cpu::running().get(core).map_or_else(|| (core == 0).then(apic::local::id), |cpu| Some(cpu.apic_id()));
    id.filter(|id| *id <= HIGHEST_TARGET)
}

impl Platform for ThisMachine {
    fn now(&self) -> u64 {
        self.clock.now().as_nanos()
    }

    fn wait(&self, nanoseconds: u64) {
        let start = self.now();
        while self.now().saturating_sub(start) < nanoseconds {
            core::hint::spin_loop();
        }
    }

    fn allocate(&self, len: usize) -> Option<Arc<dyn Memory>> {
        Some(Arc::new(SharedFrames::allocate(self.frames, len)?))
    }

    fn registers(&self, region: Region) -> Option<Arc<dyn Registers>> {
        registers::open(region)
    }

    fn cores(&self) -> usize {
        cpu::running().len().max(1)
    }

    fn core(&self) -> usize {
        cpu::this().number()
    }

    fn message_interrupt(&self, core: usize) -> Option<(Vector, Message)> {
        // Without remapping of interrupts, messages know APICs of 8 bits; the boot core stands in for others.
        let (core, id) = apic_of(core).map(|id| (core, id)).or_else(|| Some((0, apic_of(0)?)))?;
        let vector = self.given.lock().next(core)?;
        let address = MESSAGE_BASE | u64::from(id) << 12;
        Some((vector, Message { address, data: u32::from(vector.number) }))
    }

    fn line_interrupt(&self, line: u8, trigger: Trigger) -> Option<Vector> {
        let mut given = self.given.lock();
        if let Some((_, vector)) = given.lines.iter().find(|(known, _)| *known == line) {
            return Some(*vector);
        }
        let (io_apics, id) = (self.io_apics?, apic_of(0)?);
        let vector = given.next(0)?;
        let wire = match trigger {
            _ if line >= ISA_LINES => Line::Pin(line.into()),
            Trigger::Edge => Line::Isa(line),
            Trigger::Level => Line::PciOnIsa(line),
        };
        io_apics.route(wire, vector.number, id).ok()?;
        given.lines.push((line, vector));
        Some(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_core_has_vectors_of_its_own_until_they_run_out() {
        let mut given = Given::default();
        let all: Vec<Vector> = core::iter::from_fn(|| given.next(1)).collect();
        assert_eq!(all.first(), Some(&Vector { core: 1, number: vector::FIRST_OF_DEVICES }));
        assert_eq!(all.last(), Some(&Vector { core: 1, number: vector::LAST_OF_DEVICES }));
        assert_eq!(given.next(0), Some(Vector { core: 0, number: vector::FIRST_OF_DEVICES }));
    }
}
