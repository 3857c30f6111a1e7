//! What exits cost, and how often a guest with a core of its own has one.

use super::guests::{kernel, linux, rom};
use super::{PATIENCE, compile, counting, number, until};
use crate::error::{Error, Result};
use crate::machine::{Emulator, Machine, Spec};
use crate::manifest::Guest;
use crate::project::Project;

/// A processor that exits are measured on, and how many of its guest's CPUs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// As it stands in the table.
    pub name: &'static str,
    /// What plays it.
    pub emulator: Emulator,
    /// The emulator's name for it.
    pub cpu: &'static str,
    /// The guest's CPUs, each on a core of its own where the emulator has as many; the second sleeps.
    pub vcpus: u32,
}

/// Those that are measured. QEMU's has neither next-RIP save nor decode assists; of Bochs's VT-x models, one
/// virtualizes the local APIC's registers and interrupts, and one is too old for that.
pub const PROCESSORS: [Processor; 5] = [
    Processor { name: "SVM", emulator: Emulator::Qemu, cpu: "max", vcpus: 1 },
    Processor { name: "SVM, 2 vCPUs", emulator: Emulator::Qemu, cpu: "max", vcpus: 2 },
    Processor { name: "SVM, ryzen", emulator: Emulator::Bochs, cpu: "ryzen", vcpus: 2 },
    Processor { name: "VT-x, Skylake-X", emulator: Emulator::Bochs, cpu: "corei7_skylake_x", vcpus: 2 },
    Processor {
        name: "VT-x, Sandy Bridge",
        emulator: Emulator::Bochs,
        cpu: "corei7_sandy_bridge_2600k",
        vcpus: 2,
    },
];

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

/// Boots the tiny guest that measures exits from within.
///
/// # Errors
/// It does not boot, or measures nothing.
pub fn exit_costs(project: &Project, processor: &Processor) -> Result<Vec<Cost>> {
    let program = kernel("exit-cost");
    let cpus = format!("cpus = <{}>;", processor.vcpus);
    let guest = Guest {
        bootargs: if processor.vcpus > 1 { "second" } else { "" },
        properties: &cpus,
        ..Guest::tiny("probe", &program)
    };
    let name = format!("exit-cost-{}-{}", processor.emulator.board(), processor.vcpus);
    let rom = rom(project, processor.emulator, &name, &[guest], &["exit-cost"])?;
    let spec = match processor.emulator {
        Emulator::Qemu => counting(rom, processor.vcpus),
        Emulator::Bochs => Spec { memory: "512M".to_owned(), ..Spec::on(Emulator::Bochs, rom) },
    };
    let spec = Spec { cpu: processor.cpu.to_owned(), ..spec };
    costs(&until(&spec, "(PASS|FAIL) exit-cost")?.transcript())
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

/// How often a guest exits that has a core of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Rate {
    /// What it does meanwhile.
    pub state: &'static str,
    /// Exits a second of virtual time.
    pub exits: u64,
}

/// Linux on a core that nobody else wants, computing and sleeping. It counts from the difference of two lives, one
/// two seconds longer than the other.
///
/// # Errors
/// A life does not end by itself.
pub fn exit_rates(project: &Project) -> Result<[Rate; 2]> {
    const BUSY: &str = "timeout -s KILL SECONDS sh -c 'while true; do true; done'";
    const IDLE: &str = "sleep SECONDS";
    let rate = |state, command: &str| -> Result<Rate> {
        let lives = [1, 3].map(|seconds| exits_of_life(project, state, command, seconds));
        let [short, long] = lives;
        Ok(Rate { state, exits: long?.saturating_sub(short?) / 2 })
    };
    Ok([rate("busy", BUSY)?, rate("idle", IDLE)?])
}

/// The exits of a Linux that runs `command` for so many seconds as its only program, and switches itself off.
fn exits_of_life(project: &Project, state: &str, command: &str, seconds: u64) -> Result<u64> {
    const CORES: u32 = 2;
    let command = command.replace("SECONDS", &seconds.to_string());
    // A device tree's string, with Linux's quotes in it.
    let bootargs = format!(r#"console=ttyS0 quiet rdinit=/bin/sh -- -c \"{command}; poweroff -f\""#);
    let guest =
        Guest { bootargs: &bootargs, properties: "cpu-affinity = <1>; dedicated-cpus;", ..linux("debian") };
    let rom = rom(project, Emulator::Qemu, &format!("linux-{state}-{seconds}"), &[guest], &[])?;
    let mut machine = Machine::spawn(&counting(rom, CORES))?;
    let line = machine.expect(r"debian: exits: \d+", PATIENCE)?;
    number(&line, r"debian: exits: (\d+)")
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
}
