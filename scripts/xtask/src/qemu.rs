//! QEMU's q35 as a machine: its command line, its start, and its machine protocol.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command;
use crate::error::{Error, Result};
use crate::machine::{Bus, ERRORS, Firmware, Running, Spec, text};
use crate::packages;

/// Arguments for QEMU, all but those of the serial port and the monitor.
fn arguments(spec: &Spec) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |line: &[&str]| words.extend(line.iter().map(|word| (*word).to_owned()));
    add(&["-nodefaults", "-display", "none", "-machine", "q35", "-cpu", &spec.cpu, "-m", &spec.memory]);
    add(&["-smp", &spec.smp.to_string()]);
    if spec.icount {
        add(&["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
    } else {
        add(&["-accel", if spec.kvm { "kvm" } else { "tcg" }]);
    }
    match &spec.firmware {
        Firmware::Rom(file) | Firmware::Uefi(file) => add(&["-bios", &text(file)]),
        Firmware::Bare { kernel, initramfs, bootargs } => {
            add(&["-kernel", &text(kernel), "-append", bootargs]);
            if let Some(initramfs) = initramfs {
                add(&["-initrd", &text(initramfs)]);
            }
        }
    }
    if spec.disks.iter().any(|disk| disk.bus == Bus::Ata) {
        add(&["-device", "piix3-ide,id=ata"]);
    }
    let mut port = (0, 0);
    for (number, disk) in spec.disks.iter().enumerate() {
        // A comma in a file name is doubled for QEMU.
        let file = text(&disk.file).replace(',', ",,");
        add(&["-drive", &format!("if=none,id=disk{number},format=raw,file={file}")]);
        let serial = disk.serial.map_or_else(String::new, |serial| format!(",serial={serial}"));
        let device = match disk.bus {
            Bus::Virtio => format!("virtio-blk-pci,drive=disk{number}{serial}"),
            // It must have one.
            Bus::Nvme if serial.is_empty() => format!("nvme,serial=peerboot-{number},drive=disk{number}"),
            Bus::Nvme => format!("nvme,drive=disk{number}{serial}"),
            Bus::Ahci => {
                port.0 += 1;
                format!("ide-hd,bus=ide.{},drive=disk{number}{serial}", port.0 - 1)
            }
            Bus::Ata => {
                port.1 += 1;
                let place = port.1 - 1;
                format!("ide-hd,bus=ata.{},unit={},drive=disk{number}{serial}", place / 2, place % 2)
            }
        };
        add(&["-device", &device]);
    }
    words.extend(spec.extra.iter().cloned());
    words
}

/// Becomes QEMU, with the serial port and QEMU's monitor on this terminal; comes back only with an error.
pub(crate) fn become_emulator(spec: &Spec) -> Error {
    let mut qemu = command::command(packages::QEMU.program);
    qemu.args(arguments(spec)).args(["-serial", "mon:stdio"]);
    let error = qemu.exec();
    command::cannot_start(&qemu, &error)
}

/// Starts QEMU, which uses `dir` for what it needs beside memory.
pub(crate) fn start(spec: &Spec, dir: &Path) -> Result<Running> {
    packages::require(&[packages::QEMU])?;
    let (socket, words) = (dir.join("monitor"), dir.join(ERRORS));
    let errors = File::create(&words).map_err(|e| Error::file("make", &words, &e))?;

    let mut starter = command::mortal(packages::QEMU.program);
    starter.args(arguments(spec)).args(["-serial", "stdio"]);
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
    match Monitor::connect(&socket, &mut qemu) {
        Ok(monitor) => Ok(Running {
            process: qemu,
            keyboard: OwnedFd::from(keyboard).into(),
            output: OwnedFd::from(output).into(),
            monitor: Some(monitor),
        }),
        Err(_) => {
            let _ = qemu.kill();
            let _ = qemu.wait();
            let said = fs::read_to_string(&words).unwrap_or_default();
            Err(Error::setup(format!("QEMU does not start: {}", said.trim_end())))
        }
    }
}

/// QEMU's machine protocol over its socket.
#[derive(Debug)]
pub(crate) struct Monitor {
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

    /// Asks QEMU to `execute` something and gives what it returns.
    pub(crate) fn ask(&mut self, execute: &str, arguments: &Value) -> Result<Value> {
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
    use crate::machine::Disk;
    use std::path::PathBuf;

    fn spec() -> Spec {
        Spec::new(Firmware::Rom(PathBuf::from("peerboot.rom")))
    }

    #[test]
    fn instructions_are_counted_without_kvm() {
        let line = |kvm, icount| arguments(&Spec { kvm, icount, ..spec() }).join(" ");
        assert!(line(true, false).contains("-accel kvm"));
        assert!(line(false, false).contains("-accel tcg"));
        assert!(line(true, true).contains("-accel tcg,thread=single -icount"));
    }

    #[test]
    fn disks_find_their_controllers() {
        let mut spec = spec();
        for bus in [Bus::Virtio, Bus::Ata, Bus::Ahci, Bus::Ata, Bus::Ata, Bus::Nvme, Bus::Ahci] {
            spec.disks.push(Disk::new(PathBuf::from("a,b.img"), bus));
        }
        for bus in [Bus::Virtio, Bus::Nvme] {
            spec.disks.push(Disk { serial: Some("mine"), ..Disk::new(PathBuf::from("c.img"), bus) });
        }
        let line = arguments(&spec).join(" ");
        for part in [
            "-drive if=none,id=disk0,format=raw,file=a,,b.img -device virtio-blk-pci,drive=disk0",
            "ide-hd,bus=ata.0,unit=0,drive=disk1",
            "ide-hd,bus=ide.0,drive=disk2",
            "ide-hd,bus=ata.0,unit=1,drive=disk3",
            "ide-hd,bus=ata.1,unit=0,drive=disk4",
            "nvme,serial=peerboot-5,drive=disk5",
            "ide-hd,bus=ide.1,drive=disk6 ",
            "virtio-blk-pci,drive=disk7,serial=mine",
            "nvme,drive=disk8,serial=mine",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert_eq!(line.matches("piix3-ide").count(), 1);
    }
}
