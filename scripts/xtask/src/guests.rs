//! The guests that are booted: Debian's kernels, memtest86+ and an initramfs with busybox, made under build/guests, and
//! those of tests/guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::cpio::Archive;
use crate::error::{Error, Result};
use crate::packages;
use crate::project::Project;
use crate::toolchain::{TARGET, Toolchain};

/// Debian's kernel for virtual machines, a bzImage.
///
/// # Errors
/// The package cannot be downloaded.
pub fn cloud_kernel(project: &Project) -> Result<PathBuf> {
    kernel(project, "linux-image-cloud-amd64")
}

/// Debian's kernel for every machine, a bzImage.
///
/// # Errors
/// The package cannot be downloaded.
pub fn full_kernel(project: &Project) -> Result<PathBuf> {
    kernel(project, "linux-image-amd64")
}

/// memtest86+ for the Linux boot protocol.
///
/// # Errors
/// The package cannot be downloaded.
pub fn memtest(project: &Project) -> Result<PathBuf> {
    let tree = packages::unpack("memtest86+", false, &project.build("guests/memtest86+")?)?;
    Ok(tree.join("boot/memtest86+x64.bin"))
}

/// memtest86+ for machines without 64-bit mode.
///
/// # Errors
/// The package cannot be downloaded.
pub fn memtest_32_bit(project: &Project) -> Result<PathBuf> {
    Ok(memtest(project)?.with_file_name("memtest86+ia32.bin"))
}

/// iPXE, for the Linux boot protocol's 16-bit entry.
///
/// # Errors
/// The package cannot be downloaded.
pub fn ipxe(project: &Project) -> Result<PathBuf> {
    Ok(packages::unpack("ipxe", false, &project.build("guests/ipxe")?)?.join("boot/ipxe.lkrn"))
}

/// QEMU's UEFI, in one file.
///
/// # Errors
/// The package cannot be downloaded.
pub fn uefi(project: &Project) -> Result<PathBuf> {
    Ok(packages::unpack("ovmf", false, &project.build("guests/ovmf")?)?.join("usr/share/ovmf/OVMF.fd"))
}

/// The initramfs of the example guests: busybox with init, a shell on the console, and a line that says when
/// userspace was reached. Compressed with LZ4, which a kernel unpacks fastest.
///
/// # Errors
/// busybox cannot be downloaded, or a tool fails.
pub fn initramfs(project: &Project) -> Result<PathBuf> {
    let busybox =
        packages::unpack("busybox-static", false, &project.build("guests/busybox")?)?.join("bin/busybox");
    let recipe = project.path("scripts/xtask/initramfs");
    let dir = project.build("guests/initramfs")?;
    let packed = dir.join("initramfs.lz4");

    let mut inputs: Vec<PathBuf> = ["inittab", "rc", "tsc.s"].iter().map(|name| recipe.join(name)).collect();
    inputs.push(busybox.clone());
    inputs.extend(std::env::current_exe());
    if is_newer(&packed, &inputs) {
        return Ok(packed);
    }

    let plain = dir.join("initramfs.cpio");
    let archive = tree(&busybox, &recipe, &tsc(&recipe, &dir)?)?;
    fs::write(&plain, archive).map_err(|e| Error::file("write", &plain, &e))?;
    // The legacy frame is the one that Linux's early unpacker knows.
    command::output(command::command("lz4").args(["-l", "-9", "-f", "-q"]).arg(&plain).arg(&packed))?;
    Ok(packed)
}

/// The modules of [`cloud_kernel`] for disks on virtio, in the order in which they go in.
pub const VIRTIO_MODULES: [&str; 6] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
];

/// The example's initramfs, uncompressed files in front of it: Debian's modules, by their paths among those of this
/// kernel of [`cloud_kernel`] or [`full_kernel`], in `/lib`, and programs in `/bin`.
///
/// # Errors
/// Something of it is not there.
pub fn initramfs_with(
    project: &Project,
    kernel: &Path,
    modules: &[&str],
    programs: &[PathBuf],
) -> Result<Vec<u8>> {
    let version = kernel.file_name().and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"));
    let tree = kernel.parent().and_then(Path::parent);
    let (Some(version), Some(tree)) = (version, tree) else {
        return Err(Error::failed(format!("{} does not name its version", kernel.display())));
    };
    let read = |path: &Path| fs::read(path).map_err(|e| Error::file("read", path, &e));
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let own = tree.join("lib/modules").join(version).join("kernel");
    let mut archive = Archive::new();
    archive.directory("lib");
    archive.directory("bin");
    for module in modules.iter().map(|module| own.join(module)) {
        archive.file(&format!("lib/{}", name(&module)), 0o644, &read(&module)?);
    }
    for program in programs {
        archive.file(&format!("bin/{}", name(program)), 0o755, &read(program)?);
    }
    // Linux unpacks archives one behind the other; what is compressed comes last.
    Ok([archive.finish(), read(&initramfs(project)?)?].concat())
}

/// The names of the tiny test guests in tests/guests.
///
/// # Errors
/// The source tree is not whole.
pub fn tiny_names(project: &Project) -> Result<Vec<String>> {
    let dir = project.path("tests/guests/src/bin");
    let mut names: Vec<String> = fs::read_dir(&dir)
        .map_err(|e| Error::file("list", &dir, &e))?
        .flatten()
        .filter_map(|entry| entry.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Builds the example of a guest with one purpose, a PVH kernel without what only debuggers read.
///
/// # Errors
/// There is no compiler, or it finds fault.
pub fn clock(project: &Project) -> Result<PathBuf> {
    app(project, "clock")
}

/// Builds the example of a guest with a disk, likewise.
///
/// # Errors
/// There is no compiler, or it finds fault.
pub fn disk(project: &Project) -> Result<PathBuf> {
    app(project, "disk")
}

/// Builds the program for Linux that asks a disk for blocks.
///
/// # Errors
/// There is no compiler, or it finds fault.
pub fn requests(project: &Project) -> Result<PathBuf> {
    app(project, "requests")
}

fn app(project: &Project, name: &str) -> Result<PathBuf> {
    let toolchain = Toolchain::freestanding(project)?;
    let mut cargo = toolchain.cargo_freestanding(project, "build");
    command::output(cargo.args(["--quiet", "--release", "-p", name]))?;
    let built = toolchain.target_dir().join(TARGET).join("release").join(name);
    let file = project.build(&format!("guests/{name}"))?.join(name);
    // The same program keeps its time, and the ROM need not be made again.
    if !is_newer(&file, std::slice::from_ref(&built)) {
        command::output(command::command("strip").arg("-o").arg(&file).arg(&built))?;
    }
    Ok(file)
}

/// Builds one of the tiny test guests, a PVH kernel.
///
/// # Errors
/// There is no compiler, or it finds fault.
pub fn tiny(project: &Project, name: &str) -> Result<PathBuf> {
    let toolchain = Toolchain::freestanding(project)?;
    let mut cargo = toolchain.cargo_freestanding(project, "build");
    command::output(cargo.args(["--quiet", "--release", "-p", "test-guests", "--bin", name]))?;
    Ok(toolchain.target_dir().join(TARGET).join("release").join(name))
}

/// Builds all tiny test guests, without what only debuggers read, and gives their names and files.
///
/// # Errors
/// There is no compiler, or it finds fault.
pub fn tiny_all(project: &Project) -> Result<Vec<(String, PathBuf)>> {
    stripped(project, "test-guests", tiny_names(project)?)
}

/// Builds the guests of tests/guests/hostile in the same way: the one that attacks, and the one that would notice.
///
/// # Errors
/// There is no compiler, or it finds fault.
pub fn hostile(project: &Project) -> Result<Vec<(String, PathBuf)>> {
    stripped(project, "hostile-guests", ["hostile", "steady"].map(str::to_owned).into())
}

fn stripped(project: &Project, package: &str, names: Vec<String>) -> Result<Vec<(String, PathBuf)>> {
    let _turn = project.turn()?;
    let toolchain = Toolchain::freestanding(project)?;
    let mut cargo = toolchain.cargo_freestanding(project, "build");
    command::output(cargo.args(["--quiet", "--release", "-p", package, "--bins"]))?;
    let (built, dir) = (toolchain.target_dir().join(TARGET).join("release"), project.build("guests/tiny")?);
    let strip = |name: String| {
        let file = dir.join(&name);
        let fresh = file.with_extension("new");
        command::output(command::command("strip").arg("-o").arg(&fresh).arg(built.join(&name)))?;
        // Another test may be reading the one from before.
        fs::rename(&fresh, &file).map_err(|e| Error::file("rename", &fresh, &e))?;
        Ok((name, file))
    };
    names.into_iter().map(strip).collect()
}

/// Builds one of the test guests in real mode, a file for Linux's 16-bit boot protocol.
///
/// # Errors
/// The assembler finds fault.
pub fn real_mode(project: &Project, name: &str) -> Result<PathBuf> {
    let dir = project.build("guests/real-mode")?;
    let (object, file) = (dir.join(name).with_extension("o"), dir.join(name));
    let source = project.path("tests/guests/real-mode").join(name).with_extension("s");
    command::output(command::command("as").arg("--32").arg("-o").arg(&object).arg(source))?;
    let layout = ["-m", "elf_i386", "-Ttext=0", "-e", "0", "--oformat", "binary", "-o"];
    command::output(command::command("ld").args(layout).arg(&file).arg(&object))?;
    Ok(file)
}

fn kernel(project: &Project, package: &str) -> Result<PathBuf> {
    let tree = packages::unpack(package, true, &project.build(&format!("guests/{package}"))?)?;
    let boot = tree.join("boot");
    fs::read_dir(&boot)
        .map_err(|e| Error::file("list", &boot, &e))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .ok_or_else(|| Error::setup(format!("Debian's {package} holds no kernel.")))
}

/// Assembles and links the program that prints the time-stamp counter.
fn tsc(recipe: &Path, dir: &Path) -> Result<PathBuf> {
    let (object, program) = (dir.join("tsc.o"), dir.join("tsc"));
    command::output(command::command("as").arg("--64").arg("-o").arg(&object).arg(recipe.join("tsc.s")))?;
    command::output(command::command("ld").args(["-static", "-s", "-o"]).arg(&program).arg(&object))?;
    Ok(program)
}

fn tree(busybox: &Path, recipe: &Path, tsc: &Path) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).map_err(|e| Error::file("read", path, &e));
    let mut archive = Archive::new();
    for dir in ["bin", "dev", "etc", "mnt", "proc", "root", "sys", "tmp"] {
        archive.directory(dir);
    }
    archive.symlink("sbin", "bin");
    archive.character_device("dev/console", 5, 1);
    archive.character_device("dev/null", 1, 3);
    archive.file("bin/busybox", 0o755, &read(busybox)?);
    let applets = command::output(Command::new(busybox).arg("--list"))?;
    for applet in String::from_utf8_lossy(&applets).lines().filter(|name| *name != "busybox") {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    archive.file("bin/tsc", 0o755, &read(tsc)?);
    archive.file("etc/inittab", 0o644, &read(&recipe.join("inittab"))?);
    archive.file("etc/rc", 0o755, &read(&recipe.join("rc"))?);
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n");
    archive.file("etc/profile", 0o644, b"export HOME=/root\ncd\n");
    archive.symlink("init", "bin/busybox");
    Ok(archive.finish())
}

/// Whether `made` exists and is not older than any of what it was made from.
fn is_newer(made: &Path, inputs: &[PathBuf]) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let Some(made) = time(made) else { return false };
    inputs.iter().all(|input| time(input).is_some_and(|input| input <= made))
}
