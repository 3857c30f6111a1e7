//! Where a file lives.

use alloc::string::String;
use core::fmt;

/// A file, named by where it lives: `cbfs:guests/debian/vmlinuz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file of this name in the ROM's CBFS.
    Cbfs(String),
}

impl Source {
    /// What a source may be, for messages.
    pub(super) const EXPECTED: &str = "\"cbfs:\" and the name of a file in the ROM";

    /// The source that this text names.
    pub fn parse(text: &str) -> Option<Self> {
        let (place, name) = text.split_once(':')?;
        let sound = !name.is_empty() && name.chars().all(|letter| letter.is_ascii_graphic());
        match place {
            "cbfs" if sound => Some(Self::Cbfs(name.into())),
            _ => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cbfs(name) => write!(f, "cbfs:{name}"),
        }
    }
}
