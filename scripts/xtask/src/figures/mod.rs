//! Figures of what Peerboot costs and how it shares. QEMU counts instructions, and Bochs always does: virtual time is
//! their number, and every run gives the same.

mod boot;
pub mod disks;
mod exits;
mod guests;
mod memory;
mod sharing;

pub use boot::{
    BOOTED, Boot, Milestone, Parallel, bare_boot, milestone, parallel_boots, peerboot_boot, processors,
};
pub use exits::{Cost, PROCESSORS, Processor, Rate, exit_costs, exit_rates};
pub use memory::{Footprint, footprint};
pub use sharing::{Lateness, Share, shares, wake_ups};

use std::time::Duration;

use regex::Regex;

use crate::error::{Error, Result};
use crate::machine::{Emulator, Firmware, Machine, Spec};

/// Wall time that a machine may take for what is measured, while instructions are counted.
const PATIENCE: Duration = Duration::from_secs(900);

/// QEMU's usual machine, its virtual time the number of instructions of all its cores.
fn counting(firmware: Firmware, smp: u32) -> Spec {
    Spec { smp, icount: true, ..Spec::on(Emulator::Qemu, firmware) }
}

/// Runs a machine until a line matches.
fn until(spec: &Spec, line: &str) -> Result<Machine> {
    let mut machine = Machine::spawn(spec)?;
    machine.expect(line, PATIENCE)?;
    Ok(machine)
}

fn compile(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| Error::failed(e.to_string()))
}

/// The numbers that a pattern's groups match, of each match in turn.
fn numbers<const GROUPS: usize>(transcript: &str, pattern: &str) -> Result<Vec<[u64; GROUPS]>> {
    let regex = compile(pattern)?;
    let found = regex.captures_iter(transcript).filter_map(|found| {
        let mut numbers = [0; GROUPS];
        for (group, number) in numbers.iter_mut().enumerate() {
            *number = found.get(group + 1)?.as_str().parse().ok()?;
        }
        Some(numbers)
    });
    Ok(found.collect())
}

/// The number that a pattern's group matches first.
fn number(transcript: &str, pattern: &str) -> Result<u64> {
    let first = numbers::<1>(transcript, pattern)?.first().copied();
    let [number] = first
        .ok_or_else(|| Error::failed(format!("the console shows no line like {pattern:?}:\n{transcript}")))?;
    Ok(number)
}
