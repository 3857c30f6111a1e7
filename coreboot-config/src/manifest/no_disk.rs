//! What stands in for guests' disks where they are left out: they are counted, so that whoever would need one can say
//! so, and not read.

use alloc::vec::Vec;

use super::{
    error::{Result, Warning},
    node::Node,
    source::Source,
};

/// A disk of a guest, of which nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk;

/// Whether a child node of a guest is a disk: by its name, as in `disk0`.
pub(super) fn is_one(node: &Node<'_, '_>) -> bool {
    node.name().starts_with("disk")
}

pub(super) fn read(_node: &Node<'_, '_>, _warnings: &mut Vec<Warning>) -> Result<Disk> {
    Ok(Disk)
}

/// The files that these are in: none is asked for.
pub(super) fn files(_disks: &[Disk]) -> impl Iterator<Item = &Source> {
    core::iter::empty()
}
