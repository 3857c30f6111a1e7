//! Unified kernel images (UAPI.5): PE files whose sections are what is booted.

use crate::fields;
use crate::files::{File, FileError};
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

/// How much of a file is read to find its header.
const START: u64 = 64;
/// The length of the signature and COFF's header.
const HEADER: usize = 24;
/// The length of a section's header.
const SECTION: usize = 40;
/// How many sections are read.
const MOST_SECTIONS: u16 = 96;
/// The longest text in a section.
const LONGEST_TEXT: u64 = 8 << 10;
/// COFF's number for x86-64.
const X86_64: u16 = 0x8664;

/// What an image says of itself.
pub struct Unified {
    /// Where the kernel is in the file, and its length.
    pub kernel: (u64, u64),
    /// Where the microcode's and the system's ramdisks are.
    pub ramdisks: Vec<(u64, u64)>,
    /// The kernel's command line.
    pub arguments: String,
    /// The lines of `os-release`.
    release: String,
    /// The kernel's version.
    pub uname: String,
}

/// What a file is, if it is one of these.
pub async fn read(file: &File) -> Result<Option<Unified>, FileError> {
    let start = file.read(0, file.size().min(START) as usize).await?;
    let at = u64::from(fields::u32(&start, 0x3c));
    if start.get(..2) != Some(b"MZ") || at.saturating_add(HEADER as u64) > file.size() {
        return Ok(None);
    }
    let header = file.read(at, HEADER).await?;
    let count = fields::u16(&header, 6);
    if header.get(..4) != Some(b"PE\0\0") || fields::u16(&header, 4) != X86_64 || count > MOST_SECTIONS {
        return Ok(None);
    }
    let sections = at.saturating_add(HEADER as u64).saturating_add(u64::from(fields::u16(&header, 20)));
    let bytes = file.read(sections, usize::from(count).saturating_mul(SECTION)).await?;
    let mut kernel = None;
    let (mut microcode, mut ramdisk) = (None, None);
    let (mut arguments, mut release, mut uname) = (String::new(), String::new(), String::new());
    for section in bytes.chunks_exact(SECTION) {
        let name = fields::array::<8>(section, 0);
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        // What is aligned on disk is longer there than it is; what ends with zeroes may be shorter.
        let len = u64::from(fields::u32(section, 8).min(fields::u32(section, 16)));
        let place = (u64::from(fields::u32(section, 20)), len);
        match name {
            b".linux" => kernel = Some(place),
            b".initrd" => ramdisk = Some(place),
            b".ucode" => microcode = Some(place),
            b".cmdline" => arguments = text(file, place).await?,
            b".osrel" => release = text(file, place).await?,
            b".uname" => uname = text(file, place).await?,
            // What follows is another choice of the same kernel.
            b".profile" => break,
            _ => {}
        }
    }
    let ramdisks = [microcode, ramdisk].into_iter().flatten().collect();
    Ok(kernel.map(|kernel| Unified { kernel, ramdisks, arguments, release, uname }))
}

async fn text(file: &File, (at, len): (u64, u64)) -> Result<String, FileError> {
    let bytes = file.read(at, len.min(LONGEST_TEXT) as usize).await?;
    let text =
        String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    Ok(text.trim().to_owned())
}

impl Unified {
    /// A value of `os-release`.
    pub fn release(&self, key: &str) -> Option<String> {
        let value = self.release.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        let quoted = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
        let plain = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        Some(plain.replace('\\', ""))
    }
}
