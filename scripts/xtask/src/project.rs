//! The source tree and the two directories that hold what is built from it.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};
use crate::progress;

/// Where things are.
#[derive(Debug, Clone)]
pub struct Project {
    root: PathBuf,
    quiet: bool,
}

impl Project {
    /// The project that this program was built from.
    ///
    /// # Errors
    /// The source tree has moved since.
    pub fn find() -> Result<Self> {
        let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = crate_dir.ancestors().nth(2).unwrap_or(crate_dir).to_path_buf();
        if root.join("Cargo.toml").is_file() {
            Ok(Self { root, quiet: false })
        } else {
            Err(Error::setup(format!("the source tree is no longer at {}", root.display())))
        }
    }

    /// The same project, with the words of compilers kept for when they fail.
    #[must_use]
    pub fn quiet(&self) -> Self {
        Self { quiet: true, ..self.clone() }
    }

    /// Says in one line what starts now, unless quiet.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            progress::say(line);
        }
    }

    /// Runs a compiler, its progress shown to the user of a project that is not quiet.
    ///
    /// # Errors
    /// It cannot start, or fails.
    pub fn compile(&self, cargo: &mut Command) -> Result<()> {
        if self.quiet { command::output(cargo).map(drop) } else { command::show(cargo) }
    }

    /// The directory of the workspace's Cargo.toml.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside the source tree.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A directory under build/, made if it is missing.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn build(&self, relative: &str) -> Result<PathBuf> {
        let dir = self.root.join("build").join(relative);
        fs::create_dir_all(&dir).map_err(|e| Error::file("make", &dir, &e))?;
        Ok(dir)
    }

    /// Waits until nobody else makes files under build/, in this process or another, and keeps others waiting until
    /// what this gives is dropped. Who holds it must not ask again.
    ///
    /// # Errors
    /// The file that is locked cannot be.
    pub fn turn(&self) -> Result<File> {
        let path = self.build("")?.join("lock");
        let file = File::create(&path).map_err(|e| Error::file("make", &path, &e))?;
        file.lock().map_err(|e| Error::file("lock", &path, &e))?;
        Ok(file)
    }

    /// Where cargo puts what it builds: `CARGO_TARGET_DIR`, or target/ in the source tree.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// The board's own directory in coreboot-config/boards.
    ///
    /// # Errors
    /// There is no such board.
    pub fn board(&self, name: &str) -> Result<PathBuf> {
        let boards = self.path("coreboot-config/boards");
        let dir = boards.join(name);
        if !name.is_empty() && !name.contains(['/', '.']) && dir.is_dir() {
            return Ok(dir);
        }
        let mut known: Vec<String> = fs::read_dir(&boards)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        known.sort();
        Err(Error::setup(format!("no board named {name:?}; there are: {}", known.join(", "))))
    }
}
