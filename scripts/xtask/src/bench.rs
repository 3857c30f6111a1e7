//! `scripts/bench`: the same kernel and initramfs on bare QEMU and under Peerboot, both counting instructions.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use regex::Regex;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::guests;
use crate::machine::{Firmware, Machine, Spec};
use crate::packages;
use crate::progress::say;
use crate::project::Project;
use crate::rom::Recipe;
use crate::run;

/// The example guest's line about userspace; the number is its time-stamp counter.
const USERSPACE: &str = r"userspace reached at TSC (\d+)";

/// Wall time that a boot may take while instructions are counted.
const PATIENCE: Duration = Duration::from_secs(300);

/// The options of `scripts/bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE", default_value = "build/bench/figures.json")]
    json: PathBuf,
    /// Memory of both machines
    #[arg(long, default_value = "2G", value_name = "SIZE")]
    memory: String,
}

/// A milestone of a boot: its name and nanoseconds of virtual time since reset.
type Milestone = (&'static str, u64);

/// Measures, prints a table and writes the JSON.
///
/// # Errors
/// Set-up fails, or one of the machines does not reach userspace.
pub fn bench(project: &Project, options: &Options) -> Result<()> {
    packages::require(&[packages::QEMU])?;
    let bare = Firmware::Bare {
        kernel: guests::cloud_kernel(project)?,
        initramfs: Some(guests::initramfs(project)?),
        bootargs: "console=ttyS0".to_owned(),
    };
    let rom = run::example_rom(project, "qemu-q35")?;
    say("booting the kernel on bare QEMU");
    let bare = boot(bare, options)?;
    say("booting the kernel under Peerboot");
    let peerboot = boot(Firmware::Rom(rom), options)?;

    say("counting what exits cost");
    let costs = exit_costs(project, options)?;

    let bare = vec![("userspace", userspace(&bare)?)];
    let peerboot = timeline(&peerboot)?;
    print_boots(&bare, &peerboot);
    println!();
    print_costs(&costs);
    write_json(project, options, &bare, &peerboot, &costs)
}

/// Boots until userspace and gives all that the serial console said.
fn boot(firmware: Firmware, options: &Options) -> Result<String> {
    until(firmware, USERSPACE, options)
}

/// Runs the machine, counting instructions, until a line matches, and gives all that the serial console said.
fn until(firmware: Firmware, line: &str, options: &Options) -> Result<String> {
    let spec = Spec { smp: 1, memory: options.memory.clone(), icount: true, ..Spec::new(firmware) };
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(line, PATIENCE)?;
    Ok(machine.transcript())
}

/// What one exit of a kind costs, in instructions: on average, and in the cheapest batch.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    exit: String,
    average: u64,
    least: u64,
}

/// Boots the tiny guest that measures exits from within.
fn exit_costs(project: &Project, options: &Options) -> Result<Vec<Cost>> {
    let rom = project.build("bench")?.join("exit-cost.rom");
    Recipe {
        manifest: Some(project.path("scripts/xtask/bench/exit-cost.dts")),
        files: vec![("guests/exit-cost".to_owned(), guests::tiny(project, "exit-cost")?)],
        ..Recipe::example("qemu-q35")
    }
    .refresh(project, &rom)?;
    costs(&until(Firmware::Rom(rom), "(PASS|FAIL) exit-cost", options)?)
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
        ("userspace", userspace),
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

fn print_boots(bare: &[Milestone], peerboot: &[Milestone]) {
    println!("{:<32} {:>14} {:>14} {:>8}", "virtual ms since reset", "bare QEMU", "Peerboot", "ratio");
    for (name, ours) in peerboot {
        let theirs = bare.iter().find(|(n, _)| n == name).map(|(_, time)| *time);
        let bare = theirs.map_or_else(String::new, millis);
        let ratio = theirs.map_or_else(String::new, |time| format!("{:.2}", ratio(*ours, time)));
        println!("{name:<32} {bare:>14} {:>14} {ratio:>8}", millis(*ours));
    }
}

fn print_costs(costs: &[Cost]) {
    println!("{:<32} {:>14} {:>14}", "instructions per exit", "average", "least");
    for cost in costs {
        println!("{:<32} {:>14} {:>14}", cost.exit, cost.average, cost.least);
    }
}

fn write_json(
    project: &Project,
    options: &Options,
    bare: &[Milestone],
    peerboot: &[Milestone],
    costs: &[Cost],
) -> Result<()> {
    let object = |milestones: &[Milestone]| -> Value {
        milestones.iter().map(|(name, time)| ((*name).to_owned(), json!(time))).collect::<Map<_, _>>().into()
    };
    let exits = |cost: &Cost| (cost.exit.clone(), json!({ "average": cost.average, "least": cost.least }));
    let figures = json!({
        "unit": "nanoseconds of virtual time since reset, one an instruction; instructions per exit",
        "bare": object(bare),
        "peerboot": object(peerboot),
        "exits": Value::Object(costs.iter().map(exits).collect()),
    });
    let file = project.root().join(&options.json);
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).map_err(|e| Error::file("make", dir, &e))?;
    }
    fs::write(&file, format!("{figures:#}\n")).map_err(|e| Error::file("write", &file, &e))?;
    say(&format!("the figures are in {}", file.display()));
    Ok(())
}

fn millis(nanoseconds: u64) -> String {
    format!("{}.{:03}", nanoseconds / 1_000_000, nanoseconds / 1000 % 1000)
}

#[allow(clippy::cast_precision_loss)] // Virtual boot times are far below 2^53 ns.
fn ratio(ours: u64, theirs: u64) -> f64 {
    ours as f64 / theirs as f64
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
