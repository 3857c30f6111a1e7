//! Disks for guests that are whole systems: Debian 12 as it installs itself on a disk, and a disk with a package for
//! it. Made of Debian's own packages under build/disks.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};
use crate::packages::{self, Tool};
use crate::project::Project;

/// What making them needs.
const TOOLS: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "sfdisk", package: "fdisk" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "mkfs.vfat", package: "dosfstools" },
    Tool { program: "mcopy", package: "mtools" },
];

/// Debian's release.
const SUITE: &str = "bookworm";
/// What is installed beside what every Debian system has.
const INCLUDED: &str =
    "systemd-sysv,udev,linux-image-cloud-amd64,linux-image-amd64,initramfs-tools,e2fsprogs";
/// What nobody reads on a machine like this, and drivers for what it does not have.
const EXCLUDED: [&str; 10] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/lib/modules/*/kernel/sound/*",
    "/lib/modules/*/kernel/drivers/gpu/*",
    "/lib/modules/*/kernel/drivers/infiniband/*",
    "/lib/modules/*/kernel/drivers/media/*",
    "/lib/modules/*/kernel/drivers/net/ethernet/*",
    "/lib/modules/*/kernel/drivers/net/wireless/*",
    "/lib/modules/*/kernel/drivers/staging/*",
];

const MIB: u64 = 1 << 20;
/// The disk's size in bytes; most of it is a hole in the file.
const SIZE: u64 = 2048 * MIB;
/// The EFI system partition: where it begins, and how long it is.
const ESP: (u64, u64) = (MIB, 64 * MIB);
/// The root file system's partition. The second copy of the GPT lies behind it.
const ROOT: (u64, u64) = (ESP.0 + ESP.1, SIZE - ESP.0 - ESP.1 - MIB);

/// What identifies the disk, the same each time it is made.
const DISK_ID: &str = "9A7B8C6D-0001-4000-8000-706565726264";
const ESP_PARTITION: &str = "9A7B8C6D-0002-4000-8000-706565726264";
/// The PARTUUID of the root file system's partition.
pub const ROOT_PARTITION: &str = "9a7b8c6d-0003-4000-8000-706565726264";
/// The root file system's own UUID.
pub const ROOT_UUID: &str = "9a7b8c6d-0004-4000-8000-706565726264";
/// The EFI system partition's volume number, as mkfs.vfat and as Linux write it.
const ESP_VOLUME: (&str, &str) = ("7065B007", "7065-B007");
/// The time of what is made here and has no better: 2024-01-01.
const EPOCH: &str = "1704067200";

/// The package on the second disk, and what it brings.
pub const PACKAGE: &str = "hello";

/// A GPT disk with Debian 12: an EFI system partition with GRUB, and a root file system in ext4 (labels `esp` and
/// `root`); systemd, a login for root without a password on `ttyS0`, no network. It boots from OVMF, and from
/// whatever finds Debian's `grub.cfg`: by default with the kernel for clouds, by the entry `full` with the one for every
/// machine.
///
/// # Errors
/// A tool or package cannot be had, or a step fails.
pub fn system(project: &Project) -> Result<PathBuf> {
    let dir = project.build("disks/debian")?;
    let recipe = project.path("scripts/xtask/debian-disk");
    made(project, &dir, &recipe_text(&recipe)?, "debian.img", |image| {
        packages::require(TOOLS)?;
        let grub = packages::unpack("grub-efi-amd64-signed", false, &dir.join("grub"))?;
        project.say("installing Debian on a disk image");
        let archive = dir.join("root.tar");
        install(&recipe, &archive)?;
        partition(image)?;
        fill_esp(image, &grub.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"), &dir)?;
        fill_root(&recipe, image, &archive)?;
        fs::remove_file(&archive).map_err(|e| Error::file("remove", &archive, &e))
    })
}

/// A disk without partitions, a file system in ext4 on it with a repository of one package, [`PACKAGE`].
///
/// # Errors
/// The package cannot be downloaded, or a step fails.
pub fn repository(project: &Project) -> Result<PathBuf> {
    let dir = project.build("disks/repository")?;
    made(project, &dir, "", "repository.img", |image| {
        packages::require(TOOLS)?;
        let tree = dir.join("tree");
        let _ = fs::remove_dir_all(&tree);
        fs::create_dir_all(&tree).map_err(|e| Error::file("make", &tree, &e))?;
        let archive = packages::fetch(PACKAGE, &dir)?;
        let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let listed = index_entry(&archive, &name)?;
        fs::rename(&archive, tree.join(&name)).map_err(|e| Error::file("rename", &archive, &e))?;
        write(&tree.join("Packages"), &listed)?;
        let mut mke2fs = command::command("mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-L", "repository", "-d"]).arg(&tree).arg(image).arg("32M");
        command::output(&mut mke2fs).map(drop)
    })
}

/// A copy of an image that may be written to; holes stay holes.
///
/// # Errors
/// There is no room for it.
pub fn copy(image: &Path, to: &Path) -> Result<()> {
    let mut cp = command::command("cp");
    command::output(cp.args(["--sparse=always", "--reflink=auto"]).arg(image).arg(to)).map(drop)
}

/// Where the root file system lies on the system's disk, in bytes.
#[must_use]
pub fn root_offset() -> u64 {
    ROOT.0
}

/// The file `name` in `dir`, which `make` makes where there is none, or one after another recipe.
fn made(
    project: &Project,
    dir: &Path,
    recipe: &str,
    name: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let _turn = project.turn()?;
    let (image, stamp_file) = (dir.join(name), dir.join("recipe"));
    let stamp = format!("{recipe}{}", include_str!("debian_disk.rs"));
    if image.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(image);
    }
    let draft = image.with_extension("draft");
    let _ = fs::remove_file(&draft);
    make(&draft)?;
    fs::rename(&draft, &image).map_err(|e| Error::file("rename", &draft, &e))?;
    write(&stamp_file, &stamp)?;
    Ok(image)
}

fn recipe_text(recipe: &Path) -> Result<String> {
    let mut text = String::new();
    for name in ["before", "after", "fill", "grub.cfg"] {
        let path = recipe.join(name);
        text += &fs::read_to_string(&path).map_err(|e| Error::file("read", &path, &e))?;
    }
    Ok(text)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| Error::file("write", path, &e))
}

/// Sets what the steps of the recipe are told.
fn informed<'a>(command: &'a mut Command, recipe: &Path) -> &'a mut Command {
    let paths = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{paths}:/usr/sbin:/sbin"))
        .env("RECIPE", recipe)
        .env("ROOT_UUID", ROOT_UUID)
        .env("ESP_UUID", ESP_VOLUME.1)
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("E2FSPROGS_FAKE_TIME", EPOCH)
}

/// Installs the system into an archive.
fn install(recipe: &Path, archive: &Path) -> Result<()> {
    let mut mmdebstrap = command::command("mmdebstrap");
    informed(&mut mmdebstrap, recipe).args(["--quiet", "--variant=minbase", "--skip=output/dev"]);
    mmdebstrap.arg(format!("--include={INCLUDED}"));
    mmdebstrap.args(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")));
    mmdebstrap.arg("--essential-hook=\"$RECIPE/before\" \"$1\"");
    mmdebstrap.arg("--customize-hook=\"$RECIPE/after\" \"$1\"").arg(SUITE).arg(archive);
    command::output(&mut mmdebstrap).map(drop)
}

fn partition(image: &Path) -> Result<()> {
    let file = File::create(image).map_err(|e| Error::file("make", image, &e))?;
    file.set_len(SIZE).map_err(|e| Error::file("make", image, &e))?;
    let table = image.with_extension("table");
    let line = |(start, size): (u64, u64), id: &str, kind: &str, name: &str| {
        format!("start={}, size={}, type={kind}, uuid={id}, name={name}\n", start / 512, size / 512)
    };
    let esp = line(ESP, ESP_PARTITION, "U", "esp");
    let root = line(ROOT, ROOT_PARTITION, "L", "root");
    write(&table, &format!("label: gpt\nlabel-id: {DISK_ID}\n{esp}{root}"))?;
    let input = File::open(&table).map_err(|e| Error::file("read", &table, &e))?;
    let mut sfdisk = command::command("sfdisk");
    let result = sfdisk.arg("--quiet").arg(image).stdin(input).output();
    let _ = fs::remove_file(&table);
    let output = result.map_err(|e| command::cannot_start(&sfdisk, &e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::failed(format!("{} failed: {}", command::line(&sfdisk), said.trim_end())))
}

/// Puts GRUB where firmware looks for it, and what leads it to its configuration where that looks.
fn fill_esp(image: &Path, grub: &Path, dir: &Path) -> Result<()> {
    let mut mkfs = command::command("mkfs.vfat");
    // Clusters of one sector, or there would be too few of them for FAT32.
    mkfs.args(["-F", "32", "-s", "1", "-n", "ESP", "--invariant", "-i", ESP_VOLUME.0]);
    let before = (ESP.0 / 512).to_string();
    mkfs.args(["-h", &before, "--offset", &before]).arg(image).arg((ESP.1 / 1024).to_string());
    command::output(&mut mkfs)?;
    let pointer = dir.join("esp.cfg");
    let text = format!(
        "search.fs_uuid {ROOT_UUID} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    );
    write(&pointer, &text)?;
    let mtools = |program: &str, arguments: &[&str]| {
        let mut tool = command::command(program);
        tool.env("SOURCE_DATE_EPOCH", EPOCH).arg("-i").arg(format!("{}@@{}", image.display(), ESP.0));
        command::output(tool.args(arguments)).map(drop)
    };
    mtools("mmd", &["::EFI", "::EFI/BOOT", "::EFI/debian"])?;
    mtools("mcopy", &[&grub.to_string_lossy(), "::EFI/BOOT/BOOTX64.EFI"])?;
    mtools("mcopy", &[&pointer.to_string_lossy(), "::EFI/debian/grub.cfg"])
}

/// Files keep their owners, so this is done as root, or as what mmdebstrap takes for one.
fn fill_root(recipe: &Path, image: &Path, archive: &Path) -> Result<()> {
    let fill = recipe.join("fill");
    let mut command = if packages::is_root() {
        Command::new(&fill)
    } else {
        let mut helper = command::command("mmdebstrap");
        helper.arg("--unshare-helper").arg(&fill);
        helper
    };
    informed(&mut command, recipe).env("IMAGE", image).env("ARCHIVE", archive);
    command.env("ROOT_OFFSET", ROOT.0.to_string()).env("ROOT_KIB", (ROOT.1 / 1024).to_string());
    command::output(&mut command).map(drop)
}

/// What a repository's index says of a package.
fn index_entry(archive: &Path, name: &str) -> Result<String> {
    let control = command::output(Command::new("dpkg-deb").arg("-f").arg(archive))?;
    let sum = command::output(Command::new("sha256sum").arg(archive))?;
    let sum = String::from_utf8_lossy(&sum);
    let size = fs::metadata(archive).map_err(|e| Error::file("read", archive, &e))?.len();
    let mut entry = String::from_utf8_lossy(&control).into_owned();
    let _ = writeln!(entry, "Filename: ./{name}\nSize: {size}");
    let _ = writeln!(entry, "SHA256: {}", sum.split_whitespace().next().unwrap_or_default());
    Ok(entry)
}
