//! How a guest starts.

use alloc::{format, string::String, vec::Vec};

use super::{
    error::{Result, Warning},
    node::Node,
    source::Source,
};

/// What makes a child node of a guest a module.
pub(super) const MODULE: &str = "peerboot,module";

/// How a guest starts, and of which files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
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
        let modules = self.modules.iter().map(|module| &module.source);
        core::iter::once(&self.kernel).chain(&self.ramdisk).chain(modules)
    }
}

const METHODS: [(&str, Method); 5] = [
    ("linux", Method::Linux(None)),
    ("pvh", Method::Pvh),
    ("multiboot", Method::Multiboot),
    ("multiboot2", Method::Multiboot2),
    ("hermit", Method::Hermit),
];
const ENTRIES: [(&str, Entry); 3] =
    [("16-bit", Entry::Bits16), ("32-bit", Entry::Bits32), ("64-bit", Entry::Bits64)];

/// How the guest of a node starts.
pub(super) fn read(guest: &Node<'_, '_>, warnings: &mut Vec<Warning>) -> Result<Boot> {
    let mut modules = Vec::new();
    for node in guest.children().filter(|node| node.is_compatible(MODULE)) {
        node.warn_of_unknown_properties(&["compatible", "source", "bootargs"], warnings);
        modules.push(Module { source: node.needed_source("source")?, bootargs: bootargs(&node)? });
    }
    let method = method(guest)?;
    if matches!(method, Method::Linux(_) | Method::Hermit) && !modules.is_empty() {
        return Err(guest.wrong("boot", format!("one that has nodes \"{MODULE}\"")));
    }
    Ok(Boot {
        method,
        kernel: guest.needed_source("kernel")?,
        ramdisk: guest.source("ramdisk")?,
        modules,
        bootargs: bootargs(guest)?,
    })
}

fn method(guest: &Node<'_, '_>) -> Result<Method> {
    let entry = guest.word("entry", &ENTRIES)?;
    match (guest.needed_word("boot", &METHODS)?, entry) {
        (Method::Linux(_), entry) => Ok(Method::Linux(entry)),
        (method, None) => Ok(method),
        _ => Err(guest.wrong("entry", "it only with boot = \"linux\"")),
    }
}

fn bootargs(node: &Node<'_, '_>) -> Result<String> {
    Ok(node.text("bootargs")?.unwrap_or("").into())
}
