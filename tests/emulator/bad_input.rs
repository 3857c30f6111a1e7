//! Whatever is wrong with a guest costs that guest; whatever is wrong with the ROM is said. Nothing crashes.

use regex::Regex;
use xtask::error::{Error, Result};
use xtask::machine::{Emulator, Machine};
use xtask::suite::Outcome;

use crate::console::{ANSWER, BOOT, USERSPACE, wait_for_shell};
use crate::lab::{Lab, Variant};
use crate::manifest::{Guest, good, manifest};

/// Where the COREBOOT region, whose offsets cbfstool prints, lies in the ROM.
const REGION: usize = 0x1000;

/// Eight guests that cannot be, each for a reason of its own, and one good guest after them: every reason is said,
/// and the good guest boots.
pub fn bad_guests_cost_themselves(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "bad-guests")?;
    let kernel = lab.kernel()?;
    add(&variant, "guests/rubble", "none", &noise(100_000))?;
    add(&variant, "guests/cut", "none", kernel.get(..200_000).unwrap_or_default())?;
    // cbfstool leaves uncompressed what compression does not make smaller.
    let halves = [noise(20_000), vec![0; 20_000]].concat();
    for (name, compression) in [("guests/squashed", "lzma"), ("guests/squeezed", "lz4")] {
        add(&variant, name, compression, &halves)?;
        damage_start(&variant, name)?;
    }

    let guests = [
        Guest { memory: "\"512M\"", ..Guest::new("wordy") },
        Guest { memory: "<0x10 0x0>", ..Guest::new("glutton") },
        Guest { kernel: "cbfs:guests/nowhere", ..Guest::new("orphan") },
        Guest { kernel: "cbfs:guests/rubble", ..Guest::new("rubble") },
        Guest { kernel: "cbfs:guests/cut", ..Guest::new("cut") },
        Guest { kernel: "cbfs:guests/squashed", ..Guest::new("squashed") },
        Guest { kernel: "cbfs:guests/squeezed", ..Guest::new("squeezed") },
        good(),
        Guest { label: Some("good"), ..Guest::new("twin") },
    ];
    variant.manifest(&manifest(&guests))?;

    let mut machine = variant.boot()?;
    machine.expect(USERSPACE, BOOT)?;
    said(
        &machine,
        &[
            r#"/chosen/wordy, property memory: found "512M", expected KiB"#,
            r"glutton.*memory",
            r"orphan.*guests/nowhere.*not in the ROM",
            r"rubble: the file is not a Linux bzImage",
            r"cut: the kernel file is cut off",
            r"squashed: cbfs:guests/squashed: .*LZMA",
            r"squeezed: cbfs:guests/squeezed: .*LZ4",
            r"/chosen/twin.*found a second guest named good, expected another name",
        ],
    )
}

/// A manifest with a damaged structure is refused as a whole, with the place of the damage.
pub fn damaged_manifest(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "damaged-manifest")?;
    let mut blob = variant.compile(&manifest(&[good()]))?;
    // The structure block's offset is the header's third word; its first token begins the root node.
    let structure = blob.get(8..12).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes) as usize;
    if let Some(token) = blob.get_mut(structure + 3) {
        *token = 0x7F;
    }
    variant.replace_manifest(&blob)?;
    refused(&variant, r"manifest: device tree blob at offset 0x")
}

/// A manifest cut short is refused.
pub fn truncated_manifest(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "truncated-manifest")?;
    let blob = variant.compile(&manifest(&[good()]))?;
    variant.replace_manifest(blob.get(..blob.len() / 2).unwrap_or_default())?;
    refused(&variant, r"manifest: device tree blob at offset 0x")
}

/// A ROM without a manifest is said to be one.
pub fn no_manifest(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "no-manifest")?;
    variant.cbfs.remove("guests.dtb")?;
    refused(&variant, r"guests\.dtb.*not in the ROM")
}

/// A file header with an impossible length costs what lies behind it, not what lies before.
pub fn damaged_cbfs(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "damaged-cbfs")?;
    add(&variant, "guests/victim", "none", &noise(5_000))?;
    let header = REGION + offset(&variant, "guests/victim")?;
    // The header's second field, after the eight bytes "LARCHIVE", is the length (big-endian).
    variant.damage(|rom| {
        if let Some(length) = rom.get_mut(header + 8..header + 12) {
            length.fill(0xFF);
        }
    })?;
    let mut machine = variant.boot()?;
    wait_for_shell(&mut machine)?;
    said(&machine, &[r"CBFS.*(0x[0-9a-f]+|guests/victim).*header"])
}

/// A board with less memory than the guest wants says so instead of starting it.
pub fn small_machine(lab: &Lab) -> Result<Outcome> {
    let mut spec = lab.example(Emulator::Qemu);
    spec.memory = "192M".to_owned();
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(r"debian.*memory", BOOT)?;
    stays(&mut machine)
}

fn add(variant: &Variant, name: &str, compression: &str, content: &[u8]) -> Result<()> {
    let file = variant.write(&name.replace('/', "-"), content)?;
    variant.cbfs.add_compressed(name, &file, compression)
}

fn offset(variant: &Variant, name: &str) -> Result<usize> {
    usize::try_from(variant.cbfs.entry(name)?.offset).map_err(|e| Error::failed(e.to_string()))
}

/// Inverts the first bytes of a file's content: a compressed stream's header.
fn damage_start(variant: &Variant, name: &str) -> Result<()> {
    let entry = variant.cbfs.entry(name)?;
    let start = REGION + usize::try_from(entry.offset + entry.metadata).unwrap_or(0);
    variant.damage(|rom| rom.iter_mut().skip(start).take(16).for_each(|byte| *byte = !*byte))
}

/// The same bytes at each run, which no compression makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// The manifest as a whole is refused for that reason, and the payload stays at its console.
fn refused(variant: &Variant, reason: &str) -> Result<Outcome> {
    let mut machine = variant.boot()?;
    machine.expect(reason, BOOT)?;
    stays(&mut machine)
}

/// The payload is at its own prompt and answers.
pub fn stays(machine: &mut Machine) -> Result<Outcome> {
    machine.expect("peerboot> $", BOOT)?;
    machine.send("help\r")?;
    machine.expect("peerboot> $", ANSWER)?;
    if machine.transcript().contains("exception:") {
        return Err(Error::failed(format!("the payload crashed:\n{}", machine.transcript())));
    }
    Ok(Outcome::Passed)
}

/// Each pattern matches a line of the transcript.
pub fn said(machine: &Machine, patterns: &[&str]) -> Result<Outcome> {
    let transcript = machine.transcript();
    let mut missing = Vec::new();
    for pattern in patterns {
        let regex = Regex::new(pattern).map_err(|e| Error::failed(e.to_string()))?;
        if !transcript.lines().any(|line| regex.is_match(line)) {
            missing.push(*pattern);
        }
    }
    if missing.is_empty() {
        return Ok(Outcome::Passed);
    }
    // The payload's own words only; the guest's are many.
    let payload: Vec<&str> = transcript.lines().take(80).collect();
    Err(Error::failed(format!("never said: {}\nin:\n{}", missing.join("\n"), payload.join("\n"))))
}
