//! A guest's kernel finds nothing to complain about that it would not find on bare QEMU.

use std::collections::BTreeSet;

use regex::Regex;
use xtask::error::{Error, Result};
use xtask::machine::{Emulator, Machine, Spec};
use xtask::suite::Outcome;

use crate::console::{ANSWER, command, wait_for_shell};
use crate::lab::Lab;

/// Words of complaint at any log level.
const COMPLAINTS: &str = r"(?i)warning|\bbug\b|call trace|unchecked msr|firmware|\berror|\bfail|\bunable|\bcannot|\bunstable|\bbroken|\bnot responding|\btimed? ?out";

/// The kernel's warnings (levels 0 to 4) and complaints are a part of those on bare QEMU.
pub fn dmesg_is_as_on_bare_hardware(lab: &Lab) -> Result<Outcome> {
    let bare: BTreeSet<String> = complaints(&lab.bare()?)?.into_iter().map(|(shape, _)| shape).collect();
    let news: Vec<String> = complaints(&lab.example(Emulator::Qemu))?
        .into_iter()
        .filter(|(shape, _)| !bare.contains(shape))
        .map(|(_, line)| line)
        .collect();
    if news.is_empty() {
        Ok(Outcome::Passed)
    } else {
        Err(Error::failed(format!("the kernel says what it does not say on bare QEMU:\n{}", news.join("\n"))))
    }
}

/// Each complaint in the kernel's log, without its numbers and with them.
fn complaints(spec: &Spec) -> Result<Vec<(String, String)>> {
    let numbers =
        Regex::new(r"0x[0-9a-f]+|\b[0-9a-f]{8,16}\b|\d+").map_err(|e| Error::failed(e.to_string()))?;
    let mut machine = Machine::spawn(spec)?;
    wait_for_shell(&mut machine)?;
    let complaints = complaints_of(&mut machine)?.into_iter();
    Ok(complaints.map(|text| (numbers.replace_all(&text, "#").into_owned(), text)).collect())
}

/// Each complaint in the log of the kernel whose shell we type at, without its time.
pub fn complaints_of(machine: &mut Machine) -> Result<Vec<String>> {
    let regex = |text: &str| Regex::new(text).map_err(|e| Error::failed(e.to_string()));
    let (entry, complaint) = (regex(r"<(\d+)>\[ *[\d.]+\] (.*)")?, regex(COMPLAINTS)?);
    let lines = command(machine, "dmesg -r", ANSWER)?;
    if lines.len() < 100 {
        return Err(Error::failed(format!("dmesg has only {} lines:\n{}", lines.len(), lines.join("\n"))));
    }
    let found = lines.iter().filter_map(|line| {
        let parts = entry.captures(line)?;
        let (level, text) = (parts.get(1)?.as_str().parse::<u32>().ok()?, parts.get(2)?.as_str());
        // The facility stands above the three bits of the level.
        let speaks = level & 7 <= 4 || complaint.is_match(text);
        speaks.then(|| text.to_owned())
    });
    Ok(found.collect())
}
