//! Debian, installed on a disk: started from it, changed by its user, and found as it was left; on each kind of disk
//! that the machine can have, for each that guests see, in each format.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use xtask::command as program;
use xtask::debian_disk;
use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Bus, Disk, Emulator, Firmware, Machine, Spec};
use xtask::suite::{Case, Outcome};

use crate::bad_input::said;
use crate::console::{PROMPT, WORK, command, says, wait_for_shell};
use crate::lab::{Lab, Variant, read};
use crate::manifest::{Guest, good};
use crate::multiplexer::{KEY, MANAGEMENT, manage};

/// Wall time until systemd offers a login: an emulator inside an emulated hypervisor, two at a time.
const BOOT: Duration = Duration::from_secs(600);
/// Wall time after which the kernel has spoilt a prompt with a line of its own.
const SPOILT: Duration = Duration::from_secs(60);
/// Wall time for a boot in Bochs, which executes some fifty million instructions a second.
const SLOW: Duration = Duration::from_secs(3000);

/// One way to a disk.
#[derive(Clone, Copy)]
struct Way {
    emulator: Emulator,
    /// The machine's disks.
    bus: Bus,
    /// What the manifest calls the first and the second of them.
    names: [&'static str; 2],
    /// What the guest sees.
    model: &'static str,
}

const VIRTIO: Way =
    Way { emulator: Emulator::Qemu, bus: Bus::Virtio, names: ["virtio0", "virtio1"], model: "virtio" };
const NVME: Way = Way { bus: Bus::Nvme, names: ["peerboot-0", "peerboot-1"], model: "nvme", ..VIRTIO };
const AHCI: Way = Way { bus: Bus::Ahci, names: ["ahci0.0", "ahci0.1"], ..VIRTIO };
const ATA: Way =
    Way { emulator: Emulator::Bochs, bus: Bus::Ata, names: ["ata0.0", "ata0.1"], model: "virtio" };

/// What a disk has to do with.
pub fn cases() -> Vec<Case<Lab>> {
    const SOME: u32 = 24;
    const GIBIBYTE: u32 = 1024;
    let stays = |name: &str, way: Way, mebibytes: u32| {
        let name = format!("disks-{name}");
        Case::new(format!("emulator/{}", name.replacen('-', "/", 1)), move |lab: &Lab| {
            everything_stays(lab, &name, way, mebibytes)?;
            if mebibytes == GIBIBYTE { stays_for_others(lab, &name, way) } else { Ok(Outcome::Passed) }
        })
    };
    vec![
        stays("virtio", VIRTIO, SOME),
        stays("nvme", NVME, SOME),
        stays("ahci", AHCI, SOME),
        stays("virtio-gibibyte", VIRTIO, GIBIBYTE).long(),
        stays("nvme-gibibyte", NVME, GIBIBYTE).long(),
        stays("ahci-gibibyte", AHCI, GIBIBYTE).long(),
        Case::new("emulator/disks/ata-login", |lab: &Lab| reaches_login(lab, ATA)).long(),
        stays("ata-package", ATA, SOME).long(),
        Case::new("emulator/disks/two-systems", two_systems),
        Case::new("emulator/disks/qcow2", |lab: &Lab| image(lab, "qcow2", "qcow2")).long(),
        Case::new("emulator/disks/vhd", |lab: &Lab| image(lab, "vhd", "vpc")),
        Case::new("emulator/disks/bare", bare).long(),
        Case::new("emulator/disks/forgotten", what_is_written_is_forgotten),
        Case::new("emulator/disks/missing", what_is_missing_is_said),
        Case::new("emulator/disks/memory", images_that_need_too_much_memory),
    ]
}

/// A package from a second disk is installed and data written; after a reboot all is there, for the system and for the
/// file system's own check.
fn everything_stays(lab: &Lab, test: &str, way: Way, mebibytes: u32) -> Result<()> {
    let patience = if way.emulator == Emulator::Bochs { SLOW } else { BOOT };
    let nodes = [node("disk0", way.names[0], way.model, ""), node("disk1", way.names[1], way.model, "")];
    let variant = lab.unfilled(way.emulator, test, &manifest(&[("system", nodes.concat())]))?;
    let system = fresh_system(lab, test)?;
    let repository = variant.write("repository.img", &[])?;
    debian_disk::copy(&debian_disk::repository(lab.project())?, &repository)?;
    let mut machine = boot(&variant, way.bus, &[&system, &repository])?;
    log_in(&mut machine, patience)?;
    says(&mut machine, "mount -o ro LABEL=repository /mnt && echo mounted", "mounted")?;
    command(&mut machine, "echo 'deb [trusted=yes] file:/mnt ./' > /etc/apt/sources.list", WORK)?;
    let install = format!("apt-get -q update && apt-get -q -y install {}", debian_disk::PACKAGE);
    let said = command(&mut machine, &format!("{install} && echo installed"), patience)?;
    if said.last().is_none_or(|last| last != "installed") {
        return Err(Error::failed(format!("apt-get said {said:#?}")));
    }
    says(&mut machine, debian_disk::PACKAGE, "Hello, world!")?;
    let sum = write_data(&mut machine, mebibytes)?;

    machine.send("reboot\n")?;
    log_in(&mut machine, patience)?;
    finds_all(&mut machine, &sum)?;
    switch_off(&mut machine, patience)?;
    check_file_system(&system)?;
    check_data(&system, &sum)?;
    Ok(())
}

/// All is there for the same system in plain QEMU too.
fn stays_for_others(lab: &Lab, test: &str, way: Way) -> Result<Outcome> {
    // Debian's cloud kernel, which only knew the guest's disk so far, has no driver for AHCI.
    let bus = if way.bus == Bus::Ahci { Bus::Virtio } else { way.bus };
    let dir = lab.project().build(&format!("tests/{test}"))?;
    let mut machine = Machine::spawn(&plain(lab, &dir.join("debian.img"), bus)?)?;
    log_in(&mut machine, BOOT)?;
    let sum = command(&mut machine, "cat /root/sum", WORK)?.join("");
    let sum = sum.split_whitespace().next().unwrap_or_default().to_owned();
    finds_all(&mut machine, &sum)?;
    Ok(Outcome::Passed)
}

/// The system boots to its login, and lets its disk be as it should.
fn reaches_login(lab: &Lab, way: Way) -> Result<Outcome> {
    let test = "disks-login";
    let disk = node("disk0", way.names[0], way.model, "");
    let variant = lab.unfilled(way.emulator, test, &manifest(&[("system", disk)]))?;
    let system = fresh_system(lab, test)?;
    let mut machine = boot(&variant, way.bus, &[&system])?;
    log_in(&mut machine, SLOW)?;
    switch_off(&mut machine, SLOW)?;
    check_file_system(&system)?;
    Ok(Outcome::Passed)
}

/// Two systems live at once from one disk, each with an image of its own for what it changes; one is rolled back.
fn two_systems(lab: &Lab) -> Result<Outcome> {
    let over = |image| {
        let base = format!("format = \"qcow2\"; base = \"disk:{}\";", VIRTIO.names[0]);
        node("disk0", image, "virtio", &base)
    };
    let guests = [("one", over("virtio1")), ("two", over("virtio2"))];
    let source = manifest(&guests).replace("autostart;", "");
    let variant = lab.unfilled(Emulator::Qemu, "disks-two-systems", &source)?;
    let system = fresh_system(lab, "disks-two-systems")?;
    let before = sum_of(&system)?;
    let images = ["one.qcow2", "two.qcow2"].map(|name| {
        let image = variant.write(name, &[])?;
        let file = File::options().write(true).open(&image).map_err(|e| Error::file("open", &image, &e))?;
        file.set_len(1 << 30).map_err(|e| Error::file("make", &image, &e))?;
        Ok::<_, Error>(image)
    });
    let [one, two] = images;
    let (one, two) = (one?, two?);
    let mut machine = boot(&variant, Bus::Virtio, &[&system, &one, &two])?;
    machine.expect(MANAGEMENT, BOOT)?;
    for name in ["one", "two"] {
        // Where there is no image yet, this makes one.
        manage(&mut machine, &format!("rollback {name}"), "disk0 is as its base again")?;
        manage(&mut machine, &format!("start {name}"), &format!(r"\] {name}: starts$"))?;
    }
    let mut sums = Vec::new();
    for (number, name) in [(1, "one"), (2, "two")] {
        machine.send(&format!("{KEY}{number}"))?;
        machine.expect(&format!("^-- {name} "), WORK)?;
        // What it offered before is not shown again.
        machine.send("\n")?;
        log_in(&mut machine, BOOT)?;
        command(&mut machine, &format!("echo {name} > /root/who"), WORK)?;
        sums.push(write_data(&mut machine, 8)?);
    }
    says(&mut machine, "cat /root/who", "two")?;
    machine.send("poweroff\n")?;
    machine.expect(r"\] two: powered off$", BOOT)?;
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, WORK)?;
    manage(&mut machine, "rollback two", "disk0 is as its base again")?;
    machine.send(&format!("{KEY}1"))?;
    machine.expect("^-- one ", WORK)?;
    // What comes before this answer was there already.
    command(&mut machine, "true", WORK)?;
    says(&mut machine, "cat /root/who", "one")?;
    switch_off(&mut machine, BOOT)?;

    if sum_of(&system)? != before {
        return Err(Error::failed("the base has changed"));
    }
    for (image, sum) in [(&one, Some(&sums[0])), (&two, None)] {
        // What Peerboot calls the base means nothing to others.
        let mut rebase = program::command("qemu-img");
        program::output(rebase.args(["rebase", "-u", "-F", "raw", "-b"]).arg(&system).arg(image))?;
        let raw = whole(image, "qcow2")?;
        match sum {
            Some(sum) => {
                check_file_system(&raw)?;
                check_data(&raw, sum)?;
            }
            None if sum_of(&raw)? != before => return Err(Error::failed("it was not rolled back")),
            None => {}
        }
        let _ = fs::remove_file(&raw);
    }
    Ok(Outcome::Passed)
}

/// A system in an image of this format, which QEMU's tools made and find without fault afterwards.
fn image(lab: &Lab, format: &str, tools_name: &str) -> Result<Outcome> {
    let test = format!("disks-{format}");
    let disk = node("disk0", VIRTIO.names[0], "virtio", &format!("format = \"{format}\";"));
    let variant = lab.unfilled(Emulator::Qemu, &test, &manifest(&[("system", disk)]))?;
    let image = variant.write("system.image", &[])?;
    let mut convert = program::command("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", tools_name]);
    if tools_name == "vpc" {
        // The size that the disk has, and not one of whole cylinders.
        convert.args(["-o", "subformat=dynamic,force_size=on"]);
    }
    program::output(convert.arg(debian_disk::system(lab.project())?).arg(&image))?;
    // Room to grow.
    let file = File::options().write(true).open(&image).map_err(|e| Error::file("open", &image, &e))?;
    file.set_len(1 << 30).map_err(|e| Error::file("lengthen", &image, &e))?;
    let mut machine = boot(&variant, Bus::Virtio, &[&image])?;
    log_in(&mut machine, BOOT)?;
    let sum = write_data(&mut machine, 64)?;
    switch_off(&mut machine, BOOT)?;
    let raw = whole(&image, tools_name)?;
    check_file_system(&raw)?;
    check_data(&raw, &sum)?;
    let _ = fs::remove_file(&raw);
    Ok(Outcome::Passed)
}

/// A guest finds what is on a disk in the ROM, and cannot write it; what it writes to a snapshot is there until its life
/// ends, and nowhere else.
fn what_is_written_is_forgotten(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "disks-forgotten")?;
    let disks = format!(
        "{}\ndisk1 {{ source = \"cbfs:words\"; read-only; model = \"nvme\"; }};",
        node("disk0", VIRTIO.names[0], "nvme", "snapshot;")
    );
    variant.manifest(&crate::manifest::manifest(&[Guest { properties: &disks, ..good() }]))?;
    variant.cbfs.add("words", &variant.write("words", b"as it was in the ROM\n")?)?;
    let mut content = b"as it was on the disk\n".to_vec();
    content.resize(1 << 20, 0);
    let image = variant.write("disk.img", &content)?;
    let mut machine = boot(&variant, Bus::Virtio, &[&image])?;
    for life in 0..2 {
        wait_for_shell(&mut machine)?;
        command(&mut machine, "dmesg -n 1", WORK)?;
        says(&mut machine, "head -n 1 /dev/nvme0n1", "as it was on the disk")?;
        says(&mut machine, "head -n 1 /dev/nvme1n1", "as it was in the ROM")?;
        says(&mut machine, "cat /sys/block/nvme1n1/ro", "1")?;
        let write = "dd of=/dev/nvme0n1 bs=4096 conv=sync,notrunc,fsync 2>/dev/null";
        command(&mut machine, &format!("echo changed | {write}; echo 3 > /proc/sys/vm/drop_caches"), WORK)?;
        says(&mut machine, "head -n 1 /dev/nvme0n1", "changed")?;
        if life == 0 {
            machine.send("reboot\n")?;
        }
    }
    drop(machine);
    if read(&image)? == content { Ok(Outcome::Passed) } else { Err(Error::failed("the disk was written")) }
}

/// What a manifest looks for in vain is named beside what is there; a disk that one guest writes no other has; and the
/// other guests start.
fn what_is_missing_is_said(lab: &Lab) -> Result<Outcome> {
    let disk = |source: &str, more: &str| format!("disk0 {{ source = \"{source}\"; {more} }};");
    let tiny = |name, disk| Guest { properties: disk, ..Guest::tiny(name, "cbfs:guests/hello") };
    let disks = [
        ("nowhere", disk("disk:nvme7", "")),
        ("unlabelled", disk("disk:virtio0/part:label/home", "")),
        ("unfiled", disk("disk:virtio0/part:2/file:/images/web.img", "")),
        ("no-image", disk("disk:virtio0/part:1", "format = \"qcow2\";")),
        ("holder", disk("disk:virtio0/part:2", "")),
        ("late", disk("disk:virtio0", "read-only;")),
        ("last", disk("disk:virtio0/part:1", "read-only;")),
    ];
    let guests: Vec<Guest> = disks.iter().map(|(name, disk)| tiny(name, disk)).collect();
    let variant = lab.unfilled(Emulator::Qemu, "disks-missing", &crate::manifest::manifest(&guests))?;
    variant.cbfs.add("guests/hello", &guests::tiny(lab.project(), "hello")?)?;
    let mut machine = boot(&variant, Bus::Virtio, &[&fresh_system(lab, "disks-missing")?])?;
    machine.expect("last: .* ready$", WORK)?;
    said(
        &machine,
        &[
            "nowhere: disk0: disk:nvme7: there is no such disk; there are virtio0",
            "unlabelled: disk0: .*there is no such partition; the disk has 1 .label/esp, .*2 .label/root",
            "unfiled: disk0: disk:virtio0/part:2/file:/images/web.img: .*/images/web.img",
            "no-image: disk0: disk:virtio0/part:1: no qcow2 header",
            "late: disk0: .*late's disk0 cannot read `disk:virtio0`: holder's disk0 writes `disk:virtio0/part:2`",
        ],
    )
}

/// Whose image needs more of Peerboot's memory than others have left does not start, and what was missing is said; it
/// starts when that was given back.
fn images_that_need_too_much_memory(lab: &Lab) -> Result<Outcome> {
    let tiny =
        |name, disk| Guest { bootargs: name, properties: disk, ..Guest::tiny(name, "cbfs:guests/idle") };
    let large = "disk0 { source = \"disk:virtio0\"; format = \"qcow2\"; read-only; };";
    let raw = "disk0 { source = \"disk:virtio0\"; read-only; };";
    let guests = [tiny("first", large), tiny("second", large), tiny("last", raw)];
    let variant = lab.unfilled(Emulator::Qemu, "disks-memory", &crate::manifest::manifest(&guests))?;
    variant.cbfs.add("guests/idle", &guests::tiny(lab.project(), "idle")?)?;
    let image = variant.write("large.qcow2", &[])?;
    let mut create = program::command("qemu-img");
    // A compressed cluster would be expanded in memory.
    create.args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M"]).arg(&image).arg("64M");
    program::output(&mut create)?;
    let mut machine = boot(&variant, Bus::Virtio, &[&image])?;
    machine.expect(r"\] last: .* ready$", WORK)?;
    let refused =
        r"disk0: disk:virtio0: needs \d{4} KiB of Peerboot's own memory, of which \d{4} KiB are free$";
    said(&machine, &[&format!("error: second: {refused}")])?;
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, WORK)?;
    manage(&mut machine, "stop first 0", r"\] first: stopped$")?;
    manage(&mut machine, "start second", r"\] second: starts$")?;
    manage(&mut machine, "start first", &format!(r"\] first: cannot start: {refused}"))?;
    Ok(Outcome::Passed)
}

/// The system boots in plain QEMU by its own boot loader; what it writes there is there under Peerboot.
fn bare(lab: &Lab) -> Result<Outcome> {
    let disk = node("disk0", VIRTIO.names[0], VIRTIO.model, "");
    let variant = lab.unfilled(Emulator::Qemu, "disks-bare", &manifest(&[("system", disk)]))?;
    let system = fresh_system(lab, "disks-bare")?;
    let mut machine = Machine::spawn(&plain(lab, &system, Bus::Virtio)?)?;
    log_in(&mut machine, BOOT)?;
    says(&mut machine, "cut -d. -f1 /etc/debian_version", "12")?;
    let sum = write_data(&mut machine, 8)?;
    machine.send("poweroff\n")?;
    machine.wait_exit(BOOT)?;
    check_file_system(&system)?;

    let mut machine = boot(&variant, Bus::Virtio, &[&system])?;
    log_in(&mut machine, BOOT)?;
    says(&mut machine, "sha256sum -c /root/sum", "/root/data: OK")?;
    switch_off(&mut machine, BOOT)?;
    check_file_system(&system)?;
    check_data(&system, &sum)?;
    Ok(Outcome::Passed)
}

/// A disk of a guest in a manifest's source.
fn node(name: &str, disk: &str, model: &str, more: &str) -> String {
    format!("{name} {{ source = \"disk:{disk}\"; model = \"{model}\"; {more} }};\n")
}

/// A manifest of guests that start from their disks.
fn manifest(guests: &[(&str, String)]) -> String {
    let mut nodes = String::new();
    for (name, disks) in guests {
        let _ = writeln!(
            nodes,
            "{name} {{ compatible = \"peerboot,guest\"; memory = <0x60000>; boot = \"disk\"; autostart;\n{disks} }};"
        );
    }
    format!("/dts-v1/;\n/ {{ compatible = \"peerboot,manifest-v1\"; chosen {{\n{nodes}}}; }};\n")
}

/// A machine with this ROM and these disks.
fn boot(variant: &Variant, bus: Bus, disks: &[&Path]) -> Result<Machine> {
    let mut spec = variant.spec();
    spec.disks = disks.iter().map(|file| Disk::new((*file).to_owned(), bus)).collect();
    Machine::spawn(&spec)
}

/// A copy of the system's disk for a test of this name.
pub fn fresh_system(lab: &Lab, test: &str) -> Result<PathBuf> {
    let project = lab.project();
    let image = project.build(&format!("tests/{test}"))?.join("debian.img");
    debian_disk::copy(&debian_disk::system(project)?, &image)?;
    Ok(image)
}

/// QEMU with its own UEFI, and this disk.
fn plain(lab: &Lab, disk: &Path, bus: Bus) -> Result<Spec> {
    let mut spec = Spec::new(Firmware::Uefi(guests::uefi(lab.project())?));
    spec.disks.push(Disk::new(disk.to_owned(), bus));
    Ok(spec)
}

/// Logs in at the console in the foreground, to a shell with the prompt that tests know.
pub fn log_in(machine: &mut Machine, patience: Duration) -> Result<()> {
    // The kernel may put a line of its own behind either prompt: on a CPU with AMD-V its KVM does so when udev is done.
    machine.expect_unfinished("debian login: ", patience)?;
    machine.send("root\n")?;
    machine.expect_unfinished("root@debian:~# ", patience)?;
    // Lines that wrap, or that the kernel's own get between, could not be found again. What is typed must not look
    // like the prompt while it is echoed.
    machine.send("stty cols 500; dmesg -n 1; PS1='/ ''# '\n")?;
    if machine.expect(PROMPT, SPOILT).is_err() {
        machine.send("\n")?;
        machine.expect(PROMPT, WORK)?;
        // Another prompt may come, if the first was only late; not after this.
        command(machine, "true", WORK)?;
    }
    Ok(())
}

/// The guest switches itself off, and so does the machine.
fn switch_off(machine: &mut Machine, patience: Duration) -> Result<()> {
    machine.send("poweroff\n")?;
    machine.expect("all guests are off", patience)?;
    machine.wait_exit(WORK).map(drop)
}

/// Has the guest write so many mebibytes of data that is not repeated, and gives their SHA-256.
fn write_data(machine: &mut Machine, mebibytes: u32) -> Result<String> {
    // Each pass of the cipher costs a guest far less than the kernel's random numbers would.
    let key = "-K 00112233445566778899aabbccddeeff -iv 0";
    let data = format!("head -c {mebibytes}M /dev/zero | openssl enc -aes-128-ctr {key}");
    let data = format!("({data} 2>/dev/null || head -c {mebibytes}M /dev/urandom) > /root/data");
    command(machine, &format!("{data}; sync"), BOOT)?;
    let said = command(machine, "sha256sum /root/data | tee /root/sum; sync", BOOT)?.join("");
    let sum = said.split_whitespace().next().unwrap_or_default();
    if sum.len() == 64 { Ok(sum.to_owned()) } else { Err(Error::failed(format!("no sum in {said:?}"))) }
}

/// What was installed and written is there.
fn finds_all(machine: &mut Machine, sum: &str) -> Result<()> {
    says(machine, debian_disk::PACKAGE, "Hello, world!")?;
    says(machine, "cut -d' ' -f1 /root/sum", sum)?;
    command(machine, "echo 3 > /proc/sys/vm/drop_caches", WORK)?;
    says(machine, "sha256sum -c /root/sum", "/root/data: OK")
}

/// The root file system on a disk, as e2fsprogs names it.
fn root_of(disk: &Path) -> String {
    format!("{}?offset={}", disk.display(), debian_disk::root_offset())
}

/// The root file system of a system that was switched off has no fault.
fn check_file_system(disk: &Path) -> Result<()> {
    program::output(program::command("e2fsck").args(["-fn", &root_of(disk)])).map(drop)
}

/// What the guest wrote is what the disk holds.
fn check_data(disk: &Path, sum: &str) -> Result<()> {
    let copy = disk.with_extension("data");
    let request = format!("dump /root/data {}", copy.display());
    program::output(program::command("debugfs").args(["-R", &request, &root_of(disk)]))?;
    let found = sum_of(&copy)?;
    let _ = fs::remove_file(&copy);
    if found == sum { Ok(()) } else { Err(Error::failed(format!("the data has {found}, not {sum}"))) }
}

/// A file's SHA-256.
fn sum_of(file: &Path) -> Result<String> {
    let said = program::output(program::command("sha256sum").arg(file))?;
    Ok(String::from_utf8_lossy(&said).split_whitespace().next().unwrap_or_default().to_owned())
}

/// The disk in an image that QEMU's tools find no fault with.
fn whole(image: &Path, format: &str) -> Result<PathBuf> {
    if format == "qcow2" {
        program::output(program::command("qemu-img").args(["check", "-f", format]).arg(image))?;
    }
    let raw = image.with_extension("raw");
    let mut convert = program::command("qemu-img");
    program::output(convert.args(["convert", "-f", format, "-O", "raw"]).arg(image).arg(&raw))?;
    Ok(raw)
}
