//! `scripts/test`: everything that can be checked, in the order of what it costs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::cbfs::Cbfs;
use crate::command;
use crate::error::{Error, Result};
use crate::packages;
use crate::payload::{self, LEFT_OUT_OF_SMALL, Part};
use crate::progress::say;
use crate::project::Project;
use crate::rom::Recipe;
use crate::run;
use crate::suite::{Outcome, Selection, Tally, hint, print};
use crate::toolchain::Toolchain;

/// The crates that run without an operating system: built and linted for their own target, tested in emulators.
const FREESTANDING: [&str; 8] = [
    "payload",
    "emulation-stage",
    "guest-runtime",
    "test-guests",
    "clock",
    "disk",
    "hostile-guests",
    "requests",
];

/// The payload: freestanding, but what it decides without hardware is tested on the host.
const PAYLOAD: &str = "payload";

/// The largest payload, as it lies compressed in CBFS, whole and without all that it can do without: see
/// docs/decisions/0005-payload-size.md.
const PAYLOAD_LIMIT: u64 = 512 * 1024;
const SMALL_PAYLOAD_LIMIT: u64 = 160 * 1024;

/// The options of `scripts/test`.
#[derive(Debug, Args)]
pub struct Options {
    /// Run only what has one of these in its name
    filter: Vec<String>,
    /// Run the long campaigns too
    #[arg(long, conflicts_with = "quick")]
    long: bool,
    /// Leave the emulator tests out
    #[arg(long)]
    quick: bool,
    /// Only list the names
    #[arg(long)]
    list: bool,
}

/// One step of the suite.
struct Step {
    name: String,
    check: Check,
}

enum Check {
    Format,
    HostLints,
    FreestandingLints,
    Unit(String),
    PayloadSize,
    SmallPayloadSize,
    Flash,
    Fuzz(String),
}

/// Runs the steps; the last line counts them.
///
/// # Errors
/// Set-up fails. Checks that fail are counted instead, and make the exit status 1.
pub fn test(project: &Project, options: &Options) -> Result<ExitCode> {
    packages::require(packages::ROM_TOOLS)?;
    packages::require(packages::TEST_TOOLS)?;
    packages::require(&[packages::QEMU])?;
    if !options.quick {
        packages::require_bochs()?;
    }
    let suite = Suite { project: project.quiet(), host: Toolchain::host(project), options };
    let steps = suite.steps()?;
    if options.list {
        steps.iter().for_each(|step| println!("{}", step.name));
        if !options.quick {
            suite.emulator_names()?.iter().for_each(|name| println!("{name}"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let tally = suite.run(&steps)?;
    println!("{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Suite<'a> {
    project: Project,
    host: Toolchain,
    options: &'a Options,
}

impl Suite<'_> {
    fn steps(&self) -> Result<Vec<Step>> {
        let step = |name: &str, check| Step { name: name.to_owned(), check };
        let mut steps = vec![
            step("format", Check::Format),
            step("lint/host", Check::HostLints),
            step("lint/freestanding", Check::FreestandingLints),
        ];
        let metadata = self.metadata()?;
        for package in host_packages(&metadata).into_iter().chain([PAYLOAD.to_owned()]) {
            steps.push(Step { name: format!("unit/{package}"), check: Check::Unit(package) });
        }
        steps.push(step("rom/payload-size", Check::PayloadSize));
        steps.push(step("rom/small-payload-size", Check::SmallPayloadSize));
        steps.push(step("rom/flashrom", Check::Flash));
        for target in binaries(&metadata, "fuzz") {
            steps.push(Step { name: format!("fuzz/{target}"), check: Check::Fuzz(target) });
        }
        Ok(steps)
    }

    fn run(&self, steps: &[Step]) -> Result<Tally> {
        let selection = Selection { filters: self.options.filter.clone(), long: self.options.long };
        let chosen: Vec<&Step> = steps.iter().filter(|step| selection.selects(&step.name)).collect();
        let emulator = !self.options.quick
            && (selection.filters.is_empty()
                || self.emulator_names()?.iter().any(|name| selection.selects(name)));
        let mut tally = Tally::default();
        for step in &chosen {
            hint(&step.name);
            let start = Instant::now();
            match self.check(&step.check, &mut tally) {
                // The unit tests of a package count one by one.
                Ok(Done::Counted(tests)) => print(&format!(
                    "passed   {:<60} {}",
                    format!("{} ({tests} tests)", step.name),
                    crate::progress::seconds(start.elapsed())
                )),
                Ok(Done::One) => tally.record(&step.name, start.elapsed(), &Ok(Outcome::Passed)),
                // Set-up that fails is the machine's fault, not the source's.
                Err(Error::Setup(sentence)) => return Err(Error::Setup(sentence)),
                Err(error) => tally.record(&step.name, start.elapsed(), &Err(error)),
            }
        }
        if emulator {
            tally.add(self.emulator()?);
        } else if chosen.is_empty() {
            tally.add(self.unit_tests_by_name()?);
        }
        Ok(tally)
    }

    fn check(&self, check: &Check, tally: &mut Tally) -> Result<Done> {
        let project = &self.project;
        match check {
            Check::Format => {
                self.host.require_lints(project)?;
                command::output(self.host.cargo(project, "fmt").args(["--all", "--check"]))?;
            }
            Check::HostLints => {
                self.host.require_lints(project)?;
                let mut clippy = self.host.cargo(project, "clippy");
                clippy.args(["--quiet", "--workspace", "--all-targets"]);
                FREESTANDING.iter().for_each(|package| {
                    clippy.args(["--exclude", package]);
                });
                command::output(clippy.args(["--", "-D", "warnings"]))?;
            }
            Check::FreestandingLints => {
                let toolchain = Toolchain::freestanding(project)?;
                toolchain.require_lints(project)?;
                let mut clippy = toolchain.cargo_freestanding(project, "clippy");
                clippy.args(["--quiet", "--release"]);
                FREESTANDING.iter().for_each(|package| {
                    clippy.args(["-p", package]);
                });
                command::output(clippy.args(["--", "-D", "warnings"]))?;
                // Each backend alone, and all else left out.
                for backend in [Part::AmdV, Part::VtX] {
                    let without: Vec<Part> =
                        Part::value_variants().iter().copied().filter(|part| *part != backend).collect();
                    let mut clippy = toolchain.cargo_freestanding(project, "clippy");
                    clippy
                        .args(["--quiet", "--profile", "small", "-p", PAYLOAD])
                        .args(payload::selection(&without));
                    command::output(clippy.args(["--", "-D", "warnings"]))?;
                }
            }
            Check::Unit(package) => return self.unit_tests(&["-p", package], &[], tally).map(Done::Counted),
            Check::PayloadSize => {
                let rom = run::example_rom(project, "qemu-q35")?;
                check_payload_size(&rom, PAYLOAD_LIMIT)?;
            }
            Check::SmallPayloadSize => {
                let rom = project.build("tests/small-payload")?.join("example.rom");
                let without = LEFT_OUT_OF_SMALL.to_vec();
                Recipe { without, ..Recipe::example("qemu-q35") }.refresh(project, &rom)?;
                check_payload_size(&rom, SMALL_PAYLOAD_LIMIT)?;
            }
            Check::Flash => self.flash()?,
            Check::Fuzz(target) => self.fuzz(target)?,
        }
        Ok(Done::One)
    }

    /// Runs unit, property and documentation tests; gives how many passed, and counts them.
    fn unit_tests(&self, packages: &[&str], filters: &[String], tally: &mut Tally) -> Result<u32> {
        let mut cargo = self.host.cargo(&self.project, "test");
        cargo.args(["--no-fail-fast"]).args(packages).arg("--").args(filters);
        let result = command::output(&mut cargo);
        let said = match &result {
            Ok(out) => String::from_utf8_lossy(out).into_owned(),
            Err(error) => error.to_string(),
        };
        let counts = libtest_tally(&said);
        for line in said.lines() {
            if let Some((name, reason)) = ignored(line) {
                print(&format!("skipped  {name}: {reason}"));
            }
        }
        // A package whose tests fail is one failed step, beside those of its tests that failed.
        tally.add(Tally { failed: counts.failed.saturating_sub(u32::from(result.is_err())), ..counts });
        result.map(|_| counts.passed)
    }

    /// A filter that no step has in its name may be part of a unit test's.
    fn unit_tests_by_name(&self) -> Result<Tally> {
        say("no step has that name; looking among the unit tests");
        let mut tally = Tally::default();
        let start = Instant::now();
        if let Err(error) = self.unit_tests(&[], &self.options.filter, &mut tally) {
            tally.record("unit", start.elapsed(), &Err(error));
        }
        if tally == Tally::default() {
            return Err(Error::setup(format!(
                "nothing has {:?} in its name (see --list).",
                self.options.filter
            )));
        }
        Ok(tally)
    }

    /// Flashing, rehearsed on flashrom's own imitation of a 16 MiB chip.
    fn flash(&self) -> Result<()> {
        let rom = run::example_rom(&self.project, "qemu-q35")?;
        let chip = self.project.build("flash")?.join("chip.bin");
        let content = fs::read(&rom).map_err(|e| Error::file("read", &rom, &e))?;
        fs::write(&chip, vec![0xFF; content.len()]).map_err(|e| Error::file("write", &chip, &e))?;
        let programmer = format!("dummy:emulate=W25Q128FV,image={}", chip.display());
        for action in ["-w", "-v"] {
            command::output(command::command("flashrom").args(["-p", &programmer, action]).arg(&rom))?;
        }
        if fs::read(&chip).map_err(|e| Error::file("read", &chip, &e))? == content {
            Ok(())
        } else {
            Err(Error::failed("the chip does not hold what was written"))
        }
    }

    /// Builds a libFuzzer target with coverage and lets it search for some seconds.
    fn fuzz(&self, target: &str) -> Result<()> {
        // What cargo-fuzz does, less the sanitizer that only a nightly compiler has. Naming the target keeps
        // build scripts and procedural macros from being instrumented.
        const COVERAGE: &str = "--cfg fuzzing -Cdebug-assertions=yes -Coverflow-checks=yes -Ccodegen-units=1 \
            -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
            -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
            -Cllvm-args=-sanitizer-coverage-trace-compares";
        const TARGET: &str = "x86_64-unknown-linux-gnu";
        let dir = self.host.target_dir().join("fuzz");
        let mut cargo = self.host.cargo(&self.project, "build");
        cargo.env("RUSTFLAGS", COVERAGE).env("CARGO_TARGET_DIR", &dir);
        command::output(cargo.args([
            "--profile",
            "fuzz",
            "--target",
            TARGET,
            "-p",
            "fuzz",
            "--bin",
            target,
        ]))?;

        let corpus = self.project.build(&format!("fuzz/{target}/corpus"))?;
        let findings = self.project.build(&format!("fuzz/{target}/findings"))?;
        let mut fuzzer = command::command(&dir.join(TARGET).join("fuzz").join(target).to_string_lossy());
        fuzzer.arg(format!("-max_total_time={}", if self.options.long { 300 } else { 5 }));
        fuzzer.args(["-timeout=10", "-rss_limit_mb=2048", "-verbosity=0", "-print_final_stats=1"]);
        fuzzer.arg(format!("-artifact_prefix={}/", findings.display())).arg(&corpus);
        let seeds = self.project.path(&format!("tests/fuzz/seeds/{target}"));
        if seeds.is_dir() {
            fuzzer.arg(seeds);
        }
        command::output(&mut fuzzer).map(|_| ())
    }

    /// The emulator tests, in a crate of their own; its lines are passed on as they come.
    fn emulator(&self) -> Result<Tally> {
        hint("building the ROM for the emulator tests");
        let start = Instant::now();
        match run::debian_rom(&self.project, "qemu-q35") {
            Ok(_) => {}
            Err(Error::Setup(sentence)) => return Err(Error::Setup(sentence)),
            Err(error) => {
                let mut tally = Tally::default();
                tally.record("emulator", start.elapsed(), &Err(error));
                return Ok(tally);
            }
        }
        let mut cargo = self.host.cargo(&self.project, "test");
        cargo.args(["--quiet", "-p", "tests", "--"]).args(&self.options.filter);
        if self.options.long {
            cargo.arg("--long");
        }
        // Cargo's own words matter only when the tests do not run to their end.
        let words = self.project.build("tests")?.join("stderr");
        let stderr = fs::File::create(&words).map_err(|e| Error::file("make", &words, &e))?;
        let mut child = cargo
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|e| command::cannot_start(&cargo, &e))?;
        let mut tally = None;
        for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines).flatten() {
            match Tally::parse(&line) {
                Some(counts) => tally = Some(counts),
                None => print(&line),
            }
        }
        let status = child.wait().map_err(|e| command::cannot_start(&cargo, &e))?;
        tally.map_or_else(
            || {
                let mut broken = Tally::default();
                let said = fs::read_to_string(&words).unwrap_or_default();
                let error =
                    Error::failed(format!("the emulator tests did not run to their end ({status}):\n{said}"));
                broken.record("emulator", start.elapsed(), &Err(error));
                Ok(broken)
            },
            Ok,
        )
    }

    fn emulator_names(&self) -> Result<Vec<String>> {
        let mut cargo = self.host.cargo(&self.project, "test");
        let list = command::output(cargo.args(["--quiet", "-p", "tests", "--", "--list"]))?;
        Ok(String::from_utf8_lossy(&list).lines().map(str::to_owned).collect())
    }

    fn metadata(&self) -> Result<Value> {
        let mut cargo = self.host.cargo(&self.project, "metadata");
        let json = command::output(cargo.args(["--no-deps", "--format-version", "1"]))?;
        serde_json::from_slice(&json).map_err(|e| Error::failed(format!("cargo metadata: {e}")))
    }
}

/// How a step without fault counts.
enum Done {
    One,
    Counted(u32),
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The packages that are tested on the host: the workspace's default members.
fn host_packages(metadata: &Value) -> Vec<String> {
    let members: Vec<&Value> = list(&metadata["workspace_default_members"]).collect();
    list(&metadata["packages"])
        .filter(|package| members.contains(&&package["id"]))
        .map(|package| text(&package["name"]))
        .collect()
}

/// The programs of a package.
fn binaries(metadata: &Value, package: &str) -> Vec<String> {
    list(&metadata["packages"])
        .filter(|p| p["name"] == package)
        .flat_map(|p| list(&p["targets"]))
        .filter(|target| list(&target["kind"]).any(|kind| kind == "bin"))
        .map(|target| text(&target["name"]))
        .collect()
}

/// The sum of libtest's "test result" lines.
fn libtest_tally(output: &str) -> Tally {
    let mut sum = Tally::default();
    for line in output.lines().filter(|line| line.starts_with("test result:")) {
        let count = |word: &str| {
            let before = line.split_once(word)?.0.trim_end();
            before.rsplit(' ').next()?.parse::<u32>().ok()
        };
        sum.add(Tally {
            passed: count(" passed").unwrap_or(0),
            failed: count(" failed").unwrap_or(0),
            skipped: count(" ignored").unwrap_or(0),
        });
    }
    sum
}

/// The name and the reason in libtest's line about an ignored test.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some((name, rest.strip_prefix(", ").unwrap_or("it gives no reason")))
}

/// Prints the size of the payload in a ROM, which may have so many bytes.
fn check_payload_size(rom: &Path, limit: u64) -> Result<()> {
    let size = Cbfs::open(rom)?.entry("fallback/payload")?.size;
    if size > limit {
        return Err(Error::failed(format!("{size} bytes in CBFS; at most {limit} fit the promise")));
    }
    print(&format!("the payload has {size} bytes in CBFS, of {limit} at most"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_lines_are_summed() {
        let output = "test a ... ok\n\
            test b ... ignored, needs a real machine\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        assert_eq!(libtest_tally(output), Tally { passed: 15, failed: 2, skipped: 1 });
        let skips: Vec<_> = output.lines().filter_map(ignored).collect();
        assert_eq!(skips, [("b", "needs a real machine")]);
    }
}
