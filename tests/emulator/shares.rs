//! Who gets how much of the machine: admission, weights, caps, and cores of a guest's own.

use std::thread;
use std::time::{Duration, Instant};

use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Emulator, Machine, Spec};
use xtask::suite::Outcome;

use crate::bad_input::said;
use crate::console::{ANSWER, BOOT, PROMPT, USERSPACE, command};
use crate::lab::Lab;
use crate::manifest::{Guest, good, manifest};
use crate::multiplexer::{KEY, MANAGEMENT, manage};

/// A guest that asks for what the machine does not have, or no longer has, is not started, and what was missing is
/// said; those before it and after it run.
pub fn admission(lab: &Lab) -> Result<Outcome> {
    const IDLE: &str = "cbfs:guests/idle";
    let guest = |node, properties| Guest { bootargs: node, properties, ..Guest::tiny(node, IDLE) };
    let guests = [
        guest("owner", "cpus = <2>; cpu-affinity = <2 3>; dedicated-cpus;"),
        Guest { memory: "<0x4000000>", ..guest("glutton", "") },
        guest("far", "cpu-affinity = <7 9>;"),
        guest("late-owner", "cpus = <3>; cpu-affinity = <0 1 8>; dedicated-cpus;"),
        guest("thief", "cpu-affinity = <2>;"),
        guest("crowd", "cpus = <255>;"),
        guest("second-crowd", "cpus = <255>;"),
        Guest { memory: "<0x80000>", ..guest("half", "") },
        Guest { memory: "<0x80000>", ..guest("other-half", "") },
        guest("last", ""),
    ];
    let variant = lab.unfilled(Emulator::Qemu, "admission", &manifest(&guests))?;
    variant.cbfs.add("guests/idle", &guests::tiny(lab.project(), "idle")?)?;
    let mut machine = Machine::spawn(&Spec { smp: 4, memory: "1G".to_owned(), ..variant.spec() })?;
    let mut awaited = vec!["owner", "crowd", "half", "last"];
    while !awaited.is_empty() {
        let line = machine.expect(&format!("idle: here, ({})$", awaited.join("|")), BOOT)?;
        awaited.retain(|name| !line.ends_with(&format!(", {name}")));
    }
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, ANSWER)?;
    let refused = "cannot start: asks for 1 of the CPUs";
    manage(&mut machine, "start far", &format!(r"\] far: {refused}"))?;
    said(
        &machine,
        &[
            r"error: glutton: asks for 65536 MiB of memory, of which the machine lacks 6\d{4} MiB$",
            r"error: far: asks for 1 of the CPUs that it may run on; 0 are there, 0 of them free$",
            r"error: late-owner: asks for 3 of the CPUs that it may run on; 2 are there, 0 of them free$",
            r"error: thief: asks for 1 of the CPUs that it may run on; 1 are there, 0 of them free$",
            r"error: second-crowd: needs \d{4} KiB of Peerboot's own memory, of which \d{4} KiB are free$",
            r"error: other-half: asks for 512 MiB of memory, of which the machine lacks \d+ MiB$",
        ],
    )
}

/// Guests that compute without end: on one core by their weights, capped on an idle one, and one on a core of its
/// own that nobody interrupts.
pub fn weights_and_caps(lab: &Lab, emulator: Emulator) -> Result<Outcome> {
    const BUSY: &str = "cbfs:guests/busy";
    // Bochs runs four busy cores in turn, each a tenth as fast as one alone.
    const PATIENCE: Duration = Duration::from_secs(300);
    // In tenths of a percent of a core, and how far off.
    const EXPECTED: [(&str, u64, u64); 5] =
        [("one", 143, 50), ("two", 286, 50), ("four", 571, 50), ("capped", 300, 50), ("owner", 1000, 50)];
    let guest = |node, properties| Guest { bootargs: node, properties, ..Guest::tiny(node, BUSY) };
    let guests = [
        guest("one", "cpu-affinity = <2>; weight = <128>;"),
        guest("two", "cpu-affinity = <2>; weight = <256>;"),
        guest("four", "cpu-affinity = <2>; weight = <512>;"),
        guest("capped", "cpu-affinity = <3>; cap = <30>;"),
        // It waits as locks do, which elsewhere makes room for others.
        Guest { bootargs: "owner pause", ..guest("owner", "cpu-affinity = <1>; dedicated-cpus;") },
    ];
    let label = format!("shares-{emulator}").to_lowercase();
    let variant = lab.unfilled(emulator, &label, &manifest(&guests))?;
    variant.cbfs.add("guests/busy", &guests::tiny(lab.project(), "busy")?)?;
    let mut machine = Machine::spawn(&Spec { smp: 4, ..variant.spec() })?;
    for _ in EXPECTED {
        machine.expect("busy: here, ", PATIENCE)?;
    }
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, ANSWER)?;

    // Each list shows the shares since the one before.
    let deadline = Instant::now() + PATIENCE;
    loop {
        thread::sleep(Duration::from_secs(4));
        let before = machine.transcript().len();
        manage(&mut machine, "list", r"^ 5 owner .* running$")?;
        machine.expect(MANAGEMENT, ANSWER)?;
        let transcript = machine.transcript();
        let list = transcript.get(before..).unwrap_or_default();
        let off = |(name, share, most): &(&str, u64, u64)| {
            let line = list.lines().find(|line| line.split_whitespace().nth(1) == Some(name));
            let shown =
                line.and_then(|line| line.split_whitespace().nth(5)?.replace('.', "").parse::<u64>().ok());
            shown.is_none_or(|shown| shown.abs_diff(*share) > *most)
        };
        if !EXPECTED.iter().any(off) {
            break;
        }
        if Instant::now() > deadline {
            return Err(Error::failed(format!("not the shares they should have:\n{list}")));
        }
    }

    // Somebody else's turn ends a guest's run by an interrupt, dozens of times a second. VT-x's own timer has the
    // monitor look ten times a second at a guest that nobody interrupts.
    let (one, _) = interrupts_of(&mut machine, "one")?;
    let (owner, seconds) = interrupts_of(&mut machine, "owner")?;
    if machine.transcript().lines().any(|line| line.contains("owner: exits: ") && line.contains("pause ")) {
        return Err(Error::failed("a guest on a core of its own was asked to make room for others"));
    }
    let looks = if emulator == Emulator::Bochs { 10.0 * seconds } else { 0.0 };
    if one < 10.0 || owner > 5.0 + looks {
        return Err(Error::failed(format!(
            "{one} interrupts on a shared core, {owner} in {seconds} s on one of its own"
        )));
    }
    Ok(Outcome::Passed)
}

/// Stops a guest, and gives how often an interrupt of the host ended its run, and when, in seconds, that was.
fn interrupts_of(machine: &mut Machine, name: &str) -> Result<(f64, f64)> {
    machine.send(&format!("stop {name} 0\r"))?;
    let exits = machine.expect(&format!(r"\] {name}: exits: "), ANSWER)?;
    let count =
        exits.split("host interrupt ").nth(1).map_or("0", |rest| rest.split(',').next().unwrap_or("0"));
    // The prompt may stand where the bracket before the time was.
    let time =
        exits.split(']').next().and_then(|start| start.split([' ', '[']).next_back()).unwrap_or_default();
    match (count.trim().parse(), time.parse()) {
        (Ok(count), Ok(time)) => Ok((count, time)),
        _ => Err(Error::failed(exits)),
    }
}

/// Sixteen virtual CPUs on four cores: Linux starts all, keeps its clock, and sees the time that it does not get.
pub fn sixteen_cpus(lab: &Lab) -> Result<Outcome> {
    const LONG: Duration = Duration::from_secs(900);
    let variant = lab.variant(Emulator::Qemu, "sixteen-cpus")?;
    variant.manifest(&manifest(&[Guest { properties: "cpus = <16>;", ..good() }]))?;
    let mut machine = Machine::spawn(&Spec { smp: 4, ..variant.spec() })?;
    machine.expect(r"smp: Brought up 1 node, 16 CPUs", LONG)?;
    machine.expect(USERSPACE, LONG)?;
    machine.expect(PROMPT, ANSWER)?;
    let work = "for n in $(seq 16); do (timeout 3 sh -c 'while :; do :; done') & done; wait";
    command(&mut machine, work, LONG)?;
    let cpus = command(&mut machine, "grep -c ^processor /proc/cpuinfo", ANSWER)?.join("");
    // user, nice, system, idle, iowait, irq, softirq, steal: in hundredths of a second.
    let line = command(&mut machine, "grep '^cpu ' /proc/stat", ANSWER)?.join("");
    let numbers: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
    let (ran, stolen) = (number(0) + number(2), number(7));
    if cpus != "16" || ran < 100 || stolen < 1000 {
        return Err(Error::failed(format!(
            "{cpus} CPUs, which ran for {ran} and waited for {stolen}: {line}"
        )));
    }
    let words = "dmesg | grep -E 'lockup|stall|Call Tr'";
    let complaints = command(&mut machine, words, ANSWER)?;
    if complaints.is_empty() {
        Ok(Outcome::Passed)
    } else {
        Err(Error::failed(format!("the kernel complains:\n{}", complaints.join("\n"))))
    }
}
