//! What can be wrong with a manifest.

use alloc::{boxed::Box, format, string::String};
use core::fmt;

use super::{COMPATIBLE, blob::BlobError};

/// Why a manifest cannot be read at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// The bytes are not a sound device tree blob.
    Blob(BlobError),
    /// The root node is not compatible with [`COMPATIBLE`].
    Version {
        /// What its property `compatible` holds.
        found: String,
    },
    /// There is no node `/chosen`.
    NoChosen,
}

/// Why a guest cannot be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestError {
    /// The node's path.
    pub node: String,
    /// The property, where it is one.
    pub property: Option<&'static str>,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

/// What reading a part of a guest gives. The error lies on the heap: there is a `?` for each property.
pub(super) type Result<T> = core::result::Result<T, Box<GuestError>>;

/// A node or property that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The node's path.
    pub node: String,
    /// The property; `None` when it is the node itself.
    pub property: Option<String>,
}

impl GuestError {
    pub(super) fn second_name(node: &str, name: &str, first: &str) -> Self {
        Self {
            node: node.into(),
            property: None,
            found: format!("a second guest named {name}"),
            expected: format!("another name than that of {first}"),
        }
    }
}

impl From<BlobError> for ManifestError {
    fn from(error: BlobError) -> Self {
        Self::Blob(error)
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(error) => write!(f, "manifest: {error}"),
            Self::Version { found } => {
                write!(f, "manifest: node /, property compatible: found {found}, expected \"{COMPATIBLE}\"")
            }
            Self::NoChosen => {
                f.write_str("manifest: found no node /chosen, expected one with the guests in it")
            }
        }
    }
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "manifest: node {}", self.node)?;
        if let Some(property) = self.property {
            write!(f, ", property {property}")?;
        }
        write!(f, ": found {}, expected {}", self.found, self.expected)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.property {
            Some(property) => {
                write!(f, "manifest: node {}, property {property}: unknown here, not used", self.node)
            }
            None => write!(f, "manifest: node {}: unknown here, not used", self.node),
        }
    }
}

impl core::error::Error for ManifestError {}
impl core::error::Error for GuestError {}
