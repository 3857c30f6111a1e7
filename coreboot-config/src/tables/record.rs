//! One record of a coreboot table: decoding and encoding, side by side.

use alloc::{string::String, vec::Vec};
use core::fmt;

use super::types::{
    BoardConfig, BootMediaParams, CbmemEntry, Channel, ConsoleKind, Framebuffer, Mainboard, MemoryKind,
    MemoryRange, Serial, SerialKind,
};
use crate::bytes::{le_u16, le_u32, le_u64, text};

const MEMORY: u32 = 0x01;
const MAINBOARD: u32 = 0x03;
const SERIAL: u32 = 0x0f;
const CONSOLE: u32 = 0x10;
const FORWARD: u32 = 0x11;
const FRAMEBUFFER: u32 = 0x12;
const VERSION_TIMESTAMP: u32 = 0x26;
const BOOT_MEDIA_PARAMS: u32 = 0x30;
const CBMEM_ENTRY: u32 = 0x31;
const BOARD_CONFIG: u32 = 0x40;
const BOOT_MODE: u32 = 0xcd;

/// Tag and size.
const RECORD_HEADER_LEN: usize = 8;
/// Records are padded to this many bytes.
const RECORD_ALIGNMENT: usize = 4;
const MEMORY_RANGE_LEN: usize = 20;

/// A record of a known tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The memory map.
    Memory(Vec<MemoryRange>),
    /// The board's names.
    Mainboard(Mainboard),
    /// A text about coreboot's build.
    String(StringTag, String),
    /// The UART that coreboot logs to.
    Serial(Serial),
    /// A console that coreboot logs to.
    Console(ConsoleKind),
    /// The table lies at this physical address.
    Forward(u64),
    /// The linear framebuffer.
    Framebuffer(Framebuffer),
    /// Something lies at this physical address.
    Pointer(PointerTag, u64),
    /// When coreboot's version was made, in seconds since 1970.
    VersionTimestamp(u32),
    /// Where FMAP and CBFS lie in the flash.
    BootMediaParams(BootMediaParams),
    /// An area of CBMEM.
    CbmemEntry(CbmemEntry),
    /// The board's configuration straps.
    BoardConfig(BoardConfig),
    /// Why the machine was started; 0 is a normal boot.
    BootMode(u32),
}

/// Which text a string record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names are coreboot's")]
pub enum StringTag {
    Version = 0x04,
    ExtraVersion = 0x05,
    Build = 0x06,
    CompileTime = 0x07,
    CompileBy = 0x08,
    CompileHost = 0x09,
    CompileDomain = 0x0a,
    Compiler = 0x0b,
    Linker = 0x0c,
    Assembler = 0x0d,
}

impl StringTag {
    const ALL: [Self; 10] = [
        Self::Version,
        Self::ExtraVersion,
        Self::Build,
        Self::CompileTime,
        Self::CompileBy,
        Self::CompileHost,
        Self::CompileDomain,
        Self::Compiler,
        Self::Linker,
        Self::Assembler,
    ];
}

/// What a pointer record leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PointerTag {
    /// The CBMEM timestamp table.
    Timestamps = 0x16,
    /// The CBMEM console.
    CbmemConsole = 0x17,
    /// The ACPI global NVS area.
    AcpiGnvs = 0x24,
    /// The copy of the FMAP in CBMEM.
    Fmap = 0x37,
    /// The ACPI root pointer.
    AcpiRsdp = 0x43,
}

impl PointerTag {
    const ALL: [Self; 5] = [Self::Timestamps, Self::CbmemConsole, Self::AcpiGnvs, Self::Fmap, Self::AcpiRsdp];
}

/// A record that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordError {
    /// Where it begins, in bytes from the table's first record.
    pub offset: usize,
    /// Its tag; 0 when even that is missing.
    pub tag: u32,
    /// What is wrong with it.
    pub fault: RecordFault,
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFault {
    /// Its size in bytes is below 8 or more than the table has left; the records after it are lost.
    Size(u32),
    /// Its body, of this many bytes, is too short for its tag or says what cannot be.
    Body(usize),
    /// The table ends before as many records as its header counts; this many were found.
    Missing(u32),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "coreboot table, record {:#x} at offset {:#x}: ", self.tag, self.offset)?;
        match self.fault {
            RecordFault::Size(size) => {
                write!(f, "found a size of {size} bytes, expected at least 8 within the table")
            }
            RecordFault::Body(len) => write!(f, "found a body of {len} bytes that its tag does not allow"),
            RecordFault::Missing(found) => {
                write!(
                    f,
                    "found the table's end after {found} records, expected as many as its header counts"
                )
            }
        }
    }
}

impl core::error::Error for RecordError {}

/// All records of known tags in a table's body, which should hold `entries` records, and the faulty ones.
pub(super) fn parse_all(body: &[u8], entries: u32) -> (Vec<Record>, Vec<RecordError>) {
    let mut records = Vec::new();
    let mut problems = Vec::new();
    let mut offset = 0_usize;
    for found in 0..entries {
        let rest = body.get(offset..).unwrap_or(&[]);
        let (Some(tag), Some(size)) = (le_u32(rest, 0), le_u32(rest, 4)) else {
            problems.push(RecordError { offset, tag: 0, fault: RecordFault::Missing(found) });
            break;
        };
        let Some(record_body) = rest.get(RECORD_HEADER_LEN..size as usize) else {
            problems.push(RecordError { offset, tag, fault: RecordFault::Size(size) });
            break;
        };
        match Record::decode(tag, record_body) {
            Some(Decoded::Known(record)) => records.push(record),
            Some(Decoded::Unknown) => {}
            None => problems.push(RecordError { offset, tag, fault: RecordFault::Body(record_body.len()) }),
        }
        offset = offset.saturating_add(size as usize);
    }
    (records, problems)
}

enum Decoded {
    Known(Record),
    Unknown,
}

impl Record {
    /// Where a forwarder leads.
    pub(super) fn forward(&self) -> Option<u64> {
        match self {
            Self::Forward(address) => Some(*address),
            _ => None,
        }
    }

    /// The record of this tag and body; `None` when the body is not one of that tag.
    fn decode(tag: u32, body: &[u8]) -> Option<Decoded> {
        Some(Decoded::Known(match tag {
            MEMORY => Self::Memory(memory(body)?),
            MAINBOARD => Self::Mainboard(mainboard(body)?),
            SERIAL => Self::Serial(serial(body)?),
            CONSOLE => Self::Console(ConsoleKind::from_number(le_u16(body, 0)?)),
            FORWARD => Self::Forward(le_u64(body, 0)?),
            FRAMEBUFFER => Self::Framebuffer(framebuffer(body)?),
            VERSION_TIMESTAMP => Self::VersionTimestamp(le_u32(body, 0)?),
            BOOT_MEDIA_PARAMS => Self::BootMediaParams(BootMediaParams {
                fmap_offset: le_u64(body, 0)?,
                cbfs_offset: le_u64(body, 8)?,
                cbfs_size: le_u64(body, 16)?,
                boot_media_size: le_u64(body, 24)?,
            }),
            CBMEM_ENTRY => Self::CbmemEntry(CbmemEntry {
                address: le_u64(body, 0)?,
                size: le_u32(body, 8)?,
                id: le_u32(body, 12)?,
            }),
            BOARD_CONFIG => Self::BoardConfig(BoardConfig {
                fw_config: le_u64(body, 0)?,
                board_id: le_u32(body, 8)?,
                ram_code: le_u32(body, 12)?,
                sku_id: le_u32(body, 16)?,
            }),
            BOOT_MODE => Self::BootMode(le_u32(body, 0)?),
            _ => {
                let string = StringTag::ALL.into_iter().find(|known| *known as u32 == tag);
                let pointer = PointerTag::ALL.into_iter().find(|known| *known as u32 == tag);
                match (string, pointer) {
                    (Some(tag), _) => Self::String(tag, text(body)),
                    (_, Some(tag)) => Self::Pointer(tag, le_u64(body, 0)?),
                    (None, None) => return Some(Decoded::Unknown),
                }
            }
        }))
    }

    /// Appends the record, padded to a multiple of four bytes.
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        let body = self.body();
        let size = body.len().saturating_add(RECORD_HEADER_LEN).next_multiple_of(RECORD_ALIGNMENT);
        let end = bytes.len().saturating_add(size);
        bytes.extend(self.tag().to_le_bytes());
        bytes.extend(u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(body);
        bytes.resize(end, 0);
    }

    fn tag(&self) -> u32 {
        match self {
            Self::Memory(_) => MEMORY,
            Self::Mainboard(_) => MAINBOARD,
            Self::String(tag, _) => *tag as u32,
            Self::Serial(_) => SERIAL,
            Self::Console(_) => CONSOLE,
            Self::Forward(_) => FORWARD,
            Self::Framebuffer(_) => FRAMEBUFFER,
            Self::Pointer(tag, _) => *tag as u32,
            Self::VersionTimestamp(_) => VERSION_TIMESTAMP,
            Self::BootMediaParams(_) => BOOT_MEDIA_PARAMS,
            Self::CbmemEntry(_) => CBMEM_ENTRY,
            Self::BoardConfig(_) => BOARD_CONFIG,
            Self::BootMode(_) => BOOT_MODE,
        }
    }

    fn body(&self) -> Vec<u8> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let longs = |longs: &[u64]| longs.iter().flat_map(|long| long.to_le_bytes()).collect();
        match self {
            Self::Memory(ranges) => {
                let mut body = Vec::new();
                for range in ranges {
                    body.extend(range.start.to_le_bytes());
                    body.extend(range.size.to_le_bytes());
                    body.extend(range.kind.number().to_le_bytes());
                }
                body
            }
            Self::Mainboard(board) => {
                // The part number's index is one byte, so a vendor's name has at most 254.
                let vendor: Vec<u8> = board.vendor.bytes().take(254).collect();
                let part_index = u8::try_from(vendor.len().saturating_add(1)).unwrap_or(u8::MAX);
                [&[0, part_index], vendor.as_slice(), &[0], board.part_number.as_bytes(), &[0]].concat()
            }
            Self::String(_, text) => [text.as_bytes(), &[0]].concat(),
            Self::Serial(serial) => {
                let kind = match serial.kind {
                    SerialKind::Port => 1,
                    SerialKind::Memory => 2,
                };
                words(&[kind, serial.base, serial.baud, serial.register_width, serial.input_hertz])
            }
            Self::Console(kind) => kind.number().to_le_bytes().to_vec(),
            Self::Forward(address) | Self::Pointer(_, address) => longs(&[*address]),
            Self::Framebuffer(framebuffer) => framebuffer_body(framebuffer),
            Self::VersionTimestamp(value) | Self::BootMode(value) => words(&[*value]),
            Self::BootMediaParams(media) => {
                longs(&[media.fmap_offset, media.cbfs_offset, media.cbfs_size, media.boot_media_size])
            }
            Self::CbmemEntry(entry) => {
                let mut body: Vec<u8> = longs(&[entry.address]);
                body.extend(entry.size.to_le_bytes());
                body.extend(entry.id.to_le_bytes());
                body
            }
            Self::BoardConfig(config) => {
                let mut body: Vec<u8> = longs(&[config.fw_config]);
                for word in [config.board_id, config.ram_code, config.sku_id] {
                    body.extend(word.to_le_bytes());
                }
                body
            }
        }
    }
}

fn memory(body: &[u8]) -> Option<Vec<MemoryRange>> {
    let (ranges, rest) = body.as_chunks::<MEMORY_RANGE_LEN>();
    if !rest.is_empty() {
        return None;
    }
    let range = |bytes: &[u8; MEMORY_RANGE_LEN]| {
        Some(MemoryRange {
            start: le_u64(bytes, 0)?,
            size: le_u64(bytes, 8)?,
            kind: MemoryKind::from_number(le_u32(bytes, 16)?),
        })
    };
    ranges.iter().map(range).collect()
}

fn mainboard(body: &[u8]) -> Option<Mainboard> {
    let (indices, strings) = body.split_at_checked(2)?;
    let [vendor, part_number] = indices else { return None };
    let string = |index: &u8| strings.get(usize::from(*index)..).filter(|rest| !rest.is_empty()).map(text);
    Some(Mainboard { vendor: string(vendor)?, part_number: string(part_number)? })
}

fn serial(body: &[u8]) -> Option<Serial> {
    let kind = match le_u32(body, 0)? {
        1 => SerialKind::Port,
        2 => SerialKind::Memory,
        _ => return None,
    };
    Some(Serial {
        kind,
        base: le_u32(body, 4)?,
        baud: le_u32(body, 8)?,
        register_width: le_u32(body, 12)?,
        // Older coreboots end the record before it.
        input_hertz: le_u32(body, 16).unwrap_or(0),
    })
}

fn framebuffer(body: &[u8]) -> Option<Framebuffer> {
    let channel =
        |at: usize| Some(Channel { position: *body.get(at)?, size: *body.get(at.checked_add(1)?)? });
    Some(Framebuffer {
        address: le_u64(body, 0)?,
        width: le_u32(body, 8)?,
        height: le_u32(body, 12)?,
        bytes_per_line: le_u32(body, 16)?,
        bits_per_pixel: *body.get(20)?,
        red: channel(21)?,
        green: channel(23)?,
        blue: channel(25)?,
        reserved: channel(27)?,
    })
}

fn framebuffer_body(framebuffer: &Framebuffer) -> Vec<u8> {
    let mut body = framebuffer.address.to_le_bytes().to_vec();
    for word in [framebuffer.width, framebuffer.height, framebuffer.bytes_per_line] {
        body.extend(word.to_le_bytes());
    }
    body.push(framebuffer.bits_per_pixel);
    for channel in [framebuffer.red, framebuffer.green, framebuffer.blue, framebuffer.reserved] {
        body.extend([channel.position, channel.size]);
    }
    // Orientation (upright), flags and padding.
    body.extend([0; 3]);
    body
}
