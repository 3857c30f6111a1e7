//! Whether this machine's KVM passes virtualization on to its guests, as Peerboot in one needs it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::path::Path;

/// Whose virtualization guests get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nested {
    /// Intel's VT-x.
    VtX,
    /// AMD's SVM.
    AmdV,
}

impl fmt::Display for Nested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VtX => "VT-x",
            Self::AmdV => "AMD-V",
        })
    }
}

/// What KVM's guests get on the machine whose root directory this is. That `dev/kvm` opens is not enough: nested
/// virtualization is a parameter of KVM's modules, and the CPU itself must have it.
#[must_use]
pub fn nested(root: &Path) -> Option<Nested> {
    OpenOptions::new().read(true).write(true).open(root.join("dev/kvm")).ok()?;
    let cpus = fs::read_to_string(root.join("proc/cpuinfo")).ok()?;
    let has = |flag| {
        let mut flags = cpus.lines().filter_map(|line| line.strip_prefix("flags")?.split_once(':'));
        flags.any(|(_, flags)| flags.split_whitespace().any(|word| word == flag))
    };
    let passed_on = |module: &str| {
        let parameter = root.join("sys/module").join(module).join("parameters/nested");
        fs::read_to_string(parameter).is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
    };
    if has("vmx") && passed_on("kvm_intel") {
        Some(Nested::VtX)
    } else if has("svm") && passed_on("kvm_amd") {
        Some(Nested::AmdV)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A machine as far as `nested` looks at it.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("peerboot-kvm-{}-{name}", std::process::id()));
            for (path, content) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
                fs::write(path, content).expect("a file");
            }
            Self(root)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const KVM: (&str, &str) = ("dev/kvm", "");
    const INTEL: (&str, &str) = ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vme vmx ept\n\n");
    const AMD: (&str, &str) = ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu svm npt\nbugs\t: svm_x\n");
    const NEITHER: (&str, &str) =
        ("proc/cpuinfo", "flags\t\t: fpu vmxish\nvmx flags\t: vnmi\nmodel name\t: svm\n");
    const INTEL_ON: (&str, &str) = ("sys/module/kvm_intel/parameters/nested", "Y\n");
    const INTEL_OFF: (&str, &str) = ("sys/module/kvm_intel/parameters/nested", "N\n");
    const AMD_ON: (&str, &str) = ("sys/module/kvm_amd/parameters/nested", "1\n");
    const AMD_OFF: (&str, &str) = ("sys/module/kvm_amd/parameters/nested", "0\n");

    #[test]
    fn the_device_the_cpu_and_the_module_must_agree() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<Nested>);
        let cases: [Case; 9] = [
            ("intel", &[KVM, INTEL, INTEL_ON], Some(Nested::VtX)),
            ("amd", &[KVM, AMD, AMD_ON], Some(Nested::AmdV)),
            ("both-modules", &[KVM, AMD, INTEL_ON, AMD_ON], Some(Nested::AmdV)),
            ("no-device", &[INTEL, INTEL_ON], None),
            ("intel-off", &[KVM, INTEL, INTEL_OFF], None),
            ("amd-off", &[KVM, AMD, AMD_OFF], None),
            ("no-module", &[KVM, INTEL], None),
            ("other-module", &[KVM, AMD, INTEL_ON], None),
            ("no-cpu", &[KVM, NEITHER, INTEL_ON, AMD_ON], None),
        ];
        for (name, files, expected) in cases {
            let machine = Fake::new(name, files);
            assert_eq!(nested(&machine.0), expected, "{name}");
        }
    }

    #[test]
    fn a_device_that_does_not_open_is_none() {
        let machine = Fake::new("directory", &[("dev/kvm/not-a-device", ""), INTEL, INTEL_ON]);
        assert_eq!(nested(&machine.0), None);
    }
}
