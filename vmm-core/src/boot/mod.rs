//! How a guest starts: what lies in its memory and in its CPU's registers before its first instruction.

pub mod acpi;
pub mod linux;
pub mod memory_map;
pub mod pvh;

mod first_megabyte;

pub use memory_map::MemoryMap;

/// What a guest is started from, whatever the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// The initial ramdisk, passed on as it is.
    pub ramdisk: Option<&'a [u8]>,
    /// The kernel's command line, without a NUL.
    pub bootargs: &'a str,
}
