//! Linux from reset to userspace: with QEMU's own firmware, under Peerboot, and several at once.

use std::thread;
use std::time::{Duration, Instant};

use super::guests::{linux, rom};
use super::{PATIENCE, compile, counting, number, numbers, until};
use crate::error::{Error, Result};
use crate::guests;
use crate::machine::{Emulator, Firmware, Machine, Spec};
use crate::manifest::Guest;
use crate::project::Project;

/// The example guest's line about userspace; the number is its time-stamp counter.
const USERSPACE: &str = r"userspace reached at TSC (\d+)";

/// The monitor's line about a guest's exits: their number, and then how many for each reason.
const EXITS: &str = r": exits: (\d+.*)";

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

/// Boots Debian's kernel with QEMU's own firmware.
///
/// # Errors
/// It does not reach userspace.
pub fn bare_boot(project: &Project) -> Result<Vec<Milestone>> {
    let bare = Firmware::Bare {
        kernel: guests::cloud_kernel(project)?,
        initramfs: Some(guests::initramfs(project)?),
        bootargs: "console=ttyS0".to_owned(),
    };
    let machine = until(&counting(bare, 1), USERSPACE)?;
    Ok(vec![(BOOTED, userspace(&machine.transcript())?)])
}

/// Boots the same kernel and initramfs under Peerboot.
///
/// # Errors
/// It does not reach userspace, or the monitor does not say what this reads.
pub fn peerboot_boot(project: &Project) -> Result<Boot> {
    let rom = rom(project, Emulator::Qemu, "linux", &[linux("debian")], &[])?;
    let mut machine = until(&counting(rom, 1), USERSPACE)?;
    // The monitor counts a guest's exits until its end: here from the first instruction, by way of the shell.
    machine.expect("# $", PATIENCE)?;
    machine.send("poweroff -f\n")?;
    machine.expect(EXITS, PATIENCE)?;
    let transcript = machine.transcript();
    Ok(Boot { milestones: timeline(&transcript)?, exits: exits(&transcript)? })
}

/// Several boots at once.
#[derive(Debug, PartialEq, Eq)]
pub struct Parallel {
    /// How many guests.
    pub guests: usize,
    /// Instructions of all cores from a guest's first to its userspace, the slowest guest's.
    pub instructions: u64,
    /// Wall time from reset to the last guest's userspace, instructions not counted.
    pub wall: Duration,
}

/// Boots one, two and four Linux guests, each to userspace, on four cores.
///
/// Counting instructions, QEMU runs its cores in turn on one clock: that gives the work of all cores. How long it
/// takes where cores run beside each other is wall time, and this machine's.
///
/// # Errors
/// One of them does not reach userspace.
pub fn parallel_boots(project: &Project) -> Result<Vec<Parallel>> {
    [1, 2, 4].into_iter().map(|guests| parallel_boot(project, guests)).collect()
}

fn parallel_boot(project: &Project, guests: usize) -> Result<Parallel> {
    const CORES: u32 = 4;
    const NODES: [&str; 4] = ["debian-1", "debian-2", "debian-3", "debian-4"];
    let nodes: Vec<Guest> = NODES.into_iter().take(guests).map(linux).collect();
    let rom = rom(project, Emulator::Qemu, &format!("linux-{guests}"), &nodes, &[])?;
    let work = all_boot(&counting(rom.clone(), CORES), guests)?.0;
    let wall = all_boot(&Spec { smp: CORES, ..Spec::new(rom) }, guests)?.1;
    Ok(Parallel { guests, instructions: work, wall })
}

/// The highest of the guests' time-stamp counters at userspace, and the wall time from reset until all were there.
fn all_boot(spec: &Spec, guests: usize) -> Result<(u64, Duration)> {
    let start = Instant::now();
    let mut machine = Machine::spawn(spec)?;
    for _ in 0..guests {
        machine.expect(USERSPACE, PATIENCE)?;
    }
    let wall = start.elapsed();
    let counters = numbers::<1>(&machine.transcript(), USERSPACE)?;
    let slowest = counters.into_iter().flatten().max();
    Ok((slowest.ok_or_else(|| Error::failed("no guest tells its counter"))?, wall))
}

/// The processors that this machine has for an emulator's cores.
#[must_use]
pub fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The time of a milestone.
#[must_use]
pub fn milestone(milestones: &[Milestone], name: &str) -> Option<u64> {
    milestones.iter().find(|(n, _)| *n == name).map(|(_, time)| *time)
}

/// The exits of a guest that ended, by reason.
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

#[cfg(test)]
mod tests {
    use super::*;

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
