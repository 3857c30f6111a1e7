//! The payload's ELF file, built from the source tree.

use std::path::PathBuf;

use crate::error::Result;
use crate::project::Project;
use crate::toolchain::{TARGET, Toolchain};

/// Builds the payload and gives its ELF file.
///
/// `load_address` is where it is linked to run, for boards where its default place is taken.
///
/// # Errors
/// There is no compiler, or it finds fault.
pub fn build(project: &Project, load_address: Option<&str>) -> Result<PathBuf> {
    let toolchain = Toolchain::freestanding(project)?;
    let mut cargo = toolchain.cargo_freestanding(project, "build");
    cargo.args(["--release", "-p", "payload"]);
    if let Some(address) = load_address {
        cargo.env("PEERBOOT_LOAD_ADDRESS", address);
    }
    project.compile(&mut cargo)?;
    Ok(toolchain.target_dir().join(TARGET).join("release/payload"))
}
