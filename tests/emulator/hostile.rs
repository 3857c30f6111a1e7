//! Guests that attack, beside one that must not notice.
//!
//! One boot runs all attacks, in waves: each is started at the prompt, ends as it is to end or is stopped, and
//! meanwhile and afterwards the witness's beats go on. At the end the witness is asked what it noticed.

use std::fs::File;
use std::time::{Duration, Instant, SystemTime};

use regex::Regex;
use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Emulator, Machine, Spec};
use xtask::serial::{Wait, pattern};
use xtask::suite::{self, Case, Outcome};

use crate::console::{ANSWER, PROMPT};
use crate::lab::Lab;
use crate::manifest::{Guest, good, manifest};

/// Wall time for a wave of attacks.
const WAVE: Duration = Duration::from_secs(300);
/// Wall time for a beat of the witness.
const BEAT: Duration = Duration::from_secs(120);
/// How many beats must come while an attack without an end goes on, and after each wave.
const BEATS: u64 = 3;
/// How many lines of the log one life may cause, its own `begins` and end included.
const LINES: usize = 12;
/// How many lives a guest may have in a wave that resets without end: the pauses between them double.
const RESET_LIVES: usize = 20;
/// How many accesses to what is not there the log is told of.
const UNKNOWN_LINES: usize = 24;

/// How many seeds run in one boot, and how many of them at once.
const SEEDS: u64 = 16;
const SEEDS_AT_ONCE: usize = 4;
/// In how many boots the streams run that every run of the tests has.
const BOOTS: u64 = 2;
/// Wall time after which a guest that runs streams is stopped.
const LIFE: Duration = Duration::from_secs(20);
/// How long a campaign lasts unless the user says otherwise, in minutes.
const CAMPAIGN: u64 = 120;

/// What the witness's kernel says when a timer came late, as it does when the emulator itself waits for a CPU.
const LATE_TIMER: [&str; 2] = ["Long readout interval, skipping watchdog check", "hrtimer: interrupt took"];

/// How an attack ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// The guest comes to an end in these words of the monitor's, a regular expression.
    Says(&'static str),
    /// It goes on until it is stopped.
    Never,
    /// However it wants, or it is stopped after a while.
    Any,
}

/// A case of tests/guests/hostile, by its name.
#[derive(Debug, Clone, Copy)]
struct Attack {
    name: &'static str,
    ending: Ending,
    /// Properties of its node, in source.
    properties: &'static str,
}

/// What a node says unless the attack needs more.
const STAYS_OFF: &str = "on-reboot = \"stop\";";

const fn says(name: &'static str, words: &'static str) -> Attack {
    Attack { name, ending: Ending::Says(words), properties: STAYS_OFF }
}

const fn survives(name: &'static str) -> Attack {
    says(name, "PASS hostile")
}

const fn never(name: &'static str) -> Attack {
    Attack { name, ending: Ending::Never, properties: STAYS_OFF }
}

/// The monitor says this when an event's delivery cannot reach memory.
const OFF_MEMORY: &str = "crashed: an event was to be delivered through memory that is not there";

/// Attacks that run at once, wave after wave.
const WAVES: &[&[Attack]] = &[
    &[
        says("triple-fault", "crashed: triple fault"),
        says("jump-nowhere", OFF_MEMORY),
        survives("bad-states"),
        Attack { properties: "on-reboot = \"restart\";", ..never("resets") },
        never("halt-forever"),
    ],
    &[
        never("spin-ring-0"),
        never("spin-ring-1"),
        never("spin-ring-2"),
        never("spin-ring-3"),
        never("spin-real"),
        never("spin-v86"),
        never("spin-exceptions"),
    ],
    &[
        says("tables-loop", "PASS hostile|crashed: triple fault"),
        says("tables-nowhere", "crashed: "),
        says("tables-device", "crashed: "),
    ],
    &[
        says("tables-pae", "crashed: "),
        survives("device-code"),
        says("sweep-control", "PASS hostile|crashed: VMEXIT_INVALID"),
    ],
    &[survives("sweep-msrs"), survives("sweep-memory"), survives(SWEEP_PORTS)],
    &[never("flood-ports"), never("flood-strings"), never("flood-device-memory"), never("flood-console")],
    &[never("flood-msrs"), never("flood-cpuid"), never("flood-traps"), never("flood-control")],
    &[
        Attack { properties: "on-reboot = \"stop\"; cpus = <2>;", ..never("flood-ipis") },
        never("flood-nmis"),
        never("flood-timers"),
        never("flood-unknown"),
    ],
];

/// The one that takes Bochs many minutes: six hundred thousand accesses.
const SWEEP_PORTS: &str = "sweep-ports";
/// What every run has of it there: the ports from one on, before another, each so-many-th. The chipset's devices are
/// among the first.
const SOME_PORTS: [[u32; 3]; 2] = [[0, 0x1000, 1], [0x1000, 0x1_0000, 61]];
/// In how many pieces it runs there as a whole, one after the other.
const PORT_PIECES: u32 = 16;

/// Who must not notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Witness {
    /// Debian's kernel, with a loop of programs in its shell.
    Linux,
    /// `steady` of tests/guests/hostile.
    Steady,
}

/// The tests.
pub fn cases() -> Vec<Case<Lab>> {
    vec![
        Case::new("emulator/hostile/max", |lab: &Lab| attacks(lab, Emulator::Qemu)),
        Case::new("emulator/hostile/streams", |lab: &Lab| streams(lab, Emulator::Qemu)),
        Case::new("emulator/hostile/bochs", |lab: &Lab| attacks(lab, Emulator::Bochs)),
        Case::new("emulator/hostile/ports-bochs", all_ports).long(),
        Case::new("emulator/hostile/streams-bochs", |lab: &Lab| streams(lab, Emulator::Bochs)).long(),
        Case::new("emulator/hostile/campaign", |lab: &Lab| campaign(lab, Emulator::Qemu)).long(),
        Case::new("emulator/hostile/campaign-bochs", |lab: &Lab| campaign(lab, Emulator::Bochs)).long(),
    ]
}

fn attacks(lab: &Lab, emulator: Emulator) -> Result<Outcome> {
    let attackers = |attack: &Attack| match (emulator, attack.name) {
        (Emulator::Bochs, SWEEP_PORTS) => SOME_PORTS.into_iter().map(Attacker::ports).collect(),
        _ => vec![Attacker::new(attack)],
    };
    let waves: Vec<Vec<Attacker>> =
        WAVES.iter().map(|wave| wave.iter().flat_map(attackers).collect()).collect();
    let label = format!("hostile-{emulator}").to_lowercase();
    let mut scene = Scene::begin(lab, &label, emulator, &waves.concat())?;
    waves.iter().try_for_each(|wave| scene.run_wave(wave))?;
    scene.check_unknown()?;
    scene.end()
}

/// Every port on VT-x.
fn all_ports(lab: &Lab) -> Result<Outcome> {
    let piece = 0x1_0000 / PORT_PIECES;
    let firsts = (0..PORT_PIECES).map(|number| number * piece);
    let attackers: Vec<Attacker> = firsts.map(|first| Attacker::ports([first, first + piece, 1])).collect();
    let mut scene = Scene::begin(lab, "hostile-ports-bochs", Emulator::Bochs, &attackers)?;
    attackers.chunks(1).try_for_each(|wave| scene.run_wave(wave))?;
    scene.end()
}

/// Random instructions: those of some minutes, or under the seeds from `HOSTILE_SEED` on.
fn streams(lab: &Lab, emulator: Emulator) -> Result<Outcome> {
    let firsts = match number("HOSTILE_SEED")? {
        Some(first) => vec![first],
        None => (0..BOOTS).map(|boot| 1 + boot * SEEDS).collect(),
    };
    firsts.into_iter().try_for_each(|first| seeds(lab, "streams", emulator, first))?;
    Ok(Outcome::Passed)
}

/// The same with ever new seeds, for `HOSTILE_MINUTES` minutes.
fn campaign(lab: &Lab, emulator: Emulator) -> Result<Outcome> {
    let time = Duration::from_secs(number("HOSTILE_MINUTES")?.unwrap_or(CAMPAIGN) * 60);
    let start = Instant::now();
    let mut seed = match number("HOSTILE_SEED")? {
        Some(seed) => seed,
        None => SystemTime::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_secs()),
    };
    while start.elapsed() < time {
        suite::print(&format!("         seeds from {seed} on"));
        seeds(lab, "campaign", emulator, seed)?;
        seed += SEEDS;
    }
    Ok(Outcome::Passed)
}

/// One boot in which the streams of [`SEEDS`] seeds run, some at once.
fn seeds(lab: &Lab, kind: &str, emulator: Emulator, first: u64) -> Result<()> {
    let attackers: Vec<Attacker> = (first..first + SEEDS).map(Attacker::streams).collect();
    let label = format!("hostile-{kind}-{emulator}").to_lowercase();
    let run = || {
        let mut scene = Scene::begin(lab, &label, emulator, &attackers)?;
        attackers.chunks(SEEDS_AT_ONCE).try_for_each(|wave| scene.run_wave(wave))?;
        scene.end()
    };
    run().map(drop).map_err(|error| {
        let test = if emulator == Emulator::Bochs {
            "--long emulator/hostile/streams-bochs"
        } else {
            "emulator/hostile/streams"
        };
        Error::failed(format!("{error}\nto repeat: HOSTILE_SEED={first} scripts/test {test}"))
    })
}

fn number(variable: &str) -> Result<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::setup(format!("{variable} is {text:?}, which is no number"))),
        },
        Err(_) => Ok(None),
    }
}

/// A guest that attacks.
#[derive(Debug, Clone)]
struct Attacker {
    name: String,
    bootargs: String,
    properties: &'static str,
    ending: Ending,
}

impl Attacker {
    fn new(attack: &Attack) -> Self {
        Self {
            name: attack.name.to_owned(),
            bootargs: attack.name.to_owned(),
            properties: attack.properties,
            ending: attack.ending,
        }
    }

    /// A part of [`SWEEP_PORTS`].
    fn ports([first, end, step]: [u32; 3]) -> Self {
        Self {
            name: format!("ports-{first:x}"),
            bootargs: format!("{SWEEP_PORTS} {first} {end} {step}"),
            ..Self::new(&survives(SWEEP_PORTS))
        }
    }

    fn streams(seed: u64) -> Self {
        Self {
            name: format!("streams-{seed}"),
            bootargs: format!("streams {seed}"),
            properties: STAYS_OFF,
            ending: Ending::Any,
        }
    }
}

/// A machine with a witness and guests that attack.
struct Scene {
    machine: Machine,
    witness: Witness,
    /// What the witness's kernel had to complain about before anybody attacked.
    complaints: Vec<String>,
    start: Instant,
}

impl Scene {
    /// Boots a machine with these hostile guests, by name and command line, until its witness's heart beats.
    fn begin(lab: &Lab, label: &str, emulator: Emulator, attackers: &[Attacker]) -> Result<Self> {
        let witness = Witness::in_emulator(emulator);
        let watcher = match witness {
            Witness::Linux => Guest { node: "witness", ..good() },
            Witness::Steady => Guest::tiny("witness", "cbfs:guests/steady"),
        };
        let attackers = attackers.iter().map(|attacker| Guest {
            bootargs: &attacker.bootargs,
            autostart: false,
            properties: attacker.properties,
            ..Guest::tiny(&attacker.name, "cbfs:guests/hostile")
        });
        let manifest = manifest(&[watcher].into_iter().chain(attackers).collect::<Vec<_>>());
        let variant = match witness {
            Witness::Linux => {
                let variant = lab.variant(emulator, label)?;
                variant.manifest(&manifest)?;
                variant
            }
            Witness::Steady => lab.unfilled(emulator, label, &manifest)?,
        };
        for (name, file) in guests::hostile(lab.project())? {
            variant.cbfs.add_compressed(&format!("guests/{name}"), &file, "lzma")?;
        }
        let memory = if witness == Witness::Linux { "2G" } else { "512M" }.to_owned();
        let console = variant.write("console.log", b"")?;
        let log = File::create(&console).map_err(|e| Error::file("write", &console, &e))?;
        let machine = Machine::spawn_echoing(&Spec { memory, ..variant.spec() }, log)?;
        let mut scene = Self { machine, witness, complaints: Vec::new(), start: Instant::now() };
        if witness == Witness::Linux {
            crate::console::wait_for_shell(&mut scene.machine)?;
            scene.complaints = scene.dmesg()?;
            scene.machine.send(HEARTBEAT)?;
        }
        scene.wait_beats(BEATS)?;
        scene.start = Instant::now();
        Ok(scene)
    }

    fn run_wave(&mut self, wave: &[Attacker]) -> Result<()> {
        for attacker in wave {
            self.manage(&format!("start {}", attacker.name))?;
            self.expect_of(&attacker.name, "starts")?;
        }
        for attacker in wave {
            let case = attacker.bootargs.split(' ').next().unwrap_or_default();
            self.expect_of(&attacker.name, &format!("{case} begins"))?;
        }
        for attacker in wave {
            if let Ending::Says(words) = attacker.ending {
                self.expect_end(&attacker.name, words)?;
            }
        }
        if wave.iter().any(|attacker| matches!(attacker.ending, Ending::Never)) {
            self.wait_beats(BEATS)?;
        }
        let deadline = Instant::now() + LIFE;
        for attacker in wave {
            let name = &attacker.name;
            let goes_on = match attacker.ending {
                Ending::Says(_) => false,
                Ending::Never if attacker.properties.contains("restart") => true,
                Ending::Never if self.has_ended(name)? => {
                    return Err(Error::failed(format!("{name} came to an end:\n{}", self.said(name))));
                }
                Ending::Never => true,
                Ending::Any => !self.ends_by(name, deadline)?,
            };
            if goes_on {
                self.manage(&format!("stop {name} 0"))?;
                self.expect_of(name, "stopped$")?;
            }
        }
        self.wait_beats(BEATS)?;
        wave.iter().try_for_each(|attacker| self.check_log(attacker))
    }

    /// Whether a guest comes to its end by itself in time.
    fn ends_by(&mut self, name: &str, deadline: Instant) -> Result<bool> {
        let line = regex(&format!(r"(?m)\] {name}: exits: "))?;
        let left = deadline.saturating_duration_since(Instant::now());
        Ok(self.until("end", left, |text| line.is_match(text)).is_ok())
    }

    /// Types a line at the management prompt, and goes back to the witness.
    fn manage(&mut self, line: &str) -> Result<()> {
        self.machine.send(&format!("\x1dm{line}\rexit\r"))
    }

    /// Waits until the log has said this about a guest, be it long ago.
    fn expect_of(&mut self, name: &str, words: &str) -> Result<()> {
        let line = regex(&format!(r"(?m)\] {name}: .*({words})"))?;
        self.until(&format!("{words:?} of {name}"), WAVE, |text| line.is_match(text))
    }

    /// Waits until a guest has come to its end, which is to be in these words.
    fn expect_end(&mut self, name: &str, words: &str) -> Result<()> {
        self.expect_of(name, "exits: ")?;
        let (line, transcript) = (regex(&format!(r"(?m)\] {name}: .*({words})"))?, self.machine.transcript());
        if line.is_match(&transcript) {
            return Ok(());
        }
        Err(Error::failed(format!("no {words:?} of {name}; the log's lines:\n{}", self.said(name))))
    }

    /// The log's lines about a guest.
    fn said(&self, name: &str) -> String {
        let (own, transcript) = (format!("] {name}: "), self.machine.transcript());
        let said: Vec<&str> = transcript.lines().filter(|line| line.contains(&own)).collect();
        said.join("\n")
    }

    fn has_ended(&self, name: &str) -> Result<bool> {
        Ok(regex(&format!(r"(?m)\] {name}: exits: "))?.is_match(&self.machine.transcript()))
    }

    /// Waits for that many further beats.
    fn wait_beats(&mut self, count: u64) -> Result<()> {
        let witness = self.witness;
        let last = |text: &str| witness.beats(text).ok()?.last().map(|beat| beat.number);
        let wanted = last(&self.machine.transcript()).unwrap_or(0) + count;
        self.until("beat of the witness", BEAT, |text| last(text).is_some_and(|last| last >= wanted))
    }

    fn until(&mut self, what: &str, patience: Duration, holds: impl Fn(&str) -> bool) -> Result<()> {
        let (deadline, any) = (Instant::now() + patience, pattern("")?);
        loop {
            let transcript = self.machine.transcript();
            if holds(&transcript) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.machine.wait_for(&any, left.min(Duration::from_secs(1))) == Wait::Closed
            {
                let lines: Vec<&str> = transcript.lines().collect();
                let last = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n");
                return Err(Error::failed(format!("no {what}; the console's last lines:\n{last}")));
            }
        }
    }

    /// One attack gives few lines, whatever it did.
    fn check_log(&self, attacker: &Attacker) -> Result<()> {
        let count = self.said(&attacker.name).lines().count();
        let restarts = attacker.properties.contains("restart");
        let most = LINES * if restarts { RESET_LIVES } else { 1 };
        if count <= most {
            Ok(())
        } else {
            Err(Error::failed(format!("{} caused {count} lines, at most {most} are good", attacker.name)))
        }
    }

    /// Of what a guest touched that is not there, the log was told a part and how much was left out.
    fn check_unknown(&mut self) -> Result<()> {
        const GUEST: &str = "flood-unknown";
        let line = regex(&format!(r"(?m)\] {GUEST}: (read|wrote|unknown) "))?;
        self.manage("log")?;
        self.expect_of(GUEST, r"\d{3,} accesses to what is not there were not logged")?;
        let count = line.find_iter(&self.machine.transcript()).count();
        if (1..=UNKNOWN_LINES).contains(&count) {
            Ok(())
        } else {
            Err(Error::failed(format!("{GUEST} has {count} lines in the log")))
        }
    }

    /// Holds everything that was seen against what the witness should have noticed: nothing.
    fn end(mut self) -> Result<Outcome> {
        let beats = self.witness.beats(&self.machine.transcript())?;
        check_beats(&beats, self.witness, self.start.elapsed())?;
        let transcript = self.machine.transcript();
        if let Some(line) =
            transcript.lines().find(|line| line.contains("] error: ") || line.contains("panic"))
        {
            return Err(Error::failed(format!("the monitor says: {line}")));
        }
        if self.witness == Witness::Linux {
            self.machine.send("kill $!\n")?;
            self.machine.expect(PROMPT, ANSWER)?;
            let now = self.dmesg()?;
            let late = |line: &str| LATE_TIMER.iter().any(|words| line.contains(words));
            let news = now.iter().skip(self.complaints.len()).filter(|line| !late(line));
            let news: Vec<&str> = news.map(String::as_str).collect();
            if !news.is_empty() {
                return Err(Error::failed(format!("the witness's kernel noticed:\n{}", news.join("\n"))));
            }
        }
        Ok(Outcome::Passed)
    }

    /// What the witness's kernel complains about.
    fn dmesg(&mut self) -> Result<Vec<String>> {
        crate::quiet::complaints_of(&mut self.machine)
    }
}

/// The loop that is the witness's work, typed at its shell: each beat has the time before and after all else that it
/// reads. The last word tells a whole line from one that another view of the console cut short. What the kernel says stays
/// in its log, and out of the beats' lines.
const HEARTBEAT: &str = "dmesg -n 1; dd if=/dev/urandom of=/root/work bs=64k count=8 2>/dev/null; (n=0; while :; do n=$((n+1)); \
    read up rest < /proc/uptime; sum=$(sha256sum < /root/work | cut -c1-16); \
    rtc=$(cat /sys/class/rtc/rtc0/since_epoch); tsc=$(tsc); read by rest < /proc/uptime; \
    echo \"beat $n sum $sum at $up rtc $rtc tsc $tsc by $by end\"; usleep 200000; done) &\n";

/// One beat of the witness.
#[derive(Debug, PartialEq)]
struct Beat {
    number: u64,
    sum: String,
    /// Seconds by its own clock.
    time: f64,
    /// Seconds by its real-time clock.
    rtc: f64,
    /// Its time-stamp counter.
    tsc: f64,
    /// Seconds by its own clock when it had read all that.
    by: f64,
}

impl Witness {
    /// Linux would take minutes in Bochs.
    fn in_emulator(emulator: Emulator) -> Self {
        if emulator == Emulator::Bochs { Self::Steady } else { Self::Linux }
    }

    fn beat(self) -> Result<Regex> {
        regex(match self {
            Self::Linux => {
                r"(?m)beat (?<number>\d+) sum (?<sum>[0-9a-f]{16}) at (?<time>[\d.]+) rtc (?<rtc>\d+) tsc (?<tsc>\d+) by (?<by>[\d.]+) end"
            }
            // It compares its clocks itself.
            Self::Steady => {
                r"(?m)\] witness: beat (?<number>\d+) sum (?<sum>0x[0-9a-f]+) after (?<time>\d+) ms$"
            }
        })
    }

    /// The beats on a console, once each: what was seen is shown again when the witness comes to the foreground.
    fn beats(self, console: &str) -> Result<Vec<Beat>> {
        let mut beats: Vec<Beat> = Vec::new();
        for found in self.beat()?.captures_iter(console) {
            let number = |name: &str| found.name(name).and_then(|text| text.as_str().parse().ok());
            let beat = Beat {
                number: number("number").unwrap_or_default() as u64,
                sum: found.name("sum").map_or_else(String::new, |sum| sum.as_str().to_owned()),
                time: number("time").unwrap_or_default(),
                rtc: number("rtc").unwrap_or_default(),
                tsc: number("tsc").unwrap_or_default(),
                by: number("by").unwrap_or_default(),
            };
            match beats.iter().find(|known| known.number == beat.number) {
                Some(known) if *known == beat => {}
                Some(known) => return Err(Error::failed(format!("one beat twice: {known:?} and {beat:?}"))),
                None => beats.push(beat),
            }
        }
        Ok(beats)
    }
}

/// Beats come one after another, each with the same sum, by clocks that agree with one another and with ours.
fn check_beats(beats: &[Beat], witness: Witness, outside: Duration) -> Result<()> {
    /// Seconds that clocks may be apart.
    const APART: f64 = 5.0;
    /// Seconds between two beats.
    const GAP: f64 = BEAT.as_secs_f64();
    let fail = |what: &str, beat: &Beat| Err(Error::failed(format!("{what}: {beat:?}")));
    let (Some(first), Some(last)) = (beats.first(), beats.last()) else {
        return Err(Error::failed("no beats"));
    };
    for pair in beats.windows(2) {
        let [before, beat] = pair else { continue };
        if beat.number != before.number + 1 {
            return fail("a beat is missing before", beat);
        }
        if beat.sum != first.sum {
            return fail("another sum", beat);
        }
        if beat.time <= before.time || witness == Witness::Linux && beat.time - before.time > GAP {
            return fail(&format!("its clock said {} before", before.time), beat);
        }
    }
    if witness == Witness::Steady {
        return Ok(());
    }
    let rate = (last.tsc - first.tsc) / (last.time - first.time);
    // Programs that read one after the other may do so far apart on a busy machine, those of the first and the last
    // beat, which all are held against, too.
    let apart = APART + (first.by - first.time) + (last.by - last.time);
    for beat in beats {
        let (time, by, rtc) = (beat.time - first.time, beat.by - first.time, beat.rtc - first.rtc);
        let tsc = (beat.tsc - first.tsc) / rate;
        let agrees = |clock: f64| clock >= time - apart && clock <= by + apart;
        if !agrees(tsc) || !agrees(rtc) {
            return fail(
                &format!("from {time:.1} to {by:.1} s it is {rtc} s by RTC and {tsc:.1} s by TSC"),
                beat,
            );
        }
    }
    let inside = last.time - first.time;
    if inside < outside.as_secs_f64() - APART - GAP {
        return fail(&format!("{} s passed outside, {inside} s inside", outside.as_secs()), last);
    }
    Ok(())
}

fn regex(text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|e| Error::failed(e.to_string()))
}
