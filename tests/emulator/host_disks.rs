//! The machine's own disks, behind every controller that there is a driver for: told apart, read and written.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use xtask::command as program;
use xtask::error::{Error, Result};
use xtask::machine::{Bus, Disk, Emulator, Machine, Spec};
use xtask::manifest::{Guest, good, manifest};
use xtask::suite::{Case, Outcome};

use crate::bad_input::said;
use crate::console::{ANSWER, PROMPT, USERSPACE, command};
use crate::lab::Lab;

/// Wall time from reset to the guest's shell: Bochs's machine takes its time.
const BOOT: Duration = Duration::from_secs(600);
/// Wall time for what the guest does to its disks.
const WORK: Duration = Duration::from_secs(400);

const MIB: usize = 1 << 20;

/// All about them.
pub fn cases() -> Vec<Case<Lab>> {
    vec![
        Case::new("emulator/host-disks/max", qemu),
        Case::new("emulator/host-disks/bad-blocks", bad_blocks),
        Case::new("emulator/host-disks/bochs", bochs),
    ]
}

/// A disk of the machine's: its GPT has two partitions of as many MiB each, of which the guest copies one to the other.
struct HostDisk {
    /// The name of its first partition.
    label: &'static str,
    /// How the manifest calls it.
    source: &'static str,
    image: PathBuf,
    before: Vec<u8>,
    part: usize,
}

impl HostDisk {
    fn make(dir: &Path, label: &'static str, source: &'static str, part: usize) -> Result<Self> {
        let image = dir.join(format!("{label}.img"));
        let failed = |e| Error::file("write", &image, &e);
        // What a Bochs that was killed has left.
        let _ = fs::remove_file(image.with_extension("img.lock"));
        let bytes: Vec<u8> = noise(label).take((2 * part + 2) * MIB).collect();
        fs::write(&image, bytes).map_err(failed)?;
        let mut sfdisk = program::command("sfdisk");
        sfdisk.args(["--quiet", "--wipe", "never"]).arg(&image).stdin(Stdio::piped());
        let mut running = sfdisk.spawn().map_err(|e| program::cannot_start(&sfdisk, &e))?;
        let table = format!("label: gpt\nname={label}, size={part}M\nname=copy, size={part}M\n");
        running.stdin.take().map_or(Ok(()), |mut input| input.write_all(table.as_bytes())).map_err(failed)?;
        if !running.wait().map_err(failed)?.success() {
            return Err(Error::failed(format!("{} failed", program::line(&sfdisk))));
        }
        let before = fs::read(&image).map_err(|e| Error::file("read", &image, &e))?;
        Ok(Self { label, source, image, before, part })
    }

    /// Every byte is as it is to be after the copy, and no other has changed.
    fn check(&self) -> Result<()> {
        let mut expected = self.before.clone();
        expected.copy_within(MIB..(1 + self.part) * MIB, (1 + self.part) * MIB);
        let found = fs::read(&self.image).map_err(|e| Error::file("read", &self.image, &e))?;
        match expected.iter().zip(&found).position(|(expected, found)| expected != found) {
            None if expected.len() == found.len() => Ok(()),
            None => Err(Error::failed(format!("{} has another size", self.image.display()))),
            Some(at) => {
                Err(Error::failed(format!("{} is not as it should be at {at:#x}", self.image.display())))
            }
        }
    }
}

/// Bytes that look random, the same each time for a name.
fn noise(name: &str) -> impl Iterator<Item = u8> {
    let mut state = name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x2545_f491_4f6c_dd1d)
    });
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}

/// All controllers of QEMU's at once, one with blocks of 4 KiB.
fn qemu(lab: &Lab) -> Result<Outcome> {
    let dir = lab.project().build("tests/host-disks-max")?;
    let disk = |label, source| HostDisk::make(&dir, label, source, 16);
    let disks = [
        disk("on-nvme", "nvme0")?,
        disk("on-ahci", "ahci0.0")?,
        disk("on-ata", "ata0.0")?,
        disk("on-virtio", "virtio0")?,
        disk("on-4k", "large-blocks")?,
    ];
    let rom = lab.unfilled(Emulator::Qemu, "host-disks-max", &guest(&disks))?;
    let mut spec = rom.spec();
    for (disk, bus) in disks.iter().zip([Bus::Nvme, Bus::Ahci, Bus::Ata, Bus::Virtio]) {
        spec.disks.push(Disk::new(disk.image.clone(), bus));
    }
    let drive = format!("if=none,id=large,format=raw,file={}", disks[4].image.display());
    let blocks = "logical_block_size=4096,physical_block_size=4096";
    let device = format!("nvme,serial=large-blocks,drive=large,{blocks}");
    spec.extra.extend(["-drive".to_owned(), drive, "-device".to_owned(), device]);
    let log = [
        r"nvme, MSI-X$",
        r"ahci, MSI$",
        r"ata, ISA interrupts$",
        r#"disk: nvme.*, 34 MiB in blocks of 512, GPT with 2 partition\(s\), 1 "on-nvme", 2 "copy""#,
        r#"disk: ahci\d\.0 at .*, QEMU HARDDISK, .*, 34 MiB .*, GPT with 2 partition\(s\), 1 "on-ahci", 2 "copy""#,
        r#"disk: ata\d\.0 at .*, QEMU HARDDISK, .*, 34 MiB .*, GPT with 2 partition\(s\), 1 "on-ata", 2 "copy""#,
        r#"disk: virtio0\.0 at .*, 34 MiB .*, GPT with 2 partition\(s\), 1 "on-virtio", 2 "copy""#,
        r"disk: nvme.*, serial large-blocks, 34 MiB in blocks of 4096, ",
    ];
    copies(&spec, &disks, &log)
}

/// Bochs's IDE controller, with a disk at each of its channels.
fn bochs(lab: &Lab) -> Result<Outcome> {
    let dir = lab.project().build("tests/host-disks-bochs")?;
    let disks = ["ata0.0", "ata0.1", "ata0.2"]
        .into_iter()
        .zip(["master", "slave", "second"])
        .map(|(source, label)| HostDisk::make(&dir, label, source, 2))
        .collect::<Result<Vec<_>>>()?;
    let rom = lab.unfilled(Emulator::Bochs, "host-disks-bochs", &guest(&disks))?;
    let mut spec = Spec { cpu: "corei7_skylake_x".to_owned(), ..rom.spec() };
    spec.disks.extend(disks.iter().map(|disk| Disk::new(disk.image.clone(), Bus::Ata)));
    let log = [
        r"ata, ISA interrupts$",
        r#"disk: ata\d\.0 at .*, .*, GPT with 2 partition\(s\), 1 "master", 2 "copy""#,
        r#"disk: ata\d\.1 at .*, .*, GPT with 2 partition\(s\), 1 "slave", 2 "copy""#,
        r#"disk: ata\d\.2 at .*, .*, GPT with 2 partition\(s\), 1 "second", 2 "copy""#,
    ];
    copies(&spec, &disks, &log)
}

/// A manifest with a guest that has these disks, with their names as serial numbers.
fn guest(disks: &[HostDisk]) -> String {
    let node = |(n, disk): (usize, &HostDisk)| {
        let HostDisk { label, source, .. } = disk;
        format!("disk{n} {{ source = \"disk:{source}\"; model = \"nvme\"; serial = \"{label}\"; }};\n")
    };
    let properties: String = disks.iter().enumerate().map(node).collect();
    manifest(&[Guest { properties: &properties, ..good() }])
}

/// The log names the disks; a guest copies on all of them at the same time.
fn copies(spec: &Spec, disks: &[HostDisk], log: &[&str]) -> Result<Outcome> {
    let mut machine = Machine::spawn(spec)?;
    machine.expect(USERSPACE, BOOT)?;
    machine.expect(PROMPT, ANSWER)?;
    said(&machine, log)?;
    // Lines that wrap could not be found again.
    machine.send("stty cols 500\n")?;
    machine.expect(PROMPT, ANSWER)?;
    for HostDisk { label, part, .. } in disks {
        let find = format!("d=$(grep -l {label} /sys/block/nvme*/device/serial | cut -d/ -f4)");
        let place = format!("bs=1M skip=1 seek={} count={part} conv=fsync", 1 + part);
        let copy = format!("dd if=/dev/$d of=/dev/$d {place} 2>/tmp/{label} && echo fine >>/tmp/{label}");
        command(&mut machine, &format!("{find}; ({copy}) & true"), ANSWER)?;
    }
    command(&mut machine, "wait", WORK)?;
    for HostDisk { label, .. } in disks {
        let said = command(&mut machine, &format!("cat /tmp/{label}"), ANSWER)?;
        if said.last().is_none_or(|last| last != "fine") {
            return Err(Error::failed(format!("the copy on {label} said {said:?}")));
        }
    }
    let complaints = command(&mut machine, "dmesg | grep nvme | grep -i 'error\\|time\\|fail'", ANSWER)?;
    if !complaints.is_empty() {
        return Err(Error::failed(complaints.join("\n")));
    }
    machine.send("poweroff\n")?;
    machine.expect("all guests are off", WORK)?;
    machine.wait_exit(WORK)?;
    if machine.transcript().contains("and is reset") {
        return Err(Error::failed("a disk was reset"));
    }
    disks.iter().try_for_each(HostDisk::check)?;
    Ok(Outcome::Passed)
}

/// A block that a disk cannot read is an error where it is read, and of nothing else that is under way.
fn bad_blocks(lab: &Lab) -> Result<Outcome> {
    /// The disks' serial numbers, and QEMU's devices.
    const DISKS: [(&str, &str); 4] = [
        ("bad-virtio", "virtio-blk-pci"),
        ("bad-nvme", "nvme"),
        ("bad-ahci", "ide-hd,bus=ide.0"),
        ("bad-ata", "ide-hd,bus=ata.0"),
    ];
    const SIZE: usize = 16 * MIB;
    /// Where the bad block is.
    const BAD: usize = 9 * MIB;

    let dir = lab.project().build("tests/host-disks-bad")?;
    let node = |(n, (serial, _)): (usize, &(&str, &str))| {
        format!("disk{n} {{ source = \"disk:{serial}\"; model = \"nvme\"; serial = \"{serial}\"; }};\n")
    };
    let properties: String = DISKS.iter().enumerate().map(node).collect();
    let guest = Guest { properties: &properties, ..good() };
    let mut spec = lab.unfilled(Emulator::Qemu, "host-disks-bad", &manifest(&[guest]))?.spec();
    spec.extra.extend(["-device", "piix3-ide,id=ata"].map(str::to_owned));
    for (serial, device) in DISKS {
        let image = dir.join(format!("{serial}.img"));
        let bytes: Vec<u8> = noise(serial).take(SIZE).collect();
        fs::write(&image, bytes).map_err(|e| Error::file("write", &image, &e))?;
        let broken =
            format!("event=read_aio,file.inject-error.0.errno=5,file.inject-error.0.sector={}", BAD / 512);
        let file =
            format!("file.driver=blkdebug,file.image.driver=file,file.image.filename={}", image.display());
        let block = format!("driver=raw,node-name={serial},{file},file.inject-error.0.{broken}");
        let device = format!("{device},serial={serial},drive={serial}");
        spec.extra.extend(["-blockdev".to_owned(), block, "-device".to_owned(), device]);
    }
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(USERSPACE, BOOT)?;
    machine.expect(PROMPT, ANSWER)?;
    machine.send("stty cols 500\n")?;
    machine.expect(PROMPT, ANSWER)?;
    for (serial, _) in DISKS {
        let find = format!("d=$(grep -l {serial} /sys/block/nvme*/device/serial | cut -d/ -f4)");
        let read = |name: &str, place: &str| {
            format!("(dd if=/dev/$d bs=1M {place} 2>/tmp/{name}-said | md5sum >/tmp/{name}) &")
        };
        let reads = [
            read("before", "count=8"),
            format!("(dd if=/dev/$d bs=512 skip={} count=1 of=/dev/null 2>/tmp/bad-said) &", BAD / 512),
            read("after", "skip=10"),
        ];
        command(&mut machine, &format!("{find}; {} true", reads.join(" ")), ANSWER)?;
        command(&mut machine, "wait", WORK)?;
        let said = command(&mut machine, "cat /tmp/bad-said", ANSWER)?.join(" ");
        if !said.contains("Input/output error") {
            return Err(Error::failed(format!("the bad block of {serial} said {said:?}")));
        }
        let bytes: Vec<u8> = noise(serial).take(SIZE).collect();
        for (name, part) in [("before", &bytes[..8 * MIB]), ("after", &bytes[10 * MIB..])] {
            let file = dir.join("part");
            fs::write(&file, part).map_err(|e| Error::file("write", &file, &e))?;
            let sum = String::from_utf8_lossy(&program::output(program::command("md5sum").arg(&file))?)
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned();
            let said = command(&mut machine, &format!("cat /tmp/{name}"), ANSWER)?.join(" ");
            if sum.is_empty() || !said.contains(&sum) {
                return Err(Error::failed(format!("{name} the bad block of {serial}: {said:?}, not {sum}")));
            }
        }
    }
    machine.send("poweroff\n")?;
    machine.expect("all guests are off", WORK)?;
    machine.wait_exit(WORK)?;
    Ok(Outcome::Passed)
}
