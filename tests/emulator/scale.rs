//! Many guests on a few cores: what each costs, and what they leave of the machine.

use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Emulator, Machine, Spec};
use xtask::suite::Outcome;

use crate::console::{ANSWER, BOOT};
use crate::lab::Lab;
use crate::manifest::{Guest, manifest};
use crate::multiplexer::{KEY, MANAGEMENT};
use crate::time::cores_are_halted;

/// How many guests.
const GUESTS: usize = 64;
/// How much of its own memory the monitor may spend on each, page tables and all, in KiB.
const PROMISED: u64 = 256;

/// Sixty-four guests on four cores: each reports, none costs the monitor more than promised, and when all have
/// nothing to do every core is halted.
pub fn many_guests(lab: &Lab) -> Result<Outcome> {
    let names: Vec<String> = (1..=GUESTS).map(|number| format!("tiny-{number:02}")).collect();
    let guest = |name| Guest { bootargs: name, debug_port: false, ..Guest::tiny(name, "cbfs:guests/idle") };
    let all: Vec<Guest> = names.iter().map(|name| guest(name)).collect();
    let (none, used) = boot(lab, "scale-one", &all[..1])?;
    drop(none);
    let (mut machine, all_used) = boot(lab, "scale", &all)?;
    let each = (all_used - used).div_ceil(GUESTS as u64 - 1);
    if each > PROMISED {
        return Err(Error::failed(format!("a guest costs {each} KiB of the heap; {PROMISED} are promised")));
    }

    machine.send("list\r")?;
    let last = names.last().map_or("", String::as_str);
    machine.expect(&format!("{last} .* running$"), ANSWER)?;
    let transcript = machine.transcript();
    let running = transcript.lines().filter(|line| line.ends_with(" running")).count();
    if running != GUESTS {
        return Err(Error::failed(format!("{running} of {GUESTS} guests run:\n{transcript}")));
    }
    cores_are_halted(&mut machine)
}

/// Boots these guests until each has reported, and gives what is used of the heap, in KiB.
fn boot(lab: &Lab, name: &str, guests: &[Guest]) -> Result<(Machine, u64)> {
    let variant = lab.unfilled(Emulator::Qemu, name, &manifest(guests))?;
    variant.cbfs.add("guests/idle", &guests::tiny(lab.project(), "idle")?)?;
    let mut machine = Machine::spawn(&Spec { smp: 4, memory: "4G".to_owned(), ..variant.spec() })?;
    let mut awaited: Vec<String> = guests.iter().map(|guest| format!("here, {}", guest.node)).collect();
    while !awaited.is_empty() {
        let line = machine.expect(&format!("({})$", awaited.join("|")), BOOT)?;
        awaited.retain(|report| !line.ends_with(report.as_str()));
    }
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, ANSWER)?;
    machine.send("memory\r")?;
    let line = machine.expect(r"^heap: \d+ of \d+ KiB used$", ANSWER)?;
    let used = line.split(' ').nth(1).and_then(|used| used.parse().ok());
    used.map(|used| (machine, used)).ok_or_else(|| Error::failed(line))
}
