//! Debian, installed on a disk: started from it, changed by its user, and found as it was left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use xtask::command as program;
use xtask::debian_disk;
use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Bus, Disk, Firmware, Machine, Spec};
use xtask::suite::{Case, Outcome};

use crate::console::{PROMPT, command};
use crate::lab::Lab;

/// Wall time until systemd offers a login.
const BOOT: Duration = Duration::from_secs(600);
/// Wall time for what a user asks of the system.
const WORK: Duration = Duration::from_secs(300);

/// What a disk has to do with.
pub fn cases() -> Vec<Case<Lab>> {
    vec![Case::new("emulator/disks/bare", bare)]
}

/// The system boots in plain QEMU by its own boot loader, and lets its disk be as it should.
fn bare(lab: &Lab) -> Result<Outcome> {
    let system = fresh_system(lab, "disks-bare")?;
    let mut machine = Machine::spawn(&plain(lab, &system, Bus::Virtio)?)?;
    log_in(&mut machine)?;
    says(&mut machine, "cat /etc/debian_version", "12.")?;
    machine.send("poweroff\n")?;
    machine.wait_exit(BOOT)?;
    check_file_system(&system)?;
    Ok(Outcome::Passed)
}

/// A copy of the system's disk for a test of this name.
fn fresh_system(lab: &Lab, test: &str) -> Result<PathBuf> {
    let project = lab.project();
    let image = project.build(&format!("tests/{test}"))?.join("debian.img");
    debian_disk::copy(&debian_disk::system(project)?, &image)?;
    Ok(image)
}

/// QEMU with its own UEFI, and this disk.
fn plain(lab: &Lab, disk: &Path, bus: Bus) -> Result<Spec> {
    let mut spec = Spec::new(Firmware::Uefi(guests::uefi(lab.project())?));
    spec.disks.push(Disk { file: disk.to_owned(), bus });
    Ok(spec)
}

/// Logs in at the console in the foreground, to a shell with the prompt that tests know.
fn log_in(machine: &mut Machine) -> Result<()> {
    machine.expect("debian login: $", BOOT)?;
    machine.send("root\n")?;
    machine.expect("root@debian:~# $", WORK)?;
    // Lines that wrap could not be found again.
    machine.send("stty cols 500; PS1='/ # '\n")?;
    machine.expect(PROMPT, WORK).map(drop)
}

/// A command's output begins with this.
fn says(machine: &mut Machine, line: &str, expected: &str) -> Result<()> {
    let said = command(machine, line, WORK)?.join("\n");
    if said.starts_with(expected) {
        return Ok(());
    }
    Err(Error::failed(format!("`{line}` said {said:?}, expected {expected:?}")))
}

/// The root file system of a system that was switched off has no fault.
fn check_file_system(disk: &Path) -> Result<()> {
    let place = format!("{}?offset={}", disk.display(), debian_disk::root_offset());
    program::output(program::command("e2fsck").args(["-fn", &place])).map(drop)
}
