//! What a controller and its namespaces say of themselves (NVMe Base Specification 2.0, 5.17.2; NVM Command Set
//! Specification 1.0, 4.1.5).

use crate::driver::Error;
use alloc::string::String;

/// The size of each answer.
pub const SIZE: usize = 4096;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// Printable ASCII without padding.
fn text(bytes: &[u8], at: usize, len: usize) -> String {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.get(..len)).unwrap_or_default();
    let text: String =
        bytes.iter().map(|byte| char::from(*byte)).filter(|c| matches!(c, ' '..='~')).collect();
    text.trim().into()
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// SN.
    pub serial: String,
    /// MN.
    pub model: String,
    /// MDTS: the most bytes that a command moves, as far as it says.
    pub most: Option<u64>,
    /// NN: the highest number of a namespace.
    pub namespaces: u32,
    /// ONCS: it has dataset management.
    pub discards: bool,
    /// ONCS: it has write zeroes.
    pub zeroes: bool,
    /// VWC: it has a volatile write cache.
    pub volatile_cache: bool,
}

impl Controller {
    /// Reads its answer.
    pub fn read(bytes: &[u8]) -> Self {
        let (mdts, commands) = (byte(bytes, 77), u16_at(bytes, 520));
        Self {
            serial: text(bytes, 4, 20),
            model: text(bytes, 24, 40),
            most: if mdts == 0 { None } else { 4096_u64.checked_shl(u32::from(mdts)) },
            namespaces: u32_at(bytes, 516),
            discards: commands & 1 << 2 != 0,
            zeroes: commands & 1 << 3 != 0,
            volatile_cache: byte(bytes, 525) & 1 != 0,
        }
    }
}

/// A namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// NSZE.
    pub blocks: u64,
    /// The formatted block size in bytes.
    pub block_size: u32,
    /// NSATTR: it is write-protected.
    pub read_only: bool,
}

impl Namespace {
    /// Reads its answer.
    ///
    /// # Errors
    /// It has no blocks, blocks that are neither of 512 nor of 4096 bytes, or metadata with each.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        let formatted = byte(bytes, 26);
        // Two more bits came with NVMe 2.0, where there are more than 16 formats.
        let format = formatted & 0xf | (formatted >> 5 & 3) << 4;
        let at = usize::from(format).saturating_mul(4).saturating_add(128);
        let (metadata, shift) = (u16_at(bytes, at), byte(bytes, at.saturating_add(2)));
        let block_size = match shift {
            9 => 512,
            12 => 4096,
            _ => return Err(Error::Unusable("a namespace's blocks are neither of 512 nor of 4096 bytes")),
        };
        if metadata != 0 {
            return Err(Error::Unusable("a namespace has metadata"));
        }
        match u64_at(bytes, 0) {
            0 => Err(Error::Unusable("a namespace has no blocks")),
            blocks => Ok(Self { blocks, block_size, read_only: byte(bytes, 99) & 1 != 0 }),
        }
    }
}

/// The namespaces in a list of active ones, which ends at the first zero.
pub fn active(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    (0..SIZE / 4).map(|n| u32_at(bytes, n.saturating_mul(4))).take_while(|number| *number != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_says_what_it_can() {
        let mut bytes = [0; SIZE];
        bytes[4..24].copy_from_slice(b"S3RIAL              ");
        bytes[24..34].copy_from_slice(b"Mo\x01del  X ");
        bytes[77] = 5;
        bytes[516] = 3;
        bytes[520] = 0b1100;
        let controller = Controller::read(&bytes);
        assert_eq!((&*controller.serial, &*controller.model), ("S3RIAL", "Model  X"));
        assert_eq!((controller.most, controller.namespaces), (Some(0x2_0000), 3));
        assert!(controller.discards && controller.zeroes && !controller.volatile_cache);
        bytes[77] = 200;
        assert_eq!(Controller::read(&bytes).most, None, "more than anyone asks for");
    }

    #[test]
    fn a_namespace_has_the_format_that_it_was_given() {
        let mut bytes = [0; SIZE];
        bytes[0] = 7;
        bytes[26] = 0x21;
        bytes[128 + 4 * 17 + 2] = 12;
        let namespace = Namespace::read(&bytes).unwrap();
        assert_eq!(namespace, Namespace { blocks: 7, block_size: 4096, read_only: false });
        bytes[128 + 4 * 17] = 8;
        assert!(Namespace::read(&bytes).is_err(), "metadata");
        bytes[26] = 0;
        assert!(Namespace::read(&bytes).is_err(), "blocks of one byte");
        bytes[130] = 9;
        bytes[99] = 1;
        assert!(Namespace::read(&bytes).unwrap().read_only);
        bytes[0] = 0;
        assert!(Namespace::read(&bytes).is_err(), "no blocks");
    }

    #[test]
    fn a_list_ends_at_zero() {
        let mut bytes = [0; SIZE];
        (bytes[0], bytes[4], bytes[12]) = (1, 9, 3);
        assert_eq!(active(&bytes).collect::<Vec<_>>(), [1, 9]);
        assert_eq!(active(&[1; SIZE]).count(), 1024);
    }
}
