//! What the controller says of itself and its namespace (NVMe 1.4, 5.15).

use super::command::Status;
use super::prp::{MOST_PAGES, PAGE};
use super::{Identity, NAMESPACE, VENDOR, VERSION};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use storage::Geometry;

/// What an Identify command's first dword asks for.
mod structure {
    pub const NAMESPACE: u8 = 0;
    pub const CONTROLLER: u8 = 1;
    pub const ACTIVE_NAMESPACES: u8 = 2;
    pub const NAMESPACE_DESCRIPTORS: u8 = 3;
}

/// Of how many commands at once an asynchronous event can be told, and of how many an abort.
pub(super) const EVENT_REQUESTS: u16 = 4;
const ABORTS: u8 = 4;
/// Entries of the error log.
pub(super) const ERRORS: u8 = 1;
/// The firmware's revision, eight characters.
pub(super) const FIRMWARE: [u8; 8] = *b"1       ";
const MODEL: &[u8] = b"Peerboot disk";

/// The structure that a command with these dwords asks for.
pub(super) fn structure(
    identity: &Identity,
    geometry: &Geometry,
    (what, namespace): (u8, u32),
) -> Result<Vec<u8>, Status> {
    let whole = |fields: &[(usize, &[u8])]| {
        let mut page = vec![0; PAGE as usize];
        for (at, bytes) in fields {
            page.iter_mut().skip(*at).zip(*bytes).for_each(|(byte, new)| *byte = *new);
        }
        page
    };
    match what {
        structure::CONTROLLER => Ok(controller(identity, geometry, whole)),
        structure::NAMESPACE if namespace == NAMESPACE => Ok(self::namespace(geometry, whole)),
        // What all have in common, of those that could be created: none.
        structure::NAMESPACE if namespace == u32::MAX => Ok(whole(&[])),
        structure::ACTIVE_NAMESPACES if namespace < NAMESPACE => Ok(whole(&[(0, &NAMESPACE.to_le_bytes())])),
        structure::ACTIVE_NAMESPACES if namespace < u32::MAX - 1 => Ok(whole(&[])),
        structure::NAMESPACE_DESCRIPTORS if namespace == NAMESPACE => {
            const UUID: u8 = 3;
            let uuid = identity.uuid();
            Ok(whole(&[(0, &[UUID, uuid.len() as u8]), (4, &uuid)]))
        }
        structure::NAMESPACE | structure::ACTIVE_NAMESPACES | structure::NAMESPACE_DESCRIPTORS => {
            Err(Status::INVALID_NAMESPACE)
        }
        _ => Err(Status::INVALID_FIELD),
    }
}

fn controller(
    identity: &Identity,
    geometry: &Geometry,
    whole: impl Fn(&[(usize, &[u8])]) -> Vec<u8>,
) -> Vec<u8> {
    /// Optional administrator's commands: doorbell buffer configuration.
    const DOORBELL_BUFFER: u16 = 1 << 8;
    /// Commands that may be offered: dataset management, write zeroes.
    const DATASET_MANAGEMENT: u16 = 1 << 2;
    const WRITE_ZEROES: u16 = 1 << 3;
    /// A write cache, whose flush may name all namespaces.
    const WRITE_CACHE: u8 = 0b111;
    const LARGEST_TRANSFER: u8 = MOST_PAGES.trailing_zeros() as u8;
    const IO_CONTROLLER: u8 = 1;
    /// One firmware slot, which is read-only.
    const FIRMWARE_SLOTS: u8 = 1 << 1 | 1;
    /// In kelvins.
    const WARNING_TEMPERATURE: u16 = 343;
    const CRITICAL_TEMPERATURE: u16 = 353;
    /// The sizes of queue entries as powers of two: the least, and the most.
    const SUBMISSION_ENTRIES: u8 = 0x66;
    const COMPLETION_ENTRIES: u8 = 0x44;
    /// Of power state 0, in centiwatts.
    const POWER: u16 = 100;

    let commands = if geometry.read_only {
        0
    } else if geometry.discards {
        WRITE_ZEROES | DATASET_MANAGEMENT
    } else {
        WRITE_ZEROES
    };
    let (serial, model) = (padded::<20>(identity.serial.as_bytes()), padded::<40>(MODEL));
    let text = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<alloc::string::String>();
    // The name that hosts would make up themselves (7.9), which differs from disk to disk.
    let name = format!(
        "nqn.2014.08.org.nvmexpress:{VENDOR:04x}{:04x}{}{}",
        identity.slot,
        text(&serial),
        text(&model)
    );
    whole(&[
        (0, &VENDOR.to_le_bytes()),
        (4, &serial),
        (24, &model),
        (64, &FIRMWARE),
        (77, &[LARGEST_TRANSFER]),
        (80, &VERSION.to_le_bytes()),
        (111, &[IO_CONTROLLER]),
        (256, &DOORBELL_BUFFER.to_le_bytes()),
        (258, &[ABORTS.saturating_sub(1)]),
        (259, &[EVENT_REQUESTS.saturating_sub(1) as u8]),
        (260, &[FIRMWARE_SLOTS]),
        (262, &[ERRORS.saturating_sub(1)]),
        (266, &WARNING_TEMPERATURE.to_le_bytes()),
        (268, &CRITICAL_TEMPERATURE.to_le_bytes()),
        (512, &[SUBMISSION_ENTRIES, COMPLETION_ENTRIES]),
        (516, &NAMESPACE.to_le_bytes()),
        (520, &commands.to_le_bytes()),
        (525, &[if identity.write_back { WRITE_CACHE } else { 0 }]),
        (768, name.as_bytes()),
        (2048, &POWER.to_le_bytes()),
    ])
}

fn namespace(geometry: &Geometry, whole: impl Fn(&[(usize, &[u8])]) -> Vec<u8>) -> Vec<u8> {
    /// The namespace is write protected (NSATTR).
    const WRITE_PROTECTED: u8 = 1;
    let blocks = geometry.blocks.to_le_bytes();
    let block_bits = geometry.block_size.trailing_zeros() as u8;
    whole(&[
        (0, &blocks),
        (8, &blocks),
        (16, &blocks),
        (99, &[if geometry.read_only { WRITE_PROTECTED } else { 0 }]),
        // The only format: no metadata, blocks of this size.
        (128, &[0, 0, block_bits, 0]),
    ])
}

/// As a field of text is: spaces behind, cut where it is too long, and only printable ASCII.
fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut field = [b' '; N];
    for (byte, new) in field.iter_mut().zip(text) {
        *byte = if new.is_ascii_graphic() { *new } else { b' ' };
    }
    field
}
