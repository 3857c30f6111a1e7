//! A payload without what it can do without.

use xtask::error::Result;
use xtask::machine::Emulator;
use xtask::payload::LEFT_OUT_OF_SMALL;
use xtask::suite::Outcome;

use crate::console::{ANSWER, command, wait_for_shell};
use crate::lab::Lab;
use crate::manifest::{Guest, good, manifest};

/// Linux boots as ever; a guest that needs what was left out is told so, and costs no other guest anything.
pub fn small_payload(lab: &Lab) -> Result<Outcome> {
    let variant = lab.without(Emulator::Qemu, "small-payload", &LEFT_OUT_OF_SMALL)?;
    let other = Guest { boot: "multiboot2", ..Guest::new("other") };
    variant.manifest(&manifest(&[other, good()]))?;
    let mut machine = variant.boot()?;
    machine.expect("other: starting guests by Multiboot was left out of this payload", ANSWER)?;
    wait_for_shell(&mut machine)?;
    command(&mut machine, "true", ANSWER)?;
    Ok(Outcome::Passed)
}
