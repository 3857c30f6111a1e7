//! `scripts/bench`: what Peerboot costs and how it shares, as tables and JSON.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::figures::disks::{self, Place, Request, Sharing};
use crate::figures::{
    self, Boot, Cost, Footprint, Lateness, Milestone, PROCESSORS, Parallel, Processor, Rate, Share, milestone,
};
use crate::packages;
use crate::progress::say;
use crate::project::Project;

/// The options of `scripts/bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Measure only what has one of these in its name: boot, exits, parallel, rates, shares, wake-ups, memory,
    /// disks
    filter: Vec<String>,
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE", default_value = "build/bench/figures.json")]
    json: PathBuf,
}

/// A part of the figures: measures, prints its table and gives its JSON.
type Part = fn(&Project) -> Result<Value>;

/// All parts by their names.
const PARTS: [(&str, Part); 8] = [
    ("boot", boot),
    ("exits", exits),
    ("parallel", parallel),
    ("rates", rates),
    ("shares", shares),
    ("wake-ups", wake_ups),
    ("memory", memory),
    ("disks", disks),
];

/// Measures, prints tables and writes the JSON.
///
/// # Errors
/// Set-up fails, or one of the machines does not do what is measured.
pub fn bench(project: &Project, options: &Options) -> Result<()> {
    packages::require(&[packages::QEMU])?;
    let selects =
        |name: &str| options.filter.is_empty() || options.filter.iter().any(|part| name.contains(part));
    let mut all = Map::new();
    all.insert(
        "units".to_owned(),
        json!("ns: virtual time, one instruction a nanosecond, but for wall time"),
    );
    for (name, part) in PARTS.into_iter().filter(|(name, _)| selects(name)) {
        say(&format!("measuring {name}"));
        all.insert(name.to_owned(), part(&project.quiet())?);
    }
    write_json(project, options, &Value::Object(all))
}

fn boot(project: &Project) -> Result<Value> {
    let bare = figures::bare_boot(project)?;
    let Boot { milestones, exits } = figures::peerboot_boot(project)?;
    heading("virtual ms since reset", &["bare QEMU", "Peerboot", "ratio"]);
    for (name, ours) in &milestones {
        let theirs = milestone(&bare, name);
        let ratio = theirs.map(|time| ratio(*ours, time));
        row(name, &[theirs.map(millis).unwrap_or_default(), millis(*ours), ratio.unwrap_or_default()]);
    }
    heading("exits of one boot", &["number"]);
    exits.iter().for_each(|(reason, count)| row(reason, &[count.to_string()]));

    let object = |milestones: &[Milestone]| -> Value {
        milestones.iter().map(|(name, time)| ((*name).to_owned(), json!(time))).collect::<Map<_, _>>().into()
    };
    let exits: Map<String, Value> = exits.into_iter().map(|(reason, count)| (reason, json!(count))).collect();
    Ok(json!({ "bare ns": object(&bare), "peerboot ns": object(&milestones), "exits": exits }))
}

fn exits(project: &Project) -> Result<Value> {
    packages::require_bochs()?;
    let measure = |processor: &Processor| Ok((*processor, figures::exit_costs(project, processor)?));
    let all = PROCESSORS.iter().map(measure).collect::<Result<Vec<(Processor, Vec<Cost>)>>>()?;

    let names: Vec<&str> = all.iter().map(|(processor, _)| processor.name).collect();
    heading("instructions per exit", &names);
    let mut kinds: Vec<&str> = Vec::new();
    for cost in all.iter().flat_map(|(_, costs)| costs) {
        if !kinds.contains(&cost.exit.as_str()) {
            kinds.push(&cost.exit);
        }
    }
    for kind in kinds {
        let average = |costs: &[Cost]| {
            let cost = costs.iter().find(|cost| cost.exit == kind);
            cost.map(|cost| cost.average.to_string()).unwrap_or_default()
        };
        row(kind, &all.iter().map(|(_, costs)| average(costs)).collect::<Vec<_>>());
    }

    let cost = |cost: Cost| (cost.exit, json!({ "average": cost.average, "least": cost.least }));
    let costs = |(processor, costs): (Processor, Vec<Cost>)| {
        let costs: Map<String, Value> = costs.into_iter().map(cost).collect();
        (processor.name.to_owned(), Value::Object(costs))
    };
    Ok(Value::Object(all.into_iter().map(costs).collect()))
}

fn parallel(project: &Project) -> Result<Value> {
    let boots = figures::parallel_boots(project)?;
    let one = boots.first().map_or(1, |boot| boot.instructions);
    heading("Linux guests at once, 4 cores", &["ms of work", "each, of one", "wall s"]);
    for Parallel { guests, instructions, wall } in &boots {
        let each = ratio(instructions / *guests as u64, one);
        let wall = format!("{:.1}", wall.as_secs_f64());
        row(&format!("{guests}, to userspace"), &[millis(*instructions), each, wall]);
    }
    println!("(wall time with {} processors for the emulator)", figures::processors());
    let json = |boot: Parallel| {
        json!({
            "guests": boot.guests,
            "instructions of all cores": boot.instructions,
            "wall seconds": boot.wall.as_secs_f64(),
        })
    };
    let boots: Vec<Value> = boots.into_iter().map(json).collect();
    Ok(json!({ "host processors": figures::processors(), "boots": boots }))
}

fn rates(project: &Project) -> Result<Value> {
    let rates = figures::exit_rates(project)?;
    heading("Linux with a core of its own", &["exits a second"]);
    rates.iter().for_each(|Rate { state, exits }| row(state, &[exits.to_string()]));
    Ok(json!(
        rates.map(|rate| (rate.state, rate.exits)).into_iter().collect::<std::collections::BTreeMap<_, _>>()
    ))
}

fn shares(project: &Project) -> Result<Value> {
    let shares = figures::shares(project)?;
    let percent = |millionths: u64| format!("{}.{:02}", millionths / 10_000, millionths / 100 % 100);
    heading("one core for a second, percent", &["had", "fair", "error"]);
    for Share { weight, ran, fair } in &shares {
        row(&format!("weight {weight}"), &[percent(*ran), percent(*fair), percent(ran.abs_diff(*fair))]);
    }
    let json = |share: &Share| json!({ "weight": share.weight, "millionths": share.ran, "fair": share.fair });
    Ok(shares.iter().map(json).collect())
}

fn wake_ups(project: &Project) -> Result<Value> {
    let wake_ups = figures::wake_ups(project)?;
    heading("instructions from timer to guest", &["least", "half", "most"]);
    for Lateness { beside, least, half, most } in &wake_ups {
        row(&format!("beside {beside}"), &[least, half, most].map(u64::to_string));
    }
    let json = |late: &Lateness| {
        (late.beside.to_owned(), json!({ "least": late.least, "half": late.half, "most": late.most }))
    };
    Ok(Value::Object(wake_ups.iter().map(json).collect()))
}

fn memory(project: &Project) -> Result<Value> {
    let Footprint { first, each } = figures::footprint(project)?;
    heading("the monitor's own memory", &["KiB"]);
    row("with one guest", &[first.to_string()]);
    row("each further guest", &[each.to_string()]);
    Ok(json!({ "KiB with one guest": first, "KiB for each further guest": each }))
}

fn disks(project: &Project) -> Result<Value> {
    let groups: [(&str, &[Place]); 4] = [
        ("bare QEMU", &disks::BARE),
        ("virtio guest", &disks::VIRTIO),
        ("NVMe guest", &disks::NVME),
        ("virtio guest on NVMe", &disks::FORMATS),
    ];
    let mut all = Map::new();
    for (group, places) in groups {
        let measure = |place: &Place| disks::requests(project, place, &disks::PATTERNS);
        let columns = places.iter().map(measure).collect::<Result<Vec<_>>>()?;
        let names: Vec<&str> = places.iter().map(|place| place.name).collect();
        heading(&format!("{group}: each (exits)"), &names);
        for (number, pattern) in disks::PATTERNS.iter().enumerate() {
            row(
                pattern.name,
                &columns.iter().filter_map(|column| column.get(number)).map(request).collect::<Vec<_>>(),
            );
        }
        let column = |requests: &Vec<Request>| -> Value {
            let request = |Request { pattern, instructions, exits }: &Request| {
                let figures = json!({
                    "instructions": instructions,
                    "exits in 100": exits.all,
                    "interrupt windows in 100": exits.windows
                });
                (pattern.name.to_owned(), figures)
            };
            requests.iter().map(request).collect::<Map<_, _>>().into()
        };
        let places: Map<String, Value> =
            names.into_iter().map(str::to_owned).zip(columns.iter().map(column)).collect();
        all.insert(group.to_owned(), places.into());
    }
    let sharing = disks::sharing(project)?;
    heading("2 guests, random read, 32 deep", &["first, 1/s", "second, 1/s", "a disk, 1/s"]);
    for Sharing { disks, rates } in sharing {
        row(disks, &[rates[0], rates[1], disks::PACE].map(|rate| rate.to_string()));
        all.insert(format!("2 guests, {disks}, requests a second"), json!(rates));
    }
    Ok(all.into())
}

/// A request's instructions, with its exits in parentheses where there can be any.
fn request(request: &Request) -> String {
    match request.exits.all {
        0 => request.instructions.to_string(),
        exits => format!("{} ({}.{:02})", request.instructions, exits / 100, exits % 100),
    }
}

/// Prints the first line of a table.
fn heading(what: &str, columns: &[&str]) {
    print!("\n{what:<32}");
    columns.iter().for_each(|column| print!(" {column:>18}"));
    println!();
}

/// Prints a line of a table.
fn row(name: &str, cells: &[String]) {
    print!("{name:<32}");
    cells.iter().for_each(|cell| print!(" {cell:>18}"));
    println!();
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

#[allow(clippy::cast_precision_loss)] // Virtual times are far below 2^53 ns.
fn ratio(ours: u64, theirs: u64) -> String {
    format!("{:.2}", ours as f64 / theirs as f64)
}
