//! An emulated machine: QEMU's q35 without a display, its first serial port in our hands.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use regex::bytes::Regex;
use serde_json::{Value, json};

use crate::command;
use crate::error::{Error, Result};
use crate::packages;
use crate::serial::{Serial, Wait, pattern};

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
        if file.is_file() { Ok(Self { file, bus }) } else { Err(format!("no file {}", file.display())) }
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
}

/// A machine to be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What it starts from.
    pub firmware: Firmware,
    /// QEMU's CPU model with features.
    pub cpu: String,
    /// Cores.
    pub smp: u32,
    /// Memory as QEMU takes it: `2G`, `512M`.
    pub memory: String,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Virtual time counts instructions, one a nanosecond, and jumps over idle time.
    pub icount: bool,
    /// More arguments for QEMU.
    pub extra: Vec<String>,
}

impl Spec {
    /// The usual machine: two cores with AMD-V, 2 GiB.
    #[must_use]
    pub fn new(firmware: Firmware) -> Self {
        Self {
            firmware,
            cpu: "max".to_owned(),
            smp: 2,
            memory: "2G".to_owned(),
            disks: Vec::new(),
            icount: false,
            extra: Vec::new(),
        }
    }

    /// Arguments for QEMU, all but those of the serial port and the monitor.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut add = |line: &[&str]| words.extend(line.iter().map(|word| (*word).to_owned()));
        add(&["-nodefaults", "-display", "none", "-machine", "q35", "-cpu", &self.cpu, "-m", &self.memory]);
        add(&["-smp", &self.smp.to_string()]);
        if self.icount {
            add(&["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
        } else {
            add(&["-accel", "tcg"]);
        }
        match &self.firmware {
            Firmware::Rom(rom) => add(&["-bios", &text(rom)]),
            Firmware::Bare { kernel, initramfs, bootargs } => {
                add(&["-kernel", &text(kernel), "-append", bootargs]);
                if let Some(initramfs) = initramfs {
                    add(&["-initrd", &text(initramfs)]);
                }
            }
        }
        if self.disks.iter().any(|disk| disk.bus == Bus::Ata) {
            add(&["-device", "piix3-ide,id=ata"]);
        }
        let mut port = (0, 0);
        for (number, disk) in self.disks.iter().enumerate() {
            // A comma in a file name is doubled for QEMU.
            let file = text(&disk.file).replace(',', ",,");
            add(&["-drive", &format!("if=none,id=disk{number},format=raw,file={file}")]);
            let device = match disk.bus {
                Bus::Virtio => format!("virtio-blk-pci,drive=disk{number}"),
                Bus::Nvme => format!("nvme,serial=peerboot-{number},drive=disk{number}"),
                Bus::Ahci => {
                    port.0 += 1;
                    format!("ide-hd,bus=ide.{},drive=disk{number}", port.0 - 1)
                }
                Bus::Ata => {
                    port.1 += 1;
                    let place = port.1 - 1;
                    format!("ide-hd,bus=ata.{},unit={},drive=disk{number}", place / 2, place % 2)
                }
            };
            add(&["-device", &device]);
        }
        words.extend(self.extra.iter().cloned());
        words
    }

    /// Becomes QEMU, with the serial port and QEMU's monitor on this terminal; comes back only with an error.
    #[must_use]
    pub fn become_emulator(&self) -> Error {
        let mut qemu = command::command(packages::QEMU.program);
        qemu.args(self.arguments()).args(["-serial", "mon:stdio"]);
        let error = qemu.exec();
        command::cannot_start(&qemu, &error)
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Distinguishes the machines of one process.
static MACHINES: AtomicU32 = AtomicU32::new(0);

/// A machine that runs; it is killed when this is dropped.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    keyboard: ChildStdin,
    serial: Serial,
    monitor: Monitor,
    dir: PathBuf,
}

impl Machine {
    /// Starts the machine.
    ///
    /// # Errors
    /// QEMU is missing or refuses its arguments.
    pub fn spawn(spec: &Spec) -> Result<Self> {
        Self::spawn_echoing(spec, std::io::sink())
    }

    /// Starts the machine, its serial output copied to `echo` as it comes.
    ///
    /// # Errors
    /// QEMU is missing or refuses its arguments.
    pub fn spawn_echoing(spec: &Spec, echo: impl Write + Send + 'static) -> Result<Self> {
        packages::require(&[packages::QEMU])?;
        let number = MACHINES.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("peerboot-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|e| Error::file("make", &dir, &e))?;
        let (socket, words) = (dir.join("monitor"), dir.join("errors"));
        let errors = fs::File::create(&words).map_err(|e| Error::file("make", &words, &e))?;

        // setpriv: should this process be killed outright, the machine must not outlive it.
        let mut starter = command::command("setpriv");
        starter.args(["--pdeathsig", "KILL"]).arg(emulator());
        starter.args(spec.arguments()).args(["-serial", "stdio"]);
        starter.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        let mut qemu = starter
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(|e| command::cannot_start(&starter, &e))?;
        let (Some(keyboard), Some(output)) = (qemu.stdin.take(), qemu.stdout.take()) else {
            return Err(Error::failed("QEMU's pipes are gone."));
        };
        let serial = Serial::collect(output, echo);
        match Monitor::connect(&socket, &mut qemu) {
            Ok(monitor) => Ok(Self { qemu, keyboard, serial, monitor, dir }),
            Err(_) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                let said = fs::read_to_string(&words).unwrap_or_default();
                let _ = fs::remove_dir_all(&dir);
                Err(Error::setup(format!("QEMU does not start: {}", said.trim_end())))
            }
        }
    }

    /// Waits until a serial line matches, whole or unfinished like a prompt, and gives it.
    ///
    /// # Errors
    /// Time runs out or the machine ends first: the error carries the end of the transcript.
    pub fn expect(&mut self, regex: &str, timeout: Duration) -> Result<String> {
        match self.wait_for(&pattern(regex)?, timeout) {
            Wait::Matched(line) => Ok(line),
            Wait::TimedOut => Err(self.unseen(regex, &format!("in {} s", timeout.as_secs()))),
            Wait::Closed => Err(self.unseen(regex, "before the machine ended")),
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

    /// Waits as [`Machine::expect`] does, and says how the wait ended.
    pub fn wait_for(&mut self, pattern: &Regex, timeout: Duration) -> Wait {
        self.serial.wait(pattern, timeout)
    }

    /// Types on the serial console; QEMU hands it on as fast as the machine takes it.
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
    /// The machine is gone.
    pub fn monitor(&mut self, line: &str) -> Result<String> {
        let answer = self.monitor.ask("human-monitor-command", &json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().replace('\r', ""))
    }

    /// Asks QEMU's machine protocol and gives what it returns.
    ///
    /// # Errors
    /// The machine is gone, or QEMU refuses.
    pub fn query(&mut self, execute: &str, arguments: &Value) -> Result<Value> {
        self.monitor.ask(execute, arguments)
    }

    /// Waits for the machine to end by itself.
    ///
    /// # Errors
    /// It still runs when time is up.
    pub fn wait_exit(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.qemu.try_wait() {
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

    /// The processor time that QEMU has used.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        let path = PathBuf::from(format!("/proc/{}/stat", self.qemu.id()));
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
        let said = fs::read_to_string(self.dir.join("errors")).unwrap_or_default();
        Error::failed(format!("no {what} {when}; the console's last lines:\n{last}\n{said}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn emulator() -> PathBuf {
    command::find(packages::QEMU.program).unwrap_or_else(|| PathBuf::from(packages::QEMU.program))
}

/// QEMU's machine protocol over its socket.
#[derive(Debug)]
struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Monitor {
    /// Connects once QEMU listens.
    fn connect(socket: &Path, qemu: &mut Child) -> Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > deadline => return Err(Error::file("connect to", socket, &e)),
                Err(_) if matches!(qemu.try_wait(), Ok(None)) => thread::sleep(Duration::from_millis(5)),
                Err(e) => return Err(Error::file("connect to", socket, &e)),
            }
        };
        let broken = |e| Error::file("talk to", socket, &e);
        stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(broken)?;
        let writer = stream.try_clone().map_err(broken)?;
        let mut monitor = Self { reader: BufReader::new(stream), writer };
        monitor.read()?;
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn ask(&mut self, execute: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": execute, "arguments": arguments }).to_string();
        writeln!(self.writer, "{line}").map_err(|e| Error::failed(format!("QEMU's monitor is gone: {e}")))?;
        loop {
            let answer = self.read()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                return Err(Error::failed(format!("QEMU refuses {execute}: {error}")));
            }
            // Anything else is an event that nobody asked for.
        }
    }

    fn read(&mut self) -> Result<Value> {
        let gone = |e: &dyn std::fmt::Display| Error::failed(format!("QEMU's monitor is gone: {e}"));
        let mut line = String::new();
        self.reader.read_line(&mut line).map_err(|e| gone(&e))?;
        serde_json::from_str(&line).map_err(|e| gone(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec::new(Firmware::Rom(PathBuf::from("peerboot.rom")))
    }

    #[test]
    fn disks_find_their_controllers() {
        let mut spec = spec();
        for bus in [Bus::Virtio, Bus::Ata, Bus::Ahci, Bus::Ata, Bus::Ata, Bus::Nvme, Bus::Ahci] {
            spec.disks.push(Disk { file: PathBuf::from("a,b.img"), bus });
        }
        let line = spec.arguments().join(" ");
        for part in [
            "-drive if=none,id=disk0,format=raw,file=a,,b.img -device virtio-blk-pci,drive=disk0",
            "ide-hd,bus=ata.0,unit=0,drive=disk1",
            "ide-hd,bus=ide.0,drive=disk2",
            "ide-hd,bus=ata.0,unit=1,drive=disk3",
            "ide-hd,bus=ata.1,unit=0,drive=disk4",
            "nvme,serial=peerboot-5,drive=disk5",
            "ide-hd,bus=ide.1,drive=disk6",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert_eq!(line.matches("piix3-ide").count(), 1);
    }

    #[test]
    fn a_disk_option_names_what_is_wrong() {
        let here = file!().replace("scripts/xtask/", "");
        let disk: Disk = format!("{here},bus=nvme").parse().expect("a disk");
        assert_eq!(disk.bus, Bus::Nvme);
        assert!(format!("{here},bus=scsi").parse::<Disk>().unwrap_err().contains("bus=scsi"));
        assert!("/no/such.img".parse::<Disk>().unwrap_err().contains("/no/such.img"));
    }
}
