//! `scripts/run`: a ROM composed and booted.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::machine::{Disk, Firmware, Machine, Spec};
use crate::packages;
use crate::progress::say;
use crate::project::Project;
use crate::rom::{self, Recipe};
use crate::serial::{Wait, pattern};

/// Which emulator boots the ROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Emulator {
    Qemu,
    Bochs,
}

/// The options of `scripts/run`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    content: rom::Content,
    /// CPU model of the emulated machine, with features: max,-svm has no virtualization
    #[arg(long, default_value = "max")]
    cpu: String,
    /// Cores of the emulated machine
    #[arg(long, default_value_t = 2, value_name = "N")]
    smp: u32,
    /// Memory of the emulated machine
    #[arg(long, default_value = "2G", value_name = "SIZE")]
    memory: String,
    /// Attach a raw disk image; the machine writes to it
    #[arg(long, value_name = "FILE[,bus=virtio|nvme|ahci|ata]")]
    disk: Vec<Disk>,
    /// The emulator to boot in
    #[arg(long, value_enum, default_value_t = Emulator::Qemu)]
    emulator: Emulator,
    /// Let virtual time count instructions, so that every run takes the same virtual time
    #[arg(long)]
    icount: bool,
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

/// Composes and boots; with a terminal, this process becomes the emulator.
///
/// # Errors
/// Set-up fails, the source does not build, or the emulator does not start.
pub fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    if options.emulator == Emulator::Bochs {
        return Err(Error::setup(
            "Bochs is not supported yet: its CPUs have VT-x, and Peerboot runs on AMD-V so far.",
        ));
    }
    // A wrong pattern shall not cost a build first.
    let until = options.until.as_deref().map(pattern).transpose()?;
    packages::require(&[packages::QEMU])?;
    let rom = default_rom(project, &options.content.board)?;
    options.content.recipe()?.refresh(project, &rom)?;

    let spec = Spec {
        cpu: options.cpu.clone(),
        smp: options.smp,
        memory: options.memory.clone(),
        disks: options.disk.clone(),
        icount: options.icount,
        ..Spec::new(Firmware::Rom(rom))
    };
    if !options.headless {
        say("starting QEMU; Ctrl-A X ends it");
        return Err(spec.become_emulator());
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

fn default_rom(project: &Project, board: &str) -> Result<PathBuf> {
    Ok(project.build("rom")?.join(format!("{board}.rom")))
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
