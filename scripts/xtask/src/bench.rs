//! `scripts/bench`: the same kernel and initramfs on bare QEMU and under Peerboot, and what exits cost on AMD-V and on
//! VT-x, all counted in instructions.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::figures::{Boot, Cost, EXIT_COSTS_OF, Milestone, bare_boot, exit_costs, milestone, peerboot_boot};
use crate::packages;
use crate::progress::say;
use crate::project::Project;

/// The options of `scripts/bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE", default_value = "build/bench/figures.json")]
    json: PathBuf,
    /// Memory of both machines
    #[arg(long, default_value = "2G", value_name = "SIZE")]
    memory: String,
}

/// Measures, prints tables and writes the JSON.
///
/// # Errors
/// Set-up fails, or one of the machines does not do what is measured.
pub fn bench(project: &Project, options: &Options) -> Result<()> {
    packages::require(&[packages::QEMU])?;
    packages::require_bochs()?;
    say("booting the kernel on bare QEMU");
    let bare = bare_boot(project, &options.memory)?;
    say("booting the kernel under Peerboot");
    let peerboot = peerboot_boot(project, &options.memory)?;
    say("counting what exits cost");
    let costs: Vec<(&str, Vec<Cost>)> = EXIT_COSTS_OF
        .into_iter()
        .map(|(emulator, cpu)| Ok((cpu, exit_costs(project, emulator, cpu)?)))
        .collect::<Result<_>>()?;

    print_boots(&bare, &peerboot.milestones);
    print_costs(&costs);
    print_exits(&peerboot.exits);
    write_json(project, options, &figures(&bare, &peerboot, &costs))
}

fn print_boots(bare: &[Milestone], peerboot: &[Milestone]) {
    println!("{:<32} {:>14} {:>14} {:>8}", "virtual ms since reset", "bare QEMU", "Peerboot", "ratio");
    for (name, ours) in peerboot {
        let theirs = milestone(bare, name);
        let bare = theirs.map_or_else(String::new, millis);
        let ratio = theirs.map_or_else(String::new, |time| format!("{:.2}", ratio(*ours, time)));
        println!("{name:<32} {bare:>14} {:>14} {ratio:>8}", millis(*ours));
    }
}

/// A column for each CPU. What a CPU has not is not measured there.
fn print_costs(costs: &[(&str, Vec<Cost>)]) {
    let name = |cpu: &str| cpu.trim_start_matches("corei7_").trim_end_matches("_2600k").to_owned();
    let row = |title: &str, cells: &[String]| {
        println!("{title:<32}{}", cells.iter().map(|cell| format!(" {cell:>14}")).collect::<String>());
    };
    println!();
    row("instructions per exit", &costs.iter().map(|(cpu, _)| name(cpu)).collect::<Vec<_>>());
    let mut titles: Vec<&str> = Vec::new();
    for cost in costs.iter().flat_map(|(_, costs)| costs) {
        if !titles.contains(&cost.exit.as_str()) {
            titles.push(&cost.exit);
        }
    }
    for title in titles {
        let cell = |costs: &[Cost]| costs.iter().find(|cost| cost.exit == title).map(|cost| cost.average);
        let cells = costs.iter().map(|(_, costs)| cell(costs).map_or_else(String::new, |n| n.to_string()));
        row(title, &cells.collect::<Vec<_>>());
    }
}

fn print_exits(exits: &[(String, u64)]) {
    println!("\n{:<32} {:>14}", "exits of one boot", "");
    exits.iter().for_each(|(reason, count)| println!("{reason:<32} {count:>14}"));
}

fn figures(bare: &[Milestone], peerboot: &Boot, costs: &[(&str, Vec<Cost>)]) -> Value {
    let object = |milestones: &[Milestone]| -> Value {
        milestones.iter().map(|(name, time)| ((*name).to_owned(), json!(time))).collect::<Map<_, _>>().into()
    };
    let cost = |cost: &Cost| (cost.exit.clone(), json!({ "average": cost.average, "least": cost.least }));
    let costs =
        costs.iter().map(|(cpu, costs)| ((*cpu).to_owned(), Value::Object(costs.iter().map(cost).collect())));
    let count = |(reason, count): &(String, u64)| (reason.clone(), json!(count));
    json!({
        "units": "boots: nanoseconds of virtual time since reset, one an instruction; costs: instructions per exit",
        "bare boot": object(bare),
        "peerboot boot": object(&peerboot.milestones),
        "costs": Value::Object(costs.collect()),
        "exits of one boot": Value::Object(peerboot.exits.iter().map(count).collect()),
    })
}

fn write_json(project: &Project, options: &Options, figures: &Value) -> Result<()> {
    let file = project.root().join(&options.json);
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).map_err(|e| Error::file("make", dir, &e))?;
    }
    fs::write(&file, format!("{figures:#}\n")).map_err(|e| Error::file("write", &file, &e))?;
    say(&format!("the figures are in {}", file.display()));
    Ok(())
}

fn millis(nanoseconds: u64) -> String {
    format!("{}.{:03}", nanoseconds / 1_000_000, nanoseconds / 1000 % 1000)
}

#[allow(clippy::cast_precision_loss)] // Virtual boot times are far below 2^53 ns.
fn ratio(ours: u64, theirs: u64) -> f64 {
    ours as f64 / theirs as f64
}
