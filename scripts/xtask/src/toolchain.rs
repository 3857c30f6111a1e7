//! The Rust compilers: one for the host, and one that knows the payload's target.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};
use crate::packages;
use crate::progress::say;
use crate::project::Project;

/// The payload's target: x86-64 without an operating system.
pub const TARGET: &str = "x86_64-unknown-none";

/// Debian's packages that build for the target from the library's sources.
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld"];

/// Whose compiler it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The one in PATH: rustup's, or another that is new enough.
    Path,
    /// Debian's own packages.
    Debian,
}

/// A compiler with cargo, and where it builds.
#[derive(Debug, Clone)]
pub struct Toolchain {
    kind: Kind,
    target_dir: PathBuf,
}

impl Toolchain {
    /// The compiler for programs that run here: the one that built this program.
    #[must_use]
    pub fn host(project: &Project) -> Self {
        let kind = if forced_to_debian() { Kind::Debian } else { Kind::Path };
        Self { kind, target_dir: project.target() }
    }

    /// The compiler for [`TARGET`]: the host's where it knows the target or rustup can add it, else Debian's.
    ///
    /// # Errors
    /// Neither is to be had; the sentence says what is missing.
    pub fn freestanding(project: &Project) -> Result<Self> {
        let host = Self::host(project);
        if host.kind == Kind::Debian {
            ready_debian()?;
            return Ok(host);
        }
        if knows_target() {
            return Ok(host);
        }
        let debian = Self { kind: Kind::Debian, target_dir: host.target_dir.join("debian") };
        // Once rustup has failed here, it is not waited for again while Debian's packages do.
        let choice = project.build("toolchain")?.join("debian");
        if choice.is_file() && debian_is_ready() {
            return Ok(debian);
        }
        if command::find("rustup").is_some() {
            say(&format!("adding the target {TARGET} (rustup)"));
            // A server that does not answer must not hold us for long.
            let mut rustup = command::command("timeout");
            let added = command::show(rustup.args(["120", "rustup", "target", "add", TARGET]));
            if added.is_ok() && knows_target() {
                return Ok(host);
            }
        }
        if env::var("PEERBOOT_TOOLCHAIN").as_deref() == Ok("rustup") {
            return Err(Error::setup(format!(
                "rustup has no {TARGET} for this toolchain and could not add it."
            )));
        }
        say("this cargo cannot build for the payload's target: taking Debian's");
        ready_debian()?;
        fs::write(&choice, "").map_err(|e| Error::file("write", &choice, &e))?;
        Ok(debian)
    }

    /// Where this compiler's cargo puts what it builds.
    #[must_use]
    pub fn target_dir(&self) -> &Path {
        &self.target_dir
    }

    /// `cargo SUBCOMMAND`, to build for this machine.
    #[must_use]
    pub fn cargo(&self, project: &Project, subcommand: &str) -> Command {
        let debian = self.kind == Kind::Debian;
        let mut cargo = match (debian, subcommand) {
            // Cargo looks for these among rustup's first, wherever PATH begins.
            (true, "clippy" | "fmt") => Command::new(format!("/usr/bin/cargo-{subcommand}")),
            (true, _) => Command::new("/usr/bin/cargo"),
            (false, _) => command::command("cargo"),
        };
        cargo.arg(subcommand).current_dir(project.root()).env("CARGO_TARGET_DIR", &self.target_dir);
        if debian {
            cargo.env("CARGO", "/usr/bin/cargo").env("RUSTC", "/usr/bin/rustc");
            cargo.env("RUSTDOC", "/usr/bin/rustdoc").env("RUSTFMT", "/usr/bin/rustfmt");
        }
        cargo
    }

    /// `cargo SUBCOMMAND --target x86_64-unknown-none`.
    #[must_use]
    pub fn cargo_freestanding(&self, project: &Project, subcommand: &str) -> Command {
        let mut cargo = self.cargo(project, subcommand);
        if self.kind == Kind::Debian {
            // Debian ships the library for this target as sources, which the stable compiler builds only so.
            cargo.env("RUSTC_BOOTSTRAP", "1").args([
                "-Zbuild-std=core,alloc,compiler_builtins",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]);
            cargo.env("CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER", "ld.lld");
        }
        // These would take the place of what .cargo/config.toml says.
        cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        cargo.args(["--target", TARGET, "--config", &self.path_remapping()]);
        cargo
    }

    /// Keeps this machine's paths out of what is built: a panic names its source file below the crates or below the
    /// standard library.
    fn path_remapping(&self) -> String {
        let mut rustc = if self.kind == Kind::Debian {
            Command::new("/usr/bin/rustc")
        } else {
            command::command("rustc")
        };
        let sysroot = command::output(rustc.args(["--print", "sysroot"])).unwrap_or_default();
        let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
        let crates = env::var_os("CARGO_HOME").map(PathBuf::from).or(home).unwrap_or_default();
        let sources = [
            crates.join("registry/src"),
            PathBuf::from(String::from_utf8_lossy(&sysroot).trim()).join("lib/rustlib/src/rust"),
        ];
        let flags = sources.map(|path| format!("\"--remap-path-prefix={}/=\"", path.display()));
        format!("target.{TARGET}.rustflags = [{}]", flags.join(", "))
    }

    /// Sees to it that `cargo fmt` and `cargo clippy` are there.
    ///
    /// # Errors
    /// They are missing and cannot be installed.
    pub fn require_lints(&self, project: &Project) -> Result<()> {
        let works =
            |subcommand: &str| command::output(self.cargo(project, subcommand).arg("--version")).is_ok();
        let missing: Vec<&str> = ["fmt", "clippy"].into_iter().filter(|s| !works(s)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if self.kind == Kind::Path && command::find("rustup").is_some() {
            say("adding rustfmt and clippy (rustup)");
            return command::show(command::command("rustup").args(["component", "add", "rustfmt", "clippy"]))
                .map_err(|_| Error::setup("rustup could not add rustfmt and clippy."));
        }
        let package = |s: &&str| if *s == "fmt" { "rustfmt-web" } else { "rust-web-clippy" };
        packages::install(&missing.iter().map(package).collect::<Vec<_>>())
    }
}

/// `PEERBOOT_TOOLCHAIN=debian` asks for Debian's compiler even beside rustup's; start.sh sets it where PATH has none.
fn forced_to_debian() -> bool {
    env::var("PEERBOOT_TOOLCHAIN").as_deref() == Ok("debian")
}

/// Whether the compiler in PATH has the target's library.
fn knows_target() -> bool {
    let mut rustc = command::command("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    command::output(&mut rustc).is_ok_and(|dir| Path::new(String::from_utf8_lossy(&dir).trim()).is_dir())
}

fn debian_is_ready() -> bool {
    let sources = Path::new("/usr/lib/rustlib/src/rust/library/core/src/lib.rs");
    ["/usr/bin/rustc", "/usr/bin/cargo", "/usr/bin/ld.lld"].iter().all(|p| Path::new(p).exists())
        && sources.exists()
}

fn ready_debian() -> Result<()> {
    if !debian_is_ready() {
        packages::install(&DEBIAN_PACKAGES)?;
    }
    if debian_is_ready() {
        return Ok(());
    }
    Err(Error::setup(format!(
        "no Rust compiler for {TARGET} here: neither rustup's (rustup target add {TARGET}) nor Debian's ({}).",
        DEBIAN_PACKAGES.join(" ")
    )))
}
