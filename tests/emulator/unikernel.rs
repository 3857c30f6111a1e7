//! A unikernel that somebody brings along.

use std::env;
use std::path::PathBuf;

use xtask::error::Result;
use xtask::machine::{Emulator, Machine, Spec};
use xtask::suite::Outcome;

use crate::bochs;
use crate::console::BOOT;
use crate::lab::{Lab, read};
use crate::manifest::{Guest, manifest};

/// What a first program usually says.
const HELLO: &str = "(?i)hello";

/// The image that the environment names starts as a guest, and says what it is to say.
pub fn image(lab: &Lab) -> Result<Outcome> {
    let Some(image) = env::var_os("UNIKERNEL_IMAGE").map(PathBuf::from) else {
        return Ok(Outcome::Skipped("UNIKERNEL_IMAGE names no unikernel".to_owned()));
    };
    let variable = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let ramdisk = env::var_os("UNIKERNEL_RAMDISK").map(PathBuf::from);
    let guest = Guest {
        boot: &variable("UNIKERNEL_BOOT", protocol(&read(&image)?)),
        memory: "<0x0 0x20000>",
        bootargs: &variable("UNIKERNEL_BOOTARGS", ""),
        ramdisk: ramdisk.as_ref().map(|_| "cbfs:guests/ramdisk"),
        properties: "on-reboot = \"stop\";",
        ..Guest::tiny("unikernel", "cbfs:guests/unikernel")
    };
    let cpu = variable("UNIKERNEL_CPU", Emulator::Qemu.cpu());
    let emulator = if bochs::MODELS.contains(&cpu.as_str()) { Emulator::Bochs } else { Emulator::Qemu };
    let variant = lab.unfilled(emulator, "unikernel", &manifest(&[guest]))?;
    variant.cbfs.add_compressed("guests/unikernel", &image, "lzma")?;
    if let Some(file) = &ramdisk {
        variant.cbfs.add_compressed("guests/ramdisk", file, "lzma")?;
    }
    let mut machine = Machine::spawn(&Spec { cpu, ..variant.spec() })?;
    machine.expect(&variable("UNIKERNEL_SAYS", HELLO), BOOT).map(|_| Outcome::Passed)
}

/// The protocol that the file has the header of, as the manifest calls it.
fn protocol(image: &[u8]) -> &'static str {
    // Multiboot 0.6.96, 3.1; Multiboot2 2.0, 3.1; notes lie anywhere.
    let within = |bytes: &[u8], len: usize, align: usize| {
        image.windows(bytes.len()).take(len).step_by(align).any(|place| place == bytes)
    };
    if within(&0x1bad_b002_u32.to_le_bytes(), 8 << 10, 4) {
        "multiboot"
    } else if within(&0xe852_50d6_u32.to_le_bytes(), 32 << 10, 8) {
        "multiboot2"
    } else if within(b"\x00\x5a\x00\x00HERMIT\x00", image.len(), 4) {
        "hermit"
    } else {
        "pvh"
    }
}
