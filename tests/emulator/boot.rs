//! The example guest lives: it boots, answers, powers off and comes back; a CPU that cannot says so.

use std::time::Duration;

use xtask::error::{Error, Result};
use xtask::machine::{Emulator, Machine};
use xtask::suite::Outcome;

use crate::bad_input::stays;
use crate::console::{ANSWER, BOOT, PROMPT, USERSPACE, command, wait_for_shell};
use crate::lab::Lab;

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
        if machine.expect(PROMPT, Duration::from_secs(6)).is_ok() {
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

/// Without AMD-V the payload says so and stays at its console.
pub fn no_virtualization(lab: &Lab) -> Result<Outcome> {
    let mut spec = lab.example(Emulator::Qemu);
    spec.cpu = "max,-svm".to_owned();
    let mut machine = Machine::spawn(&spec)?;
    machine.expect("virtualization: .*(AMD-V|SVM)", BOOT)?;
    stays(&mut machine)
}
