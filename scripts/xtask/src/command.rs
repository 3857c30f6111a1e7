//! Other programs: found, run, and their words kept for when they fail.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// Where Debian keeps tools that an ordinary user's PATH leaves out.
const SYSTEM_DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The program's path, if the machine has it.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// A command for a program that set-up has checked for.
#[must_use]
pub fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| PathBuf::from(program)))
}

/// The same, for a program that must not outlive this process, even when that is killed outright.
#[must_use]
pub fn mortal(program: &str) -> Command {
    let mut starter = command("setpriv");
    starter.args(["--pdeathsig", "KILL"]).arg(command(program).get_program());
    starter
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// It cannot start, or fails: the error carries all it said.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let result = command.stdin(Stdio::null()).output().map_err(|e| cannot_start(command, &e))?;
    if result.status.success() {
        return Ok(result.stdout);
    }
    let mut said = String::from_utf8_lossy(&result.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&result.stderr));
    Err(Error::failed(format!("{} failed ({}):\n{}", line(command), result.status, said.trim_end())))
}

/// Runs a command to its end, its words shown as they come.
///
/// # Errors
/// It cannot start, or fails.
pub fn show(command: &mut Command) -> Result<()> {
    // Standard output is for results: what tools say on the way goes to standard error.
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .map_err(|e| cannot_start(command, &e))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::failed(format!("{} failed ({status}).", line(command))))
    }
}

/// The error of a program that cannot be started at all.
#[must_use]
pub fn cannot_start(command: &Command, error: &std::io::Error) -> Error {
    Error::setup(format!("cannot start {}: {error}", Path::new(command.get_program()).display()))
}

/// The command as one would type it.
#[must_use]
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
