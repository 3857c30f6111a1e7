//! Linux's x86 boot protocol (Documentation/arch/x86/boot.rst), entered in 64-bit or 32-bit mode; for its
//! 16-bit entry see [`linux16`](super::linux16).
//!
//! The header is read and written at the offsets the protocol documents.

use super::Images;
use super::first_megabyte::{
    CODE_SELECTOR, COMMAND_LINE, COMMAND_LINE_MAX, DATA_SELECTOR, PAGE_TABLES, START_INFO,
    write_command_line, write_gdt, write_identity_map,
};
use super::memory_map::{E820Entry, MemoryMap, PAGE_SIZE};
use crate::cpu::{CpuState, Gpr, Segment, SegmentRegister};
use crate::memory::{GuestMemory, GuestPhys, OutOfRange};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Offsets in boot_params, which are the header's offsets in the file too.
#[cfg_attr(not(feature = "linux16"), allow(dead_code, reason = "some matter to the 16-bit entry alone"))]
pub(super) mod field {
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const VID_MODE: usize = 0x1fa;
    pub const BOOT_FLAG: usize = 0x1fe;
    /// The second byte of the jump at 0x200: how far behind 0x202 the header ends.
    pub const JUMP_OFFSET: usize = 0x201;
    pub const HEADER: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const HEAP_END_PTR: usize = 0x224;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const SETUP_DATA: usize = 0x250;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    pub const E820_TABLE: usize = 0x2d0;
}

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: &[u8; 4] = b"HdrS";
/// Protocol 2.10 brought `pref_address` and `init_size`, without which nobody can say what memory a kernel
/// needs. Linux speaks it since 2.6.31.
const OLDEST_VERSION: u16 = 0x020a;
/// Protocol 2.12 brought `xloadflags`.
const XLOADFLAGS_VERSION: u16 = 0x020c;
pub(super) const SECTOR: usize = 512;
/// `syssize` counts these, and is rounded up.
pub(super) const PARAGRAPH: usize = 16;
/// `loadflags`: the kernel is loaded at 1 MiB or above.
pub(super) const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry 0x200 behind the start.
const XLF_KERNEL_64: u16 = 1 << 0;
const ENTRY_64: u64 = 0x200;
/// `type_of_loader` of a boot loader without a number of its own.
pub(super) const LOADER_UNDEFINED: u8 = 0xff;
/// boot_params is one page.
const BOOT_PARAMS_SIZE: usize = 0x1000;
/// How many entries the E820 table has room for.
const E820_ENTRIES_MAX: usize = 128;
/// The lowest address for a kernel: behind the legacy megabyte.
pub(super) const LOWEST_KERNEL: u64 = 0x10_0000;

/// In which mode a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinuxEntry {
    /// Real mode: the kernel's own set-up code runs, and asks the BIOS.
    Bits16,
    /// 32-bit protected mode.
    Bits32,
    /// Long mode.
    Bits64,
}

impl LinuxEntry {
    /// The entry of the kernel file `image` when its user has no wish: the widest one. A kernel that is too old
    /// to say what memory it needs is left to its own set-up code.
    pub fn of(image: &[u8]) -> Result<Self, LinuxError> {
        let version = Fields(image).version()?;
        if version < OLDEST_VERSION {
            return Ok(Self::Bits16);
        }
        let flags = if version < XLOADFLAGS_VERSION { 0 } else { Fields(image).xloadflags()? };
        Ok(if flags & XLF_KERNEL_64 == 0 { Self::Bits32 } else { Self::Bits64 })
    }
}

/// Why a Linux kernel cannot be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinuxError {
    /// The file ends before something that its header, or the protocol, says is there.
    Truncated {
        /// What is missing.
        what: &'static str,
        /// The file's length in bytes.
        found: usize,
        /// The least length in bytes that holds it.
        expected: usize,
    },
    /// The file does not start like a kernel.
    NotKernel {
        /// Which field is wrong.
        field: &'static str,
        /// What stands there.
        found: u32,
        /// What a kernel has there.
        expected: u32,
    },
    /// The boot protocol's version is too old for the entry.
    OldProtocol {
        /// The kernel's, as 0x020a for 2.10.
        found: u16,
        /// The oldest that will do.
        oldest: u16,
    },
    /// A kernel without 64-bit entry.
    NotLong,
    /// A kernel for low memory (zImage).
    NotLoadedHigh,
    /// A header field holds what no kernel can mean.
    BadField {
        /// Which.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it may hold.
        expected: &'static str,
    },
    /// The command line is longer than the kernel takes.
    CommandLineTooLong {
        /// Its length in bytes.
        found: usize,
        /// The most the kernel takes.
        at_most: usize,
    },
    /// The command line holds a NUL.
    CommandLineNul(String),
    /// The kernel and its ramdisk do not fit into the guest's memory below 2 GiB.
    NotEnoughMemory {
        /// What they need from the first byte of memory on, in bytes.
        needed: u64,
        /// What there is.
        found: u64,
    },
    /// A structure does not fit into the guest's memory.
    Memory(OutOfRange),
}

impl fmt::Display for LinuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { what, found, expected } => {
                write!(f, "the kernel file is cut off: it has {found} bytes, and its {what} needs {expected}")
            }
            Self::NotKernel { field, found, expected } => write!(
                f,
                "the file is not a Linux bzImage: its {field} is {found:#x}, expected {expected:#x}"
            ),
            Self::OldProtocol { found, oldest } => write!(
                f,
                "the kernel speaks boot protocol {}.{:02}, expected {}.{:02} or later",
                found >> 8,
                found & 0xff,
                oldest >> 8,
                oldest & 0xff
            ),
            Self::NotLong => f.write_str("the kernel has no 64-bit entry"),
            Self::NotLoadedHigh => {
                f.write_str("the kernel is a zImage, which loads below 1 MiB; expected a bzImage")
            }
            Self::BadField { field, found, expected } => {
                write!(f, "the kernel header's {field} is {found:#x}, expected {expected}")
            }
            Self::CommandLineTooLong { found, at_most } => {
                write!(f, "the command line has {found} bytes, and the kernel takes at most {at_most}")
            }
            Self::CommandLineNul(line) => {
                write!(f, "the command line \"{}\" holds a NUL", line.as_bytes().escape_ascii())
            }
            Self::NotEnoughMemory { needed, found } => write!(
                f,
                "kernel and ramdisk need {needed} bytes of memory below 2 GiB, and the guest has {found}"
            ),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for LinuxError {}

impl From<OutOfRange> for LinuxError {
    fn from(error: OutOfRange) -> Self {
        Self::Memory(error)
    }
}

/// A kernel file whose header has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    /// The setup header, from `setup_sects` on, as it goes into boot_params.
    header: &'a [u8],
    /// The protected-mode kernel: what is loaded.
    body: &'a [u8],
    /// Where it wants to lie.
    preferred: u64,
    /// How it must be aligned anywhere else; `None` when it cannot lie anywhere else.
    alignment: Option<u64>,
    /// How much memory it needs from its first byte until it has read the memory map.
    init_size: u64,
    /// The longest command line.
    command_line_max: usize,
    /// The last byte that the ramdisk may have.
    ramdisk_max: u64,
    /// Whether it has a 64-bit entry.
    long: bool,
}

/// Where a kernel and its ramdisk go.
struct Placement {
    kernel: u64,
    ramdisk: u64,
}

impl<'a> Kernel<'a> {
    /// Checks the header of the file `image`.
    pub fn parse(image: &'a [u8]) -> Result<Self, LinuxError> {
        let field = Fields(image);
        let version = field.version()?;
        if version < OLDEST_VERSION {
            return Err(LinuxError::OldProtocol { found: version, oldest: OLDEST_VERSION });
        }
        if field.u8(field::LOADFLAGS, "setup header")? & LOADED_HIGH == 0 {
            return Err(LinuxError::NotLoadedHigh);
        }
        let (header, body) = Self::split(image)?;
        let xloadflags = if version >= XLOADFLAGS_VERSION { field.xloadflags()? } else { 0 };
        let relocatable = field.u8(field::RELOCATABLE_KERNEL, "setup header")? != 0;
        let alignment = field.u32(field::KERNEL_ALIGNMENT, "setup header")?;
        if relocatable && !alignment.is_power_of_two() {
            return Err(LinuxError::BadField {
                field: "kernel_alignment",
                found: alignment.into(),
                expected: "a power of two",
            });
        }
        let preferred = field.u64(field::PREF_ADDRESS, "setup header")?;
        if preferred < LOWEST_KERNEL || !preferred.is_multiple_of(PAGE_SIZE) {
            return Err(LinuxError::BadField {
                field: "pref_address",
                found: preferred,
                expected: "a page at 1 MiB or above",
            });
        }
        let init_size: u64 = field.u32(field::INIT_SIZE, "setup header")?.into();
        Ok(Self {
            header,
            body,
            preferred,
            alignment: relocatable.then_some(u64::from(alignment).max(PAGE_SIZE)),
            init_size: init_size.max(body.len() as u64),
            command_line_max: (field.u32(field::CMDLINE_SIZE, "setup header")? as usize)
                .min(COMMAND_LINE_MAX),
            ramdisk_max: field.u32(field::INITRD_ADDR_MAX, "setup header")?.into(),
            long: xloadflags & XLF_KERNEL_64 != 0,
        })
    }

    /// The setup header and the protected-mode kernel.
    fn split(image: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), LinuxError> {
        let field = Fields(image);
        let jump = field.u8(field::JUMP_OFFSET, "setup header")?;
        let header_end = field::HEADER.saturating_add(jump.into());
        // The header ends before boot_params' next field, whatever the jump says.
        let header = field::SETUP_SECTS..header_end.min(field::E820_TABLE);
        let header = image.get(header).ok_or(LinuxError::Truncated {
            what: "setup header",
            found: image.len(),
            expected: header_end,
        })?;
        if header_end < field::INIT_SIZE.saturating_add(4) {
            return Err(LinuxError::BadField {
                field: "jump at offset 0x200",
                found: jump.into(),
                expected: "one over the whole header, at least 0x62 bytes",
            });
        }
        let start = field.setup_size()?;
        let size = (field.u32(field::SYSSIZE, "setup header")? as usize).saturating_mul(PARAGRAPH);
        if size == 0 {
            return Err(LinuxError::BadField { field: "syssize", found: 0, expected: "the kernel's length" });
        }
        let least = start.saturating_add(size).saturating_sub(PARAGRAPH.saturating_sub(1));
        let truncated =
            LinuxError::Truncated { what: "protected-mode kernel", found: image.len(), expected: least };
        if image.len() < least {
            return Err(truncated);
        }
        let end = start.saturating_add(size).min(image.len());
        Ok((header, image.get(start..end).ok_or(truncated)?))
    }

    /// Whether the kernel is entered in 64-bit mode.
    pub fn is_long(&self) -> bool {
        self.long
    }

    /// The same kernel, to be entered in 64-bit mode or not.
    pub fn entered(self, long: bool) -> Result<Self, LinuxError> {
        if long && !self.long { Err(LinuxError::NotLong) } else { Ok(Self { long, ..self }) }
    }

    /// Puts the kernel with everything it needs into `memory`, which is laid out as `map` says and zeroed,
    /// and gives the state of its first CPU. `rsdp` is where the ACPI tables begin.
    pub fn load(
        &self,
        memory: &GuestMemory,
        map: &MemoryMap,
        ramdisk: Option<&[u8]>,
        bootargs: &str,
        rsdp: GuestPhys,
    ) -> Result<CpuState, LinuxError> {
        check_command_line(bootargs, self.command_line_max)?;
        let ramdisk = ramdisk.unwrap_or_default();
        let placement = self.place(map, ramdisk.len() as u64)?;
        memory.write(GuestPhys::new(placement.kernel), self.body)?;
        memory.write(GuestPhys::new(placement.ramdisk), ramdisk)?;
        write_command_line(memory, COMMAND_LINE, bootargs)?;
        self.write_boot_params(memory, &placement, ramdisk.len(), &map.e820(), rsdp)?;
        Ok(self.cpu_state(memory, placement.kernel)?)
    }

    /// The kernel goes where it prefers, or as low as it can where that is too high for this guest; the
    /// ramdisk as high as it may, out of the way of what the kernel allocates first.
    fn place(&self, map: &MemoryMap, ramdisk_len: u64) -> Result<Placement, LinuxError> {
        let lowest = self.alignment.and_then(|alignment| LOWEST_KERNEL.checked_next_multiple_of(alignment));
        let placed = map.highest_place(ramdisk_len, self.ramdisk_max.saturating_add(1)).and_then(|ramdisk| {
            let room_end = if ramdisk_len == 0 { map.low_end() } else { ramdisk };
            let fits = |start: &u64| start.checked_add(self.init_size).is_some_and(|end| end <= room_end);
            let kernel = Some(self.preferred).filter(fits).or(lowest.filter(fits))?;
            Some(Placement { kernel, ramdisk })
        });
        placed.ok_or_else(|| {
            let kernel = lowest.unwrap_or(self.preferred).min(self.preferred);
            let ramdisk = ramdisk_len.next_multiple_of(PAGE_SIZE);
            LinuxError::NotEnoughMemory {
                needed: kernel.saturating_add(self.init_size).saturating_add(ramdisk),
                found: map.low_end(),
            }
        })
    }

    fn write_boot_params(
        &self,
        memory: &GuestMemory,
        placement: &Placement,
        ramdisk_len: usize,
        e820: &[E820Entry],
        rsdp: GuestPhys,
    ) -> Result<(), LinuxError> {
        let put = |offset: usize, bytes: &[u8]| memory.write(param(offset), bytes);
        memory.fill(START_INFO, BOOT_PARAMS_SIZE, 0)?;
        put(field::SETUP_SECTS, self.header)?;
        put(field::TYPE_OF_LOADER, &[LOADER_UNDEFINED])?;
        // Placement keeps kernel and ramdisk below 2 GiB.
        put(field::CODE32_START, &(placement.kernel as u32).to_le_bytes())?;
        let ramdisk = if ramdisk_len == 0 { 0 } else { placement.ramdisk };
        put(field::RAMDISK_IMAGE, &(ramdisk as u32).to_le_bytes())?;
        put(field::RAMDISK_SIZE, &(ramdisk_len as u32).to_le_bytes())?;
        put(field::CMD_LINE_PTR, &(COMMAND_LINE.get() as u32).to_le_bytes())?;
        put(field::SETUP_DATA, &[0; 8])?;
        put(field::ACPI_RSDP_ADDR, &rsdp.get().to_le_bytes())?;
        let e820 = e820.get(..e820.len().min(E820_ENTRIES_MAX)).unwrap_or_default();
        put(field::E820_ENTRIES, &[e820.len() as u8])?;
        let mut table = Vec::new();
        for entry in e820 {
            table.extend_from_slice([entry.base.get(), entry.len].map(u64::to_le_bytes).as_flattened());
            table.extend_from_slice(&(entry.kind as u32).to_le_bytes());
        }
        Ok(put(field::E820_TABLE, &table)?)
    }

    fn cpu_state(&self, memory: &GuestMemory, kernel: u64) -> Result<CpuState, OutOfRange> {
        let mut state = if self.long {
            let cr3 = write_identity_map(memory, PAGE_TABLES)?;
            let entry = kernel.saturating_add(ENTRY_64);
            CpuState::long_mode(entry, cr3, CODE_SELECTOR, DATA_SELECTOR)
        } else {
            flat_state(kernel as u32)
        };
        state.gdt = write_gdt(memory, self.long)?;
        state.registers.set(Gpr::Rsi, START_INFO.get());
        Ok(state)
    }
}

/// Checks `images.kernel` and loads it with what belongs to it: [`Kernel::parse`] and [`Kernel::load`]. It is
/// entered in 64-bit mode or in 32-bit mode.
pub fn load(
    memory: &GuestMemory,
    map: &MemoryMap,
    images: &Images,
    rsdp: GuestPhys,
    long: bool,
) -> Result<CpuState, LinuxError> {
    let kernel = Kernel::parse(images.kernel)?.entered(long)?;
    kernel.load(memory, map, images.ramdisk, images.bootargs, rsdp)
}

/// Whether a command line of at most `at_most` bytes can be passed.
pub(super) fn check_command_line(line: &str, at_most: usize) -> Result<(), LinuxError> {
    if line.len() > at_most {
        return Err(LinuxError::CommandLineTooLong { found: line.len(), at_most });
    }
    if line.contains('\0') {
        return Err(LinuxError::CommandLineNul(line.into()));
    }
    Ok(())
}

/// Protected mode at `entry` with the selectors that Linux wants.
fn flat_state(entry: u32) -> CpuState {
    let mut state = CpuState::flat_protected_mode(entry);
    for (number, segment) in state.segments.iter_mut().enumerate() {
        if number == SegmentRegister::Cs as usize {
            *segment = Segment::flat_code32(CODE_SELECTOR);
        } else if number < SegmentRegister::Ldtr as usize {
            *segment = Segment::flat_data(DATA_SELECTOR);
        }
    }
    state
}

/// The guest-physical address of a field of boot_params.
fn param(offset: usize) -> GuestPhys {
    GuestPhys::new(START_INFO.get().saturating_add(offset as u64))
}

/// Little-endian fields of the kernel file.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    /// The protocol's version, once it is clear that this is a kernel: 0x020a for 2.10.
    pub fn version(&self) -> Result<u16, LinuxError> {
        let boot_flag = self.u16(field::BOOT_FLAG, "boot sector")?;
        if boot_flag != BOOT_FLAG {
            return Err(LinuxError::NotKernel {
                field: "boot flag at offset 0x1fe",
                found: boot_flag.into(),
                expected: BOOT_FLAG.into(),
            });
        }
        let magic = self.bytes(field::HEADER, "setup header")?;
        if &magic != HEADER_MAGIC {
            return Err(LinuxError::NotKernel {
                field: "header magic at offset 0x202",
                found: u32::from_le_bytes(magic),
                expected: u32::from_le_bytes(*HEADER_MAGIC),
            });
        }
        self.u16(field::VERSION, "setup header")
    }
    /// The length of boot sector and set-up code, behind which the protected-mode kernel begins.
    pub fn setup_size(&self) -> Result<usize, LinuxError> {
        // Zero means four, for old kernels' sake.
        let sectors = match self.u8(field::SETUP_SECTS, "setup header")? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        Ok(sectors.saturating_add(1).saturating_mul(SECTOR))
    }
    fn xloadflags(&self) -> Result<u16, LinuxError> {
        self.u16(field::XLOADFLAGS, "setup header")
    }
    fn bytes<const N: usize>(&self, offset: usize, what: &'static str) -> Result<[u8; N], LinuxError> {
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.copied().ok_or(LinuxError::Truncated {
            what,
            found: self.0.len(),
            expected: offset.saturating_add(N),
        })
    }
    pub fn u8(&self, offset: usize, what: &'static str) -> Result<u8, LinuxError> {
        self.bytes(offset, what).map(u8::from_le_bytes)
    }
    pub fn u16(&self, offset: usize, what: &'static str) -> Result<u16, LinuxError> {
        self.bytes(offset, what).map(u16::from_le_bytes)
    }
    pub fn u32(&self, offset: usize, what: &'static str) -> Result<u32, LinuxError> {
        self.bytes(offset, what).map(u32::from_le_bytes)
    }
    pub fn u64(&self, offset: usize, what: &'static str) -> Result<u64, LinuxError> {
        self.bytes(offset, what).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{bytes, machine};
    use alloc::vec;
    use alloc::vec::Vec;

    const MIB: u64 = 1 << 20;
    const RSDP: GuestPhys = GuestPhys::new(0xe_0000);

    /// The header of a relocatable 64-bit kernel of protocol 2.15 with a body of `body` bytes.
    fn image(body: usize) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR];
        let mut put =
            |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(field::SETUP_SECTS, &[2]);
        put(field::SYSSIZE, &(body.div_ceil(PARAGRAPH) as u32).to_le_bytes());
        put(field::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
        put(field::JUMP_OFFSET, &[0x6a]);
        put(field::HEADER, HEADER_MAGIC);
        put(field::VERSION, &0x20f_u16.to_le_bytes());
        put(field::LOADFLAGS, &[LOADED_HIGH]);
        put(field::INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
        put(field::KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes());
        put(field::RELOCATABLE_KERNEL, &[1]);
        put(field::XLOADFLAGS, &0x7f_u16.to_le_bytes());
        put(field::CMDLINE_SIZE, &0x7ff_u32.to_le_bytes());
        put(field::PREF_ADDRESS, &0x100_0000_u64.to_le_bytes());
        put(field::INIT_SIZE, &0x40_0000_u32.to_le_bytes());
        image.extend((0..body).map(|at| at as u8 ^ 0x5a));
        image
    }

    fn param_u32(memory: &GuestMemory, offset: usize) -> u32 {
        memory.read_u32(param(offset)).unwrap()
    }

    #[test]
    fn a_64_bit_kernel_goes_where_it_prefers_and_the_ramdisk_on_top() {
        let (memory, map) = machine(64 * MIB);
        let image = image(100_000);
        let ramdisk = [7; 5000];
        let images =
            Images { kernel: &image, ramdisk: Some(&ramdisk), modules: &[], bootargs: "console=ttyS0" };
        let state = load(&memory, &map, &images, RSDP, true).unwrap();

        assert_eq!(state.registers.rip, 0x100_0200);
        assert_eq!(state.registers.get(Gpr::Rsi), START_INFO.get());
        assert_eq!(bytes(&memory, 0x100_0000, 100_000), image[3 * SECTOR..]);
        let at = u64::from(param_u32(&memory, field::RAMDISK_IMAGE));
        assert_eq!(at, 64 * MIB - 0x2000);
        assert_eq!(bytes(&memory, at, 5001), [&ramdisk[..], &[0]].concat());
        assert_eq!(param_u32(&memory, field::RAMDISK_SIZE), 5000);
        assert_eq!(u64::from(param_u32(&memory, field::CMD_LINE_PTR)), COMMAND_LINE.get());
        assert_eq!(bytes(&memory, COMMAND_LINE.get(), 14), b"console=ttyS0\0");
        assert_eq!(memory.read_u64(param(field::ACPI_RSDP_ADDR)), Ok(RSDP.get()));
        assert_eq!(memory.read_u8(param(field::TYPE_OF_LOADER)), Ok(LOADER_UNDEFINED));
        assert_eq!(bytes(&memory, START_INFO.get() + 0x202, 4), HEADER_MAGIC);
        assert_eq!(memory.read_u8(param(field::E820_ENTRIES)), Ok(map.e820().len() as u8));
        let third = field::E820_TABLE + 2 * 20;
        assert_eq!(memory.read_u64(param(third)), Ok(MIB));
        assert_eq!(memory.read_u64(param(third + 8)), Ok(63 * MIB));
        assert_eq!(param_u32(&memory, third + 16), E820_MEMORY);
    }

    const E820_MEMORY: u32 = super::super::memory_map::E820Kind::Memory as u32;

    #[test]
    fn the_identity_map_and_descriptors_are_what_the_cpu_state_says() {
        let (memory, map) = machine(32 * MIB);
        let image = image(100);
        let state = Kernel::parse(&image).unwrap().load(&memory, &map, None, "", RSDP).unwrap();
        for address in [0, 0x1000, 0x100_0200, 0x7fff_ffff, 0xb000_1234, 0xffff_ffff_u64] {
            let mut table = state.control.cr3;
            for level in [3, 2] {
                let entry = memory.read_u64(GuestPhys::new(table + (address >> (12 + 9 * level) & 511) * 8));
                assert_eq!(entry.unwrap() & 0xfff, 3);
                table = entry.unwrap() & !0xfff;
            }
            let entry = memory.read_u64(GuestPhys::new(table + (address >> 21 & 511) * 8)).unwrap();
            assert_eq!(entry, (address & !0x1f_ffff) | 0x83);
        }
        for (register, long) in [(SegmentRegister::Cs, true), (SegmentRegister::Ds, false)] {
            let segment = state.segments[register as usize];
            let descriptor =
                memory.read_u64(GuestPhys::new(state.gdt.base + u64::from(segment.selector))).unwrap();
            let attributes = (descriptor >> 40 & 0xff) | (descriptor >> 52 & 0xf) << 8;
            assert_eq!(u64::from(segment.attributes), attributes);
            assert_eq!(segment.long(), long);
            assert!(segment.selector < state.gdt.limit);
        }
        assert_eq!(param_u32(&memory, field::RAMDISK_IMAGE), 0);
    }

    #[test]
    fn a_32_bit_kernel_is_entered_at_its_start_without_paging() {
        let (memory, map) = machine(32 * MIB);
        let mut image = image(100);
        image[field::XLOADFLAGS] = 0;
        let state = Kernel::parse(&image).unwrap().load(&memory, &map, None, "", RSDP).unwrap();
        assert_eq!(state.registers.rip, 0x100_0000);
        assert_eq!(state.control.cr0 & crate::cpu::ControlRegisters::CR0_PG, 0);
        assert_eq!(state.segments[SegmentRegister::Cs as usize], Segment::flat_code32(CODE_SELECTOR));
        assert_eq!(state.segments[SegmentRegister::Ss as usize], Segment::flat_data(DATA_SELECTOR));
        assert_eq!(state.segments[SegmentRegister::Tr as usize], Segment::reset_tss());
    }

    #[test]
    fn a_small_guest_gets_a_relocatable_kernel_lower_down() {
        let (memory, map) = machine(8 * MIB);
        let image = image(100);
        let state = Kernel::parse(&image).unwrap().load(&memory, &map, Some(&[1; 4096]), "", RSDP).unwrap();
        assert_eq!(state.registers.rip, 0x20_0200);
        let error = Kernel::parse(&image).unwrap().load(&memory, &map, Some(&vec![1; 3 << 20]), "", RSDP);
        assert_eq!(error, Err(LinuxError::NotEnoughMemory { needed: 9 * MIB, found: 8 * MIB }));
    }

    #[test]
    fn a_fixed_kernel_needs_its_place() {
        let (memory, map) = machine(8 * MIB);
        let mut image = image(100);
        image[field::RELOCATABLE_KERNEL] = 0;
        let error = Kernel::parse(&image).unwrap().load(&memory, &map, None, "", RSDP);
        assert_eq!(error, Err(LinuxError::NotEnoughMemory { needed: 20 * MIB, found: 8 * MIB }));
    }

    #[test]
    fn the_command_line_must_fit() {
        let (memory, map) = machine(32 * MIB);
        let image = image(100);
        let kernel = Kernel::parse(&image).unwrap();
        let line = "x".repeat(0x7ff);
        assert!(kernel.load(&memory, &map, None, &line, RSDP).is_ok());
        assert_eq!(
            kernel.load(&memory, &map, None, &(line + "y"), RSDP),
            Err(LinuxError::CommandLineTooLong { found: 0x800, at_most: 0x7ff })
        );
        assert!(matches!(kernel.load(&memory, &map, None, "a\0b", RSDP), Err(LinuxError::CommandLineNul(_))));
    }

    #[test]
    fn errors_say_what_was_found_and_expected() {
        let good = image(100);
        let with = |offset: usize, bytes: &[u8]| {
            let mut image = good.clone();
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
            alloc::format!("{}", Kernel::parse(&image).unwrap_err())
        };
        assert_eq!(
            with(field::BOOT_FLAG, &[0, 0]),
            "the file is not a Linux bzImage: its boot flag at offset 0x1fe is 0x0, expected 0xaa55"
        );
        assert_eq!(
            with(field::VERSION, &[9, 2]),
            "the kernel speaks boot protocol 2.09, expected 2.10 or later"
        );
        assert_eq!(
            with(field::KERNEL_ALIGNMENT, &[3, 0, 0, 0]),
            "the kernel header's kernel_alignment is 0x3, expected a power of two"
        );
        assert_eq!(
            alloc::format!("{}", Kernel::parse(&good[..3 * SECTOR + 10]).unwrap_err()),
            "the kernel file is cut off: it has 1546 bytes, and its protected-mode kernel needs 1633"
        );
    }

    #[test]
    fn every_truncation_is_an_error() {
        let image = image(96);
        for len in 0..image.len() - (PARAGRAPH - 1) {
            assert!(Kernel::parse(&image[..len]).is_err(), "{len} bytes of {} parsed", image.len());
        }
        assert!(Kernel::parse(&image).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn a_mutated_header_never_panics(
            changes in proptest::collection::vec((0x1e0_usize..0x270, proptest::num::u8::ANY), 1..12),
            ramdisk in 0_usize..20_000,
        ) {
            let (memory, map) = machine(4 * MIB);
            let mut image = image(300);
            for (offset, value) in changes {
                image[offset] = value;
            }
            if let Ok(kernel) = Kernel::parse(&image) {
                let _ = kernel.load(&memory, &map, Some(&vec![1; ramdisk]), "quiet", RSDP);
            }
        }
    }
}
