//! Guests with one purpose and no operating system, typed at.

use std::time::Duration;

use xtask::command;
use xtask::error::{Error, Result};
use xtask::machine::{Emulator, Machine, Spec};
use xtask::suite::Outcome;

use crate::console::{ANSWER, BOOT};
use crate::lab::Lab;
use crate::manifest::{Guest, manifest};

/// The clock of tests/guests, on this CPU model: its console, its clock and its sleep, and its end.
pub fn clock(lab: &Lab, emulator: Emulator, cpu: &str) -> Result<Outcome> {
    let guest = Guest { debug_port: false, ..Guest::tiny("app", "cbfs:guests/clock") };
    let variant = lab.unfilled(emulator, &format!("clock-{cpu}"), &manifest(&[guest]))?;
    let mut machine = Machine::spawn(&Spec { cpu: cpu.to_owned(), ..variant.spec() })?;
    machine.expect("clock: a Peerboot guest", BOOT)?;
    machine.expect("^clock> $", ANSWER)?;

    // Typed ahead while the guest is busy or asleep: interrupts bring it in.
    machine.send("nonsenX\x7fse\rnap\ruptime\r")?;
    machine.expect("^\"nonsense\" is none of ", ANSWER)?;
    machine.expect("^slept for a second", ANSWER)?;
    let first = uptime(&mut machine)?;
    machine.send("nap\ruptime\r")?;
    machine.expect("^slept for a second", ANSWER)?;
    let second = uptime(&mut machine)?;
    if first < Duration::from_secs(1) || second < first + Duration::from_secs(1) {
        return Err(Error::failed(format!("up {first:?}, and after a second's sleep {second:?}")));
    }

    machine.send("time\r")?;
    let time = machine.expect("^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} UTC", ANSWER)?;
    // Bochs's real-time clock counts its own time, QEMU's shows the host's.
    if emulator == Emulator::Qemu && !around_now(&time)? {
        return Err(Error::failed(format!("the guest's time is {time}, far from the host's")));
    }
    machine.send("quit\r")?;
    machine.expect("^good-bye", ANSWER)?;
    machine.expect("all guests are off", ANSWER).map(|_| Outcome::Passed)
}

/// What the guest answers to `uptime`.
fn uptime(machine: &mut Machine) -> Result<Duration> {
    let line = machine.expect("^up [0-9]+[.][0-9]+ s", ANSWER)?;
    let seconds = line.trim().trim_start_matches("up ").trim_end_matches(" s").parse::<f64>();
    seconds.map(Duration::from_secs_f64).map_err(|_| Error::failed(format!("no time in {line:?}")))
}

/// Whether a date and time in UTC is within five minutes of the host's.
fn around_now(time: &str) -> Result<bool> {
    const LIMIT: u64 = 300;
    let date = |arguments: &[&str]| -> Result<u64> {
        let out = command::output(command::command("date").args(arguments))?;
        let text = String::from_utf8_lossy(&out);
        text.trim().parse().map_err(|_| Error::failed(format!("date says {text:?}")))
    };
    Ok(date(&["-d", time.trim(), "+%s"])?.abs_diff(date(&["+%s"])?) <= LIMIT)
}
