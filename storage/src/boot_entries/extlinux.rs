//! `extlinux.conf` and `syslinux.cfg`, as SYSLINUX and U-Boot read them.

use super::{BootDisk, Entry, Findings, Image, MOST_ENTRIES, MOST_RAMDISKS, Source, Volume, join};
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

/// Where a configuration may be.
const PLACES: [&str; 8] = [
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/syslinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/syslinux.cfg",
];
/// How many files one configuration may include, how many lines may wait to be read, and how long each may be.
const MOST_INCLUDES: usize = 8;
const MOST_LINES: usize = 1 << 12;
const LONGEST_LINE: usize = 4 << 10;
/// How many bytes the values of all labels may have.
const MOST_BYTES: usize = 256 << 10;

/// A label, as far as it was read.
#[derive(Default)]
struct Label {
    name: String,
    title: Option<String>,
    kernel: Option<String>,
    ramdisks: Vec<String>,
    arguments: Option<String>,
}

/// What a configuration says.
#[derive(Default)]
struct Configuration {
    labels: Vec<Label>,
    /// The label that boots, or the number of the one that the menu begins with.
    default: Option<String>,
    menu_default: Option<usize>,
    /// What kernels get that have nothing of their own.
    arguments: String,
    /// The length of all values so far.
    len: usize,
}

/// Looks on all partitions.
pub async fn find(disk: &BootDisk, findings: &mut Findings) {
    for (index, volume) in disk.volumes.iter().enumerate() {
        for path in PLACES {
            let Some(text) = volume.text(path, findings).await else { continue };
            let configuration = read(volume, path, text, findings).await;
            add(configuration, volume, index, path, findings);
            // Others are for other versions of the same loader.
            break;
        }
    }
}

/// Reads a configuration with all that it includes, in the place where it is included.
async fn read(volume: &Volume, path: &str, text: String, findings: &mut Findings) -> Configuration {
    let base = path.rsplit_once('/').map_or("", |(base, _)| base);
    let mut configuration = Configuration::default();
    // Lines that are still to be read, the next one last.
    let mut lines: Vec<String> = Vec::new();
    push_reversed(&mut lines, &text);
    let mut includes = 0_usize;
    while let Some(line) = lines.pop() {
        let (key, value) = split(&line);
        let is_menu_include =
            key.eq_ignore_ascii_case("menu") && split(value).0.eq_ignore_ascii_case("include");
        if !key.eq_ignore_ascii_case("include") && !is_menu_include {
            configuration.take(key, value);
            continue;
        }
        let name = if is_menu_include { split(value).1 } else { value };
        let included = join(base, name.split_ascii_whitespace().next().unwrap_or_default());
        includes = includes.saturating_add(1);
        if includes > MOST_INCLUDES {
            findings.remark(volume, path, "it includes too many files");
            break;
        }
        if let Some(text) = volume.text(&included, findings).await {
            push_reversed(&mut lines, &text);
        }
    }
    configuration
}

/// Adds a file's lines to those that are still to be read; what is nobody's is left out.
fn push_reversed(lines: &mut Vec<String>, text: &str) {
    let room = MOST_LINES.saturating_sub(lines.len());
    let own = || text.lines().filter(|line| !line.trim().is_empty() && line.len() <= LONGEST_LINE);
    let first: Vec<&str> = own().take(room).collect();
    lines.extend(first.into_iter().rev().map(str::to_owned));
}

/// The first word of a line, and the rest.
fn split(line: &str) -> (&str, &str) {
    let line = line.trim();
    line.split_once([' ', '\t']).map_or((line, ""), |(key, value)| (key, value.trim()))
}

impl Configuration {
    /// Takes in one line.
    fn take(&mut self, key: &str, value: &str) {
        let (key, value) = match split(value) {
            (word, rest) if key.eq_ignore_ascii_case("menu") => (["menu ", word].concat(), rest),
            _ => (key.to_owned(), value),
        };
        let key = key.to_ascii_lowercase();
        let number = self.labels.len().checked_sub(1);
        self.len = self.len.saturating_add(value.len());
        if self.len > MOST_BYTES {
            return;
        }
        match (key.as_str(), self.labels.last_mut()) {
            // What would follow belongs to a label that is not there.
            ("label", _) if number.is_some_and(|last| last >= MOST_ENTRIES.saturating_sub(1)) => {
                self.len = usize::MAX
            }
            ("label", _) => self.labels.push(Label { name: value.to_owned(), ..Label::default() }),
            ("default" | "ontimeout", _) if self.default.is_none() || key == "default" => {
                self.default = Some(value.to_owned());
            }
            ("append", None) => self.arguments = value.to_owned(),
            ("append", Some(label)) => label.arguments = Some(value.to_owned()),
            ("kernel" | "linux", Some(label)) => label.kernel = Some(value.to_owned()),
            ("initrd", Some(label)) => label.ramdisks = list(value),
            // The letter after a caret is a key of the menu's.
            ("menu label", Some(label)) => label.title = Some(value.replace('^', "")),
            ("menu default", Some(_)) => self.menu_default = number,
            _ => {}
        }
    }
}

fn list(value: &str) -> Vec<String> {
    let paths = value.split(',').map(str::trim).filter(|path| !path.is_empty());
    paths.take(MOST_RAMDISKS.saturating_add(1)).map(str::to_owned).collect()
}

/// Makes entries of the labels that have a kernel.
fn add(configuration: Configuration, volume: &Volume, index: usize, path: &str, findings: &mut Findings) {
    let base = path.rsplit_once('/').map_or("", |(base, _)| base);
    let image = |path: &String| Image { volume: index, path: join(base, path), section: None };
    let mut default = None;
    let mut entries = Vec::new();
    for (number, label) in configuration.labels.into_iter().enumerate() {
        let Some(kernel) = label.kernel else { continue };
        let lower = kernel.to_ascii_lowercase();
        if [".c32", ".0", ".bin", ".img"].iter().any(|other| lower.ends_with(other)) {
            findings.remark(volume, path, "a label that starts no Linux kernel is left out");
            continue;
        }
        let own = label.arguments.unwrap_or_else(|| configuration.arguments.clone());
        // Ramdisks may also be told of where the kernel's arguments are, and are not for the kernel's eyes there.
        let mut ramdisks = label.ramdisks;
        let mut arguments: Vec<&str> = Vec::new();
        for word in own.split_ascii_whitespace().filter(|word| *word != "-") {
            match word.strip_prefix("initrd=") {
                Some(paths) if ramdisks.is_empty() => ramdisks = list(paths),
                Some(_) => {}
                None => arguments.push(word),
            }
        }
        let is_default = configuration.default.as_deref() == Some(label.name.as_str());
        let place = entries.len();
        let entry = Entry {
            title: label.title.unwrap_or_else(|| label.name.clone()),
            id: label.name,
            source: Source::Extlinux,
            partition: volume.number(),
            path: path.to_owned(),
            kernel: image(&kernel),
            ramdisks: ramdisks.iter().map(image).collect(),
            arguments: arguments.join(" "),
        };
        findings.push(volume, &mut entries, entry);
        let is_first = configuration.menu_default == Some(number) && default.is_none();
        if entries.len() > place && (is_default || is_first) {
            default = Some(place);
        }
    }
    findings.add(entries, default.unwrap_or(0));
}
