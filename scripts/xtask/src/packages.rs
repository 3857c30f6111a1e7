//! The Debian packages behind the programs that are run, and what is taken out of packages without installing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};
use crate::progress::say;

/// A program and the Debian package that brings it.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// The program's name.
    pub program: &'static str,
    /// The package's name.
    pub package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// What composing a ROM needs.
pub const ROM_TOOLS: &[Tool] = &[
    tool("cbfstool", "coreboot-utils"),
    tool("fmaptool", "coreboot-utils"),
    tool("dtc", "device-tree-compiler"),
    tool("as", "binutils"),
    tool("objcopy", "binutils"),
    tool("lz4", "lz4"),
];

/// The emulator.
pub const QEMU: Tool = tool("qemu-system-x86_64", "qemu-system-x86");

/// The program that makes disk images.
pub const QEMU_IMG: Tool = tool("qemu-img", "qemu-utils");

/// The emulator with VT-x.
pub const BOCHS: &str = "bochs";
/// What it comes in, without what it needs to draw on a desktop.
const BOCHS_PACKAGES: &[&str] = &["bochs", "bochs-term", "bochsbios", "vgabios"];
/// The part of it that runs without a desktop, a package of its own.
const BOCHS_TERM: &str = "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so";

/// What the tests need beside ROM and emulator: libFuzzer is C++, flashing is rehearsed, archives are read back.
pub const TEST_TOOLS: &[Tool] = &[
    tool("g++", "g++"),
    tool("flashrom", "flashrom"),
    tool("cpio", "cpio"),
    tool("iasl", "acpica-tools"),
    tool("sfdisk", "fdisk"),
    QEMU_IMG,
    tool("mke2fs", "e2fsprogs"),
    tool("mkfs.vfat", "dosfstools"),
    tool("mcopy", "mtools"),
];

/// Installs the packages of those programs that are missing; asks apt for nothing when none is.
///
/// # Errors
/// Not root, or apt cannot install them.
pub fn require(tools: &[Tool]) -> Result<()> {
    let mut missing: Vec<&str> =
        tools.iter().filter(|t| command::find(t.program).is_none()).map(|t| t.package).collect();
    missing.sort_unstable();
    missing.dedup();
    install(&missing)
}

/// Installs Bochs where it, or its part for terminals, is missing.
///
/// # Errors
/// Not root, or apt cannot install it.
pub fn require_bochs() -> Result<()> {
    let there = command::find(BOCHS).is_some() && Path::new(BOCHS_TERM).exists();
    if there { Ok(()) } else { install(BOCHS_PACKAGES) }
}

/// Installs packages by name.
///
/// # Errors
/// Not root, or apt cannot install them.
pub fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    if !is_root() {
        return Err(Error::setup(format!(
            "missing here: run `apt-get install {names}` as root, then again."
        )));
    }
    say(&format!("installing {names} (apt-get)"));
    update()?;
    let mut apt = command::command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-q", "-y", "--no-install-recommends"]);
    command::show(apt.args(packages)).map_err(|_| Error::setup(format!("apt-get could not install {names}.")))
}

/// Takes a Debian package apart under build/, without installing it; does nothing the second time.
///
/// `follow` names a package of which the first dependency is wanted, as kernels have it.
///
/// # Errors
/// apt does not know or cannot download the package.
pub fn unpack(package: &str, follow: bool, into: &Path) -> Result<PathBuf> {
    let done = into.join("unpacked");
    let tree = into.join("tree");
    if done.is_file() {
        return Ok(tree);
    }
    say(&format!("downloading Debian's {package}"));
    fs::create_dir_all(&tree).map_err(|e| Error::file("make", &tree, &e))?;
    let archive = download_somehow(package, follow, into)?;
    command::output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree))?;
    fs::remove_file(&archive).map_err(|e| Error::file("remove", &archive, &e))?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    fs::write(&done, format!("{name}\n")).map_err(|e| Error::file("write", &done, &e))?;
    Ok(tree)
}

/// Downloads a Debian package into a directory below `into`, and gives its file.
///
/// # Errors
/// apt does not know or cannot download the package.
pub fn fetch(package: &str, into: &Path) -> Result<PathBuf> {
    say(&format!("downloading Debian's {package}"));
    download_somehow(package, false, into)
}

fn download_somehow(package: &str, follow: bool, into: &Path) -> Result<PathBuf> {
    // A list of packages that is old names files that are gone.
    download(package, follow, into).or_else(|first| {
        if !is_root() {
            return Err(first);
        }
        update()?;
        download(package, follow, into)
    })
}

fn download(package: &str, follow: bool, into: &Path) -> Result<PathBuf> {
    let unavailable =
        |e: &Error| Error::setup(format!("apt-get has no {package} (run apt-get update?): {e}"));
    let wanted = if follow { dependency(package)? } else { package.to_owned() };
    let fetched = into.join("fetched");
    let _ = fs::remove_dir_all(&fetched);
    fs::create_dir_all(&fetched).map_err(|e| Error::file("make", &fetched, &e))?;
    // apt's own sandbox user cannot write under a root user's home; the signature is checked all the same.
    command::output(
        command::command("apt-get")
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", &wanted])
            .current_dir(&fetched),
    )
    .map_err(|e| unavailable(&e))?;
    let entry = fs::read_dir(&fetched).map_err(|e| Error::file("list", &fetched, &e))?.flatten().next();
    entry.map(|e| e.path()).ok_or_else(|| Error::setup(format!("apt-get downloaded no {wanted}.")))
}

/// The first package that `package` depends on.
fn dependency(package: &str) -> Result<String> {
    let said = command::output(command::command("apt-cache").args(["depends", "--important", package]))?;
    String::from_utf8_lossy(&said)
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned))
        .ok_or_else(|| Error::setup(format!("apt knows no dependency of {package}.")))
}

fn update() -> Result<()> {
    let mut apt = command::command("apt-get");
    // One unreachable source among several need not stop us: the install that follows tells.
    command::show(apt.args(["update", "-q"])).or_else(|_| {
        say("apt-get update had errors; going on with what it has");
        Ok(())
    })
}

/// Whether this process may install packages.
#[must_use]
pub fn is_root() -> bool {
    command::output(Command::new("id").arg("-u")).is_ok_and(|out| out.trim_ascii() == b"0")
}
