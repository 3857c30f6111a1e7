//! An emulated machine without a display, its first serial port in our hands.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use regex::bytes::Regex;
use serde_json::{Value, json};

use crate::bochs;
use crate::error::{Error, Result};
use crate::fault;
use crate::qemu::{self, Monitor};
use crate::serial::{Lines, Serial, Wait, pattern};

/// The program that plays the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Emulator {
    /// QEMU's q35: fast, several cores, AMD-V.
    Qemu,
    /// Bochs's i440FX: slow, VT-x or AMD-V as its CPU model has it.
    Bochs,
}

impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "QEMU",
            Self::Bochs => "Bochs",
        })
    }
}

impl Emulator {
    /// The directory in coreboot-config/boards of the board that it plays.
    #[must_use]
    pub fn board(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-q35",
            Self::Bochs => bochs::BOARD,
        }
    }

    /// The CPU model of its usual machine, one with virtualization.
    #[must_use]
    pub fn cpu(self) -> &'static str {
        match self {
            Self::Qemu => "max",
            Self::Bochs => "corei7_skylake_x",
        }
    }

    /// The cores of its usual machine.
    #[must_use]
    pub fn cores(self) -> u32 {
        match self {
            Self::Qemu => 2,
            Self::Bochs => 1,
        }
    }
}

/// How a guest machine reaches a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk on PCI.
    Virtio,
    /// An NVMe controller.
    Nvme,
    /// The chipset's AHCI controller.
    Ahci,
    /// A PIIX3 IDE controller with the ATA ports.
    Ata,
}

/// A disk: an image that the machine may write to, byte for byte (no image format is looked into).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image's file.
    pub file: PathBuf,
    /// Its controller.
    pub bus: Bus,
    /// Its serial number, where the emulator is not to choose it; not in Bochs.
    pub serial: Option<&'static str>,
}

impl Disk {
    /// In place of a file: Debian on a disk, which `scripts/run` makes and keeps. That is its serial number too.
    pub const DEBIAN: &str = "debian";

    /// This file behind this controller.
    #[must_use]
    pub const fn new(file: PathBuf, bus: Bus) -> Self {
        Self { file, bus, serial: None }
    }

    /// Whether it stands for Debian on a disk: no file of this name is there.
    #[must_use]
    pub fn is_debian(&self) -> bool {
        self.file == Path::new(Self::DEBIAN) && !self.file.is_file()
    }
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut parts = text.split(',');
        let file = PathBuf::from(parts.next().unwrap_or_default());
        let mut bus = Bus::Virtio;
        for part in parts {
            bus = match part {
                "bus=virtio" => Bus::Virtio,
                "bus=nvme" => Bus::Nvme,
                "bus=ahci" => Bus::Ahci,
                "bus=ata" => Bus::Ata,
                _ => return Err(format!("{part:?} is none of bus=virtio, bus=nvme, bus=ahci, bus=ata")),
            };
        }
        let known = file.is_file() || file == Path::new(Self::DEBIAN);
        if known { Ok(Self::new(file, bus)) } else { Err(format!("no file {}", file.display())) }
    }
}

/// What the machine starts from.
#[derive(Debug, Clone)]
pub enum Firmware {
    /// A ROM of ours, or coreboot's.
    Rom(PathBuf),
    /// QEMU's own: SeaBIOS, and a kernel put into its hands. What Peerboot is compared with.
    Bare {
        /// A bzImage.
        kernel: PathBuf,
        /// Its initramfs.
        initramfs: Option<PathBuf>,
        /// Its command line.
        bootargs: String,
    },
    /// QEMU's UEFI, this file, which starts what a disk has for it.
    Uefi(PathBuf),
}

/// A machine to be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What plays it.
    pub emulator: Emulator,
    /// What it starts from.
    pub firmware: Firmware,
    /// The emulator's CPU model; QEMU takes features with it.
    pub cpu: String,
    /// Cores.
    pub smp: u32,
    /// Memory: `2G`, `512M`.
    pub memory: String,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Virtual time counts instructions, one a nanosecond, and jumps over idle time.
    pub icount: bool,
    /// QEMU runs it on KVM, which passes virtualization on to it.
    pub kvm: bool,
    /// More arguments for QEMU, or lines for Bochs's configuration.
    pub extra: Vec<String>,
}

impl Spec {
    /// QEMU's usual machine: two cores with AMD-V, 2 GiB.
    #[must_use]
    pub fn new(firmware: Firmware) -> Self {
        Self::on(Emulator::Qemu, firmware)
    }

    /// An emulator's usual machine, with 2 GiB.
    #[must_use]
    pub fn on(emulator: Emulator, firmware: Firmware) -> Self {
        Self {
            emulator,
            firmware,
            cpu: emulator.cpu().to_owned(),
            smp: emulator.cores(),
            memory: "2G".to_owned(),
            disks: Vec::new(),
            icount: false,
            kvm: false,
            extra: Vec::new(),
        }
    }

    /// Runs the machine with its serial port on this terminal. QEMU comes back only with an error: this process
    /// becomes it. Bochs comes back when the machine ends.
    ///
    /// # Errors
    /// The emulator is missing or refuses the machine.
    pub fn run_on_terminal(&self) -> Result<()> {
        match self.emulator {
            Emulator::Qemu => Err(qemu::become_emulator(self)),
            Emulator::Bochs => bochs::run_on_terminal(self),
        }
    }
}

/// The file, in a machine's directory, of what the emulator says.
pub(crate) const ERRORS: &str = "errors";

/// An emulator that has started.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) process: Child,
    /// What is written here is typed on the serial console.
    pub(crate) keyboard: File,
    /// The serial console's output.
    pub(crate) output: File,
    /// QEMU's; other emulators have none.
    pub(crate) monitor: Option<Monitor>,
}

/// A path as the emulators take it.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A directory for one machine's own files, gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn make() -> Result<Self> {
        let number = MACHINES.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("peerboot-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|e| Error::file("make", &dir, &e))?;
        Ok(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Distinguishes the machines of one process.
static MACHINES: AtomicU32 = AtomicU32::new(0);

/// A machine that runs; it is killed when this is dropped.
#[derive(Debug)]
pub struct Machine {
    process: Child,
    keyboard: File,
    serial: Serial,
    monitor: Option<Monitor>,
    dir: Scratch,
}

impl Machine {
    /// Starts the machine.
    ///
    /// # Errors
    /// The emulator is missing or refuses the machine.
    pub fn spawn(spec: &Spec) -> Result<Self> {
        Self::spawn_echoing(spec, std::io::sink())
    }

    /// Starts the machine, its serial output copied to `echo` as it comes.
    ///
    /// # Errors
    /// The emulator is missing or refuses the machine.
    pub fn spawn_echoing(spec: &Spec, echo: impl Write + Send + 'static) -> Result<Self> {
        let dir = Scratch::make()?;
        let Running { process, keyboard, output, monitor } = match spec.emulator {
            Emulator::Qemu => qemu::start(spec, dir.path())?,
            Emulator::Bochs => bochs::start(spec, dir.path())?,
        };
        Ok(Self { process, keyboard, serial: Serial::collect(output, echo), monitor, dir })
    }

    /// Waits until a serial line matches, and gives it whole. Only a prompt, which a pattern names by ending with a
    /// blank and `$`, is a line that does not end.
    ///
    /// # Errors
    /// Time runs out or the machine ends first: the error carries the end of the transcript.
    pub fn expect(&mut self, regex: &str, timeout: Duration) -> Result<String> {
        let lines = if regex.ends_with(" $") { Lines::Unfinished } else { Lines::Whole };
        self.expect_of(lines, regex, timeout)
    }

    /// Waits until a serial line matches that may never end, and gives what there is of it.
    ///
    /// # Errors
    /// Time runs out or the machine ends first: the error carries the end of the transcript.
    pub fn expect_unfinished(&mut self, regex: &str, timeout: Duration) -> Result<String> {
        self.expect_of(Lines::Unfinished, regex, timeout)
    }

    fn expect_of(&mut self, lines: Lines, regex: &str, timeout: Duration) -> Result<String> {
        /// How often the console is searched for the one fault after which waiting is in vain.
        const LOOK: Duration = Duration::from_secs(10);
        let (wanted, deadline) = (pattern(regex)?, Instant::now() + timeout);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.serial.wait(&wanted, lines, left.min(LOOK)) {
                Wait::Matched(line) => return Ok(line),
                Wait::Closed => return Err(self.unseen(regex, "before the machine ended")),
                Wait::TimedOut if fault::is_in(&self.transcript()) => {
                    return Err(self.unseen(regex, "before the emulator was at fault"));
                }
                Wait::TimedOut if left > LOOK => {}
                Wait::TimedOut => return Err(self.unseen(regex, &format!("in {} s", timeout.as_secs()))),
            }
        }
    }

    /// Waits until the console's whole text, ends of lines or not, holds a match: for programs that draw.
    ///
    /// # Errors
    /// Time runs out or the machine ends first: the error carries the end of the transcript.
    pub fn expect_text(&mut self, regex: &str, timeout: Duration) -> Result<()> {
        let wanted = pattern(regex)?;
        let deadline = Instant::now() + timeout;
        loop {
            let open = self.serial.wait_news(Duration::from_secs(1));
            if wanted.is_match(self.serial.transcript().as_bytes()) {
                return Ok(());
            }
            if !open {
                return Err(self.unseen(regex, "before the machine ended"));
            }
            if Instant::now() > deadline {
                return Err(self.unseen(regex, &format!("in {} s", timeout.as_secs())));
            }
        }
    }

    /// Waits as [`Machine::expect_unfinished`] does, and says how the wait ended.
    pub fn wait_for(&mut self, pattern: &Regex, timeout: Duration) -> Wait {
        self.serial.wait(pattern, Lines::Unfinished, timeout)
    }

    /// Types on the serial console; the emulator hands it on as fast as the machine takes it.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let gone = |e| Error::failed(format!("cannot type {text:?}: {e}"));
        self.keyboard.write_all(text.as_bytes()).and_then(|()| self.keyboard.flush()).map_err(gone)
    }

    /// What QEMU's human monitor answers to a command line, such as `info registers -a`.
    ///
    /// # Errors
    /// The machine is gone, or is not QEMU's.
    pub fn monitor(&mut self, line: &str) -> Result<String> {
        let answer = self.query("human-monitor-command", &json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().replace('\r', ""))
    }

    /// Asks QEMU's machine protocol and gives what it returns.
    ///
    /// # Errors
    /// The machine is gone, QEMU refuses, or it is not QEMU's.
    pub fn query(&mut self, execute: &str, arguments: &Value) -> Result<Value> {
        let monitor = self.monitor.as_mut().ok_or_else(|| Error::failed("only QEMU has a monitor"))?;
        monitor.ask(execute, arguments)
    }

    /// Waits for the machine to end by itself.
    ///
    /// # Errors
    /// It still runs when time is up.
    pub fn wait_exit(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                _ => return Err(self.unseen("the machine's end", &format!("in {} s", timeout.as_secs()))),
            }
        }
    }

    /// Everything on the serial console so far, without terminal control sequences.
    #[must_use]
    pub fn transcript(&self) -> String {
        self.serial.transcript()
    }

    /// The processor time that the emulator has used.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        let path = PathBuf::from(format!("/proc/{}/stat", self.process.id()));
        let stat = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, &e))?;
        // Fields are counted after the name in parentheses: utime and stime are the 14th and 15th of all,
        // in ticks of 10 ms on every x86-64 Linux.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    fn unseen(&self, what: &str, when: &str) -> Error {
        let transcript = self.transcript();
        let lines: Vec<&str> = transcript.lines().collect();
        let last = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n");
        let said = fs::read_to_string(self.dir.path().join(ERRORS)).unwrap_or_default();
        Error::failed(format!("no {what} {when}; the console's last lines:\n{last}\n{said}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        fault::look(&self.transcript());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_option_names_what_is_wrong() {
        let here = file!().replace("scripts/xtask/", "");
        let disk: Disk = format!("{here},bus=nvme").parse().expect("a disk");
        assert_eq!(disk.bus, Bus::Nvme);
        assert!(format!("{here},bus=scsi").parse::<Disk>().unwrap_err().contains("bus=scsi"));
        assert!("/no/such.img".parse::<Disk>().unwrap_err().contains("/no/such.img"));
    }
}
