//! The payload's ELF file, built from the source tree.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::error::{Error, Result};
use crate::project::Project;
use crate::toolchain::{TARGET, Toolchain};

/// A part that a payload for a small flash may do without; a feature of the package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Guests on AMD's processors
    AmdV,
    /// Guests on Intel's processors
    VtX,
    /// Linux's 16-bit entry, which iPXE and memtest86+ have too
    #[value(name = "linux16")]
    Linux16,
    /// ELF kernels with a PVH entry
    Pvh,
    /// Multiboot 1 and 2
    Multiboot,
    /// Hermit kernels by their own entry
    Hermit,
    /// Files in CBFS that LZ4 compressed
    Lz4,
    /// Files in CBFS that zstd compressed
    Zstd,
    /// The management prompt; the keys that switch consoles stay
    Prompt,
    /// The host's devices on PCI, found and kept quiet; every disk needs it
    Pci,
    /// Disks behind virtio-blk
    VirtioBlk,
    /// NVMe disks
    Nvme,
    /// SATA disks behind AHCI
    Ahci,
    /// ATA disks behind PIIX and ICH
    Ata,
    /// Guests' devices by virtio
    GuestVirtio,
    /// Guests' disks as NVMe controllers
    GuestNvme,
    /// Disks for guests
    Disks,
    /// Guests' disks in qcow2 images
    Qcow2,
    /// Guests' disks in VHD images
    Vhd,
}

/// What makes code small at some cost in speed, beside the profile: blocks stand as they were written, loops count as
/// they do in the source, little is inlined and nothing is there twice for the sake of a jump.
const SMALL_FLAGS: &str = "\"-Cllvm-args=-inline-threshold=30\", \"-Cllvm-args=-disable-block-placement\", \
                           \"-Cllvm-args=-disable-lsr\", \"-Cllvm-args=-disable-tail-duplicate\", \
                           \"-Cllvm-args=-disable-early-taildup\"";

/// What is left out where flash is smallest: what stays starts Linux on AMD's processors.
pub const LEFT_OUT_OF_SMALL: [Part; 17] = [
    Part::VtX,
    Part::Linux16,
    Part::Pvh,
    Part::Multiboot,
    Part::Hermit,
    Part::Zstd,
    Part::Prompt,
    Part::Pci,
    Part::VirtioBlk,
    Part::Nvme,
    Part::Ahci,
    Part::Ata,
    Part::GuestVirtio,
    Part::GuestNvme,
    Part::Disks,
    Part::Qcow2,
    Part::Vhd,
];

impl Part {
    fn feature(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Builds the payload and gives its ELF file.
///
/// `load_address` is where it is linked to run, for boards where its default place is taken; `without` are the
/// parts to leave out.
///
/// # Errors
/// There is no compiler, or it finds fault; no guest could run.
pub fn build(project: &Project, load_address: Option<&str>, without: &[Part]) -> Result<PathBuf> {
    let toolchain = Toolchain::freestanding(project)?;
    let profile = if without.is_empty() { "release" } else { "small" };
    let mut cargo = toolchain.cargo_freestanding(project, "build");
    cargo.args(["--profile", profile, "-p", "payload"]);
    if let Some(address) = load_address {
        cargo.env("PEERBOOT_LOAD_ADDRESS", address);
    }
    if !without.is_empty() {
        if [Part::AmdV, Part::VtX].iter().all(|backend| without.contains(backend)) {
            return Err(Error::setup("--without: amd-v or vt-x must stay, or no guest can run"));
        }
        cargo
            .args(selection(without))
            .args(["--config", &format!("target.{TARGET}.rustflags=[{SMALL_FLAGS}]")]);
    }
    project.compile(&mut cargo)?;
    Ok(toolchain.target_dir().join(TARGET).join(profile).join("payload"))
}

/// Cargo's arguments for a payload without these parts.
#[must_use]
pub fn selection(without: &[Part]) -> [String; 3] {
    let parts = Part::value_variants().iter().filter(|part| !without.contains(part));
    let features: Vec<String> = parts.map(|part| part.feature()).collect();
    ["--no-default-features".to_owned(), "--features".to_owned(), features.join(",")]
}
