//! Figures that come out the same in every run: the emulators count instructions, and virtual time is their number.

use std::time::Duration;

use regex::Regex;

use crate::error::{Error, Result};
use crate::guests;
use crate::machine::{Emulator, Firmware, Machine, Spec};
use crate::project::Project;
use crate::rom::Recipe;
use crate::run;

/// The example guest's line about userspace; the number is its time-stamp counter.
const USERSPACE: &str = r"userspace reached at TSC (\d+)";

/// The monitor's line about a guest's exits: their number, and then how many for each reason.
const EXITS: &str = r": exits: (\d+.*)";

/// Wall time that a boot may take while instructions are counted.
const PATIENCE: Duration = Duration::from_secs(300);

/// The board that is measured.
const BOARD: &str = "qemu-q35";

/// A milestone of a boot: its name and nanoseconds of virtual time since reset.
pub type Milestone = (&'static str, u64);

/// The milestone that ends a boot.
pub const BOOTED: &str = "userspace";

/// One boot under Peerboot.
#[derive(Debug, PartialEq, Eq)]
pub struct Boot {
    /// From reset to userspace.
    pub milestones: Vec<Milestone>,
    /// The guest's exits by reason, the most frequent first, and last their sum.
    pub exits: Vec<(String, u64)>,
}

/// What one exit of a kind costs, in instructions.
#[derive(Debug, PartialEq, Eq)]
pub struct Cost {
    /// What the guest did.
    pub exit: String,
    /// On average.
    pub average: u64,
    /// In the cheapest batch.
    pub least: u64,
}

/// Boots Debian's kernel with QEMU's own firmware.
///
/// # Errors
/// It does not reach userspace.
pub fn bare_boot(project: &Project, memory: &str) -> Result<Vec<Milestone>> {
    let bare = Firmware::Bare {
        kernel: guests::cloud_kernel(project)?,
        initramfs: Some(guests::initramfs(project)?),
        bootargs: "console=ttyS0".to_owned(),
    };
    Ok(vec![(BOOTED, userspace(&until(bare, USERSPACE, memory)?.transcript())?)])
}

/// Boots the same kernel and initramfs, the example guest, under Peerboot.
///
/// # Errors
/// It does not reach userspace, or the monitor does not say what this reads.
pub fn peerboot_boot(project: &Project, memory: &str) -> Result<Boot> {
    let rom = run::debian_rom(project, BOARD)?;
    let mut machine = until(Firmware::Rom(rom), USERSPACE, memory)?;
    // The monitor counts a guest's exits until its end: here from the first instruction, by way of the shell.
    machine.expect("# $", PATIENCE)?;
    machine.send("poweroff -f\n")?;
    machine.expect(EXITS, PATIENCE)?;
    let transcript = machine.transcript();
    Ok(Boot { milestones: timeline(&transcript)?, exits: exits(&transcript)? })
}

/// The CPUs whose exits are measured, QEMU's first: AMD-V without and with next-RIP save, VT-x without and with local
/// APICs to lend.
pub const EXIT_COSTS_OF: [(Emulator, &str); 4] = [
    (Emulator::Qemu, "max"),
    (Emulator::Bochs, "ryzen"),
    (Emulator::Bochs, "corei7_sandy_bridge_2600k"),
    (Emulator::Bochs, "corei7_skylake_x"),
];

/// Boots the tiny guest that measures exits from within, on a CPU model of an emulator.
///
/// # Errors
/// It does not boot, or measures nothing.
pub fn exit_costs(project: &Project, emulator: Emulator, cpu: &str) -> Result<Vec<Cost>> {
    let rom = project.build("bench")?.join(format!("exit-cost-{}.rom", emulator.board()));
    Recipe {
        manifest: Some(project.path("scripts/xtask/bench/exit-cost.dts")),
        files: vec![("guests/exit-cost".to_owned(), guests::tiny(project, "exit-cost")?)],
        ..Recipe::example(emulator.board())
    }
    .refresh(project, &rom)?;
    let spec = Spec { smp: 1, icount: true, cpu: cpu.to_owned(), ..Spec::on(emulator, Firmware::Rom(rom)) };
    let mut machine = Machine::spawn(&spec)?;
    machine.expect("(PASS|FAIL) exit-cost", PATIENCE)?;
    costs(&machine.transcript())
}

/// The time of a milestone.
#[must_use]
pub fn milestone(milestones: &[Milestone], name: &str) -> Option<u64> {
    milestones.iter().find(|(n, _)| *n == name).map(|(_, time)| *time)
}

/// Runs a machine that counts instructions until a line matches.
fn until(firmware: Firmware, line: &str, memory: &str) -> Result<Machine> {
    let spec = Spec { smp: 1, memory: memory.to_owned(), icount: true, ..Spec::new(firmware) };
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(line, PATIENCE)?;
    Ok(machine)
}

fn costs(transcript: &str) -> Result<Vec<Cost>> {
    let regex = compile(r"exit-cost: (.+) (\d+) instructions \(least (\d+)\)")?;
    let costs: Vec<Cost> = regex
        .captures_iter(transcript)
        .filter_map(|found| {
            let number = |group| found.get(group)?.as_str().parse().ok();
            Some(Cost { exit: found.get(1)?.as_str().to_owned(), average: number(2)?, least: number(3)? })
        })
        .collect();
    if costs.is_empty() {
        return Err(Error::failed(format!("the console shows no cost of any exit:\n{transcript}")));
    }
    Ok(costs)
}

fn exits(transcript: &str) -> Result<Vec<(String, u64)>> {
    let found = compile(EXITS)?.captures(transcript).and_then(|found| found.get(1));
    let line = found.map_or("", |found| found.as_str()).trim();
    let mut parts = line.split(", ");
    let total = parts.next().and_then(|total| total.parse().ok());
    let mut exits: Vec<(String, u64)> = parts
        .filter_map(|part| {
            let (reason, count) = part.rsplit_once(' ')?;
            Some((reason.to_owned(), count.parse().ok()?))
        })
        .collect();
    exits.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    exits.push(("all".to_owned(), total.ok_or_else(|| Error::failed(format!("no exits in {line:?}")))?));
    Ok(exits)
}

fn compile(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| Error::failed(e.to_string()))
}

/// The guest's time-stamp counter at userspace. Counting instructions, QEMU's runs at 1 GHz from reset.
fn userspace(transcript: &str) -> Result<u64> {
    number(transcript, USERSPACE)
}

/// The payload's own timeline, and the guest's first line from userspace after it.
fn timeline(transcript: &str) -> Result<Vec<Milestone>> {
    let entry = step(transcript, "payload entry")?;
    let devices = step(transcript, "devices ready")?;
    let images = step(transcript, "images loaded")?;
    let first = step(transcript, "first guest instruction")?;
    // The guest's counter starts at its first instruction.
    let userspace = first + userspace(transcript)?;
    Ok(vec![
        ("payload entry", entry),
        ("devices ready", devices),
        ("images loaded", images),
        ("first guest instruction", first),
        (BOOTED, userspace),
    ])
}

/// A step of the payload's timeline, in nanoseconds since reset; it prints thousandths of milliseconds.
fn step(transcript: &str, name: &str) -> Result<u64> {
    let whole = number(transcript, &format!(r"timeline: +{name} +(\d+)\.\d+ ms after reset"))?;
    let thousandths = number(transcript, &format!(r"timeline: +{name} +\d+\.(\d{{3}}) ms after reset"))?;
    Ok(whole * 1_000_000 + thousandths * 1000)
}

fn number(transcript: &str, pattern: &str) -> Result<u64> {
    compile(pattern)?
        .captures(transcript)
        .and_then(|found| found.get(1)?.as_str().parse().ok())
        .ok_or_else(|| Error::failed(format!("the console shows no line like {pattern:?}:\n{transcript}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_read_from_the_log() {
        let console =
            "[ 0.1] probe: exit-cost: port read, PIT 400 instructions (least 390)\r\nprobe: PASS exit-cost\n";
        let found = costs(console).expect("costs");
        assert_eq!(found, [Cost { exit: "port read, PIT".to_owned(), average: 400, least: 390 }]);
        assert!(costs("PASS exit-cost").is_err());
    }

    #[test]
    fn exits_are_sorted_by_how_many() {
        let found = exits("[ 9.1] debian: exits: 17, cpuid 5, cache flush 12\n").expect("exits");
        let expected = [("cache flush", 12), ("cpuid", 5), ("all", 17)];
        assert_eq!(found, expected.map(|(reason, count)| (reason.to_owned(), count)));
        assert!(exits("no such line").is_err());
    }

    #[test]
    fn the_timeline_is_read_from_the_console() {
        let console = "[ 0.1] timeline: payload entry               64.436 ms after reset,  0.000 ms after entry\n\
            timeline: devices ready  96.874 ms after reset,    32.437 ms after entry\n\
            timeline: images loaded  97.000 ms after reset, 33 ms\n\
            timeline: first guest instruction 98.5 ms after reset\n";
        assert!(timeline(console).is_err());
        let console =
            console.replace("98.5", "98.500") + "Peerboot example guest: userspace reached at TSC 900\n";
        let milestones = timeline(&console).expect("a timeline");
        assert_eq!(milestones.first(), Some(&("payload entry", 64_436_000)));
        assert_eq!(milestones.last(), Some(&("userspace", 98_500_900)));
        assert!(timeline("nothing").is_err());
    }
}
