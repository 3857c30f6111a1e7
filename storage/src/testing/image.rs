//! Images in files, which qemu-img can work on.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// An image in a file, gone when dropped.
pub struct Image(pub PathBuf);

static IMAGES: AtomicU32 = AtomicU32::new(0);

impl Image {
    /// An image of these bytes.
    pub fn holding(bytes: &[u8]) -> Self {
        let number = IMAGES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("peerboot-image-{}-{number}", std::process::id()));
        std::fs::write(&path, bytes).expect("an image file");
        Self(path)
    }

    /// What it holds.
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).expect("the image")
    }

    /// Where it is.
    pub fn path(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }

    /// What qemu-img says with these arguments and this image as the last.
    pub fn try_qemu_img(&self, arguments: &[&str]) -> Output {
        let output = Command::new("qemu-img").args(arguments).arg(&self.0).output();
        output.unwrap_or_else(|e| panic!("qemu-img: {e}; it is in Debian's package qemu-utils"))
    }

    /// Runs qemu-img with these arguments and this image as the last.
    pub fn qemu_img(&self, arguments: &[&str]) {
        let output = self.try_qemu_img(arguments);
        let said = [&output.stdout[..], &output.stderr].concat();
        assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&said));
    }

    /// Has qemu-img make `other` of this image.
    pub fn convert(&self, arguments: &[&str], other: &Self) {
        other.qemu_img(&[&["convert"], arguments, &[&self.path()]].concat());
    }

    /// Runs commands of qemu-io on this qcow2 image.
    pub fn qemu_io(&self, commands: &[&str]) {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let output = Command::new("qemu-io").args(["-f", "qcow2"]).args(commands).arg(&self.0).output();
        let output = output.unwrap_or_else(|e| panic!("qemu-io: {e}; it is in Debian's package qemu-utils"));
        let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        assert!(output.status.success() && !said.contains("failed"), "qemu-io: {said}");
    }

    /// Runs commands of qemu-io on this qcow2 image, and kills it before it has closed that.
    pub fn kill_qemu_io(&self, commands: &[&str]) {
        let commands = commands.iter().chain(&["sigraise 9"]).flat_map(|command| ["-c", command]);
        let output = Command::new("qemu-io").args(["-f", "qcow2"]).args(commands).arg(&self.0).output();
        assert!(!output.expect("qemu-io").status.success());
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
