//! The guests that are measured, and ROMs of them.

use std::fs;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::guests;
use crate::machine::{Emulator, Firmware};
use crate::manifest::{Guest, manifest};
use crate::project::Project;
use crate::rom::Recipe;

/// The tiny guests' prefix in CBFS.
const TINY: &str = "cbfs:guests/";

/// Debian's kernel and the example initramfs in 256 MiB.
pub fn linux(node: &str) -> Guest<'_> {
    Guest { memory: "<0x40000>", ramdisk: Some("cbfs:guests/debian/initramfs"), ..Guest::new(node) }
}

/// A ROM with these guests, up to date: `programs` are the tiny ones among their kernels.
pub fn rom(
    project: &Project,
    emulator: Emulator,
    name: &str,
    guests: &[Guest],
    programs: &[&str],
) -> Result<Firmware> {
    let dir = project.build("bench")?;
    let (source, rom) = (dir.join(name).with_extension("dts"), dir.join(name).with_extension("rom"));
    fs::write(&source, manifest(guests)).map_err(|e| Error::file("write", &source, &e))?;
    let tiny = |name: &&str| Ok((format!("guests/{name}"), guests::tiny(project, name)?));
    let files = programs.iter().map(tiny).collect::<Result<Vec<(String, PathBuf)>>>()?;
    let recipe = Recipe { manifest: Some(source), files, ..Recipe::example(emulator.board()) };
    recipe.refresh(project, &rom)?;
    Ok(Firmware::Rom(rom))
}

/// The manifest's word for a tiny guest's program.
pub fn kernel(program: &str) -> String {
    format!("{TINY}{program}")
}
