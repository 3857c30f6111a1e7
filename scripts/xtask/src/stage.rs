//! The emulation stage's code, built from the source tree as the last bytes of a ROM.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command;
use crate::error::{Error, Result};
use crate::project::Project;
use crate::toolchain::{TARGET, Toolchain};

/// Builds the stage and gives the bootblock: its code and data, up to the ROM's last byte.
///
/// # Errors
/// There is no compiler, or it finds fault.
pub fn build(project: &Project) -> Result<PathBuf> {
    let toolchain = Toolchain::freestanding(project)?;
    let mut cargo = toolchain.cargo_freestanding(project, "build");
    project.compile(cargo.args(["--release", "-p", "emulation-stage"]))?;
    let elf = toolchain.target_dir().join(TARGET).join("release/emulation-stage");
    flatten(&elf, &project.build("stage")?.join("bootblock.bin"))
}

/// The ELF file's memory image as a file, written anew only when it differs: the ROM's stamp looks at its time.
fn flatten(elf: &Path, flat: &Path) -> Result<PathBuf> {
    let fresh = flat.with_extension("new");
    command::output(command::command("objcopy").args(["-O", "binary"]).arg(elf).arg(&fresh))?;
    let read = |path: &Path| fs::read(path).map_err(|e| Error::file("read", path, &e));
    if read(flat).ok() == Some(read(&fresh)?) {
        fs::remove_file(&fresh).map_err(|e| Error::file("remove", &fresh, &e))?;
    } else {
        fs::rename(&fresh, flat).map_err(|e| Error::file("rename", &fresh, &e))?;
    }
    Ok(flat.to_path_buf())
}
