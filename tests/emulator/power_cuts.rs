//! The power goes while a guest writes: what it was told is safe, is.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use xtask::command as program;
use xtask::error::{Error, Result};
use xtask::machine::{Bus, Disk, Emulator, Machine};
use xtask::suite::{Case, Outcome};

use crate::console::{command, wait_for_shell};
use crate::lab::{Lab, Variant};
use crate::manifest::{Guest, good, manifest};

/// The size of what the guest writes at once, in bytes.
const BLOCK: u64 = 4096;
/// From one write to the next, in blocks: images allocate a cluster every few of them.
const STRIDE: u64 = 5;
/// The disk's size in bytes: room for all writes.
const SIZE: u64 = 512 << 20;
/// Wall time for one write, or the first of a life.
const WRITE: Duration = Duration::from_secs(60);
/// How often the power goes in the short suite, and in the long one.
const CUTS: [u32; 2] = [3, 100];

/// Formats, each with what QEMU's tools call it and the bus of the machine's disk. The first few are sampled in the
/// short suite.
const WAYS: [(&str, &str, &str, Bus); 6] = [
    ("raw-virtio", "raw", "raw", Bus::Virtio),
    ("qcow2-nvme", "qcow2", "qcow2", Bus::Nvme),
    ("vhd-ahci", "vhd", "vpc", Bus::Ahci),
    ("raw-nvme", "raw", "raw", Bus::Nvme),
    ("raw-ahci", "raw", "raw", Bus::Ahci),
    ("qcow2-virtio", "qcow2", "qcow2", Bus::Virtio),
];
const SAMPLED: usize = 3;

/// Each way, some cuts or many.
pub fn cases() -> Vec<Case<Lab>> {
    let case = |number: usize, long: bool| {
        let (name, format, tools_name, bus) = WAYS[number];
        let name = format!("power-cuts{}-{name}", if long { "-many" } else { "" });
        let cuts = CUTS[usize::from(long)];
        let way = Way { format, tools_name, bus };
        let title = format!("emulator/{}", name.replacen("cuts-", "cuts/", 1));
        Case::new(title, move |lab: &Lab| survives(lab, &name, way, cuts))
    };
    let some = (0..SAMPLED).map(|number| case(number, false));
    some.chain((0..WAYS.len()).map(|number| case(number, true).long())).collect()
}

#[derive(Clone, Copy)]
struct Way {
    format: &'static str,
    tools_name: &'static str,
    bus: Bus,
}

/// Of a guest's writes, none is lost that it was told is safe; and every image opens again, here and elsewhere.
fn survives(lab: &Lab, test: &str, way: Way, cuts: u32) -> Result<Outcome> {
    let place = match way.bus {
        Bus::Virtio => "virtio0",
        Bus::Nvme => "nvme0",
        Bus::Ahci => "ahci0",
        Bus::Ata => "ata0",
    };
    // The kernel has a driver for NVMe built in, and no modules with it.
    let disk =
        format!("disk0 {{ source = \"disk:{place}\"; format = \"{}\"; model = \"nvme\"; }};", way.format);
    let variant = lab.variant(Emulator::Qemu, test)?;
    variant.manifest(&manifest(&[Guest { properties: &disk, ..good() }]))?;
    let image = image(&variant, way)?;
    let mut random = Random(0x9e37_79b9 ^ u64::from(cuts));
    let mut written = 0;
    for cut in 0..cuts {
        let wanted = written + 2 + random.below(12);
        written = write_until_cut(&variant, way, &image, written, wanted, &mut random)?;
        holds(&image, way, written)
            .map_err(|error| Error::failed(format!("after power cut {}: {error}", cut + 1)))?;
    }
    // And once more, to see it close what it has mended.
    let mut machine = boot(&variant, way, &image)?;
    command(&mut machine, "sync", WRITE)?;
    machine.send("poweroff\n")?;
    machine.expect("all guests are off", WRITE)?;
    machine.wait_exit(WRITE)?;
    if way.format == "qcow2" {
        program::output(program::command("qemu-img").args(["check", "-f", "qcow2"]).arg(&image))?;
    }
    holds(&image, way, written)?;
    let _ = fs::remove_file(&image);
    Ok(Outcome::Passed)
}

/// An empty image on a disk with room for it to grow.
fn image(variant: &Variant, way: Way) -> Result<PathBuf> {
    let image = variant.write("image", &[])?;
    let mut create = program::command("qemu-img");
    create.args(["create", "-q", "-f", way.tools_name]);
    if way.format == "vhd" {
        create.args(["-o", "subformat=dynamic,force_size=on"]);
    }
    program::output(create.arg(&image).arg(SIZE.to_string()))?;
    let file = File::options().write(true).open(&image).map_err(|e| Error::file("open", &image, &e))?;
    file.set_len(SIZE * 5 / 4).map_err(|e| Error::file("lengthen", &image, &e))?;
    Ok(image)
}

fn boot(variant: &Variant, way: Way, image: &Path) -> Result<Machine> {
    let mut spec = variant.spec();
    spec.disks.push(Disk { file: image.to_owned(), bus: way.bus });
    let mut machine = Machine::spawn(&spec)?;
    wait_for_shell(&mut machine)?;
    Ok(machine)
}

/// Has the guest go on writing from number `from` on, and takes the power away soon after it was told that `wanted` is
/// safe. How many are.
fn write_until_cut(
    variant: &Variant,
    way: Way,
    image: &Path,
    from: u64,
    wanted: u64,
    random: &mut Random,
) -> Result<u64> {
    let mut machine = boot(variant, way, image)?;
    // What the kernel says would get between the lines.
    command(&mut machine, "dmesg -n 1", WRITE)?;
    let write = format!(
        "printf %016d $i | dd of=/dev/nvme0n1 bs={BLOCK} seek=$((i * {STRIDE})) conv=sync,notrunc,fsync 2>/dev/null"
    );
    machine.send(&format!("i={from}; while {write} && echo safe:$i:; do i=$((i + 1)); done\n"))?;
    machine.expect(&format!("^safe:{wanted}:$"), WRITE)?;
    // Somewhere in the writes that follow.
    thread::sleep(Duration::from_micros(random.below(60_000)));
    let transcript = machine.transcript();
    drop(machine);
    let safe =
        transcript.lines().filter_map(|line| line.strip_prefix("safe:")?.strip_suffix(':')?.parse().ok());
    let last: Option<u64> = safe.max();
    last.map(|last| last + 1).ok_or_else(|| Error::failed("the guest wrote nothing"))
}

/// The image holds the first `written` writes, as QEMU's tools and as the bytes themselves say.
fn holds(image: &Path, way: Way, written: u64) -> Result<()> {
    let raw = if way.format == "raw" {
        image.to_owned()
    } else {
        let raw = image.with_extension("raw");
        let mut convert = program::command("qemu-img");
        convert.args(["convert", "-f", way.tools_name, "-O", "raw"]);
        program::output(convert.arg(image).arg(&raw))?;
        raw
    };
    let failed = |e| Error::file("read", &raw, &e);
    let mut file = File::open(&raw).map_err(failed)?;
    for number in 0..written {
        let mut found = [0; 16];
        file.seek(SeekFrom::Start(number * STRIDE * BLOCK)).map_err(failed)?;
        file.read_exact(&mut found).map_err(failed)?;
        if found != *format!("{number:016}").as_bytes() {
            let found = String::from_utf8_lossy(&found).into_owned();
            return Err(Error::failed(format!("write {number} of {written} is lost: {found:?} is there")));
        }
    }
    if way.format != "raw" {
        let _ = fs::remove_file(&raw);
    }
    Ok(())
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
