//! Which disk of the machine a manifest means.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// What a disk is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Its controller's kind and number among those of this kind, as in `nvme0`.
    pub controller: String,
    /// Which of its controller's disks it is.
    pub unit: u32,
    /// The PCI function of its controller, as in `00:03.0`.
    pub function: String,
    /// Its serial number; empty where it has none.
    pub serial: String,
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} at pci:{}", self.controller, self.unit, self.function)?;
        if self.serial.is_empty() { Ok(()) } else { write!(f, ", serial {}", self.serial) }
    }
}

/// Why no disk is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoDisk {
    /// None is called so; those that are there.
    None(Vec<Names>),
    /// Several are: these.
    Several(Vec<Names>),
}

impl fmt::Display for NoDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disks = match self {
            Self::None(there) if there.is_empty() => {
                return f.write_str("there is no such disk, nor any other");
            }
            Self::None(there) => {
                f.write_str("there is no such disk; there are")?;
                there
            }
            Self::Several(these) => {
                f.write_str("several disks are called so:")?;
                these
            }
        };
        disks
            .iter()
            .enumerate()
            .try_for_each(|(number, disk)| write!(f, "{}{disk}", if number == 0 { " " } else { "; " }))
    }
}

/// The number of the disk that `wanted` means: by serial number, by `CONTROLLER.UNIT`, or, where a controller has one
/// disk only, by `CONTROLLER` or `pci:FUNCTION`.
pub fn find(disks: &[Names], wanted: &str) -> Result<usize, NoDisk> {
    let by_serial = |disk: &Names| disk.serial == wanted && !wanted.is_empty();
    let by_unit = |disk: &Names| format!("{}.{}", disk.controller, disk.unit) == wanted;
    let by_controller = |disk: &Names| {
        disk.controller == wanted || wanted.strip_prefix("pci:").is_some_and(|place| place == disk.function)
    };
    let ways: [&dyn Fn(&Names) -> bool; 3] = [&by_serial, &by_unit, &by_controller];
    for way in ways {
        let fits: Vec<usize> = (0..disks.len()).filter(|number| way(&disks[*number])).collect();
        match *fits {
            [] => {}
            [only] => return Ok(only),
            _ => return Err(NoDisk::Several(fits.iter().map(|number| disks[*number].clone()).collect())),
        }
    }
    Err(NoDisk::None(disks.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(controller: &str, unit: u32, function: &str, serial: &str) -> Names {
        let [controller, function, serial] = [controller, function, serial].map(String::from);
        Names { controller, unit, function, serial }
    }

    fn machine() -> Vec<Names> {
        vec![
            disk("nvme0", 1, "00:03.0", "peerboot-0"),
            disk("ahci0", 0, "00:1f.2", "QM00001"),
            disk("ahci0", 2, "00:1f.2", "QM00005"),
            disk("virtio0", 0, "00:05.0", ""),
            disk("nvme1", 1, "00:06.0", "ahci0.2"),
        ]
    }

    #[test]
    fn a_disk_has_several_names() {
        for (wanted, number) in [
            ("peerboot-0", 0),
            ("nvme0", 0),
            ("nvme0.1", 0),
            ("pci:00:03.0", 0),
            ("ahci0.0", 1),
            ("QM00005", 2),
            ("virtio0", 3),
        ] {
            assert_eq!(find(&machine(), wanted), Ok(number), "{wanted}");
        }
        assert_eq!(find(&machine(), "ahci0.2"), Ok(4), "a serial number before a place");
    }

    #[test]
    fn what_was_there_is_said() {
        let said = |disks: &[Names], wanted: &str| find(disks, wanted).unwrap_err().to_string();
        assert_eq!(said(&[], "nvme0"), "there is no such disk, nor any other");
        assert_eq!(
            said(&machine()[..2], "nvme1"),
            "there is no such disk; there are nvme0.1 at pci:00:03.0, serial peerboot-0; ahci0.0 at \
             pci:00:1f.2, serial QM00001"
        );
        assert_eq!(
            said(&machine(), "pci:00:1f.2"),
            "several disks are called so: ahci0.0 at pci:00:1f.2, serial QM00001; ahci0.2 at pci:00:1f.2, \
             serial QM00005"
        );
        assert!(said(&machine(), "").starts_with("there is no such disk"), "no serial is no name");
    }
}
