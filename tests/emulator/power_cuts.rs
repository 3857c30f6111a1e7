//! The power goes while a guest writes: what it was told is safe, is. Linux writes a block at a time to an NVMe disk;
//! where the power goes a hundred times an app does, which is there at once, several blocks at the same time to a
//! virtio disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use xtask::command as program;
use xtask::error::{Error, Result};
use xtask::machine::{Bus, Disk, Emulator, Machine};
use xtask::suite::{Case, Outcome};

use crate::console::{BOOT, command, wait_for_shell};
use crate::lab::{Lab, Variant, read};
use crate::manifest::{Guest, good, manifest};

/// The name of an image in a file system.
const FILE: &str = "guest.disk";
/// The size of what the guest writes at once, in bytes.
const BLOCK: u64 = 4096;
/// From one write to the next, in blocks: images allocate a cluster every few of them.
const STRIDE: u64 = 5;
/// The disk's size in bytes.
const SIZE: u64 = 128 << 20;
/// The size in bytes of what holds an image, which grows.
const ROOM: u64 = SIZE * 5 / 4;
/// As many writes go to one image at most; those of another life are fewer than what is left of it then.
const MOST: u64 = SIZE / (STRIDE * BLOCK) * 3 / 4;
/// Wall time for one write, or the first of a life.
const WRITE: Duration = Duration::from_secs(300);
/// How often the power goes in the short suite, and in the long one.
const CUTS: [u32; 2] = [3, 100];

/// Where an image is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The whole disk.
    Disk,
    /// A file in an ext4 file system.
    Ext4,
    /// A file in a FAT file system.
    Fat,
}

/// An image, and the way to it.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    format: &'static str,
    /// The bus of the machine's disk.
    bus: Bus,
    place: Place,
}

const fn way(name: &'static str, format: &'static str, bus: Bus, place: Place) -> Way {
    Way { name, format, bus, place }
}

/// Linux writes in the short suite to the first few, an app to all others.
const WAYS: [Way; 8] = [
    way("raw-virtio", "raw", Bus::Virtio, Place::Disk),
    way("qcow2-nvme", "qcow2", Bus::Nvme, Place::Disk),
    way("vhd-ahci", "vhd", Bus::Ahci, Place::Disk),
    way("qcow2-in-ext4", "qcow2", Bus::Nvme, Place::Ext4),
    way("raw-in-fat", "raw", Bus::Ahci, Place::Fat),
    way("raw-nvme", "raw", Bus::Nvme, Place::Disk),
    way("raw-ahci", "raw", Bus::Ahci, Place::Disk),
    way("qcow2-virtio", "qcow2", Bus::Virtio, Place::Disk),
];
/// How many are written by Linux in the short suite, and how many are in it.
const BY_LINUX: usize = 3;
const SAMPLED: usize = 5;

/// Each way, some cuts or many.
pub fn cases() -> Vec<Case<Lab>> {
    let case = |number: usize, long: bool| {
        let way = WAYS[number];
        let writer = if long || number >= BY_LINUX { Writer::App } else { Writer::Linux };
        let name = format!("power-cuts{}-{}", if long { "-many" } else { "" }, way.name);
        let title = format!("emulator/{}", name.replacen("cuts-", "cuts/", 1));
        let cuts = CUTS[usize::from(long)];
        Case::new(title, move |lab: &Lab| survives(lab, &name, way, writer, cuts))
    };
    let some = (0..SAMPLED).map(|number| case(number, false));
    some.chain((0..WAYS.len()).map(|number| case(number, true).long())).collect()
}

/// The guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// A shell that writes and flushes one block after the other.
    Linux,
    /// The app of tests/guests with a disk, which flushes after several blocks.
    App,
}

impl Writer {
    /// How many writes it says to be safe at once.
    fn at_once(self) -> u64 {
        match self {
            Self::Linux => 1,
            Self::App => 5,
        }
    }

    /// Has the guest go on writing from number `from` on, until it was told that `wanted` is safe, and longer.
    fn write(self, machine: &mut Machine, from: u64, wanted: u64) -> Result<()> {
        match self {
            Self::Linux => {
                let place = format!("bs={BLOCK} seek=$((i * {STRIDE})) conv=sync,notrunc,fsync");
                let write = format!("printf %016d $i | dd of=/dev/nvme0n1 {place} 2>/dev/null");
                machine
                    .send(&format!("i={from}; while {write} && echo safe:$i:; do i=$((i + 1)); done\n"))?;
            }
            Self::App => machine.send(&format!("count {from} {}\r", STRIDE * BLOCK / 512))?,
        }
        machine.expect(&format!("^safe:{wanted}:$"), WRITE).map(drop)
    }
}

/// Of a guest's writes, none is lost that it was told is safe; and every image opens again, here and elsewhere.
fn survives(lab: &Lab, test: &str, way: Way, writer: Writer, cuts: u32) -> Result<Outcome> {
    let disk = |model| {
        let disk = match way.bus {
            Bus::Virtio => "virtio0",
            Bus::Nvme => "nvme0",
            Bus::Ahci => "ahci0",
            Bus::Ata => "ata0",
        };
        let file = if way.place == Place::Disk { String::new() } else { format!("/file:/{FILE}") };
        let format = way.format;
        format!("disk0 {{ source = \"disk:{disk}{file}\"; format = \"{format}\"; model = \"{model}\"; }};")
    };
    let variant = match writer {
        Writer::Linux => {
            // The kernel has a driver for NVMe built in, and no modules with it.
            let variant = lab.variant(Emulator::Qemu, test)?;
            variant.manifest(&manifest(&[Guest { properties: &disk("nvme"), ..good() }]))?;
            variant
        }
        Writer::App => {
            let (disk, app) = (disk("virtio"), Guest::tiny("app", "cbfs:guests/disk"));
            let guest = Guest { debug_port: false, properties: &disk, ..app };
            lab.unfilled(Emulator::Qemu, test, &manifest(&[guest]))?
        }
    };
    let mut disk = way.disk(&variant)?;
    let mut random = Random(0x9e37_79b9 ^ u64::from(cuts));
    let mut written = 0;
    for cut in 0..cuts {
        if written > MOST {
            (disk, written) = (way.disk(&variant)?, 0);
        }
        let mut machine = boot(&variant, way, writer, &disk)?;
        let wanted = written + writer.at_once() * (3 + random.below(12)) - 1;
        writer.write(&mut machine, written, wanted)?;
        // Somewhere in the writes that follow.
        thread::sleep(Duration::from_micros(random.below(60_000)));
        written = 1 + last_safe(machine)?;
        way.holds(&disk, written)
            .map_err(|error| Error::failed(format!("after power cut {}: {error}", cut + 1)))?;
    }
    // And once more, to see it close what it has mended.
    let mut machine = boot(&variant, way, writer, &disk)?;
    match writer {
        Writer::Linux => {
            command(&mut machine, "sync", WRITE)?;
            machine.send("poweroff\n")?;
        }
        Writer::App => {
            // What is safe is there for guests too.
            let last = written.saturating_sub(1);
            machine.send(&format!("read {}\r", last * STRIDE * BLOCK / 512))?;
            machine.expect(&format!("^{last:016}$"), WRITE)?;
            machine.expect("^disk> $", WRITE)?;
            machine.send("quit\r")?;
        }
    }
    machine.expect("all guests are off", WRITE)?;
    machine.wait_exit(WRITE)?;
    way.holds(&disk, written)?;
    if way.format == "qcow2" {
        let image = way.image(&disk)?;
        program::output(program::command("qemu-img").args(["check", "-f", "qcow2"]).arg(&image))?;
    }
    for name in [&disk, &disk.with_extension("image"), &disk.with_extension("raw")] {
        let _ = fs::remove_file(name);
    }
    Ok(Outcome::Passed)
}

fn boot(variant: &Variant, way: Way, writer: Writer, disk: &Path) -> Result<Machine> {
    let mut spec = variant.spec();
    spec.disks.push(Disk::new(disk.to_owned(), way.bus));
    let mut machine = Machine::spawn(&spec)?;
    match writer {
        Writer::Linux => {
            wait_for_shell(&mut machine)?;
            // What the kernel says would get between the lines.
            command(&mut machine, "dmesg -n 1", WRITE)?;
        }
        Writer::App => drop(machine.expect("^disk> $", BOOT)?),
    }
    Ok(machine)
}

/// Up to which number the guest was told that its writes are safe, before its machine lost its power, which is now.
fn last_safe(machine: Machine) -> Result<u64> {
    let transcript = machine.transcript();
    drop(machine);
    let safe =
        transcript.lines().filter_map(|line| line.strip_prefix("safe:")?.strip_suffix(':')?.parse().ok());
    safe.max().ok_or_else(|| Error::failed("the guest wrote nothing"))
}

impl Way {
    /// What QEMU's tools call the format.
    fn tools_name(self) -> &'static str {
        if self.format == "vhd" { "vpc" } else { self.format }
    }

    /// A disk with an empty image that has room to grow.
    fn disk(self, variant: &Variant) -> Result<PathBuf> {
        let disk = variant.write("disk", &[])?;
        let image = if self.place == Place::Disk { disk.clone() } else { disk.with_extension("image") };
        let mut create = program::command("qemu-img");
        create.args(["create", "-q", "-f", self.tools_name()]);
        if self.format == "vhd" {
            create.args(["-o", "subformat=dynamic,force_size=on"]);
        }
        program::output(create.arg(&image).arg(SIZE.to_string()))?;
        lengthen(&image, ROOM)?;
        match self.place {
            Place::Disk => {}
            Place::Ext4 => put_in_ext4(variant, &image, &disk)?,
            Place::Fat => {
                lengthen(&disk, ROOM * 5 / 4)?;
                program::output(program::command("mkfs.vfat").args(["-F", "32"]).arg(&disk))?;
                let mut mcopy = program::command("mcopy");
                program::output(mcopy.arg("-i").args([&disk, &image]).arg(format!("::{FILE}")))?;
            }
        }
        Ok(disk)
    }

    /// The image on a disk, as a file; the file system that it is in has no fault.
    fn image(self, disk: &Path) -> Result<PathBuf> {
        let image = disk.with_extension("image");
        match self.place {
            Place::Disk => return Ok(disk.to_owned()),
            Place::Ext4 => {
                program::output(program::command("e2fsck").arg("-fn").arg(disk))?;
                let request = format!("dump /{FILE} {}", image.display());
                program::output(program::command("debugfs").args(["-R", &request]).arg(disk))?;
            }
            Place::Fat => {
                program::output(program::command("fsck.vfat").arg("-n").arg(disk))?;
                let mut mcopy = program::command("mcopy");
                program::output(mcopy.arg("-ni").arg(disk).arg(format!("::{FILE}")).arg(&image))?;
            }
        }
        Ok(image)
    }

    /// The image holds the first `written` writes, as QEMU's tools and as the bytes themselves say.
    fn holds(self, disk: &Path, written: u64) -> Result<()> {
        let mut raw = self.image(disk)?;
        if self.format != "raw" {
            let image = std::mem::replace(&mut raw, disk.with_extension("raw"));
            let mut convert = program::command("qemu-img");
            convert.args(["convert", "-f", self.tools_name(), "-O", "raw"]);
            program::output(convert.args([&image, &raw]))?;
        }
        let failed = |e| Error::file("read", &raw, &e);
        let file = File::open(&raw).map_err(failed)?;
        for number in 0..written {
            let mut found = [0; 16];
            file.read_exact_at(&mut found, number * STRIDE * BLOCK).map_err(failed)?;
            if found != *format!("{number:016}").as_bytes() {
                let found = String::from_utf8_lossy(&found).into_owned();
                return Err(Error::failed(format!(
                    "write {number} of {written} is lost: {found:?} is there"
                )));
            }
        }
        Ok(())
    }
}

/// Puts an image into an ext4 file system on `disk`, as a file that has a block for each of its bytes.
fn put_in_ext4(variant: &Variant, image: &Path, disk: &Path) -> Result<()> {
    const BLOCK: u64 = 4096;
    // What mke2fs finds to be zero gets no blocks: so the file is made of other bytes, and written to where they are.
    let tree = disk.with_extension("tree");
    fs::create_dir_all(&tree).map_err(|e| Error::file("make", &tree, &e))?;
    variant.write(&format!("disk.tree/{FILE}"), &vec![0xa5; ROOM as usize])?;
    let mut mke2fs = program::command("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-b", &BLOCK.to_string(), "-d"]).args([&tree, disk]);
    program::output(mke2fs.arg((ROOM * 5 / 4 / BLOCK).to_string()))?;
    let _ = fs::remove_dir_all(&tree);
    let mut debugfs = program::command("debugfs");
    let blocks = program::output(debugfs.args(["-R", &format!("blocks /{FILE}")]).arg(disk))?;
    let blocks: Vec<u64> = String::from_utf8_lossy(&blocks).split_whitespace().flat_map(str::parse).collect();
    if blocks.len() as u64 != ROOM / BLOCK {
        return Err(Error::failed(format!("the file has {} blocks", blocks.len())));
    }
    let to = File::options().write(true).open(disk).map_err(|e| Error::file("open", disk, &e))?;
    let bytes = read(image)?;
    for (block, bytes) in blocks.iter().zip(bytes.chunks(BLOCK as usize)) {
        to.write_all_at(bytes, block * BLOCK).map_err(|e| Error::file("write", disk, &e))?;
    }
    Ok(())
}

fn lengthen(file: &Path, size: u64) -> Result<()> {
    let opened = File::options().write(true).open(file).map_err(|e| Error::file("open", file, &e))?;
    opened.set_len(size).map_err(|e| Error::file("lengthen", file, &e))
}

/// Numbers without an order (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
