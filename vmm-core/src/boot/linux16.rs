//! Linux's boot protocol entered in real mode (Documentation/arch/x86/boot.rst, "Loading The Rest of The
//! Kernel" and "Running the Kernel"): the kernel's own set-up code runs, and finds out about the machine
//! through BIOS services. Programs that are no Linux start this way too, iPXE for one.

use super::bios::{self, RealModeEntry};
use super::first_megabyte::{COMMAND_LINE_MAX, write_command_line};
use super::linux::{
    Fields, LOADED_HIGH, LOADER_UNDEFINED, LOWEST_KERNEL, LinuxError, PARAGRAPH, check_command_line, field,
};
use super::memory_map::{MemoryMap, PAGE_SIZE};
use super::{Images, first_megabyte};
use crate::cpu::CpuState;
use crate::memory::{GuestMemory, GuestPhys};

/// Protocol 2.02 brought `cmd_line_ptr`.
const OLDEST_VERSION: u16 = 0x0202;
/// Protocol 2.03 brought `initrd_addr_max`, 2.04 a `syssize` to rely on, 2.06 `cmdline_size`.
const INITRD_ADDR_MAX_VERSION: u16 = 0x0203;
const SYSSIZE_VERSION: u16 = 0x0204;
const CMDLINE_SIZE_VERSION: u16 = 0x0206;
/// Where ramdisks end at the latest, and the longest command line, for kernels that cannot say.
const OLD_INITRD_ADDR_MAX: u32 = 0x37ff_ffff;
const OLD_CMDLINE_SIZE: usize = 255;
/// `loadflags`: `heap_end_ptr` is valid.
const CAN_USE_HEAP: u8 = 1 << 7;
/// `vid_mode`: the mode that is there.
const NORMAL_MODE: u16 = 0xffff;

/// Where boot sector and set-up code go: their segment follows from it.
const SETUP: GuestPhys = GuestPhys::new(0x1_0000);
const SETUP_SEGMENT: u16 = 0x1000;
/// The most set-up code that the protocol has room for, in bytes.
const SETUP_MAX: usize = 0x8000;
/// The set-up code's heap and stack end here, in its segment.
const HEAP_END: u16 = 0xe000;
/// `heap_end_ptr` is said so much too low, and counts from behind the boot sector.
const HEAP_END_BIAS: u16 = 0x200;
/// CS is so much higher than the other segments: the boot sector is no code.
const CODE_BIAS: u16 = 0x20;
/// The command line, behind all of the set-up code's segment.
const COMMAND_LINE: GuestPhys = GuestPhys::new(0x2_0000);
const _: () = assert!(first_megabyte::COMMAND_LINE_MAX as u64 + 0x2_0000 < 0xa_0000);

/// Puts the kernel `images.kernel` with what belongs to it and BIOS services into `memory`, which is laid out as
/// `map` says and zeroed, and gives the state of its first CPU.
pub fn load(memory: &GuestMemory, map: &MemoryMap, images: &Images) -> Result<CpuState, LinuxError> {
    let fields = Fields(images.kernel);
    let version = fields.version()?;
    if version < OLDEST_VERSION {
        return Err(LinuxError::OldProtocol { found: version, oldest: OLDEST_VERSION });
    }
    let loadflags = fields.u8(field::LOADFLAGS, "setup header")?;
    if loadflags & LOADED_HIGH == 0 {
        return Err(LinuxError::NotLoadedHigh);
    }
    let (setup, body) = split(images.kernel, version)?;
    let at_most = if version < CMDLINE_SIZE_VERSION {
        OLD_CMDLINE_SIZE
    } else {
        (fields.u32(field::CMDLINE_SIZE, "setup header")? as usize).min(COMMAND_LINE_MAX)
    };
    check_command_line(images.bootargs, at_most)?;
    let ramdisk_max = if version < INITRD_ADDR_MAX_VERSION {
        OLD_INITRD_ADDR_MAX
    } else {
        fields.u32(field::INITRD_ADDR_MAX, "setup header")?
    };
    let ramdisk = images.ramdisk.unwrap_or_default();
    let ramdisk_at = place_ramdisk(map, body.len() as u64, ramdisk.len() as u64, ramdisk_max)?;

    memory.write(GuestPhys::new(LOWEST_KERNEL), body)?;
    memory.write(GuestPhys::new(ramdisk_at), ramdisk)?;
    write_command_line(memory, COMMAND_LINE, images.bootargs)?;
    memory.write(SETUP, setup)?;
    memory.write_u16(header(field::VID_MODE), NORMAL_MODE)?;
    memory.write_u8(header(field::TYPE_OF_LOADER), LOADER_UNDEFINED)?;
    memory.write_u8(header(field::LOADFLAGS), loadflags | CAN_USE_HEAP)?;
    memory.write_u16(header(field::HEAP_END_PTR), HEAP_END.saturating_sub(HEAP_END_BIAS))?;
    memory.write_u32(header(field::CMD_LINE_PTR), COMMAND_LINE.get() as u32)?;
    if !ramdisk.is_empty() {
        // It ends below 4 GiB, as ramdisk_max says.
        memory.write_u32(header(field::RAMDISK_IMAGE), ramdisk_at as u32)?;
        memory.write_u32(header(field::RAMDISK_SIZE), ramdisk.len() as u32)?;
    }
    let entry = RealModeEntry {
        segment: SETUP_SEGMENT.saturating_add(CODE_BIAS),
        offset: 0,
        data: SETUP_SEGMENT,
        stack: HEAP_END,
    };
    Ok(bios::place(memory, map, entry)?)
}

/// Boot sector with set-up code, and the protected-mode kernel.
fn split(image: &[u8], version: u16) -> Result<(&[u8], &[u8]), LinuxError> {
    let fields = Fields(image);
    let setup_size = fields.setup_size()?;
    if setup_size > SETUP_MAX {
        return Err(LinuxError::BadField {
            field: "setup_sects",
            found: (setup_size / super::linux::SECTOR).saturating_sub(1) as u64,
            expected: "at most 63 sectors",
        });
    }
    let least = if version < SYSSIZE_VERSION {
        setup_size.saturating_add(1)
    } else {
        let size = (fields.u32(field::SYSSIZE, "setup header")? as usize).saturating_mul(PARAGRAPH);
        setup_size.saturating_add(size.saturating_sub(PARAGRAPH.saturating_sub(1)).max(1))
    };
    let truncated =
        LinuxError::Truncated { what: "protected-mode kernel", found: image.len(), expected: least };
    if image.len() < least { Err(truncated) } else { image.split_at_checked(setup_size).ok_or(truncated) }
}

/// Where a ramdisk of `ramdisk` bytes goes: as high as it may, behind a kernel of `body` bytes. The last byte
/// that it may have is `ramdisk_max`.
fn place_ramdisk(map: &MemoryMap, body: u64, ramdisk: u64, ramdisk_max: u32) -> Result<u64, LinuxError> {
    let end = LOWEST_KERNEL.saturating_add(body);
    // A kernel that takes no ramdisk may say that its last byte is zero.
    let limit = if ramdisk == 0 { u64::MAX } else { u64::from(ramdisk_max).saturating_add(1) };
    let at = map.highest_place(ramdisk, limit);
    at.filter(|at| *at >= end && end <= map.low_end()).ok_or(LinuxError::NotEnoughMemory {
        needed: end.next_multiple_of(PAGE_SIZE).saturating_add(ramdisk.next_multiple_of(PAGE_SIZE)),
        found: map.low_end(),
    })
}

/// The guest-physical address of a header field.
fn header(offset: usize) -> GuestPhys {
    GuestPhys::new(SETUP.get().saturating_add(offset as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{bytes, machine};
    use alloc::vec;
    use alloc::vec::Vec;

    const MIB: u64 = 1 << 20;

    /// Header, one more sector of set-up code, and a kernel of `body` bytes, by protocol 2.07 as iPXE has it.
    fn image(body: usize) -> Vec<u8> {
        let mut image = vec![0; 2 * 512];
        let mut put =
            |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(field::SETUP_SECTS, &[1]);
        put(field::SYSSIZE, &(body.div_ceil(PARAGRAPH) as u32).to_le_bytes());
        put(field::BOOT_FLAG, &[0x55, 0xaa]);
        put(field::HEADER, b"HdrS");
        put(field::VERSION, &0x207_u16.to_le_bytes());
        put(field::LOADFLAGS, &[LOADED_HIGH]);
        put(field::INITRD_ADDR_MAX, &u32::MAX.to_le_bytes());
        put(field::CMDLINE_SIZE, &0x7ff_u32.to_le_bytes());
        image.extend((0..body).map(|at| at as u8 ^ 0x5a));
        image
    }

    fn start(kernel: &[u8], ramdisk: Option<&[u8]>) -> Result<(GuestMemory, CpuState), LinuxError> {
        let (memory, map) = machine(4 * MIB);
        let images = Images { kernel, ramdisk, modules: &[], bootargs: "dhcp" };
        load(&memory, &map, &images).map(|state| (memory, state))
    }

    #[test]
    fn the_set_up_code_finds_what_the_protocol_promises() {
        let image = image(5000);
        let (memory, _) = start(&image, Some(&[9; 5000])).unwrap();
        assert_eq!(bytes(&memory, MIB, 5001), [&image[1024..], &[0]].concat());
        let u16_at = |offset| memory.read_u16(header(offset)).unwrap();
        let u32_at = |offset| memory.read_u32(header(offset)).unwrap();
        assert_eq!(u16_at(field::BOOT_FLAG), 0xaa55);
        assert_eq!(u16_at(field::VID_MODE), 0xffff);
        assert_eq!(u16_at(field::TYPE_OF_LOADER), 0x81ff);
        assert_eq!(u16_at(field::HEAP_END_PTR), 0xde00);
        assert_eq!(bytes(&memory, u32_at(field::CMD_LINE_PTR).into(), 5), b"dhcp\0");
        assert_eq!(u32_at(field::RAMDISK_SIZE), 5000);
        assert_eq!(bytes(&memory, u32_at(field::RAMDISK_IMAGE).into(), 5000), [9; 5000]);
    }

    #[test]
    fn without_ramdisk_the_header_says_none() {
        let mut image = image(64);
        image[field::INITRD_ADDR_MAX..field::INITRD_ADDR_MAX + 4].fill(0);
        assert!(start(&image, Some(&[1])).is_err());
        let (memory, _) = start(&image, None).unwrap();
        assert_eq!(memory.read_u32(header(field::RAMDISK_IMAGE)), Ok(0));
        assert_eq!(memory.read_u32(header(field::RAMDISK_SIZE)), Ok(0));
    }

    #[test]
    fn errors_say_what_was_found_and_expected() {
        let error = |image: &[u8]| alloc::format!("{}", start(image, None).err().unwrap());
        let with = |offset: usize, value: u8| {
            let mut image = image(5000);
            image[offset] = value;
            image
        };
        assert!(error(&with(field::BOOT_FLAG, 0)).contains("not a Linux bzImage"));
        assert_eq!(
            error(&with(field::VERSION, 1)),
            "the kernel speaks boot protocol 2.01, expected 2.02 or later"
        );
        assert!(error(&with(field::LOADFLAGS, 0)).contains("zImage"));
        assert_eq!(
            error(&with(field::SETUP_SECTS, 64)),
            "the kernel header's setup_sects is 0x40, expected at most 63 sectors"
        );
        assert!(error(&image(5000)[..2000]).contains("cut off"));
        assert_eq!(
            alloc::format!("{}", start(&image(5000), Some(&vec![1; 3 << 20])).err().unwrap()),
            "kernel and ramdisk need 4202496 bytes of memory below 2 GiB, and the guest has 4194304"
        );
    }

    #[test]
    fn every_truncation_is_an_error() {
        let image = image(96);
        for len in 0..image.len() - (PARAGRAPH - 1) {
            assert!(start(&image[..len], None).is_err(), "{len} bytes of {} loaded", image.len());
        }
        assert!(start(&image, None).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn a_mutated_header_never_panics(
            changes in proptest::collection::vec((0x1e0_usize..0x270, proptest::num::u8::ANY), 1..12),
            ramdisk in 0_usize..20_000,
        ) {
            let mut image = image(300);
            for (offset, value) in changes {
                image[offset] = value;
            }
            let _ = start(&image, Some(&vec![1; ramdisk]));
        }
    }
}
