//! `xtask run`, `test`, `rom` and `bench`: what the scripts of the same names start.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::error::Result;
use xtask::project::Project;
use xtask::{bench, progress, rom, run, test};

#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "scripts", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build everything and boot the example guests on an emulated machine, their consoles on this terminal
    Run(run::Options),
    /// Check everything: formatting, lints, unit and property tests, fuzz targets, emulator tests
    Test(test::Options),
    /// Put the payload, a manifest and guest files into a ROM
    Rom(rom::Options),
    /// Measure Peerboot beside bare QEMU, both counting instructions
    Bench(bench::Options),
}

fn main() -> ExitCode {
    // clap itself ends wrong usage with exit status 2.
    let arguments = Arguments::parse();
    match begin(&arguments.command) {
        Ok(status) => status,
        Err(error) => {
            progress::say(&error.to_string());
            ExitCode::from(error.status())
        }
    }
}

fn begin(task: &Task) -> Result<ExitCode> {
    let project = Project::find()?;
    match task {
        Task::Run(options) => run::run(&project, options),
        Task::Test(options) => test::test(&project, options),
        Task::Rom(options) => rom::rom(&project, options).map(|()| ExitCode::SUCCESS),
        Task::Bench(options) => bench::bench(&project, options).map(|()| ExitCode::SUCCESS),
    }
}
