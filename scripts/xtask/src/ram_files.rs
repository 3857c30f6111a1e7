//! Guests' files for a ROM that is too small for them: Bochs puts them into RAM, and the manifest names them by
//! their addresses there.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where Bochs puts them. The emulation stage knows this address too (`i440fx::FILES`).
pub const ADDRESS: u64 = 0x0200_0000;

/// Files of at most this many bytes stay in the ROM.
const SMALL: u64 = 512 << 10;
const PAGE: u64 = 4096;
/// What the emulation stage takes at the top of memory, at most.
const STAGE: u64 = 72 << 20;

/// One file in RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    name: String,
    path: PathBuf,
    address: u64,
    size: u64,
}

/// The files that go into RAM, one behind the other.
#[derive(Debug, Default)]
pub struct RamFiles {
    placed: Vec<Placed>,
}

impl RamFiles {
    /// Takes those out of `files` that are too large for the ROM.
    ///
    /// # Errors
    /// A file is not there.
    pub fn take(files: &mut Vec<(String, PathBuf)>) -> Result<Self> {
        let mut placed = Vec::new();
        let mut next = ADDRESS;
        let mut small = Vec::new();
        for (name, path) in files.drain(..) {
            let size = fs::metadata(&path).map_err(|e| Error::file("read", &path, &e))?.len();
            if size <= SMALL {
                small.push((name, path));
                continue;
            }
            placed.push(Placed { name, path, address: next, size });
            next = (next + size).next_multiple_of(PAGE);
        }
        *files = small;
        Ok(Self { placed })
    }

    /// Whether all files stay in the ROM.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.placed.is_empty()
    }

    /// Their names and where they come from.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.placed.iter().map(|file| (file.name.as_str(), file.path.as_path()))
    }

    /// Whether the image for RAM lies beside `rom`, where one is wanted.
    #[must_use]
    pub fn is_beside(&self, rom: &Path) -> bool {
        self.is_empty() || beside(rom).is_file()
    }

    /// A manifest's source with every file in RAM named by where it is.
    #[must_use]
    pub fn point_at(&self, manifest: &str) -> String {
        self.placed.iter().fold(manifest.to_owned(), |text, file| {
            let Placed { name, address, size, .. } = file;
            text.replace(&format!("\"cbfs:{name}\""), &format!("\"memory:{address:#x}+{size:#x}\""))
        })
    }

    /// Writes the image for RAM beside `rom`, or takes away one that is no longer wanted.
    ///
    /// # Errors
    /// A file cannot be read, or the image not be written.
    pub fn write(&self, rom: &Path) -> Result<()> {
        let image = beside(rom);
        let _ = fs::remove_file(&image);
        if self.placed.is_empty() {
            return Ok(());
        }
        let failed = |e: io::Error| Error::file("write", &image, &e);
        let mut all = File::create(&image).map_err(failed)?;
        for file in &self.placed {
            let mut one = File::open(&file.path).map_err(|e| Error::file("read", &file.path, &e))?;
            all.seek(SeekFrom::Start(file.address - ADDRESS)).map_err(failed)?;
            io::copy(&mut one, &mut all).map_err(failed)?;
        }
        Ok(())
    }
}

/// Where the image for RAM lies that belongs to a ROM.
#[must_use]
pub fn beside(rom: &Path) -> PathBuf {
    rom.with_extension("ram")
}

/// Whether an image of `size` bytes has room in a machine with `memory` bytes.
///
/// # Errors
/// It does not.
pub fn check_room(size: u64, memory: u64) -> Result<()> {
    // RAM above is not at these addresses.
    const LOW_MEMORY: u64 = 3 << 30;
    let end = ADDRESS + size + STAGE;
    if end <= memory.min(LOW_MEMORY) {
        return Ok(());
    }
    let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Error::setup(format!(
        "the guests' files take {} MiB of memory below 3 GiB: the machine needs at least {}M.",
        megabytes(size),
        megabytes(end)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_move_to_ram_and_the_manifest_follows() {
        let dir = std::env::temp_dir().join(format!("peerboot-ram-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let file = |name: &str, size: u64| {
            let path = dir.join(name);
            fs::write(&path, vec![name.as_bytes()[0]; size as usize]).expect("a file");
            (format!("guests/{name}"), path)
        };
        let mut files = vec![file("kernel", SMALL + 1), file("small", SMALL), file("disk", 2 * SMALL)];
        let ram = RamFiles::take(&mut files).expect("files");
        assert_eq!(files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["guests/small"]);
        let manifest =
            "kernel = \"cbfs:guests/kernel\"; ramdisk = \"cbfs:guests/small\", \"cbfs:guests/disk\"";
        assert_eq!(
            ram.point_at(manifest),
            "kernel = \"memory:0x2000000+0x80001\"; ramdisk = \"cbfs:guests/small\", \
             \"memory:0x2081000+0x100000\""
        );

        let rom = dir.join("test.rom");
        ram.write(&rom).expect("written");
        let image = fs::read(beside(&rom)).expect("an image");
        assert_eq!(image.len(), 0x18_1000);
        assert_eq!((image[0x8_0000], image[0x8_0001], image[0x8_1000]), (b'k', 0, b'd'));
        RamFiles::default().write(&rom).expect("written");
        assert!(!beside(&rom).exists());
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn a_machine_too_small_for_the_files_is_refused() {
        assert!(check_room(20 << 20, 128 << 20).is_ok());
        let said = check_room(100 << 20, 128 << 20).expect_err("too small").to_string();
        assert!(said.contains("100 MiB") && said.contains("204M"), "{said}");
    }
}
