//! Guests with one purpose and no operating system, typed at.

use std::time::Duration;

use xtask::command;
use xtask::error::{Error, Result};
use xtask::machine::{Bus, Disk, Emulator, Machine, Spec};
use xtask::suite::Outcome;

use crate::console::{ANSWER, BOOT};
use crate::lab::{Lab, read};
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

/// The app of tests/guests with a disk, on this CPU model and a disk of the machine's on this bus: what it writes is
/// there for the next boot and for everybody else.
pub fn disk(lab: &Lab, emulator: Emulator, cpu: &str, (bus, place): (Bus, &str)) -> Result<Outcome> {
    const TEXT: &str = "written by a guest";
    let properties = format!("disk0 {{ source = \"disk:{place}\"; }};");
    let guest =
        Guest { debug_port: false, properties: &properties, ..Guest::tiny("app", "cbfs:guests/disk") };
    let variant = lab.unfilled(emulator, &format!("app-disk-{cpu}"), &manifest(&[guest]))?;
    let mut bytes = vec![0; 1 << 20];
    bytes[5 * 512..5 * 512 + 5].copy_from_slice(b"hello");
    let file = variant.write("disk.img", &bytes)?;
    let disks = vec![Disk::new(file.clone(), bus)];
    let mut machine = Machine::spawn(&Spec { cpu: cpu.to_owned(), disks, ..variant.spec() })?;
    machine.expect("^disk: 2048 sectors", BOOT)?;
    for (typed, answer) in [
        ("read 5", "^hello\r?$"),
        ("read 2048", "^no text: Err"),
        (&format!("write 7 {TEXT}"), &format!("^{TEXT}\r?$")),
        ("read 7", &format!("^{TEXT}\r?$")),
        ("read 6", "^\r?$"),
        ("quit", "^good-bye"),
    ] {
        machine.expect("^disk> $", ANSWER)?;
        machine.send(&format!("{typed}\r"))?;
        machine.expect(answer, ANSWER)?;
    }
    machine.expect("all guests are off", ANSWER)?;
    drop(machine);
    bytes[7 * 512..7 * 512 + TEXT.len()].copy_from_slice(TEXT.as_bytes());
    if read(&file)? != bytes {
        return Err(Error::failed(format!("{} is not what the guest made of it", file.display())));
    }
    Ok(Outcome::Passed)
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
