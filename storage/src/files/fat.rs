//! FAT12, FAT16 and FAT32 with long names (Microsoft's FAT specification, 2004).

use super::error::FileError;
use super::extents::Extents;
use super::{Effort, FileKind, Found, MOST_ENTRIES, Node};
use crate::block::{BlockDevice, BlockError, read_bytes};
use crate::fields;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// The length of the boot sector that is looked at.
const BOOT_SECTOR: usize = 512;
/// The length of a directory's entry.
const ENTRY: usize = 32;
/// A directory has at most so many entries.
const LONGEST_DIRECTORY: u64 = 65536 * ENTRY as u64;
/// The table is read in pieces of so many bytes.
const PIECE: u64 = 4096;

/// Attributes of an entry.
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
/// The most units of UTF-16 in one entry of a long name, and how many entries there may be.
const NAME_UNITS: usize = 13;
const MOST_NAME_ENTRIES: u8 = 20;
/// The flag in the last, which comes first.
const LAST_NAME_ENTRY: u8 = 0x40;

/// A FAT file system.
pub struct Fat {
    device: Arc<dyn BlockDevice>,
    width: Width,
    /// The size of a cluster in bytes.
    cluster: u64,
    /// Clusters are numbered from 2 to this one, exclusively.
    end: u32,
    /// Where the table that counts begins, in bytes.
    table: u64,
    /// Where cluster 2 begins, in bytes.
    data: u64,
    /// Where the root directory is.
    root: Root,
    serial: u32,
    label: [u8; 11],
    effort: Effort,
}

/// How wide the table's entries are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Bits12,
    Bits16,
    Bits32,
}

/// Where the root directory is: FAT12 and FAT16 have a place for it, which no cluster's number names.
#[derive(Clone, Copy)]
enum Root {
    At { at: u64, len: u64 },
    Cluster(u32),
}

/// A piece of the table, as was read last.
struct TablePiece {
    at: u64,
    bytes: Vec<u8>,
}

impl Fat {
    /// The file system on `device`, if it is one of this kind.
    pub async fn open(device: &Arc<dyn BlockDevice>) -> Result<Option<Self>, FileError> {
        let sector = match read_bytes(&**device, 0, BOOT_SECTOR).await {
            Err(BlockError::OutOfRange { .. }) => return Ok(None),
            other => other?,
        };
        Ok(Self::parse(device, &sector))
    }

    /// What the boot sector says; `None` if that cannot be one of FAT's, which has no magic number.
    fn parse(device: &Arc<dyn BlockDevice>, sector: &[u8]) -> Option<Self> {
        let [jump] = fields::array(sector, 0);
        let [per_cluster] = fields::array::<1>(sector, 13);
        let [tables] = fields::array::<1>(sector, 16);
        let bytes = u64::from(fields::u16(sector, 11));
        let plausible = matches!(jump, 0xe9 | 0xeb)
            && fields::array(sector, 510) == [0x55, 0xaa]
            && (512..=4096).contains(&bytes)
            && bytes.is_power_of_two()
            && per_cluster.is_power_of_two()
            && matches!(tables, 1..=4);
        if !plausible {
            return None;
        }
        let cluster = bytes.checked_mul(u64::from(per_cluster))?;
        let either = |small: u16, large: u32| if small == 0 { u64::from(large) } else { u64::from(small) };
        let sectors = either(fields::u16(sector, 19), fields::u32(sector, 32));
        let table_len = either(fields::u16(sector, 22), fields::u32(sector, 36)).checked_mul(bytes)?;
        let reserved = u64::from(fields::u16(sector, 14)).checked_mul(bytes)?;
        let root_len = u64::from(fields::u16(sector, 17)).checked_mul(ENTRY as u64)?;
        let root_at = u64::from(tables).checked_mul(table_len)?.checked_add(reserved)?;
        let data = root_at.checked_add(root_len)?.checked_next_multiple_of(bytes)?;
        let len = sectors.checked_mul(bytes)?;
        if reserved == 0 || table_len == 0 || len > device.geometry().size() {
            return None;
        }
        let count = u32::try_from(len.checked_sub(data)?.checked_div(cluster)?).ok()?;
        // FAT32 is to have 65525 clusters at least, but some programs make smaller ones: as Linux does, they are
        // told by their length of the table, for which FAT16's field is too short.
        let wide = fields::u16(sector, 22) == 0;
        let width = match count {
            _ if wide => Width::Bits32,
            0..4085 => Width::Bits12,
            _ => Width::Bits16,
        };
        let entries = match width {
            Width::Bits12 => table_len.saturating_mul(2).checked_div(3)?,
            Width::Bits16 => table_len >> 1,
            Width::Bits32 => table_len >> 2,
        };
        let end = count.checked_add(2)?.min(u32::try_from(entries).unwrap_or(u32::MAX));
        // Where copies of the table are not kept alike, this is the one that counts.
        let active = match fields::u16(sector, 40) {
            flags if wide && flags & 0x80 != 0 => u64::from(flags & 0xf),
            _ => 0,
        };
        let table =
            reserved.checked_add(active.checked_mul(table_len)?).filter(|_| active < u64::from(tables))?;
        let root = if wide {
            Root::Cluster(fields::u32(sector, 44))
        } else {
            Root::At { at: root_at, len: root_len }
        };
        let extended = if wide { 66 } else { 38 };
        let signed = fields::array(sector, extended) == [0x29];
        let serial = if signed { fields::u32(sector, extended.saturating_add(1)) } else { 0 };
        let label = if signed { fields::array(sector, extended.saturating_add(5)) } else { [b' '; 11] };
        let device = Arc::clone(device);
        let effort = Effort::default();
        Some(Self { device, width, cluster, end, table, data, root, serial, label, effort })
    }

    pub fn id(&self) -> String {
        format!("{:04X}-{:04X}", self.serial >> 16, self.serial & 0xffff)
    }

    pub fn label(&self) -> String {
        match self.label.trim_ascii_end() {
            b"NO NAME" => String::new(),
            label => String::from_utf8_lossy(label).into_owned(),
        }
    }

    pub fn root(&self) -> Node {
        let place = match self.root {
            Root::At { .. } => 0,
            Root::Cluster(cluster) => cluster,
        };
        Node { kind: FileKind::Directory, size: 0, place }
    }

    /// Where the bytes of a file or directory are.
    pub async fn extents(&self, node: &Node) -> Result<Extents, FileError> {
        let directory = node.kind == FileKind::Directory;
        if let (true, 0, Root::At { at, len }) = (directory, node.place, self.root) {
            let mut extents = Extents::new(len);
            if len > 0 {
                extents.push(0, len, Some(at))?;
            }
            return Ok(extents);
        }
        // A directory does not say how long it is.
        let size = if directory { LONGEST_DIRECTORY } else { node.size };
        let mut extents = Extents::new(size);
        let mut piece = TablePiece { at: 0, bytes: Vec::new() };
        let mut next = (size > 0).then_some(node.place);
        while let Some(cluster) = next.filter(|_| extents.mapped() < size) {
            let index = cluster.checked_sub(2).filter(|_| cluster < self.end);
            let at =
                index.and_then(|index| u64::from(index).checked_mul(self.cluster)?.checked_add(self.data));
            let at =
                at.ok_or(FileError::Damaged { what: "number of a cluster", found: u64::from(cluster) })?;
            extents.push(extents.mapped(), self.cluster, Some(at))?;
            next = self.next(cluster, &mut piece).await?;
        }
        if !directory && extents.mapped() < size {
            return Err(FileError::Damaged { what: "length of a file", found: size });
        }
        Ok(if directory { extents.cut() } else { extents })
    }

    /// The cluster that comes after this one in its file.
    async fn next(&self, cluster: u32, piece: &mut TablePiece) -> Result<Option<u32>, FileError> {
        let number = u64::from(cluster);
        let offset = match self.width {
            Width::Bits12 => number.saturating_add(number >> 1),
            Width::Bits16 => number.saturating_mul(2),
            Width::Bits32 => number.saturating_mul(4),
        };
        let entry =
            [self.table_byte(offset, piece).await?, self.table_byte(offset.saturating_add(1), piece).await?];
        let low = u32::from(u16::from_le_bytes(entry));
        let (next, last) = match self.width {
            Width::Bits12 if cluster & 1 == 0 => (low & 0xfff, 0xff8),
            Width::Bits12 => (low >> 4, 0xff8),
            Width::Bits16 => (low, 0xfff8),
            Width::Bits32 => {
                let third = self.table_byte(offset.saturating_add(2), piece).await?;
                let fourth = self.table_byte(offset.saturating_add(3), piece).await?;
                // The upper four bits mean nothing.
                (low | u32::from(third) << 16 | u32::from(fourth & 0xf) << 24, 0xfff_fff8)
            }
        };
        Ok((next < last).then_some(next))
    }

    /// A byte of the table; an entry of 12 bits may lie in two pieces.
    async fn table_byte(&self, offset: u64, piece: &mut TablePiece) -> Result<u8, FileError> {
        let start = offset & !PIECE.saturating_sub(1);
        if piece.bytes.is_empty() || piece.at != start {
            let at = self.table.saturating_add(start);
            // The table may end with the device.
            let len = self.device.geometry().size().saturating_sub(at).min(PIECE);
            self.effort.spend(len)?;
            *piece = TablePiece { at: start, bytes: read_bytes(&*self.device, at, len as usize).await? };
        }
        let within = offset.saturating_sub(start) as usize;
        let damaged = FileError::Damaged { what: "length of the table of clusters", found: offset };
        piece.bytes.get(within).copied().ok_or(damaged)
    }

    /// The entries of a directory, or the one that is called `wanted`, without regard to the case of ASCII letters.
    pub async fn entries(&self, directory: &Node, wanted: Option<&[u8]>) -> Result<Vec<Found>, FileError> {
        let extents = self.extents(directory).await?;
        let mut found = Vec::new();
        let mut long = LongName::default();
        let mut place = 0;
        while let Some((at, len)) = extents.piece(place, PIECE) {
            self.effort.spend(len)?;
            let bytes = match at {
                Some(at) => read_bytes(&*self.device, at, len as usize).await?,
                None => break,
            };
            for entry in bytes.chunks_exact(ENTRY) {
                let [first] = fields::array(entry, 0);
                let [attributes] = fields::array(entry, 11);
                if first == 0 {
                    return Ok(found);
                }
                if first == 0xe5 {
                    long = LongName::default();
                    continue;
                }
                if attributes & 0x3f == LONG_NAME {
                    long.take(entry);
                    continue;
                }
                let name = core::mem::take(&mut long).of(entry);
                if attributes & VOLUME != 0 || first == b'.' {
                    continue;
                }
                let is_short = |wanted: &[u8]| short_name(entry).as_bytes().eq_ignore_ascii_case(wanted);
                let name = name.unwrap_or_else(|| short_name(entry));
                let fits = |wanted: &[u8]| name.as_bytes().eq_ignore_ascii_case(wanted) || is_short(wanted);
                if wanted.is_some_and(|wanted| !fits(wanted)) {
                    continue;
                }
                found.push(Found { name: name.into_bytes(), node: self.node(entry, attributes) });
                if wanted.is_some() {
                    return Ok(found);
                }
            }
            if found.len() > MOST_ENTRIES {
                return Err(FileError::Unsupported("so many names in a directory"));
            }
            place = place.saturating_add(len);
        }
        Ok(found)
    }

    fn node(&self, entry: &[u8], attributes: u8) -> Node {
        let high = if self.width == Width::Bits32 { fields::u16(entry, 20) } else { 0 };
        let place = u32::from(high) << 16 | u32::from(fields::u16(entry, 26));
        if attributes & DIRECTORY != 0 {
            Node { kind: FileKind::Directory, size: 0, place }
        } else {
            Node { kind: FileKind::File, size: u64::from(fields::u32(entry, 28)), place }
        }
    }
}

/// A long name that is being read, from its end to its beginning.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    /// The number of the entry that came last.
    number: u8,
    sum: u8,
}

impl LongName {
    /// Takes in the next entry; one out of order ends the name.
    fn take(&mut self, entry: &[u8]) {
        let ([order], [sum]) = (fields::array::<1>(entry, 0), fields::array::<1>(entry, 13));
        let number = order & !LAST_NAME_ENTRY;
        if order & LAST_NAME_ENTRY != 0 && (1..=MOST_NAME_ENTRIES).contains(&number) {
            *self = Self { units: Vec::new(), number, sum };
        } else if number != 0 && number.checked_add(1) == Some(self.number) && sum == self.sum {
            self.number = number;
        } else {
            *self = Self::default();
            return;
        }
        let places = (1..11).chain(14..26).chain(28..32).step_by(2);
        let mut units: Vec<u16> = places.map(|place| fields::u16(entry, place)).take(NAME_UNITS).collect();
        units.append(&mut self.units);
        self.units = units;
    }

    /// The name, if it is all there and belongs to this entry.
    fn of(self, entry: &[u8]) -> Option<String> {
        let short = entry.get(..11)?;
        let sum = short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.number != 1 || self.sum != sum {
            return None;
        }
        let units = self.units.iter().copied().take_while(|unit| *unit != 0);
        Some(char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
    }
}

/// The short name, in the case that Windows and Linux show.
fn short_name(entry: &[u8]) -> String {
    let [case] = fields::array(entry, 12);
    let mut name = String::new();
    let mut part = |range: core::ops::Range<usize>, lower: bool, before: &str| {
        let part = entry.get(range).unwrap_or_default().trim_ascii_end();
        if !part.is_empty() {
            name.push_str(before);
        }
        for byte in part {
            name.push(match byte {
                b if !b.is_ascii() => char::REPLACEMENT_CHARACTER,
                b if lower => char::from(b.to_ascii_lowercase()),
                b => char::from(*b),
            });
        }
    };
    part(0..8, case & 0x08 != 0, "");
    part(8..11, case & 0x10 != 0, ".");
    name
}
