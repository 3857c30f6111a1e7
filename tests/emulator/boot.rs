//! The example guest lives: it boots, answers, powers off and comes back; a CPU that cannot says so.

use std::time::Duration;

use xtask::error::{Error, Result};
use xtask::machine::{Emulator, Machine, Spec};
use xtask::suite::Outcome;

use crate::bad_input::stays;
use crate::console::{ANSWER, BOOT, PROMPT, USERSPACE, command, wait_for_shell};
use crate::lab::Lab;
use crate::manifest::{Guest, good, manifest};

/// A shell is reached and typed commands are answered.
pub fn shell_answers(lab: &Lab) -> Result<Outcome> {
    let mut machine = Machine::spawn(&lab.example(Emulator::Qemu))?;
    wait_for_shell(&mut machine)?;
    let said = command(&mut machine, "echo answer $((6 * 7)); cat /proc/cmdline", ANSWER)?.join("\n");
    if said != "answer 42\nconsole=ttyS0" {
        return Err(Error::failed(format!("the shell answered {said:?}")));
    }
    // Job control: an interrupt ends the command in the foreground, not the shell.
    machine.send("echo $((40 + 3)); sleep 1000\n")?;
    machine.expect("^43$", ANSWER)?;
    // One that finds the shell between fork and exec is lost on any machine.
    for _ in 0..5 {
        machine.send("\x03")?;
        if machine.expect(PROMPT, Duration::from_secs(20)).is_ok() {
            return Ok(Outcome::Passed);
        }
    }
    Err(Error::failed(format!("Ctrl-C ends no command:\n{}", machine.transcript())))
}

/// `poweroff` ends the guest, and with the last guest the machine.
pub fn poweroff(lab: &Lab) -> Result<Outcome> {
    let mut machine = Machine::spawn(&lab.example(Emulator::Qemu))?;
    wait_for_shell(&mut machine)?;
    machine.send("poweroff\n")?;
    machine.expect("all guests are off", ANSWER)?;
    let status = machine.wait_exit(ANSWER)?;
    if !status.success() {
        return Err(Error::failed(format!("the machine ended with {status}")));
    }
    Ok(Outcome::Passed)
}

/// `reboot` starts the guest again, from its kernel to its shell.
pub fn reboot(lab: &Lab) -> Result<Outcome> {
    let mut machine = Machine::spawn(&lab.example(Emulator::Qemu))?;
    wait_for_shell(&mut machine)?;
    command(&mut machine, "touch /tmp/mark", ANSWER)?;
    machine.send("reboot\n")?;
    machine.expect(USERSPACE, BOOT)?;
    machine.expect(PROMPT, ANSWER)?;
    let files = command(&mut machine, "ls /tmp", ANSWER)?;
    if files.is_empty() { Ok(Outcome::Passed) } else { Err(Error::failed("the old memory is still there")) }
}

/// A guest with more memory than there is room for below 4 GiB has, and uses, the rest above.
pub fn memory_above_4_gib(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "memory-above-4-gib")?;
    // 3.5 GiB, in KiB; 2 GiB go below.
    variant.manifest(&manifest(&[Guest { memory: "<0x0 0x380000>", ..good() }]))?;
    let mut machine = Machine::spawn(&Spec { memory: "5G".to_owned(), ..variant.spec() })?;
    wait_for_shell(&mut machine)?;
    let map = command(&mut machine, "grep '^1' /proc/iomem", ANSWER)?.join("\n");
    if !map.contains("100000000-15fffffff : System RAM") {
        return Err(Error::failed(format!("memory above 4 GiB is {map:?}")));
    }
    // More than fits below, written and read back.
    let fill = "mkdir /big && mount -t tmpfs -o size=3g none /big && \
                dd if=/dev/zero of=/big/file bs=1M count=2200 2>/dev/null && tr -d '\\0' </big/file | wc -c";
    // The shell breaks the line that it echoes.
    let said = command(&mut machine, fill, BOOT)?;
    match said.last().map(|line| line.trim()) {
        Some("0") => Ok(Outcome::Passed),
        _ => Err(Error::failed(format!("read back: {said:?}"))),
    }
}

/// Without AMD-V the payload says so and stays at its console.
pub fn no_virtualization(lab: &Lab) -> Result<Outcome> {
    let mut spec = lab.example(Emulator::Qemu);
    spec.cpu = "max,-svm".to_owned();
    let mut machine = Machine::spawn(&spec)?;
    machine.expect("virtualization: .*(AMD-V|SVM)", BOOT)?;
    stays(&mut machine)
}
