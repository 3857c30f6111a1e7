//! Six systems at once, those that `scripts/run --disk debian` boots: all live, and go on when one of them ends.

use std::time::Duration;

use xtask::error::{Error, Result};
use xtask::machine::Machine;
use xtask::suite::Outcome;

use crate::console::{USERSPACE, WORK, command, wait_for_prompt};
use crate::disks::{fresh_system, log_in};
use crate::lab::Lab;
use crate::multiplexer::{KEY, MANAGEMENT, manage};

/// Wall time until all six are up, or one of them is up again: seven virtual CPUs' work, beside other tests'.
const BOOT: Duration = Duration::from_secs(600);

/// The guest that ends in this test.
const VICTIM: &str = "debian-2";

/// What each guest shows among the others' lines once it is up.
const UP: [&str; 6] = [
    "debian: Peerboot example guest: userspace reached",
    "debian-2: Peerboot example guest: userspace reached",
    "memtest: -- draws a whole screen",
    "ipxe: iPXE 1[.].* -- Open Source Network Boot Firmware",
    "clock: clock: a Peerboot guest",
    "debian-full: Debian GNU/Linux 12 debian ttyS0",
];

/// All six reach their banners. One is stopped, crashes and is reset; after each the five others answer, and it comes
/// back.
pub fn six_guests(lab: &Lab) -> Result<Outcome> {
    let mut machine = Machine::spawn(&lab.all_examples(fresh_system(lab, "six-guests")?)?)?;
    let mut awaited = UP.to_vec();
    while !awaited.is_empty() {
        let line = machine.expect(&format!("^({})", awaited.join("|")), BOOT)?;
        let name = line.split(':').next().unwrap_or_default();
        awaited.retain(|up| !up.starts_with(&format!("{name}:")));
    }
    log_in_to_full(&mut machine)?;
    let mut others = Others::default();
    others.answer(&mut machine)?;

    cpus(&mut machine, VICTIM, 1)?;
    at_prompt(&mut machine, &format!("stop {VICTIM} 0"), "stopped$")?;
    others.answer(&mut machine)?;
    at_prompt(&mut machine, &format!("start {VICTIM}"), "starts again$")?;
    comes_back(&mut machine)?;

    machine.send("echo triple >/sys/kernel/reboot/type; reboot -f\n")?;
    machine.expect(&format!(r"\] {VICTIM}: crashed: triple fault$"), WORK)?;
    others.answer(&mut machine)?;
    at_prompt(&mut machine, &format!("start {VICTIM}"), "starts again$")?;
    comes_back(&mut machine)?;

    at_prompt(&mut machine, &format!("reset {VICTIM}"), "starts again$")?;
    others.answer(&mut machine)?;
    comes_back(&mut machine)?;
    Ok(Outcome::Passed)
}

/// Debian on its disk takes its user, and runs the kernel for every machine.
fn log_in_to_full(machine: &mut Machine) -> Result<()> {
    bring_to_front(machine, "debian-full")?;
    // What it offered before may not be shown again.
    machine.send("\n")?;
    log_in(machine, BOOT)?;
    let release = command(machine, "uname -r", WORK)?.join("");
    if release.ends_with("-amd64") && !release.contains("cloud") {
        Ok(())
    } else {
        Err(Error::failed(format!("debian-full runs {release:?}")))
    }
}

/// The five guests that go on.
#[derive(Default)]
struct Others {
    /// How often they were asked.
    asked: u32,
    /// What the clock last said, in seconds.
    uptime: f64,
}

impl Others {
    /// Has each say something that it has not said before.
    fn answer(&mut self, machine: &mut Machine) -> Result<()> {
        self.asked += 1;
        let number = self.asked;
        for (name, count) in [("debian", 2), ("debian-full", 1)] {
            cpus(machine, name, count)?;
            let sum = command(machine, &format!("echo $(({number} + 1000))"), WORK)?.join("");
            if sum != (number + 1000).to_string() {
                return Err(Error::failed(format!("{name} answered {sum:?}")));
            }
        }

        bring_to_front(machine, "ipxe")?;
        machine.send(&format!("\rset number {number}\recho still-${{number}}-here\r"))?;
        machine.expect(&format!("^still-{number}-here"), WORK)?;

        bring_to_front(machine, "clock")?;
        machine.send("uptime\r")?;
        // The last answer is shown again before the new one.
        let last = self.uptime;
        while self.uptime <= last {
            let up = machine.expect(r"^up \d+\.\d+ s", WORK)?;
            self.uptime = up.split(' ').nth(1).and_then(|up| up.parse().ok()).unwrap_or(0.0);
        }

        // What it showed before is shown again first; then its clock goes on.
        bring_to_front(machine, "memtest")?;
        clock(machine)?;
        let before = clock(machine)?;
        while clock(machine)? == before {}
        Ok(())
    }
}

/// The time that memtest86+ shows next.
fn clock(machine: &mut Machine) -> Result<String> {
    const LABEL: &str = "Time: ";
    let drawn = machine.expect_unfinished(LABEL, WORK)?;
    let time = drawn.rsplit(LABEL).next().unwrap_or_default().trim_start();
    Ok(time.split(' ').next().unwrap_or_default().to_owned())
}

/// Does something to the victim at the management prompt, and leaves it again.
fn at_prompt(machine: &mut Machine, line: &str, answer: &str) -> Result<()> {
    open_prompt(machine)?;
    manage(machine, line, &format!(r"\] {VICTIM}: {answer}"))?;
    machine.expect(MANAGEMENT, WORK)?;
    manage(machine, "exit", "^-- ")
}

fn open_prompt(machine: &mut Machine) -> Result<()> {
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, WORK).map(drop)
}

/// Brings a guest to the foreground.
fn bring_to_front(machine: &mut Machine, name: &str) -> Result<()> {
    open_prompt(machine)?;
    manage(machine, &format!("console {name}"), &format!("^-- {name} "))
}

/// A Debian answers in the foreground, and has so many CPUs.
fn cpus(machine: &mut Machine, name: &str, count: u32) -> Result<()> {
    bring_to_front(machine, name)?;
    wait_for_prompt(machine)?;
    let said = command(machine, "nproc", WORK)?.join("");
    if said == count.to_string() {
        return Ok(());
    }
    let log = command(machine, "dmesg | grep -i -E 'smp|cpu'", WORK)?.join("\n");
    Err(Error::failed(format!("{name} has {said:?} CPUs, expected {count}:\n{log}")))
}

/// The victim boots again, to a shell in the foreground.
fn comes_back(machine: &mut Machine) -> Result<()> {
    // Its own console would show the last life's words once more.
    open_prompt(machine)?;
    manage(machine, "console", "^-- all guests ")?;
    machine.expect(&format!("^{VICTIM}: {USERSPACE}"), BOOT)?;
    bring_to_front(machine, VICTIM)?;
    wait_for_prompt(machine)
}
