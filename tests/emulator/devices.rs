//! The machine's devices on PCI: found, listed, driven by the best interrupts they have, and their disks told apart.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use xtask::error::{Error, Result};
use xtask::machine::{Bus, Disk, Emulator, Machine, Spec};
use xtask::suite::{Case, Outcome};

use crate::bad_input::said;
use crate::console::{ANSWER, BOOT};
use crate::lab::Lab;
use crate::multiplexer::{MANAGEMENT, manage};

const MIB: u64 = 1 << 20;

/// All about devices.
pub fn cases() -> Vec<Case<Lab>> {
    vec![
        Case::new("emulator/devices/list", list),
        Case::new("emulator/devices/line-interrupt", line_interrupt),
        Case::new("emulator/devices/bochs", bochs),
    ]
}

/// A machine that runs no guests and so is at its prompt soon.
fn hostless(lab: &Lab, emulator: Emulator) -> Spec {
    let cpu = match emulator {
        Emulator::Qemu => "max,-svm",
        Emulator::Bochs => "athlon64_venice",
    };
    Spec { cpu: cpu.to_owned(), ..lab.example(emulator) }
}

/// An image of so many bytes, all zero but for a partition table with one partition.
fn image(lab: &Lab, test: &str, name: &str, size: u64) -> Result<PathBuf> {
    /// Where the table is in the first sector, and an entry: not to be booted, type Linux, from sector 2048 on.
    const TABLE: u64 = 446;
    const FIRST: u32 = 2048;
    let path = lab.project().build(&format!("tests/{test}"))?.join(name);
    let failed = |error| Error::file("write", &path, &error);
    // Bochs leaves its lock behind when it is killed, and would take the image for one in use.
    let _ = fs::remove_file(path.with_added_extension("lock"));
    let file = File::create(&path).map_err(failed)?;
    file.set_len(size).map_err(failed)?;
    let mut entry = [0; 66];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&FIRST.to_le_bytes());
    let sectors = (size / 512) as u32 - FIRST;
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    entry[64..].copy_from_slice(&[0x55, 0xaa]);
    std::os::unix::fs::FileExt::write_all_at(&file, &entry, TABLE).map_err(failed)?;
    Ok(path)
}

/// A disk of QEMU's, and the device that it is at.
fn attach(spec: &mut Spec, image: &Path, device: &str) {
    let number = spec.extra.len();
    let drive = format!("if=none,id=own{number},format=raw,file={}", image.display());
    let device = format!("{device},drive=own{number}");
    spec.extra.extend(["-drive".to_owned(), drive, "-device".to_owned(), device]);
}

/// Devices on the first bus and behind a bridge are found; the log names disks with what tells them apart, and the
/// prompt lists all.
fn list(lab: &Lab) -> Result<Outcome> {
    let mut spec = hostless(lab, Emulator::Qemu);
    let disk = |name, size| image(lab, "devices-list", name, size);
    attach(&mut spec, &disk("a.img", 64 * MIB)?, "virtio-blk-pci,addr=4,serial=first");
    let blocks = "logical_block_size=4096,physical_block_size=4096";
    attach(&mut spec, &disk("b.img", 20 * MIB)?, &format!("virtio-blk-pci,addr=5,serial=second,{blocks}"));
    spec.extra.extend(["-device", "pcie-root-port,id=root0,addr=6"].map(str::to_owned));
    attach(&mut spec, &disk("c.img", 33 * MIB)?, "nvme,bus=root0,serial=third");
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(MANAGEMENT, BOOT)?;
    let log = [
        r"PCI 00:04\.0 1af4:1001 SCSI controller, virtio-blk, MSI-X$",
        r"PCI 01:00\.0 1b36:0010 NVMe controller, nvme, MSI-X$",
        r"disk: virtio0\.0 at pci:00:04\.0, serial first, 64 MiB in blocks of 512, MBR with 1 partition\(s\), 1$",
        // Its table counts in blocks of 512.
        r"disk: virtio1\.0 at pci:00:05\.0, serial second, 20 MiB in blocks of 4096, ",
        r"disk: nvme0\.1 at pci:01:00\.0, QEMU NVMe Ctrl, serial third, 33 MiB in blocks of 512, MBR with 1 partition\(s\), 1$",
    ];
    said(&machine, &log)?;
    manage(&mut machine, "devices", r"^PCI 00:00\.0 8086:29c0 host bridge$")?;
    for line in [
        r"^PCI 00:04\.0 1af4:1001 SCSI controller, virtio-blk, MSI-X$",
        r"^PCI 00:06\.0 1b36:000c PCI bridge$",
        r"^PCI 00:1f\.3 8086:2930 SMBus controller$",
        r"^PCI 01:00\.0 1b36:0010 NVMe controller, nvme, MSI-X$",
        r"^disk: virtio0\.0 at pci:00:04\.0, serial first, ",
    ] {
        machine.expect(line, ANSWER)?;
    }
    Ok(Outcome::Passed)
}

/// A device without messages interrupts by its line.
fn line_interrupt(lab: &Lab) -> Result<Outcome> {
    let mut spec = hostless(lab, Emulator::Qemu);
    let disk = image(lab, "devices-line", "a.img", 64 * MIB)?;
    attach(&mut spec, &disk, "virtio-blk-pci,addr=4,serial=lined,vectors=0");
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(MANAGEMENT, BOOT)?;
    said(
        &machine,
        &[
            r"PCI 00:04\.0 1af4:1001 SCSI controller, virtio-blk, INTx \(IRQ \d+\) and polled$",
            r"disk: virtio0\.0 at pci:00:04\.0, serial lined, 64 MiB in blocks of 512, MBR with 1 partition",
        ],
    )
}

/// Where configuration space is reached by ports, and disks are at ISA's lines.
fn bochs(lab: &Lab) -> Result<Outcome> {
    let mut spec = hostless(lab, Emulator::Bochs);
    let file = image(lab, "devices-bochs", "a.img", 32 * MIB)?;
    spec.disks.push(Disk::new(file, Bus::Ata));
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(MANAGEMENT, BOOT)?;
    said(
        &machine,
        &[
            r"PCI 00:01\.1 8086:7010 IDE controller, ata, ISA interrupts$",
            r"disk: ata0\.0 at pci:00:01\.1, .* 3\d MiB in blocks of 512, MBR with 1 partition\(s\), 1$",
        ],
    )?;
    manage(&mut machine, "devices", r"^PCI 00:00\.0 8086:1237 host bridge$")?;
    machine.expect(r"^PCI 00:01\.1 8086:7010 IDE controller, ata, ISA interrupts$", ANSWER)?;
    Ok(Outcome::Passed)
}
