//! A guest's disks as NVMe controllers: Debian's kernel, which has a driver for them built in, reads and writes them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use xtask::command as program;
use xtask::error::{Error, Result};
use xtask::machine::{Bus, Disk, Emulator, Machine, Spec};
use xtask::manifest::{good, manifest};
use xtask::suite::{Case, Outcome};

use crate::console::{self, ANSWER, PROMPT, USERSPACE, command};
use crate::lab::Lab;

/// Wall time from reset to the guest's shell: Bochs's machine takes its time.
const BOOT: Duration = Duration::from_secs(600);
/// Wall time for what the guest does to its disks.
const WORK: Duration = Duration::from_secs(240);
/// The Intel CPU in Bochs that Linux runs on.
const BOCHS_CPU: &str = "corei7_skylake_x";

/// What the first disk holds, in bytes.
const PATTERN: u32 = 128 << 10;
/// Where it is copied to on the second, in blocks of 4 KiB.
const COPIED_TO: usize = 16;

/// What such a disk has to do.
pub fn cases() -> Vec<Case<Lab>> {
    vec![
        Case::new("emulator/nvme-guest/max", |lab: &Lab| copies(lab, Emulator::Qemu, Bus::Nvme, "nvme0")),
        Case::new("emulator/nvme-guest/resets", resets),
        Case::new("emulator/nvme-guest/bochs", |lab: &Lab| copies(lab, Emulator::Bochs, Bus::Ata, "ata0.0")),
    ]
}

/// The guest reads a file of the ROM as one disk and writes it to another, which the machine's own disk then has.
fn copies(lab: &Lab, emulator: Emulator, bus: Bus, disk: &str) -> Result<Outcome> {
    let disks = format!(
        "disk0 {{ source = \"cbfs:disks/pattern\"; read-only; model = \"nvme\"; serial = \"PATTERN-1\"; }};\n\
         disk1 {{ source = \"disk:{disk}\"; model = \"nvme\"; }};"
    );
    let guest = xtask::manifest::Guest { properties: &disks, ..good() };
    let name = format!("nvme-guest-{}", emulator.board());
    let variant = lab.unfilled(emulator, &name, &manifest(&[guest]))?;
    // Each block differs from the others.
    let pattern: Vec<u8> = (0..PATTERN).map(|n| (n ^ n >> 9).to_le_bytes()[0]).collect();
    let file = variant.write("pattern", &pattern)?;
    variant.cbfs.add("disks/pattern", &file)?;
    let image = variant.write("disk.img", &vec![0xee; 8 << 20])?;
    // What a Bochs that was killed has left.
    let _ = fs::remove_file(image.with_extension("img.lock"));
    let mut spec = variant.spec();
    spec.disks.push(Disk::new(image.clone(), bus));
    if emulator == Emulator::Bochs {
        spec = Spec { cpu: BOCHS_CPU.to_owned(), ..spec };
    }
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(USERSPACE, BOOT)?;
    machine.expect(PROMPT, ANSWER)?;
    // Lines that wrap could not be found again.
    machine.send("stty cols 500\n")?;
    machine.expect(PROMPT, ANSWER)?;

    let serial = command(&mut machine, "cat /sys/block/nvme0n1/device/serial", ANSWER)?.join(" ");
    if !serial.contains("PATTERN-1") {
        return Err(Error::failed(format!("the serial number of the first disk is {serial:?}")));
    }
    let sum = sum(&file)?;
    let read = |machine: &mut Machine, disk: &str, skip: usize| -> Result<()> {
        let line =
            format!("dd if=/dev/{disk} bs=4k skip={skip} count={} 2>/dev/null | md5sum", PATTERN / 4096);
        let said = command(machine, &line, WORK)?.join(" ");
        if said.contains(&sum) {
            Ok(())
        } else {
            Err(Error::failed(format!("{disk}: {said}, expected {sum}")))
        }
    };
    read(&mut machine, "nvme0n1", 0)?;
    let refused =
        command(&mut machine, "dd if=/dev/zero of=/dev/nvme0n1 bs=4k count=1 2>&1", WORK)?.join(" ");
    if !refused.contains("not permitted") && !refused.contains("Read-only") {
        return Err(Error::failed(format!("a write to a read-only disk said {refused:?}")));
    }
    let copy = format!("dd if=/dev/nvme0n1 of=/dev/nvme1n1 bs=4k seek={COPIED_TO} conv=fsync 2>&1");
    command(&mut machine, &copy, WORK)?;
    command(&mut machine, "echo 3 >/proc/sys/vm/drop_caches", WORK)?;
    read(&mut machine, "nvme1n1", COPIED_TO)?;
    let complaints = command(&mut machine, "dmesg | grep nvme | grep -ci 'error\\|time\\|fail'", ANSWER)?;
    if complaints != ["0"] {
        let said = command(&mut machine, "dmesg | grep nvme", ANSWER)?;
        return Err(Error::failed(said.join("\n")));
    }
    machine.send("poweroff\n")?;
    machine.expect("all guests are off", WORK)?;
    machine.wait_exit(WORK)?;

    let image = fs::read(&image).map_err(|e| Error::file("read", &image, &e))?;
    let (before, rest) = image.split_at(COPIED_TO * 4096);
    let (copied, after) = rest.split_at(pattern.len());
    let untouched = before.iter().chain(after).all(|byte| *byte == 0xee);
    if copied != pattern || !untouched {
        return Err(Error::failed("the machine's disk does not hold what the guest wrote, and nothing else"));
    }
    Ok(Outcome::Passed)
}

/// A guest resets itself while it writes, with two CPUs and a queue for each: what is under way ends first, and the next
/// life finds its disks.
fn resets(lab: &Lab) -> Result<Outcome> {
    let disk = "cpus = <2>;\ndisk0 { source = \"disk:nvme0\"; model = \"nvme\"; };";
    let guest = xtask::manifest::Guest { properties: disk, ..good() };
    let variant = lab.unfilled(Emulator::Qemu, "nvme-guest-resets", &manifest(&[guest]))?;
    let image = variant.write("disk.img", &vec![0xee; 8 << 20])?;
    let mut spec = variant.spec();
    spec.disks.push(Disk::new(image.clone(), Bus::Nvme));
    let mut machine = Machine::spawn(&spec)?;
    for life in 0..3 {
        machine.expect(USERSPACE, console::BOOT)?;
        machine.expect(PROMPT, ANSWER)?;
        let queues = command(&mut machine, "ls -d /sys/block/nvme0n1/mq/* | wc -l", ANSWER)?;
        if queues != ["2"] {
            return Err(Error::failed(format!("Linux with two CPUs uses {queues:?} queues")));
        }
        for writer in 0..4 {
            let line =
                format!("while dd if=/dev/zero of=/dev/nvme0n1 bs=64k seek={writer} count=8 conv=notrunc \\");
            machine.send(&format!("{line}\noflag=direct 2>/dev/null; do :; done &\n"))?;
        }
        command(&mut machine, "true", ANSWER)?;
        if life < 2 {
            // At once, with nobody told to prepare.
            machine.send("echo b >/proc/sysrq-trigger\n")?;
            machine.expect(r"\] good: reset$", ANSWER)?;
        }
    }
    machine.send("\x1dm")?;
    machine.expect(r"peerboot> $", ANSWER)?;
    machine.send("stop good 0\r")?;
    machine.expect(r"\] good: stopped$", ANSWER)?;
    machine.send("list\r")?;
    machine.expect("good .* off: stopped", ANSWER)?;
    Ok(Outcome::Passed)
}

/// A file's sum as the guest's `md5sum` says it.
fn sum(file: &Path) -> Result<String> {
    let said = String::from_utf8_lossy(&program::output(program::command("md5sum").arg(file))?).into_owned();
    Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
}
