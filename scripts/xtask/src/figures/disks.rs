//! What requests to disks cost: in instructions, the guest's own included, and in exits; by bus, by image format, and
//! where two guests want the same disk.
//!
//! The program of tests/guests/requests asks under Linux, on bare QEMU and under Peerboot. Beside it a process counts
//! that wants the CPU only when nobody else does, so that the CPU never sleeps and QEMU's clock counts nothing but
//! instructions. QEMU's disks take the time of the machine at hand, which is why what passes between two requests is no
//! figure here.

use std::fs;
use std::path::{Path, PathBuf};

use super::{PATIENCE, compile, number, numbers};
use crate::command;
use crate::error::{Error, Result};
use crate::guests;
use crate::machine::{Bus, Disk, Emulator, Firmware, Machine, Spec};
use crate::manifest::{Guest, manifest};
use crate::packages;
use crate::project::Project;
use crate::rom::Recipe;

const MIB: u64 = 1 << 20;
/// The size of a disk without an image format, and of what is in one with a format.
const DISK_BYTES: u64 = 64 * MIB;
/// How often each is measured, for what lies in the middle: now and then a request ends before its guest has turned to
/// something else.
const TIMES: u64 = 3;

/// Debian's AHCI drivers, for the kernel for every machine: the one for virtual machines has none.
const AHCI_MODULES: [&str; 12] = [
    "lib/crc64.ko",
    "lib/crc64-rocksoft.ko",
    "lib/crc-t10dif.ko",
    "crypto/crct10dif_common.ko",
    "crypto/crct10dif_generic.ko",
    "block/t10-pi.ko",
    "drivers/scsi/scsi_common.ko",
    "drivers/scsi/scsi_mod.ko",
    "drivers/scsi/sd_mod.ko",
    "drivers/ata/libata.ko",
    "drivers/ata/libahci.ko",
    "drivers/ata/ahci.ko",
];
/// The initramfs in CBFS.
const RAMDISK: &str = "guests/requests/initramfs";
/// Where the initramfs's own program is to find it.
const FIRST_PROGRAM: &str = "console=ttyS0 quiet rdinit=/bin/measure --";

/// One way to use a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// As it stands in the table.
    pub name: &'static str,
    /// What the program is told, but for how many requests.
    words: &'static str,
    /// So many, or MiB.
    count: u64,
}

impl Pattern {
    const fn new(name: &'static str, words: &'static str, count: u64) -> Self {
        Self { name, words, count }
    }

    /// A line for the program. Each time it is another: what a guest has said is shown again to who looks at it.
    fn line(&self, time: u64) -> String {
        format!("{} {}", self.words, self.count + time)
    }
}

/// Those that are measured: blocks of 4 KiB, past the page cache; and the way that most programs read.
pub const PATTERNS: [Pattern; 9] = [
    Pattern::new("sequential read, 1 deep", "rs 1 4", 500),
    Pattern::new("sequential read, 32 deep", "rs 32 4", 2000),
    Pattern::new("random read, 1 deep", "rr 1 4", 500),
    Pattern::new("random read, 32 deep", "rr 32 4", 2000),
    Pattern::new("sequential write, 1 deep", "ws 1 4", 500),
    Pattern::new("sequential write, 32 deep", "ws 32 4", 2000),
    Pattern::new("random write, 1 deep", "wr 1 4", 500),
    Pattern::new("random write, 32 deep", "wr 32 4", 2000),
    CACHED_READ,
];
/// Sequential reading of files, for the kernel's page cache: what one MiB costs.
pub const CACHED_READ: Pattern = Pattern::new("1 MiB by the page cache", "cached", 32);

/// What a guest's disk is, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// As it stands in the table.
    pub name: &'static str,
    /// The machine's disk.
    host: Bus,
    /// The guest's `model`, where Peerboot is between them.
    model: Option<&'static str>,
    /// The image's format.
    format: &'static str,
}

const fn bare(name: &'static str, host: Bus) -> Place {
    Place { name, host, model: None, format: "raw" }
}

const fn guest(name: &'static str, host: Bus, model: &'static str, format: &'static str) -> Place {
    Place { name, host, model: Some(model), format }
}

/// The disks of bare QEMU.
pub const BARE: [Place; 3] = [bare("virtio", Bus::Virtio), bare("NVMe", Bus::Nvme), bare("AHCI", Bus::Ahci)];
/// A virtio disk under Peerboot, by the machine's.
pub const VIRTIO: [Place; 3] = [
    guest("on virtio", Bus::Virtio, "virtio", "raw"),
    guest("on NVMe", Bus::Nvme, "virtio", "raw"),
    guest("on AHCI", Bus::Ahci, "virtio", "raw"),
];
/// An NVMe disk under Peerboot, by the machine's.
pub const NVME: [Place; 3] = [
    guest("on virtio", Bus::Virtio, "nvme", "raw"),
    guest("on NVMe", Bus::Nvme, "nvme", "raw"),
    guest("on AHCI", Bus::Ahci, "nvme", "raw"),
];
/// A virtio disk on NVMe under Peerboot, by the image's format.
pub const FORMATS: [Place; 2] =
    [guest("qcow2", Bus::Nvme, "virtio", "qcow2"), guest("VHD", Bus::Nvme, "virtio", "vhd")];

/// What a request costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The way of using the disk.
    pub pattern: Pattern,
    /// Instructions, those of the guest included; or those of a MiB.
    pub instructions: u64,
    /// Those of the virtual CPU, without those of its timer and console meanwhile; none where nothing exits.
    pub exits: Exits,
}

/// Exits: so many, or in hundredths of a request's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exits {
    /// Of every reason.
    pub all: u64,
    /// Those of them that end a wait: an interrupt came while the guest had its interrupts off.
    pub windows: u64,
}

impl Exits {
    /// In the monitor's line about a guest.
    fn from_line(line: &str) -> Result<Self> {
        let windows = numbers::<1>(line, r", interrupt window (\d+)")?;
        let all = number(line, r"measured: (\d+), ")?;
        Ok(Self { all, windows: windows.first().map_or(0, |[count]| *count) })
    }

    /// Of both kinds, what a function makes of it and of another's.
    fn with(self, other: Self, make: impl Fn(u64, u64) -> u64) -> Self {
        Self { all: make(self.all, other.all), windows: make(self.windows, other.windows) }
    }

    fn less(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }
}

/// Measures some ways of using a disk.
///
/// # Errors
/// Linux does not find the disk, or a request fails.
pub fn requests(project: &Project, place: &Place, patterns: &[Pattern]) -> Result<Vec<Request>> {
    let name = format!("{}-{}", place.name.replace(' ', "-"), place.model.unwrap_or("bare"));
    let disk = Disk::new(image(project, &name, place.format)?, place.host);
    let Some(model) = place.model else {
        let mut machine = ready(&bare_machine(project, place, disk)?, 1)?;
        return patterns.iter().map(|pattern| request(&mut machine, *pattern, None)).collect();
    };
    let properties = format!(
        "disk0 {{ source = \"disk:{}\"; model = \"{model}\"; format = \"{}\"; }};",
        source(place.host),
        place.format
    );
    let words = format!("{FIRST_PROGRAM} {}", device(Some(model), place.host));
    let guest = Guest { properties: &properties, bootargs: &words, ..linux("measured") };
    let rom = rom(project, &format!("requests-{name}"), &[guest])?;
    let mut machine = ready(&counting(rom, disk), 1)?;
    let idle = Idle::measure(&mut machine)?;
    patterns.iter().map(|pattern| request(&mut machine, *pattern, Some(&idle))).collect()
}

/// Measures one way of using the disk; `idle` where there are exits.
fn request(machine: &mut Machine, pattern: Pattern, idle: Option<&Idle>) -> Result<Request> {
    let (mut instructions, mut all, mut windows) = (Vec::new(), Vec::new(), Vec::new());
    for time in 0..TIMES {
        let before = idle.map(|_| exits(machine)).transpose()?.unwrap_or_default();
        let Answer { count, took, passed } = ask(machine, &pattern.line(time))?;
        instructions.push(took / count);
        if let Some(idle) = idle {
            let exits = exits(machine)?.less(before).less(idle.exits(passed));
            all.push(exits.all * 100 / count);
            windows.push(exits.windows * 100 / count);
        }
    }
    let exits = Exits { all: middle(all), windows: middle(windows) };
    Ok(Request { pattern, instructions: middle(instructions), exits })
}

/// As many are less as are more; 0 of none.
fn middle(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}

/// How fast two guests are that ask at the same time, 32 requests at a time, at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharing {
    /// Whose disks they are.
    pub disks: &'static str,
    /// Each one's requests in a second of wall time.
    pub rates: [u64; 2],
}

/// Requests that each disk ends in a second at most, where two guests share it.
pub const PACE: u64 = 500;

/// Two guests on a core each, with two disks and with one. The disks are so slow that no machine at hand is too slow for
/// them.
///
/// # Errors
/// Linux does not find the disk, or a request fails.
pub fn sharing(project: &Project) -> Result<[Sharing; 2]> {
    let apart = beside(project, "apart", ["nvme0", "nvme1"])?;
    let together = beside(project, "together", ["nvme0", "nvme0"])?;
    Ok([Sharing { disks: "each its own disk", rates: apart }, Sharing { disks: "one disk", rates: together }])
}

fn beside(project: &Project, name: &str, sources: [&str; 2]) -> Result<[u64; 2]> {
    /// Long enough that it does not matter who is told first, and different enough to be told apart.
    const LINES: [&str; 2] = ["rr 32 4 5000", "rr 32 4 5001"];
    const NODES: [&str; 2] = ["measured", "other"];
    let words = format!("{FIRST_PROGRAM} vda");
    // One disk is nobody's alone: neither writes.
    let properties = sources.map(|source| format!("disk0 {{ source = \"disk:{source}\"; read-only; }};"));
    let guests = [0, 1].map(|number| Guest {
        properties: &properties[number],
        bootargs: &words,
        ..linux(NODES[number])
    });
    let rom = rom(project, &format!("sharing-{name}"), &guests)?;
    let (mut disks, mut extra) = (Vec::new(), Vec::new());
    for number in 0..guests.len() {
        disks.push(Disk::new(image(project, &format!("sharing-{name}-{number}"), "raw")?, Bus::Nvme));
        extra.extend(["-set".to_owned(), format!("drive.disk{number}.throttling.iops-total={PACE}")]);
    }
    let mut machine = ready(&Spec { disks, extra, ..Spec::on(Emulator::Qemu, rom) }, guests.len())?;
    let khz = number(&machine.transcript(), r"time: TSC at (\d+) kHz")?;
    for (node, line) in NODES.into_iter().zip(LINES) {
        show(&mut machine, node)?;
        machine.send(&format!("{line}\n"))?;
    }
    let mut rates = [0; 2];
    // What a guest has said is shown once more to who looks at it.
    for number in [1, 0] {
        show(&mut machine, NODES[number])?;
        let Answer { count, passed, .. } = heard(&mut machine, LINES[number])?;
        rates[number] = count * khz * 1000 / passed;
    }
    Ok(rates)
}

/// The exits that have nothing to do with requests.
struct Idle {
    /// Of a line that is typed and its answer.
    line: Exits,
    /// In so many instructions while nothing happens.
    exits: Exits,
    passed: u64,
}

impl Idle {
    fn measure(machine: &mut Machine) -> Result<Self> {
        let mut wait = |line| -> Result<(Exits, u64)> {
            let before = exits(machine)?;
            let passed = ask(machine, line)?.passed;
            Ok((exits(machine)?.less(before), passed))
        };
        // The first takes what happens only once.
        wait("nothing 1")?;
        let ((line, short), (exits, long)) = (wait("nothing 0")?, wait("nothing 200")?);
        Ok(Self { line, exits: exits.less(line), passed: long - short })
    }

    /// In a measurement of so many instructions.
    fn exits(&self, passed: u64) -> Exits {
        self.line.with(self.exits, |line, exits| line + exits * passed / self.passed)
    }
}

/// The exits of the guest that is measured, so far.
fn exits(machine: &mut Machine) -> Result<Exits> {
    open_prompt(machine)?;
    machine.send("exits measured\n")?;
    let line = machine.expect(r"^measured: \d+, ", PATIENCE)?;
    machine.expect("peerboot> $", PATIENCE)?;
    machine.send("console measured\n")?;
    Exits::from_line(&line)
}

/// Types to a guest from now on.
fn show(machine: &mut Machine, guest: &str) -> Result<()> {
    open_prompt(machine)?;
    machine.send(&format!("console {guest}\n"))
}

fn open_prompt(machine: &mut Machine) -> Result<()> {
    machine.send("\x1dm")?;
    machine.expect("peerboot> $", PATIENCE).map(drop)
}

/// What the program said of a measurement.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// Requests, or MiB; at least one.
    count: u64,
    /// Instructions of theirs.
    took: u64,
    /// Instructions from the first one's begin to the last one's end, or ticks of the time-stamp counter.
    passed: u64,
}

/// Has the program measure something that it has not been told before.
fn ask(machine: &mut Machine, line: &str) -> Result<Answer> {
    // Each line is as long as any other, and costs the serial port as much.
    machine.send(&format!("{line:<16}\n"))?;
    heard(machine, line)
}

/// Waits for what it says of that.
fn heard(machine: &mut Machine, line: &str) -> Result<Answer> {
    answer(&machine.expect(&format!("requests: {line}: "), PATIENCE)?)
}

fn answer(said: &str) -> Result<Answer> {
    let found = compile(r": (\d+) took (\d+) instructions of (\d+)")?.captures(said);
    let group = |number| found.as_ref()?.get(number)?.as_str().parse().ok();
    match (group(1), group(2), group(3)) {
        (Some(count), Some(took), Some(passed)) => Ok(Answer { count: u64::max(count, 1), took, passed }),
        _ => Err(Error::failed(format!("the guest says {said:?}"))),
    }
}

/// A machine whose virtual time counts instructions, and passes as it does for all while nothing runs: that jumped
/// over a disk's delay, which is the measuring machine's, to the deadline of who waits for it.
fn counting(firmware: Firmware, disk: Disk) -> Spec {
    let extra = ["-icount", "shift=0,sleep=on"].map(str::to_owned).into();
    Spec { smp: 1, disks: vec![disk], extra, ..Spec::on(Emulator::Qemu, firmware) }
}

/// Starts a machine, and waits until the program has opened a disk in so many guests.
fn ready(spec: &Spec, guests: usize) -> Result<Machine> {
    let mut machine = Machine::spawn(spec)?;
    for _ in 0..guests {
        let line = machine.expect("requests: ready|error: |Kernel panic", PATIENCE)?;
        if !line.contains("ready") {
            return Err(Error::failed(format!("a guest does not come to its disk: {line}")));
        }
    }
    Ok(machine)
}

/// Linux with the program and 256 MiB.
fn linux(node: &str) -> Guest<'_> {
    Guest { memory: "<0x40000>", ramdisk: Some("cbfs:guests/requests/initramfs"), ..Guest::new(node) }
}

/// What Linux calls its only disk.
fn device(model: Option<&str>, host: Bus) -> &'static str {
    match (model, host) {
        (Some("virtio"), _) | (None, Bus::Virtio) => "vda",
        (Some(_), _) | (None, Bus::Nvme) => "nvme0n1",
        (None, Bus::Ahci | Bus::Ata) => "sda",
    }
}

/// What the manifest calls the machine's only disk.
fn source(host: Bus) -> &'static str {
    match host {
        Bus::Virtio => "virtio0",
        Bus::Nvme => "nvme0",
        Bus::Ahci => "ahci0.0",
        Bus::Ata => "ata0.0",
    }
}

/// QEMU with its own firmware.
fn bare_machine(project: &Project, place: &Place, disk: Disk) -> Result<Spec> {
    let (kernel, modules) = match place.host {
        Bus::Ahci | Bus::Ata => (guests::full_kernel(project)?, &AHCI_MODULES[..]),
        Bus::Virtio | Bus::Nvme => (guests::cloud_kernel(project)?, &guests::VIRTIO_MODULES[..]),
    };
    let initramfs = initramfs(project, &kernel, modules, device(None, place.host))?;
    let bootargs = format!("{FIRST_PROGRAM} {}", device(None, place.host));
    Ok(counting(Firmware::Bare { kernel, initramfs: Some(initramfs), bootargs }, disk))
}

/// A ROM with guests that measure.
fn rom(project: &Project, name: &str, guests: &[Guest]) -> Result<Firmware> {
    let dir = project.build("bench")?;
    let (manifest_file, rom) = (dir.join(name).with_extension("dts"), dir.join(name).with_extension("rom"));
    fs::write(&manifest_file, manifest(guests)).map_err(|e| Error::file("write", &manifest_file, &e))?;
    let kernel = guests::cloud_kernel(project)?;
    let initramfs = initramfs(project, &kernel, &guests::VIRTIO_MODULES, "guest")?;
    let files = vec![(RAMDISK.to_owned(), initramfs)];
    let board = Emulator::Qemu.board();
    Recipe { manifest: Some(manifest_file), files, ..Recipe::example(board) }.refresh(project, &rom)?;
    Ok(Firmware::Rom(rom))
}

fn initramfs(project: &Project, kernel: &Path, modules: &[&str], name: &str) -> Result<PathBuf> {
    let programs = [guests::requests(project)?, project.path("scripts/xtask/initramfs/measure")];
    let bytes = guests::initramfs_with(project, kernel, modules, &programs)?;
    let file = project.build("bench")?.join(format!("initramfs-{name}"));
    // The same bytes keep their time, and ROMs of them need not be made again.
    if fs::read(&file).ok().as_ref() != Some(&bytes) {
        fs::write(&file, bytes).map_err(|e| Error::file("write", &file, &e))?;
    }
    Ok(file)
}

/// A fresh disk, whose every sector is written and no two of which are the same.
fn image(project: &Project, name: &str, format: &str) -> Result<PathBuf> {
    let file = project.build("bench")?.join(format!("{name}.img"));
    let bytes: Vec<u8> =
        (0..DISK_BYTES / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    fs::write(&file, bytes).map_err(|e| Error::file("write", &file, &e))?;
    let options: &[&str] = match format {
        "qcow2" => &["-O", "qcow2"],
        "vhd" => &["-O", "vpc", "-o", "subformat=dynamic,force_size=on"],
        _ => return Ok(file),
    };
    packages::require(&[packages::QEMU_IMG])?;
    let formatted = file.with_extension(format);
    let mut convert = command::command(packages::QEMU_IMG.program);
    command::output(convert.args(["convert", "-f", "raw"]).args(options).arg(&file).arg(&formatted))?;
    Ok(formatted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let said = "[ 9.1] measured: requests: rr 1 4 1000: 1000 took 17000500 instructions of 90000000\r";
        assert_eq!(
            answer(said).expect("an answer"),
            Answer { count: 1000, took: 17_000_500, passed: 90_000_000 }
        );
        assert!(answer("requests: rr 1 4 1000: error -5").is_err());
    }

    #[test]
    fn the_middle_leaves_out_what_is_rare() {
        assert_eq!(middle(vec![17, 22, 16]), 17);
        assert_eq!(middle(Vec::new()), 0);
    }

    #[test]
    fn exits_are_read_from_the_prompt() {
        let exits = |line| Exits::from_line(line).expect("exits");
        let line = "measured: 210, port 187, host interrupt 3, interrupt window 20\r";
        assert_eq!(exits(line), Exits { all: 210, windows: 20 });
        assert_eq!(exits("measured: 7, port 7"), Exits { all: 7, windows: 0 });
        assert!(Exits::from_line("measured: none").is_err());
    }

    #[test]
    fn ticks_of_the_timer_are_no_request_s() {
        let (line, exits) = (Exits { all: 100, windows: 10 }, Exits { all: 50, windows: 2 });
        let idle = Idle { line, exits, passed: 1_000 };
        assert_eq!(idle.exits(4_000), Exits { all: 300, windows: 18 });
    }
}
