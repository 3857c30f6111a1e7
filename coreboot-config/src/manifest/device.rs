//! A guest's devices: child nodes of its node.

use alloc::{string::String, vec::Vec};

use super::{
    boot::MODULE,
    disk::{self, Disk},
    error::{Result, Warning},
    node::Node,
};

const NETWORK: &str = "peerboot,network";

/// A network interface of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The node's name.
    pub name: String,
    /// The switch it is plugged into; guests at one switch reach each other.
    pub switch: String,
    /// Its address, where the manifest gives one: of a single station, not all zeros.
    pub mac_address: Option<[u8; 6]>,
}

/// The devices in a guest's child nodes, each kind in the nodes' order.
pub(super) fn read(guest: &Node<'_, '_>, warnings: &mut Vec<Warning>) -> Result<(Vec<Disk>, Vec<Network>)> {
    let mut disks = Vec::new();
    let mut networks = Vec::new();
    for node in guest.children() {
        if disk::is_one(&node) {
            disks.push(disk::read(&node, warnings)?);
        } else if node.is_compatible(NETWORK) {
            node.warn_of_unknown_properties(&["compatible", "switch", "mac-address"], warnings);
            networks.push(network(&node)?);
        } else if !node.is_compatible(MODULE) {
            warnings.push(node.unknown());
        }
    }
    Ok((disks, networks))
}

fn network(node: &Node<'_, '_>) -> Result<Network> {
    let switch = node.text("switch")?.filter(|switch| !switch.is_empty());
    let switch = switch.ok_or_else(|| node.wrong("switch", "the name of a switch"))?;
    let mac_address = node.value("mac-address").map(|value| {
        let address = <[u8; 6]>::try_from(value).ok();
        let station = address.filter(|[first, ..]| first & 1 == 0).filter(|address| *address != [0; 6]);
        station.ok_or_else(|| node.wrong("mac-address", "six bytes, the address of a single station"))
    });
    Ok(Network { name: node.name().into(), switch: switch.into(), mac_address: mac_address.transpose()? })
}
