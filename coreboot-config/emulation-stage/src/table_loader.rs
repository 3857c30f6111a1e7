//! QEMU's table loader: a script in fw_cfg file `etc/table-loader` that says how to lay other fw_cfg files out in
//! memory, to point one at another and to correct checksums (QEMU's `hw/acpi/bios-linker-loader.c`).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Bytes of one command: a 32-bit code, then its arguments, then padding.
const COMMAND_BYTES: usize = 128;
/// File names are padded with zeroes to this length.
const NAME_BYTES: usize = 56;

/// Where a file wants to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Anywhere below 4 GiB.
    High,
    /// Where a scan for the RSDP finds it: 0xE0000 to 0xFFFFF.
    FSegment,
}

/// What the interpreter needs from the machine.
pub trait Platform {
    /// The whole file `name`, if there is one.
    fn read_file(&mut self, name: &str) -> Option<Vec<u8>>;
    /// Physical address of `bytes` bytes of fresh memory, aligned to `align` (a power of two).
    fn allocate(&mut self, bytes: usize, align: u64, zone: Zone) -> Option<u64>;
    /// Writes into file `name` at `offset`; `false` if that cannot be done.
    fn write_file(&mut self, name: &str, offset: u32, bytes: &[u8]) -> bool;
}

/// A file and the physical address that it belongs at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Name in fw_cfg.
    pub name: String,
    /// Physical address.
    pub address: u64,
    /// Contents, with every pointer and checksum filled in.
    pub bytes: Vec<u8>,
}

/// Which command is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderError {
    /// Index of the command in the script.
    pub command: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What can be wrong with a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A file name that is no text or does not end.
    Name,
    /// A file that fw_cfg does not hold.
    NoFile(String),
    /// A file that no earlier command allocated.
    NotAllocated(String),
    /// A file that was allocated before.
    AllocatedTwice(String),
    /// An alignment that is no power of two.
    Alignment(u32),
    /// No memory is left for the file.
    NoMemory(String),
    /// A place outside the file.
    OutOfFile(String),
    /// A pointer of another size than 1, 2, 4 or 8 bytes, or one that its value does not fit.
    Pointer(u8),
    /// fw_cfg does not let this file be written.
    NotWritable(String),
}

impl fmt::Display for LoaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ACPI table loader, command {}: ", self.command)?;
        match &self.fault {
            Fault::Name => write!(f, "malformed file name"),
            Fault::NoFile(name) => write!(f, "no file {name} in fw_cfg"),
            Fault::NotAllocated(name) => write!(f, "{name} was not allocated"),
            Fault::AllocatedTwice(name) => write!(f, "{name} is allocated twice"),
            Fault::Alignment(align) => write!(f, "alignment {align:#x} is no power of two"),
            Fault::NoMemory(name) => write!(f, "no memory is left for {name}"),
            Fault::OutOfFile(name) => write!(f, "a place outside {name}"),
            Fault::Pointer(size) => write!(f, "a pointer of {size} bytes does not hold its value"),
            Fault::NotWritable(name) => write!(f, "{name} cannot be written"),
        }
    }
}

/// Carries the script out and returns the files it asked for, each with its address.
pub fn run(script: &[u8], platform: &mut impl Platform) -> Result<Vec<Blob>, LoaderError> {
    let mut blobs = Vec::new();
    for (command, bytes) in script.chunks_exact(COMMAND_BYTES).enumerate() {
        step(Arguments(bytes), &mut blobs, platform).map_err(|fault| LoaderError { command, fault })?;
    }
    Ok(blobs)
}

fn step(arguments: Arguments<'_>, blobs: &mut Vec<Blob>, platform: &mut impl Platform) -> Result<(), Fault> {
    match arguments.u32(0) {
        1 => allocate(arguments, blobs, platform),
        2 => add_pointer(arguments, blobs),
        3 => add_checksum(arguments, blobs),
        4 => write_pointer(arguments, blobs, platform),
        // QEMU: unknown commands are for newer firmware and may be skipped.
        _ => Ok(()),
    }
}

fn allocate(a: Arguments<'_>, blobs: &mut Vec<Blob>, platform: &mut impl Platform) -> Result<(), Fault> {
    let (name, align, zone) = (a.name(4)?, a.u32(60), a.u8(64));
    if blobs.iter().any(|blob| blob.name == name) {
        return Err(Fault::AllocatedTwice(name.into()));
    }
    if !align.is_power_of_two() {
        return Err(Fault::Alignment(align));
    }
    let zone = if zone == 2 { Zone::FSegment } else { Zone::High };
    let bytes = platform.read_file(name).ok_or_else(|| Fault::NoFile(name.into()))?;
    let address =
        platform.allocate(bytes.len(), u64::from(align), zone).ok_or_else(|| Fault::NoMemory(name.into()))?;
    blobs.push(Blob { name: name.into(), address, bytes });
    Ok(())
}

/// Adds the address of one file to a pointer in another, which holds an offset.
fn add_pointer(a: Arguments<'_>, blobs: &mut [Blob]) -> Result<(), Fault> {
    let (destination, source, offset, size) = (a.name(4)?, a.name(60)?, a.u32(116) as usize, a.u8(120));
    let address = find(blobs, source)?.address;
    let place = place(blobs, destination, offset, usize::from(size))?;
    if !matches!(size, 1 | 2 | 4 | 8) {
        return Err(Fault::Pointer(size));
    }
    let mut value = [0; 8];
    value[..place.len()].copy_from_slice(place);
    let value = u64::from_le_bytes(value).checked_add(address).ok_or(Fault::Pointer(size))?;
    place.copy_from_slice(&pointer(value, size)?[..usize::from(size)]);
    Ok(())
}

/// Subtracts the sum of a range from a byte, so that the range sums to zero if the byte is within it.
fn add_checksum(a: Arguments<'_>, blobs: &mut [Blob]) -> Result<(), Fault> {
    let (name, offset) = (a.name(4)?, a.u32(60) as usize);
    let (start, length) = (a.u32(64) as usize, a.u32(68) as usize);
    let sum = place(blobs, name, start, length)?.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let byte = &mut place(blobs, name, offset, 1)?[0];
    *byte = byte.wrapping_sub(sum);
    Ok(())
}

/// Tells QEMU where a file came to lie, by a pointer in a file that QEMU can be written.
fn write_pointer(a: Arguments<'_>, blobs: &mut [Blob], platform: &mut impl Platform) -> Result<(), Fault> {
    let (destination, source) = (a.name(4)?, a.name(60)?);
    let (offset, within, size) = (a.u32(116), a.u32(120), a.u8(124));
    let blob = find(blobs, source)?;
    if within as usize >= blob.bytes.len() {
        return Err(Fault::OutOfFile(source.into()));
    }
    let value = blob.address.checked_add(u64::from(within)).ok_or(Fault::Pointer(size))?;
    let bytes = pointer(value, size)?;
    if platform.write_file(destination, offset, &bytes[..usize::from(size)]) {
        Ok(())
    } else {
        Err(Fault::NotWritable(destination.into()))
    }
}

/// `value` as a little-endian pointer of `size` bytes, in the first bytes of the array.
fn pointer(value: u64, size: u8) -> Result<[u8; 8], Fault> {
    let fits = match size {
        1 | 2 | 4 => value >> (8 * size) == 0,
        8 => true,
        _ => false,
    };
    if fits { Ok(value.to_le_bytes()) } else { Err(Fault::Pointer(size)) }
}

fn find<'a>(blobs: &'a mut [Blob], name: &str) -> Result<&'a mut Blob, Fault> {
    blobs.iter_mut().find(|blob| blob.name == name).ok_or_else(|| Fault::NotAllocated(name.into()))
}

fn place<'a>(blobs: &'a mut [Blob], name: &str, offset: usize, size: usize) -> Result<&'a mut [u8], Fault> {
    let end = offset.checked_add(size);
    let bytes = &mut find(blobs, name)?.bytes;
    end.and_then(|end| bytes.get_mut(offset..end)).ok_or_else(|| Fault::OutOfFile(name.into()))
}

/// The 128 bytes of a command; offsets are the format's own and within it.
#[derive(Clone, Copy)]
struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    fn u8(self, offset: usize) -> u8 {
        self.0[offset]
    }

    fn u32(self, offset: usize) -> u32 {
        let bytes = &self.0[offset..offset + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn name(self, offset: usize) -> Result<&'a str, Fault> {
        let field = &self.0[offset..offset + NAME_BYTES];
        let end = field.iter().position(|byte| *byte == 0).filter(|end| *end > 0).ok_or(Fault::Name)?;
        core::str::from_utf8(&field[..end]).map_err(|_| Fault::Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Machine {
        files: Vec<(&'static str, Vec<u8>)>,
        next: u64,
        written: Vec<(String, u32, Vec<u8>)>,
    }

    impl Platform for Machine {
        fn read_file(&mut self, name: &str) -> Option<Vec<u8>> {
            self.files.iter().find(|file| file.0 == name).map(|file| file.1.clone())
        }

        fn allocate(&mut self, bytes: usize, align: u64, zone: Zone) -> Option<u64> {
            if zone == Zone::FSegment {
                return Some(0xF6000);
            }
            let address = self.next.next_multiple_of(align);
            self.next = address + bytes as u64;
            Some(address)
        }

        fn write_file(&mut self, name: &str, offset: u32, bytes: &[u8]) -> bool {
            self.written.push((name.into(), offset, bytes.into()));
            name == "addr"
        }
    }

    #[derive(Clone)]
    struct Script(Vec<u8>);

    impl Script {
        fn command(code: u32) -> Script {
            Script(code.to_le_bytes().to_vec())
        }

        fn name(mut self, name: &str) -> Script {
            let end = self.0.len() + NAME_BYTES;
            self.0.extend(name.bytes());
            self.0.resize(end, 0);
            self
        }

        fn number(mut self, number: u32) -> Script {
            self.0.extend(number.to_le_bytes());
            self
        }

        fn byte(mut self, byte: u8) -> Script {
            self.0.push(byte);
            self
        }

        fn end(mut self) -> Vec<u8> {
            self.0.resize(COMMAND_BYTES, 0);
            self.0
        }
    }

    fn machine() -> Machine {
        let files = vec![("rsdp", vec![0x10, 0, 0, 0, 0, 0]), ("tables", (0..64).collect())];
        Machine { files, next: 0x7FE0_0001, written: Vec::new() }
    }

    fn allocate_both() -> Vec<u8> {
        let rsdp = Script::command(1).name("rsdp").number(16).byte(2).end();
        let tables = Script::command(1).name("tables").number(64).byte(1).end();
        [rsdp, tables].concat()
    }

    #[test]
    fn files_are_placed_linked_and_summed() {
        let mut script = allocate_both();
        script.extend(Script::command(2).name("rsdp").name("tables").number(0).byte(4).end());
        script.extend(Script::command(3).name("rsdp").number(4).number(0).number(6).end());
        script.extend(Script::command(4).name("addr").name("tables").number(8).number(3).byte(8).end());
        script.extend(Script::command(77).end());
        let mut machine = machine();
        let blobs = run(&script, &mut machine).unwrap();
        assert_eq!(blobs[0].address, 0xF6000);
        assert_eq!(blobs[1].address, 0x7FE0_0040);
        assert_eq!(blobs[0].bytes[..4], 0x7FE0_0050_u32.to_le_bytes());
        assert_eq!(blobs[0].bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(machine.written, [("addr".into(), 8, 0x7FE0_0043_u64.to_le_bytes().to_vec())]);
    }

    fn fault_of(command: Vec<u8>) -> Fault {
        let error = run(&[allocate_both(), command].concat(), &mut machine()).unwrap_err();
        assert_eq!(error.command, 2);
        error.fault
    }

    #[test]
    fn malformed_commands_are_named() {
        let allocate = |name| Script::command(1).name(name);
        assert_eq!(fault_of(allocate("x").number(1).byte(1).end()), Fault::NoFile("x".into()));
        assert_eq!(fault_of(allocate("rsdp").number(1).byte(1).end()), Fault::AllocatedTwice("rsdp".into()));
        assert_eq!(fault_of(allocate("x").number(3).byte(1).end()), Fault::Alignment(3));
        assert_eq!(fault_of(Script(vec![1, 0, 0, 0]).end()), Fault::Name);
        assert_eq!(fault_of(Script::command(1).name(&"n".repeat(56)).end()), Fault::Name);
        let point = |offset, size| {
            fault_of(Script::command(2).name("rsdp").name("tables").number(offset).byte(size).end())
        };
        assert_eq!(point(3, 4), Fault::OutOfFile("rsdp".into()));
        assert_eq!(point(u32::MAX, 8), Fault::OutOfFile("rsdp".into()));
        assert_eq!(point(0, 3), Fault::Pointer(3));
        assert_eq!(point(0, 2), Fault::Pointer(2));
        let sum = Script::command(3).name("rsdp").number(6).number(0).number(6).end();
        assert_eq!(fault_of(sum), Fault::OutOfFile("rsdp".into()));
        let write = |name, within| {
            fault_of(Script::command(4).name(name).name("rsdp").number(0).number(within).byte(8).end())
        };
        assert_eq!(write("other", 0), Fault::NotWritable("other".into()));
        assert_eq!(write("addr", 6), Fault::OutOfFile("rsdp".into()));
        assert_eq!(
            fault_of(Script::command(2).name("rsdp").name("x").number(0).byte(4).end()),
            Fault::NotAllocated("x".into())
        );
    }
}
