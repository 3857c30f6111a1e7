//! Why a command ended early, and the exit status that says so.

use std::fmt;
use std::path::Path;

/// What stopped a command. The text is one sentence for the user.
#[derive(Debug)]
pub enum Error {
    /// Wrong usage or an unfit machine: exit status 2.
    Setup(String),
    /// The work itself failed, or ran out of time: exit status 1.
    Failed(String),
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An unfit machine or wrong usage.
    pub fn setup(sentence: impl Into<String>) -> Self {
        Self::Setup(sentence.into())
    }

    /// Work that failed.
    pub fn failed(sentence: impl Into<String>) -> Self {
        Self::Failed(sentence.into())
    }

    /// A file that could not be read, written or made.
    pub fn file(what: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::Setup(format!("cannot {what} {}: {error}", path.display()))
    }

    /// The exit status of the process.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Setup(_) => 2,
            Self::Failed(_) => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(sentence) | Self::Failed(sentence) => f.write_str(sentence),
        }
    }
}

impl std::error::Error for Error {}
