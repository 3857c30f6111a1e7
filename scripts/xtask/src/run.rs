//! `scripts/run`: a ROM composed and booted.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::debian_disk;
use crate::error::{Error, Result};
use crate::kvm::{self, Nested};
use crate::machine::{Disk, Emulator, Firmware, Machine, Spec};
use crate::packages;
use crate::progress::say;
use crate::project::Project;
use crate::rom::{self, Recipe};
use crate::serial::{Wait, pattern};

/// The cores for QEMU's example guests.
pub const CORES: u32 = 4;

/// The options of `scripts/run`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    content: rom::Content,
    /// CPU model of the emulated machine, QEMU's with features (max,-svm has no virtualization); by default QEMU's
    /// max or Bochs's corei7_skylake_x, and this machine's own CPU where KVM passes its virtualization on
    #[arg(long)]
    cpu: Option<String>,
    /// Cores of the emulated machine; by default 4, and 1 in Bochs, whose cores share its speed
    #[arg(long, value_name = "N")]
    smp: Option<u32>,
    /// Memory of the emulated machine
    #[arg(long, default_value = "2G", value_name = "SIZE")]
    memory: String,
    /// Attach a raw disk image, or Debian on a disk that is made and kept under build/disks, to which the machine writes;
    /// on QEMU's board Debian starts from there beside the example guests, unless a manifest says otherwise
    #[arg(long, value_name = "FILE|debian[,bus=virtio|nvme|ahci|ata]")]
    disk: Vec<Disk>,
    /// The emulator to boot in
    #[arg(long, value_enum, default_value_t = Emulator::Qemu)]
    emulator: Emulator,
    /// Let virtual time count instructions, so that every run takes the same virtual time; in Bochs it always does
    #[arg(long)]
    icount: bool,
    /// One more argument for QEMU, or line for Bochs's configuration
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    emulator_option: Vec<String>,
    /// Print the serial output instead of connecting this terminal to it
    #[arg(long)]
    headless: bool,
    /// End with status 0 when a line of serial output matches, 1 when none does in time
    #[arg(long, value_name = "REGEX", requires = "headless")]
    until: Option<String>,
    /// Seconds of wall time for --until to match
    #[arg(long, value_name = "S", default_value_t = 300, requires = "headless")]
    timeout: u64,
}

impl Options {
    /// What KVM passes on to the machine on a host with this root directory, where the machine is to run on it:
    /// neither an emulator's CPU nor its way to count time is asked for.
    fn kvm(&self, root: &Path) -> Option<Nested> {
        let any = self.emulator == Emulator::Qemu && self.cpu.is_none() && !self.icount;
        any.then(|| kvm::nested(root)).flatten()
    }
}

/// Composes and boots; with a terminal, this process becomes the emulator.
///
/// # Errors
/// Set-up fails, the source does not build, or the emulator does not start.
pub fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    // A wrong pattern shall not cost a build first.
    let until = options.until.as_deref().map(pattern).transpose()?;
    let emulator = options.emulator;
    match emulator {
        Emulator::Qemu => packages::require(&[packages::QEMU])?,
        Emulator::Bochs => packages::require_bochs()?,
    }
    let mut recipe = options.content.recipe(emulator.board())?;
    let mut rom = default_rom(project, &recipe.board)?;
    if recipe.manifest.is_none() && options.disk.iter().any(Disk::is_debian) {
        let manifest = with_disk(project, &recipe.board);
        if manifest.is_file() {
            recipe.manifest = Some(manifest);
            rom = default_rom(project, &format!("{}-disk", recipe.board))?;
        }
    }
    recipe.refresh(project, &rom)?;

    let mut spec = Spec {
        memory: options.memory.clone(),
        disks: disks(project, &options.disk)?,
        icount: options.icount,
        extra: options.emulator_option.clone(),
        ..Spec::on(emulator, Firmware::Rom(rom))
    };
    if let Some(nested) = options.kvm(Path::new("/")) {
        say(&format!("running on KVM, which passes {nested} on"));
        (spec.kvm, spec.cpu) = (true, "host".to_owned());
    }
    spec.cpu = options.cpu.clone().unwrap_or(spec.cpu);
    spec.smp = options.smp.unwrap_or(match emulator {
        Emulator::Qemu => CORES,
        Emulator::Bochs => spec.smp,
    });
    if !options.headless {
        say(&format!("starting {emulator}; Ctrl-A X ends it"));
        return spec.run_on_terminal().map(|()| ExitCode::SUCCESS);
    }
    let mut machine = Machine::spawn_echoing(&spec, std::io::stdout())?;
    // A pattern that nothing matches waits for the machine's end.
    let pattern = until.clone().map_or_else(|| pattern("[^\\s\\S]"), Ok)?;
    let wait = machine.wait_for(&pattern, Duration::from_secs(options.timeout));
    println!();
    match wait {
        Wait::Matched(_) => Ok(ExitCode::SUCCESS),
        Wait::Closed if until.is_none() => Ok(ExitCode::SUCCESS),
        Wait::Closed => Err(Error::failed(format!("the machine ended before any line matched {pattern}"))),
        Wait::TimedOut if until.is_none() => {
            Err(Error::failed(format!("the machine still ran after {} s", options.timeout)))
        }
        Wait::TimedOut => Err(Error::failed(format!("no line matched {pattern} in {} s", options.timeout))),
    }
}

/// The disks that the options name, the one with Debian made where there is none yet.
fn disks(project: &Project, wanted: &[Disk]) -> Result<Vec<Disk>> {
    let made = |disk: &Disk| {
        if !disk.is_debian() {
            return Ok(disk.clone());
        }
        let file = project.build("disks")?.join("debian.img");
        if !file.is_file() {
            let draft = file.with_extension("draft");
            debian_disk::copy(&debian_disk::system(project)?, &draft)?;
            std::fs::rename(&draft, &file).map_err(|e| Error::file("rename", &draft, &e))?;
        }
        Ok(Disk { serial: Some(Disk::DEBIAN), ..Disk::new(file, disk.bus) })
    };
    wanted.iter().map(made).collect()
}

fn default_rom(project: &Project, name: &str) -> Result<PathBuf> {
    Ok(project.build("rom")?.join(format!("{name}.rom")))
}

/// The manifest of a board's example guests and Debian on its disk, where the board has one.
fn with_disk(project: &Project, board: &str) -> PathBuf {
    project.path(&format!("coreboot-config/boards/{board}/disk.dts"))
}

/// The ROM of one Linux guest on a board, up to date.
///
/// # Errors
/// Set-up fails or the source does not build.
pub fn debian_rom(project: &Project, board: &str) -> Result<PathBuf> {
    let rom = default_rom(project, &format!("{board}-debian"))?;
    Recipe::debian(project, board).refresh(project, &rom)?;
    Ok(rom)
}

/// The ROM of a board's example guests, up to date.
///
/// # Errors
/// Set-up fails or the source does not build.
pub fn example_rom(project: &Project, board: &str) -> Result<PathBuf> {
    let rom = default_rom(project, board)?;
    Recipe::example(board).refresh(project, &rom)?;
    Ok(rom)
}

/// The ROM of a board's example guests and Debian on its disk, up to date.
///
/// # Errors
/// Set-up fails or the source does not build.
pub fn example_rom_with_disk(project: &Project, board: &str) -> Result<PathBuf> {
    let rom = default_rom(project, &format!("{board}-disk"))?;
    Recipe { manifest: Some(with_disk(project, board)), ..Recipe::example(board) }.refresh(project, &rom)?;
    Ok(rom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::fs;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn kvm_is_used_unless_options_ask_for_what_it_has_not() {
        let root = std::env::temp_dir().join(format!("peerboot-run-{}", std::process::id()));
        let module = root.join("sys/module/kvm_amd/parameters");
        for dir in [&module, &root.join("dev"), &root.join("proc")] {
            fs::create_dir_all(dir).expect("a directory");
        }
        fs::write(root.join("dev/kvm"), "").expect("a file");
        fs::write(root.join("proc/cpuinfo"), "flags : svm\n").expect("a file");
        fs::write(module.join("nested"), "1\n").expect("a file");
        let kvm = |words: &[&str]| {
            let line = Line::try_parse_from(["run"].iter().chain(words)).expect("options");
            line.options.kvm(&root)
        };
        assert_eq!(kvm(&[]), Some(Nested::AmdV));
        assert_eq!(kvm(&["--smp", "4", "--headless"]), Some(Nested::AmdV));
        for words in [&["--icount"][..], &["--cpu", "max"], &["--emulator", "bochs"]] {
            assert_eq!(kvm(words), None, "{words:?}");
        }
        fs::remove_dir_all(&root).expect("removed");
    }
}
