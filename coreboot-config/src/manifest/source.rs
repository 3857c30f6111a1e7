//! Where a file lives.

use alloc::string::String;
use core::fmt;

/// A file, named by where it lives: `cbfs:guests/debian/vmlinuz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file of this name in the ROM's CBFS.
    Cbfs(String),
    /// In RAM, where something before us has put it: `memory:0x2000000+0xd87a00`.
    Memory {
        /// The physical address of its first byte.
        address: u64,
        /// Its size in bytes, at least one; it ends within the address space.
        size: u64,
    },
}

impl Source {
    /// What a source may be, for messages.
    pub(super) const EXPECTED: &str = "\"cbfs:\" and the name of a file in the ROM, or \"memory:ADDRESS+SIZE\", both in hexadecimal with 0x";

    /// The source that this text names.
    pub fn parse(text: &str) -> Option<Self> {
        let (place, name) = text.split_once(':')?;
        match place {
            "cbfs" => {
                let sound = !name.is_empty() && name.chars().all(|letter| letter.is_ascii_graphic());
                sound.then(|| Self::Cbfs(name.into()))
            }
            "memory" => {
                let (address, size) = name.split_once('+')?;
                let (address, size) = (hexadecimal(address)?, hexadecimal(size)?);
                address.checked_add(size).filter(|_| size > 0)?;
                Some(Self::Memory { address, size })
            }
            _ => None,
        }
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    // A sign would be read too.
    let sound = digits.chars().all(|digit| digit.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| sound)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cbfs(name) => write!(f, "cbfs:{name}"),
            Self::Memory { address, size } => write!(f, "memory:{address:#x}+{size:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn memory_is_named_by_address_and_size() {
        let source = Source::Memory { address: 0x200_0000, size: 0xD8_7A00 };
        assert_eq!(Source::parse("memory:0x2000000+0xd87a00"), Some(source.clone()));
        assert_eq!(source.to_string(), "memory:0x2000000+0xd87a00");
        for wrong in [
            "memory:",
            "memory:0x1000",
            "memory:4096+0x10",
            "memory:0x1000+0x0",
            "memory:0x1000+-0x10",
            "memory:0x+10+0x10",
            "memory:0xffffffffffffffff+0x1",
            "memory:0x10000000000000000+0x1",
        ] {
            assert_eq!(Source::parse(wrong), None, "{wrong}");
        }
    }
}
