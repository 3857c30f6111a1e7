//! The virtio devices under Linux's drivers: a disk of the machine's, one in flash, the console, random numbers.

use std::fs;
use std::path::PathBuf;

use xtask::error::{Error, Result};
use xtask::guests::VIRTIO_MODULES;
use xtask::machine::{Bus, Disk, Emulator, Machine, Spec};
use xtask::suite::{Case, Outcome};

use crate::console::{ANSWER, BOOT, PROMPT, command, says, wait_for_shell};
use crate::lab::Lab;
use crate::manifest::{Guest, good, manifest};

/// Debian's module for random numbers, behind those for disks.
const RANDOM: &str = "drivers/char/hw_random/virtio-rng.ko";
/// The console's, which takes over what is typed.
const CONSOLE: &str = "drivers/char/virtio_console.ko";
const DISK_BYTES: usize = 128 << 10;

/// How the devices are seen.
pub fn cases() -> Vec<Case<Lab>> {
    vec![Case::new("emulator/virtio/linux", linux), Case::new("emulator/virtio/wires", wires)]
}

/// Linux finds all of them, and uses them; what it writes is on the machine's disk.
fn linux(lab: &Lab) -> Result<Outcome> {
    let (mut machine, disk) = boot(lab, "virtio", "true")?;
    says(&mut machine, "cat /sys/block/vda/serial", "first-of-two")?;
    says(&mut machine, "cat /sys/block/vda/size", &(DISK_BYTES / 512).to_string())?;
    says(&mut machine, "cat /sys/block/vda/ro /sys/block/vdb/ro", "0\n1")?;
    says(&mut machine, "cat /sys/block/vda/queue/write_cache", "write back")?;
    says(&mut machine, "cat /sys/block/vda/queue/physical_block_size", "4096")?;
    says(&mut machine, "ls /sys/block/vda/mq | wc -l", "2")?;
    says(&mut machine, "grep -c 'PCI-MSI.* virtio[0-9]-req' /proc/interrupts", "4")?;
    says(&mut machine, "cmp /dev/vda /dev/vdb && echo same", "same")?;
    says(
        &mut machine,
        "yes peerboot | head -c 90000 > /tmp/new; dd if=/tmp/new of=/dev/vda bs=4k seek=8 conv=fsync 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=4k skip=8 2>/dev/null | head -c 90000 | cmp - /tmp/new && echo same",
        "same",
    )?;
    // Off and on again: the device is reset with its queues in use.
    let driver = "/sys/bus/virtio/drivers/virtio_blk";
    says(
        &mut machine,
        &format!(
            "d=$(basename $(readlink /sys/block/vda/device)); echo $d > {driver}/unbind; echo $d > {driver}/bind; cat /sys/block/vda/serial"
        ),
        "first-of-two",
    )?;
    says(
        &mut machine,
        "dd if=/dev/vda bs=4k skip=8 2>/dev/null | head -c 90000 | cmp - /tmp/new && echo same",
        "same",
    )?;
    says(&mut machine, "cat /sys/class/misc/hw_random/rng_current", "virtio_rng.0")?;
    says(&mut machine, "dd if=/dev/hwrng bs=64 count=2 iflag=fullblock 2>/dev/null | wc -c", "128")?;

    // The shell at the serial port lives on, but hears nothing any more.
    let shell = "setsid sh -c 'exec sh -i </dev/hvc0 >/dev/hvc0 2>&1' &";
    machine.send(&format!("insmod /lib/{}; {shell}\n", name(CONSOLE)))?;
    machine.expect(r"built-in shell \(ash\)", ANSWER)?;
    machine.expect(PROMPT, ANSWER)?;
    says(&mut machine, "tty", "/dev/hvc0")?;
    says(&mut machine, "seq 1 2000 | tail -n 1", "2000")?;
    machine.send("seq 1 2000; sync; poweroff -f\n")?;
    machine.expect("^1999\r?$", ANSWER)?;
    machine.wait_exit(BOOT)?;

    let after = fs::read(&disk).map_err(|e| Error::file("read", &disk, &e))?;
    let written: Vec<u8> = b"peerboot\n".iter().copied().cycle().take(90_000).collect();
    let (start, end) = (8 * 4096, 8 * 4096 + written.len());
    if after[start..end] != written || after[..start] != bytes()[..start] || after[end..] != bytes()[end..] {
        return Err(Error::failed(format!("{} is not what the guest made of it", disk.display())));
    }
    Ok(Outcome::Passed)
}

/// Without messages, Linux hears of them by the wires of PCI. Its drivers take messages wherever there are some, as in the
/// other test, so the user forbids these before the drivers come: `/proc/interrupts` must show wires and no message.
fn wires(lab: &Lab) -> Result<Outcome> {
    let no_messages = "for bus in /sys/bus/pci/devices/*/msi_bus; do echo 0 > $bus; done";
    let (mut machine, _) = boot(lab, "virtio-wires", no_messages)?;
    says(&mut machine, "cmp /dev/vda /dev/vdb && echo same", "same")?;
    says(&mut machine, "dd if=/dev/hwrng bs=64 count=2 iflag=fullblock 2>/dev/null | wc -c", "128")?;
    says(&mut machine, "grep -c 'IO-APIC.*-fasteoi.* virtio[0-9]' /proc/interrupts", "3")?;
    says(&mut machine, "grep -c 'PCI-MSI' /proc/interrupts", "0")?;
    Ok(Outcome::Passed)
}

/// A machine with a guest that has all of them, and all their drivers but the console's, which come once its shell has
/// run a command; and the machine's disk.
fn boot(lab: &Lab, test: &str, first: &str) -> Result<(Machine, PathBuf)> {
    const RAMDISK: &str = "guests/debian/initramfs";
    let variant = lab.variant(Emulator::Qemu, test)?;
    variant.cbfs.remove(RAMDISK)?;
    let modules = [&VIRTIO_MODULES[..], &[RANDOM, CONSOLE]].concat();
    variant.cbfs.add(RAMDISK, &variant.write("initramfs", &lab.initramfs_with(&modules)?)?)?;
    let disk = variant.write("disk.img", &bytes())?;
    variant.cbfs.add("guests/disk.img", &disk)?;
    variant.manifest(&manifest(&[Guest {
        properties: "cpus = <2>; console = \"virtio\"; entropy;\n\
                     disk0 { source = \"disk:nvme0\"; serial = \"first-of-two\"; };\n\
                     disk1 { source = \"cbfs:guests/disk.img\"; read-only; };",
        ..good()
    }]))?;
    let disks = vec![Disk::new(disk.clone(), Bus::Nvme)];
    let mut machine = Machine::spawn(&Spec { disks, ..variant.spec() })?;
    wait_for_shell(&mut machine)?;
    // Lines that wrap could not be told from answers.
    command(&mut machine, "stty cols 500; dmesg -n 1", ANSWER)?;
    says(&mut machine, &format!("{first} && echo ready"), "ready")?;
    for module in modules.iter().filter(|module| **module != CONSOLE) {
        says(&mut machine, &format!("insmod /lib/{} && echo loaded", name(module)), "loaded")?;
    }
    Ok((machine, disk))
}

/// What is on both disks.
fn bytes() -> Vec<u8> {
    (0..DISK_BYTES / 4).flat_map(|n| (n as u32).wrapping_mul(0x9e37_79b1).to_le_bytes()).collect()
}

/// A module's file name.
fn name(module: &str) -> &str {
    module.rsplit('/').next().unwrap_or(module)
}
