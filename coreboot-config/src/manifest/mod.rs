//! The guest manifest: which guests to start, and of what. `docs/manifest.md` is its reference.
//!
//! It is a device tree blob, compiled by `dtc`. A guest is a node in `/chosen`, after the manner of Xen's
//! dom0less bindings. A guest whose node is wrong costs that guest; what is merely unknown is a warning.

mod blob;
mod boot;
mod device;
#[cfg_attr(not(feature = "disks"), path = "no_disk.rs")]
mod disk;
mod error;
mod guest;
mod node;
mod source;

pub use blob::{BlobError, BlobFault, MAX_BLOB_LEN};
pub use boot::{Boot, DiskBoot, Entry, Files, Method, Module};
pub use device::Network;
pub use disk::Disk;
#[cfg(feature = "disks")]
pub use disk::{Base, Cache, DiskPlace, DiskSource, Format, MAX_SERIAL_LEN, Model, PartitionName};
pub use error::{GuestError, ManifestError, Warning};
pub use guest::{Action, Console, DEFAULT_WEIGHT, GuestConfig, MAX_CAP, MAX_CPUS, MIN_MEMORY};
pub use source::Source;

use alloc::{boxed::Box, string::String, vec::Vec};

use node::Node;

/// The manifest's name in CBFS.
pub const FILE_NAME: &str = "guests.dtb";
/// What the root node must be compatible with.
pub const COMPATIBLE: &str = "peerboot,manifest-v1";

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Every guest node, in the manifest's order.
    pub guests: Vec<Result<GuestConfig, Box<GuestError>>>,
    /// Nodes and properties that mean nothing to this version, or nothing where they are.
    pub warnings: Vec<Warning>,
}

impl Manifest {
    /// Reads a manifest from a device tree blob, which may be followed by other bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let tree = blob::parse(bytes)?;
        let root = Node::root(&tree).ok_or(BlobError { offset: 0, fault: BlobFault::End })?;
        if !root.is_compatible(COMPATIBLE) {
            let found = root.describe("compatible");
            return Err(ManifestError::Version { found });
        }
        let mut warnings = Vec::new();
        let mut guests = Vec::new();
        let mut chosen_nodes = 0_usize;
        root.warn_of_unknown_properties(&["compatible", "model"], &mut warnings);
        for node in root.children() {
            if node.name() == "chosen" {
                chosen_nodes = chosen_nodes.saturating_add(1);
                read_chosen(&node, &mut guests, &mut warnings);
            } else {
                warnings.push(node.unknown());
            }
        }
        if chosen_nodes == 0 {
            return Err(ManifestError::NoChosen);
        }
        refuse_second_names(&mut guests);
        Ok(Self { guests, warnings })
    }
}

fn read_chosen(
    chosen: &Node<'_, '_>,
    guests: &mut Vec<Result<GuestConfig, Box<GuestError>>>,
    warnings: &mut Vec<Warning>,
) {
    chosen.warn_of_unknown_properties(&[], warnings);
    for node in chosen.children() {
        if node.is_compatible(guest::COMPATIBLE) {
            guests.push(guest::read(&node, warnings));
        } else {
            warnings.push(node.unknown());
        }
    }
}

/// Two guests of one name could not be told apart: the first keeps it.
fn refuse_second_names(guests: &mut [Result<GuestConfig, Box<GuestError>>]) {
    let mut taken: Vec<(String, String)> = Vec::new();
    for entry in guests {
        let Ok(guest) = entry else { continue };
        match taken.iter().find(|(name, _)| *name == guest.name) {
            Some((_, first)) => {
                *entry = Err(Box::new(GuestError::second_name(&guest.node, &guest.name, first)))
            }
            None => taken.push((guest.name.clone(), guest.node.clone())),
        }
    }
}

#[cfg(test)]
mod tests;
