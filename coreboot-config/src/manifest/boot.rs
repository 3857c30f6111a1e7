//! How a guest starts.

use alloc::{format, string::String, vec::Vec};

use super::{
    error::{Result, Warning},
    node::Node,
    source::Source,
};

/// What makes a child node of a guest a module.
pub(super) const MODULE: &str = "peerboot,module";

/// How a guest starts, and of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// Of files that the manifest names.
    Files(Files),
    /// Of what its disks hold.
    Disk(DiskBoot),
}

/// Of which files a guest starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// By which protocol.
    pub method: Method,
    /// The kernel.
    pub kernel: Source,
    /// Its initial RAM disk.
    pub ramdisk: Option<Source>,
    /// What else goes with it; nothing with [`Method::Linux`] and [`Method::Hermit`].
    pub modules: Vec<Module>,
    /// Its command line.
    pub bootargs: String,
}

/// What a guest starts that its own disks have a kernel for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskBoot {
    /// The entry, by its name; else the one that its disks have for the default.
    pub entry: Option<String>,
    /// What goes behind the entry's own command line.
    pub bootargs: String,
}

/// By which protocol a guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A bzImage, by Linux's boot protocol; by this entry, or else by the widest that the kernel has.
    Linux(Option<Entry>),
    /// An ELF file with a PVH note.
    Pvh,
    /// A kernel with a Multiboot header.
    Multiboot,
    /// A kernel with a Multiboot2 header.
    Multiboot2,
    /// A kernel with a Hermit note.
    Hermit,
}

/// In which mode a kernel of Linux's boot protocol is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Real mode, with BIOS services.
    Bits16,
    /// 32-bit protected mode.
    Bits32,
    /// Long mode.
    Bits64,
}

/// A file that goes with a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The file.
    pub source: Source,
    /// Its command line.
    pub bootargs: String,
}

impl Boot {
    /// Every file that the guest needs to start.
    pub fn files(&self) -> impl Iterator<Item = &Source> {
        let files = match self {
            Self::Files(files) => Some(files),
            Self::Disk(_) => None,
        };
        files.into_iter().flat_map(|files| {
            let modules = files.modules.iter().map(|module| &module.source);
            core::iter::once(&files.kernel).chain(&files.ramdisk).chain(modules)
        })
    }
}

/// None is the one that looks on the guest's disks.
const METHODS: [(&str, Option<Method>); 6] = [
    ("linux", Some(Method::Linux(None))),
    ("pvh", Some(Method::Pvh)),
    ("multiboot", Some(Method::Multiboot)),
    ("multiboot2", Some(Method::Multiboot2)),
    ("hermit", Some(Method::Hermit)),
    ("disk", None),
];
const ENTRIES: [(&str, Entry); 3] =
    [("16-bit", Entry::Bits16), ("32-bit", Entry::Bits32), ("64-bit", Entry::Bits64)];

/// How the guest of a node starts, which has so many disks.
pub(super) fn read(guest: &Node<'_, '_>, disks: usize, warnings: &mut Vec<Warning>) -> Result<Boot> {
    let mut modules = Vec::new();
    for node in guest.children().filter(|node| node.is_compatible(MODULE)) {
        node.warn_of_unknown_properties(&["compatible", "source", "bootargs"], warnings);
        modules.push(Module { source: node.needed_source("source")?, bootargs: bootargs(&node)? });
    }
    let method = guest.needed_word("boot", &METHODS)?;
    if matches!(method, None | Some(Method::Linux(_) | Method::Hermit)) && !modules.is_empty() {
        return Err(guest.wrong("boot", format!("one that has nodes \"{MODULE}\"")));
    }
    let Some(method) = method else { return from_disk(guest, disks).map(Boot::Disk) };
    Ok(Boot::Files(Files {
        method: with_entry(guest, method)?,
        kernel: guest.needed_source("kernel")?,
        ramdisk: guest.source("ramdisk")?,
        modules,
        bootargs: bootargs(guest)?,
    }))
}

fn from_disk(guest: &Node<'_, '_>, disks: usize) -> Result<DiskBoot> {
    for property in ["kernel", "ramdisk"] {
        if guest.value(property).is_some() {
            return Err(
                guest.wrong(property, "none with boot = \"disk\", which finds it on the guest's disks")
            );
        }
    }
    if disks == 0 {
        return Err(guest.wrong("boot", "another where the guest has no disk"));
    }
    let entry = guest.text("entry")?;
    if entry.is_some_and(str::is_empty) {
        return Err(guest.wrong("entry", "an entry's name"));
    }
    Ok(DiskBoot { entry: entry.map(Into::into), bootargs: bootargs(guest)? })
}

fn with_entry(guest: &Node<'_, '_>, method: Method) -> Result<Method> {
    match method {
        Method::Linux(_) => Ok(Method::Linux(guest.word("entry", &ENTRIES)?)),
        method if guest.value("entry").is_none() => Ok(method),
        _ => Err(guest.wrong("entry", "it only with boot = \"linux\" or \"disk\"")),
    }
}

fn bootargs(node: &Node<'_, '_>) -> Result<String> {
    Ok(node.text("bootargs")?.unwrap_or("").into())
}
