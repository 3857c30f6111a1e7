//! What the records of a coreboot table say.

use alloc::string::String;
use core::fmt;

/// A range of physical memory and its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Its first physical address.
    pub start: u64,
    /// Its length in bytes.
    pub size: u64,
    /// What it is for.
    pub kind: MemoryKind,
}

impl MemoryRange {
    /// The first physical address after it; saturates at the end of the address space.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// What a range of memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Anyone's.
    Ram,
    /// Not to be touched.
    Reserved,
    /// ACPI tables; free once they are read.
    Acpi,
    /// ACPI NVS.
    Nvs,
    /// Faulty.
    Unusable,
    /// The vendor's.
    VendorReserved,
    /// coreboot's tables and CBMEM, to be kept.
    Table,
    /// A number that this code does not know: not to be touched.
    Other(u32),
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ram => "RAM",
            Self::Reserved => "reserved",
            Self::Acpi => "ACPI tables",
            Self::Nvs => "ACPI NVS",
            Self::Unusable => "faulty",
            Self::VendorReserved => "the vendor's",
            Self::Table => "coreboot's",
            Self::Other(number) => return write!(f, "kind {number}"),
        })
    }
}

impl MemoryKind {
    /// The kind that this number stands for.
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Ram,
            2 => Self::Reserved,
            3 => Self::Acpi,
            4 => Self::Nvs,
            5 => Self::Unusable,
            6 => Self::VendorReserved,
            16 => Self::Table,
            other => Self::Other(other),
        }
    }

    /// The number that stands for it in the table.
    pub const fn number(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
            Self::Acpi => 3,
            Self::Nvs => 4,
            Self::Unusable => 5,
            Self::VendorReserved => 6,
            Self::Table => 16,
            Self::Other(number) => number,
        }
    }
}

/// The board's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mainboard {
    /// Who makes it.
    pub vendor: String,
    /// What it is called.
    pub part_number: String,
}

/// A UART of the 8250 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial {
    /// Whether `base` is a port or a memory address.
    pub kind: SerialKind,
    /// The first register's port or physical address.
    pub base: u32,
    /// The speed that coreboot set, in bits per second.
    pub baud: u32,
    /// The distance between registers, in bytes.
    pub register_width: u32,
    /// The UART's input clock, in Hz; 0 when unknown.
    pub input_hertz: u32,
}

/// How a UART's registers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialKind {
    /// By port instructions.
    Port,
    /// In memory.
    Memory,
}

/// What coreboot writes its log to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleKind {
    /// An 8250 UART at ports.
    Serial8250,
    /// A USB debug port.
    Ehci,
    /// An 8250 UART in memory.
    Serial8250Memory,
    /// Another number; several are obsolete.
    Other(u16),
}

impl ConsoleKind {
    /// The kind that this number stands for.
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Serial8250,
            5 => Self::Ehci,
            6 => Self::Serial8250Memory,
            other => Self::Other(other),
        }
    }

    /// The number that stands for it in the table.
    pub const fn number(self) -> u16 {
        match self {
            Self::Serial8250 => 0,
            Self::Ehci => 5,
            Self::Serial8250Memory => 6,
            Self::Other(number) => number,
        }
    }
}

/// Where one colour lies in a pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// Its lowest bit.
    pub position: u8,
    /// How many bits.
    pub size: u8,
}

/// A linear framebuffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framebuffer {
    /// The physical address of the first pixel.
    pub address: u64,
    /// Pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bytes from one line to the next.
    pub bytes_per_line: u32,
    /// Bits of a pixel.
    pub bits_per_pixel: u8,
    /// The red bits.
    pub red: Channel,
    /// The green bits.
    pub green: Channel,
    /// The blue bits.
    pub blue: Channel,
    /// Bits without meaning.
    pub reserved: Channel,
}

/// Where things lie in the flash, in bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootMediaParams {
    /// The FMAP.
    pub fmap_offset: u64,
    /// The CBFS that coreboot booted from.
    pub cbfs_offset: u64,
    /// Its length.
    pub cbfs_size: u64,
    /// The flash's length.
    pub boot_media_size: u64,
}

/// The board's configuration straps; all ones where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoardConfig {
    /// Firmware configuration bits.
    pub fw_config: u64,
    /// The board's revision.
    pub board_id: u32,
    /// Which memory is fitted.
    pub ram_code: u32,
    /// The product variant.
    pub sku_id: u32,
}

impl BoardConfig {
    /// A board without straps.
    pub const NONE: Self =
        Self { fw_config: u64::MAX, board_id: u32::MAX, ram_code: u32::MAX, sku_id: u32::MAX };
}

/// An area of CBMEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CbmemEntry {
    /// Its physical address.
    pub address: u64,
    /// Its length in bytes.
    pub size: u32,
    /// What it is: see the constants.
    pub id: u32,
}

impl CbmemEntry {
    /// The coreboot table.
    pub const COREBOOT_TABLE: u32 = 0x4342_5442;
    /// ACPI tables.
    pub const ACPI: u32 = 0x4143_5049;
    /// The CBMEM console.
    pub const CONSOLE: u32 = 0x434f_4e53;
    /// The timestamp table.
    pub const TIMESTAMP: u32 = 0x5449_4d45;
    /// The copy of the FMAP.
    pub const FMAP: u32 = 0x464d_4150;
    /// The ACPI global NVS area.
    pub const ACPI_GNVS: u32 = 0x474e_5653;
    /// SMBIOS tables.
    pub const SMBIOS: u32 = 0x534d_4254;
}
