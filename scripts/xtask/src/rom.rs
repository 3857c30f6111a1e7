//! A bootable ROM: the payload, the manifest and the files it names, in a coreboot image or behind the emulation
//! stage.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use clap::Args;

use crate::bochs;
use crate::cbfs::Cbfs;
use crate::command;
use crate::error::{Error, Result};
use crate::guests;
use crate::machine::Emulator;
use crate::packages;
use crate::payload::{self, Part};
use crate::progress::say;
use crate::project::Project;
use crate::ram_files::RamFiles;
use crate::stage;

/// The manifest's name in CBFS.
pub const MANIFEST: &str = "guests.dtb";

/// What goes into a ROM.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// A directory's name in coreboot-config/boards.
    pub board: String,
    /// A coreboot image for the board; without one, the emulation stage starts the machine.
    pub base: Option<PathBuf>,
    /// The guests, as device-tree source or compiled; without one, the board's example.
    pub manifest: Option<PathBuf>,
    /// Files by their names in CBFS.
    pub files: Vec<(String, PathBuf)>,
    /// Where the payload is linked to run; without one, its default place.
    pub load_address: Option<String>,
    /// What the payload does without.
    pub without: Vec<Part>,
}

impl Recipe {
    /// The board's example guests behind the emulation stage.
    #[must_use]
    pub fn example(board: &str) -> Self {
        Self {
            board: board.to_owned(),
            base: None,
            manifest: None,
            files: Vec::new(),
            load_address: None,
            without: Vec::new(),
        }
    }

    /// One Linux guest on a board, behind the emulation stage.
    #[must_use]
    pub fn debian(project: &Project, board: &str) -> Self {
        Self { manifest: Some(project.path("scripts/xtask/debian.dts")), ..Self::example(board) }
    }

    /// Builds what is missing and writes the ROM file.
    ///
    /// # Errors
    /// A tool, a file or the space for it is missing, or the source does not build.
    pub fn compose(&self, project: &Project, rom: &Path) -> Result<()> {
        let _turn = project.turn()?;
        let ingredients = Ingredients::gather(project, self, rom)?;
        project.say(&format!("composing {}", rom.strip_prefix(project.root()).unwrap_or(rom).display()));
        ingredients.mix(rom)
    }

    /// Does the same, but leaves the ROM file alone when nothing that goes into it has changed since.
    ///
    /// # Errors
    /// As [`Recipe::compose`].
    pub fn refresh(&self, project: &Project, rom: &Path) -> Result<()> {
        let _turn = project.turn()?;
        let ingredients = Ingredients::gather(project, self, rom)?;
        let (stamp, stamp_file) = (ingredients.stamp()?, rom.with_added_extension("stamp"));
        if rom.is_file()
            && ingredients.ram.is_beside(rom)
            && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp)
        {
            return Ok(());
        }
        project.say(&format!("composing {}", rom.strip_prefix(project.root()).unwrap_or(rom).display()));
        let _ = fs::remove_file(&stamp_file);
        ingredients.mix(rom)?;
        fs::write(&stamp_file, stamp).map_err(|e| Error::file("write", &stamp_file, &e))
    }
}

/// The options that say what goes into a ROM.
#[derive(Debug, Args)]
pub struct Content {
    /// The board, a directory in coreboot-config/boards; by default qemu-q35, or bochs where Bochs is to boot it
    #[arg(long)]
    pub board: Option<String>,
    /// A coreboot image built for the board, to start from; without one, the stage for emulators starts the machine
    #[arg(long, value_name = "ROM")]
    pub base: Option<PathBuf>,
    /// The guests (.dts or .dtb); without it, the board's example guests
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Put a file into CBFS, where the manifest may name it as cbfs:NAME
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    pub add: Vec<(String, PathBuf)>,
    /// Link the payload to run at this physical address, for boards where its default is taken
    #[arg(long, value_name = "ADDRESS")]
    pub load_address: Option<String>,
    /// Leave parts of the payload out, for a small flash
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    pub without: Vec<Part>,
}

/// The options of `scripts/rom`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    content: Content,
    /// The ROM file to write
    #[arg(short, long, value_name = "ROM")]
    output: PathBuf,
}

/// Composes the ROM that the options ask for.
///
/// # Errors
/// Set-up fails, a file is missing or does not fit, or the source does not build.
pub fn rom(project: &Project, options: &Options) -> Result<()> {
    options.content.recipe(Emulator::Qemu.board())?.compose(project, &options.output)?;
    say(&format!("{} is ready", options.output.display()));
    Ok(())
}

fn named_file(text: &str) -> std::result::Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(file)))
        }
        _ => Err("expected NAME=FILE".to_owned()),
    }
}

impl Content {
    /// What to compose, for board `default` where no option names another.
    ///
    /// # Errors
    /// A file that an option names is not there.
    pub fn recipe(&self, default: &str) -> Result<Recipe> {
        let named = self.base.iter().chain(&self.manifest).chain(self.add.iter().map(|(_, file)| file));
        for file in named {
            fs::File::open(file).map_err(|e| Error::file("read", file, &e))?;
        }
        Ok(Recipe {
            board: self.board.clone().unwrap_or_else(|| default.to_owned()),
            base: self.base.clone(),
            manifest: self.manifest.clone(),
            files: self.add.clone(),
            load_address: self.load_address.clone(),
            without: self.without.clone(),
        })
    }
}

/// How the ROM begins.
enum Base {
    /// A user's coreboot image.
    Coreboot(PathBuf),
    /// The emulation stage, in a ROM laid out by a flash map.
    Stage { code: PathBuf, fmd: PathBuf },
}

/// Every file that the ROM is made from.
struct Ingredients {
    base: Base,
    payload: PathBuf,
    manifest: PathBuf,
    /// What goes into CBFS.
    files: Vec<(String, PathBuf)>,
    /// What is too large for it.
    ram: RamFiles,
}

impl Ingredients {
    /// Builds and makes everything; `rom` only gives the compiled manifest its name.
    fn gather(project: &Project, recipe: &Recipe, rom: &Path) -> Result<Self> {
        packages::require(packages::ROM_TOOLS)?;
        let board = project.board(&recipe.board)?;
        let base = match &recipe.base {
            Some(rom) => Base::Coreboot(rom.clone()),
            None => Base::Stage { code: stage::build(project)?, fmd: flash_map(&board)? },
        };
        let source = recipe.manifest.clone().unwrap_or_else(|| board.join("guests.dts"));
        let tree = compile(&source)?;
        let (mut files, wanted) = (recipe.files.clone(), names_in(&tree));
        for (name, example) in EXAMPLES {
            // Only what the manifest asks for is fetched, and nothing that the user brings along.
            if wanted.iter().any(|n| n == name) && !files.iter().any(|(n, _)| n == name) {
                files.push(((*name).to_owned(), example(project)?));
            }
        }
        let ram = match recipe.base {
            None if recipe.board == bochs::BOARD => RamFiles::take(&mut files)?,
            _ => RamFiles::default(),
        };
        let payload = payload::build(project, recipe.load_address.as_deref(), &recipe.without)?;
        let blob = project.build("manifest")?.join(rom.file_name().unwrap_or_default()).with_extension("dtb");
        let manifest = write_manifest(&tree, &ram, &blob)?;
        Ok(Self { base, payload, manifest, files, ram })
    }

    /// Changes whenever one of the ingredients does.
    fn stamp(&self) -> Result<String> {
        let mut lines = Vec::new();
        let mut add = |name: &str, path: &Path| -> Result<()> {
            let meta = fs::metadata(path).map_err(|e| Error::file("read", path, &e))?;
            let modified = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            lines.push(format!(
                "{name} {} {} {}",
                path.display(),
                meta.len(),
                modified.unwrap_or_default().as_nanos()
            ));
            Ok(())
        };
        match &self.base {
            Base::Coreboot(rom) => add("base", rom)?,
            Base::Stage { code, fmd } => {
                add("stage", code)?;
                add("flash map", fmd)?;
            }
        }
        add("payload", &self.payload)?;
        add("manifest", &self.manifest)?;
        for (name, path) in &self.files {
            add(name, path)?;
        }
        for (name, path) in self.ram.files() {
            add(name, path)?;
        }
        Ok(lines.join("\n"))
    }

    fn mix(&self, rom: &Path) -> Result<()> {
        // The new ROM takes its name only when it is whole.
        let draft = rom.with_added_extension("draft");
        let mixed = self.mix_draft(&draft);
        if mixed.is_err() {
            let _ = fs::remove_file(&draft);
        }
        mixed?;
        self.ram.write(rom)?;
        fs::rename(&draft, rom).map_err(|e| Error::file("rename", &draft, &e))
    }

    fn mix_draft(&self, draft: &Path) -> Result<()> {
        let cbfs = match &self.base {
            Base::Coreboot(base) => {
                Cbfs::open(base)?;
                fs::copy(base, draft).map_err(|e| Error::file("copy", base, &e))?;
                Cbfs::open(draft)?
            }
            Base::Stage { code, fmd } => {
                let cbfs = Cbfs::create(draft, fmd)?;
                cbfs.add_bootblock(code)?;
                cbfs
            }
        };
        cbfs.add_payload(&self.payload)?;
        cbfs.add(MANIFEST, &self.manifest)?;
        for (name, path) in &self.files {
            cbfs.add(name, path)?;
        }
        Ok(())
    }
}

/// Makes one example file, or finds it made.
type Example = fn(&Project) -> Result<PathBuf>;

/// Files that a manifest may name without anybody bringing them: Debian's and our own, made on the spot.
const EXAMPLES: &[(&str, Example)] = &[
    ("guests/clock", guests::clock),
    ("guests/disk", guests::disk),
    ("guests/debian/vmlinuz", guests::cloud_kernel),
    ("guests/debian/initramfs", guests::initramfs),
    ("guests/memtest86+/memtest.bin", guests::memtest),
    ("guests/ipxe/ipxe.lkrn", guests::ipxe),
];

/// The manifest as a device-tree blob: the file itself, or what dtc makes of it.
fn compile(manifest: &Path) -> Result<Vec<u8>> {
    const BLOB_MAGIC: [u8; 4] = [0xD0, 0x0D, 0xFE, 0xED];
    let bytes = fs::read(manifest).map_err(|e| Error::file("read", manifest, &e))?;
    if bytes.starts_with(&BLOB_MAGIC) { Ok(bytes) } else { dtc("dts", manifest, "dtb") }
}

fn dtc(from: &str, file: &Path, to: &str) -> Result<Vec<u8>> {
    let mut dtc = command::command("dtc");
    dtc.args(["-I", from, "-O", to, "-q", "-i"]).arg(file.parent().unwrap_or(file)).arg(file);
    command::output(&mut dtc)
        .map_err(|e| Error::setup(format!("{} is not a device tree: {e}", file.display())))
}

/// The files that a manifest, compiled, names as `cbfs:…`.
fn names_in(tree: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(tree);
    let names = text.split("cbfs:").skip(1).filter_map(|rest| rest.split('\0').next());
    names.map(str::to_owned).collect()
}

/// Writes a compiled manifest to `blob`; there it names files in RAM by where they are.
fn write_manifest(tree: &[u8], ram: &RamFiles, blob: &Path) -> Result<PathBuf> {
    let write = |path: &Path, content: &[u8]| {
        // The same content keeps its time, and the ROM need not be made again.
        if fs::read(path).is_ok_and(|there| there == content) {
            return Ok(());
        }
        fs::write(path, content).map_err(|e| Error::file("write", path, &e))
    };
    if ram.is_empty() {
        write(blob, tree)?;
    } else {
        let (plain, source) = (blob.with_extension("plain"), blob.with_extension("dts"));
        write(&plain, tree)?;
        let text = ram.point_at(&String::from_utf8_lossy(&dtc("dtb", &plain, "dts")?));
        write(&source, text.as_bytes())?;
        write(blob, &dtc("dts", &source, "dtb")?)?;
    }
    Ok(blob.to_path_buf())
}

/// The board's flash map, in coreboot's language for it.
fn flash_map(board: &Path) -> Result<PathBuf> {
    let mut maps: Vec<PathBuf> = fs::read_dir(board)
        .map_err(|e| Error::file("list", board, &e))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "fmd"))
        .collect();
    maps.sort();
    maps.into_iter()
        .next()
        .ok_or_else(|| Error::setup(format!("no flash map (*.fmd) in {}", board.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_a_blob() {
        let tree = b"\xd0\x0d\xfe\xed\0cbfs:guests/a\0ramdisk\0cbfs:guests/b\0";
        assert_eq!(names_in(tree), ["guests/a", "guests/b"]);
    }
}
