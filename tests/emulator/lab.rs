//! What tests boot: a ROM with one Linux guest, changed copies of it, and the same kernel on bare QEMU.

use std::fs;
use std::path::{Path, PathBuf};

use xtask::cbfs::Cbfs;
use xtask::command;
use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Bus, Disk, Emulator, Firmware, Machine, Spec};
use xtask::payload::Part;
use xtask::project::Project;
use xtask::ram_files;
use xtask::rom::{MANIFEST, Recipe};
use xtask::run;

/// The board that tests emulate.
pub const BOARD: &str = "qemu-q35";

/// What all tests share.
#[derive(Debug)]
pub struct Lab {
    project: Project,
    qemu: PathBuf,
    bochs: PathBuf,
}

impl Lab {
    /// Builds the ROMs where they are out of date.
    pub fn open() -> Result<Self> {
        let project = Project::find()?.quiet();
        let [qemu, bochs] = [Emulator::Qemu, Emulator::Bochs].map(|emulator| {
            let board = emulator.board();
            run::debian_rom(&project, board)
        });
        Ok(Self { qemu: qemu?, bochs: bochs?, project })
    }

    /// The source tree.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// An emulator's usual machine with one Linux guest.
    pub fn example(&self, emulator: Emulator) -> Spec {
        Spec::on(emulator, Firmware::Rom(self.rom(emulator).to_owned()))
    }

    fn rom(&self, emulator: Emulator) -> &Path {
        match emulator {
            Emulator::Qemu => &self.qemu,
            Emulator::Bochs => &self.bochs,
        }
    }

    /// A machine without Peerboot: the same kernel and initramfs, started by QEMU's own firmware.
    pub fn bare(&self) -> Result<Spec> {
        Ok(Spec::new(Firmware::Bare {
            kernel: guests::cloud_kernel(&self.project)?,
            initramfs: Some(guests::initramfs(&self.project)?),
            bootargs: "console=ttyS0".to_owned(),
        }))
    }

    /// The example guest's kernel.
    pub fn kernel(&self) -> Result<Vec<u8>> {
        read(&guests::cloud_kernel(&self.project)?)
    }

    /// The example guest's initramfs with these modules of its kernel, which are named below `kernel`, in `/lib`.
    pub fn initramfs_with(&self, modules: &[&str]) -> Result<Vec<u8>> {
        let kernel = guests::cloud_kernel(&self.project)?;
        guests::initramfs_with(&self.project, &kernel, modules, &[])
    }

    /// A ROM for an emulator with this manifest, and none of the files that it names, for one test to fill.
    pub fn unfilled(&self, emulator: Emulator, test: &str, manifest: &str) -> Result<Variant> {
        let dir = self.project.build(&format!("tests/{test}"))?;
        // Its name is also that of the compiled manifest, and several tests may do this at once.
        let (source, rom) = (dir.join("guests.dts"), dir.join(format!("{test}.rom")));
        fs::write(&source, manifest).map_err(|e| Error::file("write", &source, &e))?;
        Recipe { manifest: Some(source), ..Recipe::example(emulator.board()) }
            .compose(&self.project, &rom)?;
        Ok(Variant { emulator, cbfs: Cbfs::open(&rom)?, dir, rom })
    }

    /// An emulator's ROM with a payload that lacks these parts, for one test to change.
    pub fn without(&self, emulator: Emulator, test: &str, parts: &[Part]) -> Result<Variant> {
        let dir = self.project.build(&format!("tests/{test}"))?;
        let rom = dir.join("test.rom");
        Recipe { without: parts.to_vec(), ..Recipe::debian(&self.project, emulator.board()) }
            .compose(&self.project, &rom)?;
        Ok(Variant { emulator, cbfs: Cbfs::open(&rom)?, dir, rom })
    }

    /// The machine that `scripts/run --disk debian` boots: QEMU's board with all its example guests, and Debian on this
    /// disk.
    pub fn all_examples(&self, debian: PathBuf) -> Result<Spec> {
        let rom = run::example_rom_with_disk(&self.project, BOARD)?;
        let disk = Disk { serial: Some(Disk::DEBIAN), ..Disk::new(debian, Bus::Virtio) };
        Ok(Spec { smp: run::CORES, disks: vec![disk], ..Spec::new(Firmware::Rom(rom)) })
    }

    /// A copy of an emulator's ROM for one test to change.
    pub fn variant(&self, emulator: Emulator, test: &str) -> Result<Variant> {
        let dir = self.project.build(&format!("tests/{test}"))?;
        let rom = dir.join("test.rom");
        let example = self.rom(emulator);
        fs::copy(example, &rom).map_err(|e| Error::file("copy", example, &e))?;
        let _ = fs::remove_file(ram_files::beside(&rom));
        Ok(Variant { emulator, cbfs: Cbfs::open(&rom)?, dir, rom })
    }
}

/// A ROM of a test's own.
#[derive(Debug)]
pub struct Variant {
    /// Its files.
    pub cbfs: Cbfs,
    emulator: Emulator,
    dir: PathBuf,
    rom: PathBuf,
}

impl Variant {
    /// Puts bytes into a file of the test's directory.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, bytes).map_err(|e| Error::file("write", &path, &e))?;
        Ok(path)
    }

    /// The blob that dtc makes of a manifest.
    pub fn compile(&self, source: &str) -> Result<Vec<u8>> {
        let (source, blob) = (self.write("guests.dts", source.as_bytes())?, self.dir.join("guests.dtb"));
        let mut dtc = command::command("dtc");
        command::output(dtc.args(["-q", "-O", "dtb", "-o"]).arg(&blob).arg(&source))?;
        read(&blob)
    }

    /// Puts a manifest into the ROM.
    pub fn manifest(&self, source: &str) -> Result<()> {
        self.replace_manifest(&self.compile(source)?)
    }

    /// Puts any bytes into the ROM as the manifest.
    pub fn replace_manifest(&self, blob: &[u8]) -> Result<()> {
        self.cbfs.add(MANIFEST, &self.write("guests.dtb", blob)?)
    }

    /// Changes the ROM's bytes behind cbfstool's back.
    pub fn damage(&self, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let mut bytes = read(&self.rom)?;
        change(&mut bytes);
        fs::write(&self.rom, bytes).map_err(|e| Error::file("write", &self.rom, &e))
    }

    /// The usual machine with this ROM.
    pub fn spec(&self) -> Spec {
        Spec::on(self.emulator, Firmware::Rom(self.rom.clone()))
    }

    /// Boots this ROM on the usual machine.
    pub fn boot(&self) -> Result<Machine> {
        Machine::spawn(&self.spec())
    }
}

/// A file's bytes.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::file("read", path, &e))
}
