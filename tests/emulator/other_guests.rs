//! Guests nobody here wrote, beside the example's kernel; and the example on a real coreboot.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Emulator, Firmware, Machine, Spec};
use xtask::rom::Recipe;
use xtask::suite::Outcome;

use crate::console::{ANSWER, command, wait_for_shell};
use crate::lab::{BOARD, Lab};
use crate::manifest::{Guest, good, manifest};

/// Debian's kernel for every machine reaches the same shell.
pub fn full_kernel(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "full-kernel")?;
    // The ROM has no room for two kernels.
    variant.cbfs.remove("guests/debian/vmlinuz")?;
    variant.cbfs.add("guests/full/vmlinuz", &guests::full_kernel(lab.project())?)?;
    variant.manifest(&manifest(&[Guest { kernel: "cbfs:guests/full/vmlinuz", ..good() }]))?;
    let mut machine = variant.boot()?;
    wait_for_shell(&mut machine)?;
    let release = command(&mut machine, "uname -r", ANSWER)?.join("\n");
    if release.ends_with("-amd64") && !release.contains("cloud") {
        Ok(Outcome::Passed)
    } else {
        Err(Error::failed(format!("booted {release:?}")))
    }
}

/// memtest86+ makes one full pass of a small memory and finds no error.
pub fn memtest(lab: &Lab) -> Result<Outcome> {
    // One of its tests lets memory rest for 160 s, however small it is.
    const PASS: Duration = Duration::from_secs(15 * 60);
    let variant = lab.variant(Emulator::Qemu, "memtest")?;
    variant.cbfs.add("guests/memtest", &guests::memtest(lab.project())?)?;
    let guest = Guest {
        memory: "<0x0 0x2000>",
        kernel: "cbfs:guests/memtest",
        bootargs: "console=ttyS0,115200",
        ..Guest::new("memtest")
    };
    variant.manifest(&manifest(&[guest]))?;
    let mut machine = variant.boot()?;
    // It draws on the console piece by piece, without ends of lines.
    machine.expect_text(r"Pass: +1 +Errors: 0", PASS)?;
    Ok(Outcome::Passed)
}

/// The example guest behind a real coreboot, where one is given.
pub fn real_coreboot(lab: &Lab) -> Result<Outcome> {
    let Some(base) = env::var_os("COREBOOT_ROM").map(PathBuf::from) else {
        let reason = "COREBOOT_ROM names no coreboot image for QEMU's q35";
        return Ok(Outcome::Skipped(reason.to_owned()));
    };
    let rom = lab.project().build("tests/real-coreboot")?.join("test.rom");
    Recipe { base: Some(base), ..Recipe::debian(lab.project(), BOARD) }.refresh(lab.project(), &rom)?;
    let mut machine = Machine::spawn(&Spec::new(Firmware::Rom(rom)))?;
    wait_for_shell(&mut machine)?;
    command(&mut machine, "true", ANSWER)?;
    Ok(Outcome::Passed)
}
