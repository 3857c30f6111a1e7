//! The tiny guests of tests/guests: each checks one behaviour of its machine from within.

use std::time::Duration;

use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Emulator, Machine};
use xtask::suite::Outcome;

use crate::lab::Lab;
use crate::manifest::{Guest, manifest};

/// On this CPU model the guest says `PASS` and its name.
pub fn passes(lab: &Lab, emulator: Emulator, cpu: &str, name: &str) -> Result<Outcome> {
    const PATIENCE: Duration = Duration::from_secs(120);
    let variant = lab.variant(emulator, &format!("guest-{cpu}-{name}"))?;
    variant.cbfs.add("guests/tiny", &guests::tiny(lab.project(), name)?)?;
    variant.manifest(&manifest(&[Guest::tiny("cbfs:guests/tiny")]))?;
    let mut spec = variant.spec();
    spec.cpu = cpu.to_owned();
    let mut machine = Machine::spawn(&spec)?;
    let line = machine.expect(&format!("(PASS|FAIL) {name}"), PATIENCE)?;
    if line.contains("PASS") { Ok(Outcome::Passed) } else { Err(Error::failed(machine.transcript())) }
}
