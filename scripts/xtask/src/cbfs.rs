//! A ROM file's CBFS, changed with coreboot's own `cbfstool`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};

/// The CBFS in the COREBOOT region of a ROM file.
#[derive(Debug)]
pub struct Cbfs {
    rom: PathBuf,
}

/// One file as `cbfstool print -k` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Where its header starts, in bytes from the region's start.
    pub offset: u64,
    /// coreboot's word for its type: `raw`, `simple elf`, `bootblock`, `null` for free space.
    pub kind: String,
    /// The size of its header, in bytes: from `offset` to its content.
    pub metadata: u64,
    /// Its size in the ROM, compressed where it is, in bytes.
    pub size: u64,
}

impl Cbfs {
    /// An empty CBFS in a new ROM file, laid out as the flash map `fmd` says (coreboot's language for it).
    ///
    /// # Errors
    /// The flash map is wrong.
    pub fn create(rom: &Path, fmd: &Path) -> Result<Self> {
        let fmap = rom.with_extension("fmap");
        command::output(command::command("fmaptool").arg(fmd).arg(&fmap))?;
        let _ = fs::remove_file(rom);
        let cbfs = Self { rom: rom.to_path_buf() };
        command::output(cbfs.tool("create").arg("-M").arg(&fmap).args(["-r", "COREBOOT"]))?;
        fs::remove_file(&fmap).map_err(|e| Error::file("remove", &fmap, &e))?;
        Ok(cbfs)
    }

    /// The CBFS of a ROM file that exists.
    ///
    /// # Errors
    /// The file is not a coreboot ROM.
    pub fn open(rom: &Path) -> Result<Self> {
        let cbfs = Self { rom: rom.to_path_buf() };
        cbfs.entries()
            .map_err(|e| Error::setup(format!("{} holds no coreboot file system: {e}", rom.display())))?;
        Ok(cbfs)
    }

    /// Adds the stage's code where the CPU's first fetch finds it: at the very end of the ROM.
    ///
    /// # Errors
    /// It does not fit.
    pub fn add_bootblock(&self, file: &Path) -> Result<()> {
        let size = size(file)?;
        let mut tool = self.tool("add");
        tool.args(["-n", "bootblock", "-t", "bootblock", "-b", &format!("-{size}"), "-f"]).arg(file);
        command::output(&mut tool)?;
        // coreboot's pointer for programs that know no FMAP, at the ROM's last four bytes.
        command::output(&mut self.tool("add-master-header"))?;
        Ok(())
    }

    /// Adds an ELF file as the payload, LZMA-compressed; takes the place of one that is there.
    ///
    /// # Errors
    /// It does not fit, or is no ELF that coreboot can load.
    pub fn add_payload(&self, elf: &Path) -> Result<()> {
        self.replace("fallback/payload")?;
        let mut tool = self.tool("add-payload");
        command::output(tool.args(["-n", "fallback/payload", "-c", "lzma", "-f"]).arg(elf))?;
        Ok(())
    }

    /// Adds a file as it is; takes the place of one that has its name.
    ///
    /// # Errors
    /// It does not fit.
    pub fn add(&self, name: &str, file: &Path) -> Result<()> {
        self.add_compressed(name, file, "none")
    }

    /// Adds a file in one of cbfstool's compressions: `none`, `lz4`, `lzma`.
    ///
    /// # Errors
    /// It does not fit.
    pub fn add_compressed(&self, name: &str, file: &Path, compression: &str) -> Result<()> {
        let (wanted, free) = (size(file)?, self.largest_gap(name)?);
        if compression == "none" && wanted > free {
            return Err(Error::setup(format!(
                "no room in the ROM for {name}: {} has {wanted} bytes, the largest gap {free}.",
                file.display()
            )));
        }
        self.replace(name)?;
        let mut tool = self.tool("add");
        command::output(tool.args(["-t", "raw", "-c", compression, "-n", name, "-f"]).arg(file))?;
        Ok(())
    }

    /// Takes a file out.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove(&self, name: &str) -> Result<()> {
        command::output(self.tool("remove").args(["-n", name]))?;
        Ok(())
    }

    /// All entries in the order of the ROM.
    ///
    /// # Errors
    /// The ROM is not coreboot's.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let list = command::output(self.tool("print").arg("-k"))?;
        Ok(String::from_utf8_lossy(&list).lines().filter_map(entry).collect())
    }

    /// The entry of that name.
    ///
    /// # Errors
    /// There is none, or the ROM is not coreboot's.
    pub fn entry(&self, name: &str) -> Result<Entry> {
        let found = self.entries()?.into_iter().find(|e| e.name == name);
        found.ok_or_else(|| Error::failed(format!("{} holds no {name}", self.rom.display())))
    }

    /// The most bytes that a file could have, were the one of that name gone.
    fn largest_gap(&self, name: &str) -> Result<u64> {
        let mut largest = 0;
        let mut gap = 0;
        for entry in self.entries()? {
            gap = if entry.kind == "null" || entry.name == name { gap + entry.size } else { 0 };
            largest = largest.max(gap);
        }
        Ok(largest)
    }

    fn replace(&self, name: &str) -> Result<()> {
        if self.entries()?.iter().any(|e| e.name == name) { self.remove(name) } else { Ok(()) }
    }

    fn tool(&self, subcommand: &str) -> Command {
        let mut tool = command::command("cbfstool");
        tool.arg(&self.rom).arg(subcommand);
        tool
    }
}

/// A line of `cbfstool print -k`: name, offset, type, metadata size, data size, total size, between tabs.
fn entry(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split('\t').map(str::trim).collect();
    let number = |field: &str| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok();
    let [name, offset, kind, metadata, size, ..] = fields.as_slice() else { return None };
    Some(Entry {
        name: (*name).to_owned(),
        offset: number(offset)?,
        kind: (*kind).to_owned(),
        metadata: number(metadata)?,
        size: number(size)?,
    })
}

fn size(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file).map_err(|e| Error::file("read", file, &e))?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cbfstool_are_understood() {
        let line = "fallback/payload\t0x1000\tsimple elf\t0x38\t0x2345\t0x237d\tLZMA (0x8000 decompressed)";
        let expected = Entry {
            name: "fallback/payload".to_owned(),
            offset: 0x1000,
            kind: "simple elf".to_owned(),
            metadata: 0x38,
            size: 0x2345,
        };
        assert_eq!(entry(line), Some(expected));
        assert_eq!(entry("Name\tOffset\tType\tMetadata Size\tData Size\tTotal Size"), None);
        assert_eq!(entry(""), None);
    }
}
