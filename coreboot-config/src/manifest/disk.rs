//! A guest's disks: child nodes of its node.

use alloc::{borrow::ToOwned, string::String, vec::Vec};
use core::fmt;

use super::{
    error::{Result, Warning},
    node::Node,
    source::Source,
};

const COMPATIBLE: &str = "peerboot,disk";
/// The longest serial number: virtio-blk and NVMe have 20 bytes for one.
pub const MAX_SERIAL_LEN: usize = 20;

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The node's name.
    pub name: String,
    /// What is on it.
    pub source: DiskSource,
    /// How it is laid out there.
    pub format: Format,
    /// The image that one of qcow2 or VHD stands on, where it names one.
    pub base: Option<Base>,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether what the guest writes is forgotten when its life ends.
    pub snapshot: bool,
    /// When a write of the guest's has ended.
    pub cache: Cache,
    /// What the guest reads as the serial number: 1 to [`MAX_SERIAL_LEN`] letters, digits, `-`, `_` and `.`.
    pub serial: Option<String>,
    /// How the guest reaches it.
    pub model: Model,
}

/// An image that another stands on, which is only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Where it is.
    pub source: DiskSource,
    /// How it is laid out there.
    pub format: Format,
}

/// Where a disk of a guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// In a file that comes with the machine.
    File(Source),
    /// On a disk of the machine.
    Disk(DiskPlace),
}

/// A place on a disk of the machine: all of it, a partition, or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlace {
    /// The disk's serial number, or the way to it: `nvme0`, `ahci0.1`, `pci:00:03.0`.
    pub disk: String,
    /// The partition, where it is not the whole disk.
    pub partition: Option<PartitionName>,
    /// The path of a file in the file system there, from its root on and beginning with a `/`.
    pub file: Option<String>,
}

/// What tells a partition from the others of its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionName {
    /// Its number, as Linux counts: from 1.
    Number(u32),
    /// Its label, which a GPT has.
    Label(String),
    /// Its identifier, as Linux's PARTUUID.
    Uuid(String),
}

/// How a disk is laid out in what holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's format, of version 2 or 3.
    Qcow2,
    /// Microsoft's Virtual Hard Disk: fixed, dynamic or differencing.
    Vhd,
}

/// When a write of a guest's has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Once the disk has it; it is safe after a flush.
    WriteBack,
    /// Once it is safe from the loss of power.
    WriteThrough,
}

/// What a guest has a disk for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// A virtio block device.
    Virtio,
    /// An NVMe controller with one namespace.
    Nvme,
}

const FORMATS: [(&str, Format); 3] = [("raw", Format::Raw), ("qcow2", Format::Qcow2), ("vhd", Format::Vhd)];
const CACHES: [(&str, Cache); 2] = [("write-back", Cache::WriteBack), ("write-through", Cache::WriteThrough)];
const MODELS: [(&str, Model); 2] = [("virtio", Model::Virtio), ("nvme", Model::Nvme)];
const PROPERTIES: [&str; 10] = [
    "compatible",
    "source",
    "format",
    "base",
    "base-format",
    "read-only",
    "snapshot",
    "cache",
    "serial",
    "model",
];

/// Whether a child node of a guest is a disk: by what it is compatible with, or, where it says nothing, by its
/// name, as in `disk0`.
pub(super) fn is_one(node: &Node<'_, '_>) -> bool {
    let numbered = |name: &str| name.bytes().all(|digit| digit.is_ascii_digit());
    node.is_compatible(COMPATIBLE)
        || (node.value("compatible").is_none() && node.name().strip_prefix("disk").is_some_and(numbered))
}

pub(super) fn read(node: &Node<'_, '_>, warnings: &mut Vec<Warning>) -> Result<Disk> {
    node.warn_of_unknown_properties(&PROPERTIES, warnings);
    let source = source(node, "source")?.ok_or_else(|| node.wrong("source", DiskSource::EXPECTED))?;
    let format = node.word("format", &FORMATS)?.unwrap_or(Format::Raw);
    let (read_only, snapshot) = (node.flag("read-only")?, node.flag("snapshot")?);
    if read_only && snapshot {
        return Err(node.wrong("snapshot", "it only where the guest may write"));
    }
    // Neither ROM nor what comes with it in RAM is written while guests run.
    if matches!(source, DiskSource::File(_)) && !read_only && !snapshot {
        return Err(node.wrong("read-only", "it or snapshot, as this source can only be read"));
    }
    Ok(Disk {
        name: node.name().into(),
        source,
        format,
        base: base(node, format)?,
        read_only,
        snapshot,
        cache: node.word("cache", &CACHES)?.unwrap_or(Cache::WriteBack),
        serial: serial(node)?,
        model: node.word("model", &MODELS)?.unwrap_or(Model::Virtio),
    })
}

fn source(node: &Node<'_, '_>, property: &'static str) -> Result<Option<DiskSource>> {
    let Some(text) = node.text(property)? else { return Ok(None) };
    DiskSource::parse(text).map(Some).ok_or_else(|| node.wrong(property, DiskSource::EXPECTED))
}

fn base(node: &Node<'_, '_>, format: Format) -> Result<Option<Base>> {
    let (source, base_format) = (source(node, "base")?, node.word("base-format", &FORMATS)?);
    match source {
        Some(_) if format == Format::Raw => {
            Err(node.wrong("base", "it only with format = \"qcow2\" or \"vhd\""))
        }
        Some(source) => Ok(Some(Base { source, format: base_format.unwrap_or(Format::Raw) })),
        None if base_format.is_some() => Err(node.wrong("base-format", "it only beside base")),
        None => Ok(None),
    }
}

fn serial(node: &Node<'_, '_>) -> Result<Option<String>> {
    let Some(serial) = node.text("serial")? else { return Ok(None) };
    let letter = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    let sound = (1..=MAX_SERIAL_LEN).contains(&serial.len()) && serial.chars().all(letter);
    let error = || node.wrong("serial", "1 to 20 letters, digits, '-', '_' and '.'");
    sound.then(|| Some(serial.into())).ok_or_else(error)
}

impl DiskSource {
    /// What a source may be, for messages.
    const EXPECTED: &str = "\"disk:\" and a disk's serial number or path, then nothing or \"/part:\" and a \
                            number, \"label/NAME\" or \"uuid/ID\", then nothing or \"/file:\" and a path; or \
                            \"cbfs:\" and the name of a file in the ROM";

    /// The source that this text names.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("disk:") {
            Some(place) => DiskPlace::parse(place).map(Self::Disk),
            None => Source::parse(text).map(Self::File),
        }
    }
}

impl DiskPlace {
    fn parse(text: &str) -> Option<Self> {
        let (text, file) = match text.split_once("/file:") {
            Some((place, path)) => (place, Some(rooted(path)?)),
            None => (text, None),
        };
        let (disk, partition) = match text.split_once("/part:") {
            Some((disk, partition)) => (disk, Some(PartitionName::parse(partition)?)),
            None => (text, None),
        };
        let sound = !disk.is_empty() && !disk.contains('/');
        sound.then(|| Self { disk: disk.into(), partition, file })
    }
}

/// A path that begins with a `/`, as every path in a file system may be written.
fn rooted(path: &str) -> Option<String> {
    let path = path.trim_start_matches('/');
    (!path.is_empty()).then(|| {
        let mut rooted = "/".to_owned();
        rooted.push_str(path);
        rooted
    })
}

impl PartitionName {
    fn parse(text: &str) -> Option<Self> {
        let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        match text.split_once('/') {
            Some(("label", label)) => named(label).map(Self::Label),
            Some(("uuid", id)) => named(id).filter(|id| id.bytes().all(is_of_uuid)).map(Self::Uuid),
            Some(_) => None,
            None => {
                // A sign would be read too.
                let digits = text.bytes().all(|digit| digit.is_ascii_digit());
                text.parse().ok().filter(|number| digits && *number > 0).map(Self::Number)
            }
        }
    }
}

fn is_of_uuid(byte: u8) -> bool {
    byte.is_ascii_hexdigit() || byte == b'-'
}

impl fmt::Display for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(source) => source.fmt(f),
            Self::Disk(place) => place.fmt(f),
        }
    }
}

impl fmt::Display for DiskPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk:{}", self.disk)?;
        if let Some(partition) = &self.partition {
            write!(f, "/part:{partition}")?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, "/file:{file}"))
    }
}

impl fmt::Display for PartitionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Label(label) => write!(f, "label/{label}"),
            Self::Uuid(id) => write!(f, "uuid/{id}"),
        }
    }
}

/// The files beside disks that these are in or stand on.
pub(super) fn files(disks: &[Disk]) -> impl Iterator<Item = &Source> {
    let sources = disks
        .iter()
        .flat_map(|disk| core::iter::once(&disk.source).chain(disk.base.as_ref().map(|base| &base.source)));
    sources.filter_map(|source| match source {
        DiskSource::File(file) => Some(file),
        DiskSource::Disk(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn place(disk: &str, partition: Option<PartitionName>, file: Option<&str>) -> DiskSource {
        DiskSource::Disk(DiskPlace { disk: disk.into(), partition, file: file.map(Into::into) })
    }

    #[test]
    fn places_on_disks_are_named_from_the_disk_inwards() {
        let label = |name: &str| Some(PartitionName::Label(name.into()));
        for (text, expected) in [
            ("disk:nvme0", place("nvme0", None, None)),
            ("disk:pci:00:03.0", place("pci:00:03.0", None, None)),
            ("disk:WD 1234/part:2", place("WD 1234", Some(PartitionName::Number(2)), None)),
            ("disk:a/part:label/my/home", place("a", label("my/home"), None)),
            ("disk:a/part:uuid/9B-ff", place("a", Some(PartitionName::Uuid("9B-ff".into())), None)),
            ("disk:a/file:/images/web.img", place("a", None, Some("/images/web.img"))),
            ("disk:a/part:label/x/file:/y", place("a", label("x"), Some("/y"))),
            ("cbfs:images/tools", DiskSource::File(Source::Cbfs("images/tools".into()))),
        ] {
            assert_eq!(DiskSource::parse(text), Some(expected.clone()), "{text}");
            assert_eq!(expected.to_string(), text);
        }
        let without_slash = DiskSource::parse("disk:a/file:images/web.img").map(|source| source.to_string());
        assert_eq!(without_slash.as_deref(), Some("disk:a/file:/images/web.img"));
    }

    #[test]
    fn what_names_no_place_is_none() {
        for wrong in [
            "",
            "disk:",
            "disk:/part:1",
            "disk:a/",
            "disk:a/b",
            "disk:a/part:",
            "disk:a/part:0",
            "disk:a/part:+1",
            "disk:a/part:one",
            "disk:a/part:4294967296",
            "disk:a/part:label/",
            "disk:a/part:uuid/xyz",
            "disk:a/part:name/x",
            "disk:a/part:1/x",
            "disk:a/file:",
            "disk:a/file:///",
            "nvme0",
            "tape:x",
        ] {
            assert_eq!(DiskSource::parse(wrong), None, "{wrong}");
        }
    }
}
