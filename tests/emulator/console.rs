//! A guest's shell, typed at.

use std::time::Duration;

use xtask::error::{Error, Result};
use xtask::machine::Machine;

/// Wall time from reset to a guest's shell: an emulator inside an emulated hypervisor, two at a time.
pub const BOOT: Duration = Duration::from_secs(300);

/// Wall time for a shell's answer.
pub const ANSWER: Duration = Duration::from_secs(120);

/// Wall time for what takes a guest some work: moving a disk's content, for one.
pub const WORK: Duration = Duration::from_secs(300);

/// Wall time after which a prompt is not the end of the console any more, or never comes.
const SPOILT: Duration = Duration::from_secs(10);

/// What the example guest prints first.
pub const USERSPACE: &str = "Peerboot example guest: userspace reached";

/// The shell's prompt, an unfinished line.
pub const PROMPT: &str = r"/\w* # $";

/// Waits for the example guest's shell.
pub fn wait_for_shell(machine: &mut Machine) -> Result<()> {
    machine.expect(USERSPACE, BOOT)?;
    wait_for_prompt(machine)
}

/// Waits for the shell's prompt, and asks for another where the kernel has spoilt it with a line of its own. One that
/// was only late comes before the answer that is waited for then, and is not taken for the next.
pub fn wait_for_prompt(machine: &mut Machine) -> Result<()> {
    for number in 0..5 {
        if machine.expect(PROMPT, SPOILT).is_ok() {
            return Ok(());
        }
        machine.send(&format!("echo prompt $(({number} + 100))\n"))?;
        machine.expect(&format!("^prompt {}", number + 100), ANSWER)?;
    }
    machine.expect(PROMPT, ANSWER).map(drop)
}

/// Types a command and gives its output's lines.
pub fn command(machine: &mut Machine, line: &str, timeout: Duration) -> Result<Vec<String>> {
    let before = machine.transcript().len();
    // The sum tells the answer from the echo of what was typed.
    machine.send(&format!("{line}; echo finished $((40 + 2))\n"))?;
    machine.expect("finished 42", timeout)?;
    wait_for_prompt(machine)?;
    let transcript = machine.transcript();
    let said = transcript.get(before..).unwrap_or_default();
    let end = said.find("finished 42").unwrap_or(said.len());
    Ok(said.get(..end).unwrap_or_default().lines().skip(1).map(str::to_owned).collect())
}

/// A command's output has these lines, whole and one after the other. What else the system has to say may stand around
/// them.
pub fn says(machine: &mut Machine, line: &str, expected: &str) -> Result<()> {
    let said = command(machine, line, WORK)?;
    let wanted: Vec<&str> = expected.lines().collect();
    let has = |lines: &[String]| lines.iter().map(|line| line.trim_end()).eq(wanted.iter().copied());
    if said.windows(wanted.len().max(1)).any(has) {
        return Ok(());
    }
    Err(Error::failed(format!("`{line}` said {said:?}, expected {expected:?}")))
}
