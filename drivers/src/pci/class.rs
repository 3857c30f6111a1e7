//! What devices are, in words (PCI Code and ID Assignment, 1).

use core::fmt;

/// A function's class code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The base class.
    pub base: u8,
    /// The sub-class.
    pub sub: u8,
    /// The programming interface.
    pub interface: u8,
}

impl Class {
    /// A host bridge.
    pub const HOST_BRIDGE: (u8, u8) = (0x06, 0x00);

    /// The base class and sub-class.
    pub const fn pair(self) -> (u8, u8) {
        (self.base, self.sub)
    }

    /// Whether it is something that shows pictures.
    pub const fn is_display(self) -> bool {
        self.base == 0x03
    }

    /// What it is, in words.
    pub const fn words(self) -> &'static str {
        match (self.base, self.sub, self.interface) {
            (0x00, 0x01, _) | (0x03, 0x00, _) => "VGA display",
            (0x01, 0x00, _) => "SCSI controller",
            (0x01, 0x01, _) => "IDE controller",
            (0x01, 0x04, _) => "RAID controller",
            (0x01, 0x05, _) => "ATA controller",
            (0x01, 0x06, 0x01) => "SATA controller (AHCI)",
            (0x01, 0x06, _) => "SATA controller",
            (0x01, 0x07, _) => "SAS controller",
            (0x01, 0x08, 0x02) => "NVMe controller",
            (0x01, 0x08, _) => "non-volatile memory",
            (0x01, ..) => "storage controller",
            (0x02, 0x00, _) => "Ethernet controller",
            (0x02, ..) => "network controller",
            (0x03, ..) => "display controller",
            (0x04, 0x03, _) => "audio device",
            (0x04, ..) => "multimedia device",
            (0x05, ..) => "memory controller",
            (0x06, 0x00, _) => "host bridge",
            (0x06, 0x01, _) => "ISA bridge",
            (0x06, 0x04, _) => "PCI bridge",
            (0x06, ..) => "bridge",
            (0x07, 0x00, _) => "serial port",
            (0x07, ..) => "communication device",
            (0x08, ..) => "system device",
            (0x09, ..) => "input device",
            (0x0c, 0x03, 0x00) => "USB controller (UHCI)",
            (0x0c, 0x03, 0x10) => "USB controller (OHCI)",
            (0x0c, 0x03, 0x20) => "USB controller (EHCI)",
            (0x0c, 0x03, 0x30) => "USB controller (xHCI)",
            (0x0c, 0x03, _) => "USB controller",
            (0x0c, 0x05, _) => "SMBus controller",
            (0x0c, ..) => "serial bus controller",
            (0x0d, ..) => "wireless controller",
            (0x10, ..) => "encryption controller",
            (0x11, ..) => "signal processor",
            (0x12, ..) => "accelerator",
            _ => "device",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}
