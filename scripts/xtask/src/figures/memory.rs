//! What a guest costs the monitor in memory of its own.

use super::guests::{kernel, rom};
use super::{PATIENCE, counting, number};
use crate::error::Result;
use crate::machine::{Emulator, Machine};
use crate::manifest::Guest;
use crate::project::Project;

/// The heap, with everything of the monitor's in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Footprint {
    /// With one guest, in KiB: what the machine itself takes, and the guest.
    pub first: u64,
    /// For each further guest with one CPU and 16 MiB, its nested page tables included, in KiB.
    pub each: u64,
}

/// Boots one guest, and then as many as tell one's share, each of which sleeps.
///
/// # Errors
/// They do not start, or the management prompt does not answer.
pub fn footprint(project: &Project) -> Result<Footprint> {
    const FURTHER: usize = 16;
    let (first, all) = (used(project, 1)?, used(project, 1 + FURTHER)?);
    Ok(Footprint { first, each: all.saturating_sub(first) / FURTHER as u64 })
}

/// The heap's used KiB with so many guests.
fn used(project: &Project, count: usize) -> Result<u64> {
    const OPEN_PROMPT: &str = "\x1dm";
    let program = kernel("idle");
    let nodes: Vec<String> = (1..=count).map(|number| format!("idle-{number}")).collect();
    let guests: Vec<Guest> = nodes.iter().map(|node| Guest::tiny(node, &program)).collect();
    let rom = rom(project, Emulator::Qemu, &format!("idle-{count}"), &guests, &["idle"])?;
    let mut machine = Machine::spawn(&counting(rom, 1))?;
    for _ in 0..count {
        machine.expect("idle: here", PATIENCE)?;
    }
    machine.send(OPEN_PROMPT)?;
    machine.expect("peerboot> $", PATIENCE)?;
    machine.send("memory\n")?;
    number(&machine.expect(r"heap: \d+ of", PATIENCE)?, r"heap: (\d+) of")
}
