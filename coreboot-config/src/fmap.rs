//! FMAP: the map of a flash image's areas.

use alloc::{string::String, vec::Vec};
use core::fmt;

use crate::bytes::{array, le_u16, le_u32, le_u64, slice, text};

/// What an FMAP begins with.
pub const SIGNATURE: [u8; 8] = *b"__FMAP__";
/// The major version that this module reads; minor versions are compatible.
pub const VERSION_MAJOR: u8 = 1;
/// Length of an FMAP without areas, in bytes.
pub const HEADER_LEN: usize = 56;
/// Length of each area's record, in bytes.
pub const AREA_LEN: usize = 42;
/// The area that holds the CBFS which coreboot boots from.
pub const COREBOOT_AREA: &str = "COREBOOT";

const NAME_LEN: usize = 32;
/// Where images usually align their FMAP; other places are searched after these.
const LIKELY_ALIGNMENT: usize = 4096;

/// A map of a flash image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fmap {
    /// Where the image is mapped in memory, or 0.
    pub base: u64,
    /// Length of the whole image in bytes.
    pub size: u32,
    /// The image's name.
    pub name: String,
    areas: Vec<Area>,
}

/// A part of the flash image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its name, at most 32 bytes.
    pub name: String,
    /// Where it begins, in bytes from the image's beginning.
    pub offset: u32,
    /// Its length in bytes.
    pub size: u32,
    /// Bit 0 static, 1 compressed, 2 read-only, 3 to be preserved by updates.
    pub flags: u16,
}

/// Why there is no map or no area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FmapError {
    /// The bytes hold no FMAP.
    NotFound,
    /// The bytes end within the map; it needs this many.
    Truncated {
        /// The map's length in bytes, as far as is known.
        needed: usize,
        /// How many there are.
        found: usize,
    },
    /// A major version other than [`VERSION_MAJOR`].
    Version(u8),
    /// The map names no such area.
    NoSuchArea(String),
    /// An area runs past the end of the image.
    OutOfBounds {
        /// The area.
        area: Area,
        /// The image's length in bytes.
        image: u64,
    },
}

impl fmt::Display for FmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("the flash image holds no FMAP"),
            Self::Truncated { needed, found } => {
                write!(f, "the FMAP needs {needed} bytes, found {found}")
            }
            Self::Version(version) => {
                write!(f, "the FMAP has major version {version}, expected {VERSION_MAJOR}")
            }
            Self::NoSuchArea(name) => write!(f, "the FMAP names no area {name}"),
            Self::OutOfBounds { area, image } => write!(
                f,
                "FMAP area {}: {:#x} bytes at {:#x} do not fit the image of {image:#x} bytes",
                area.name, area.size, area.offset
            ),
        }
    }
}

impl core::error::Error for FmapError {}

impl Fmap {
    /// Finds the map in a flash image: the first place that holds a whole one. When no place does, the error
    /// is that of the first signature.
    pub fn find(image: &[u8]) -> Result<Self, FmapError> {
        let mut first_error = None;
        let aligned = (0..image.len()).step_by(LIKELY_ALIGNMENT);
        for at in aligned.chain(0..image.len()) {
            let Some(bytes) = image.get(at..) else { break };
            if !bytes.starts_with(&SIGNATURE) {
                continue;
            }
            match Self::parse(bytes) {
                Ok(map) => return Ok(map),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or(FmapError::NotFound))
    }

    /// Reads the map that `bytes` begin with; more bytes may follow.
    pub fn parse(bytes: &[u8]) -> Result<Self, FmapError> {
        let truncated = |needed| FmapError::Truncated { needed, found: bytes.len() };
        if array(bytes, 0).ok_or(truncated(HEADER_LEN))? != SIGNATURE {
            return Err(FmapError::NotFound);
        }
        let header = slice(bytes, 0, HEADER_LEN).ok_or(truncated(HEADER_LEN))?;
        let (base, size, name, count) = Self::header(header).ok_or(truncated(HEADER_LEN))?;
        match header.get(8) {
            Some(&VERSION_MAJOR) => {}
            version => return Err(FmapError::Version(version.copied().unwrap_or(0))),
        }
        let len = usize::from(count).saturating_mul(AREA_LEN);
        let needed = HEADER_LEN.saturating_add(len);
        let records = slice(bytes, HEADER_LEN, len).ok_or(truncated(needed))?;
        let areas = records.chunks_exact(AREA_LEN).filter_map(Area::parse).collect();
        Ok(Self { base, size, name, areas })
    }

    /// All areas, as the map orders them; one that does not fit the image is among them.
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// The area called `name`, which fits the image by the map's own account.
    pub fn area(&self, name: &str) -> Result<&Area, FmapError> {
        let area = self.areas.iter().find(|area| area.name == name);
        let area = area.ok_or_else(|| FmapError::NoSuchArea(name.into()))?;
        if area.end() > u64::from(self.size) {
            return Err(FmapError::OutOfBounds { area: area.clone(), image: self.size.into() });
        }
        Ok(area)
    }

    /// The bytes of the area called `name` in `image`, which begins where the flash does.
    pub fn area_bytes<'a>(&self, image: &'a [u8], name: &str) -> Result<&'a [u8], FmapError> {
        let area = self.area(name)?;
        let out_of_bounds = || FmapError::OutOfBounds { area: area.clone(), image: image.len() as u64 };
        slice(image, area.offset as usize, area.size as usize).ok_or_else(out_of_bounds)
    }

    fn header(header: &[u8]) -> Option<(u64, u32, String, u16)> {
        let base = le_u64(header, 10)?;
        let size = le_u32(header, 18)?;
        let name = text(slice(header, 22, NAME_LEN)?);
        Some((base, size, name, le_u16(header, 54)?))
    }
}

impl Area {
    /// Where it ends, in bytes from the image's beginning.
    pub fn end(&self) -> u64 {
        u64::from(self.offset).saturating_add(self.size.into())
    }

    fn parse(record: &[u8]) -> Option<Self> {
        Some(Self {
            offset: le_u32(record, 0)?,
            size: le_u32(record, 4)?,
            name: text(slice(record, 8, NAME_LEN)?),
            flags: le_u16(record, 40)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(map: &Fmap) -> Vec<u8> {
        let padded = |name: &str| {
            let mut bytes = [0; NAME_LEN];
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            bytes
        };
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([VERSION_MAJOR, 1]);
        bytes.extend(map.base.to_le_bytes());
        bytes.extend(map.size.to_le_bytes());
        bytes.extend(padded(&map.name));
        bytes.extend((map.areas.len() as u16).to_le_bytes());
        for area in &map.areas {
            bytes.extend(area.offset.to_le_bytes());
            bytes.extend(area.size.to_le_bytes());
            bytes.extend(padded(&area.name));
            bytes.extend(area.flags.to_le_bytes());
        }
        bytes
    }

    fn area(name: &str, offset: u32, size: u32) -> Area {
        Area { name: name.into(), offset, size, flags: 0 }
    }

    fn map() -> Fmap {
        let areas =
            vec![area("BIOS", 0, 0x10000), area("COREBOOT", 0x1000, 0xf000), area("BAD", 0xf000, 0x1001)];
        Fmap { base: 0, size: 0x10000, name: "FLASH".into(), areas }
    }

    #[test]
    fn a_map_is_found_wherever_it_lies() {
        for at in [0, 0x1000, 0x123] {
            let mut image = vec![0xff; 0x10000];
            let bytes = encode(&map());
            image[at..at + bytes.len()].copy_from_slice(&bytes);
            assert_eq!(Fmap::find(&image).unwrap(), map(), "at {at:#x}");
        }
        assert_eq!(Fmap::find(&[0; 0x1000]), Err(FmapError::NotFound));
    }

    #[test]
    fn a_stray_signature_does_not_hide_the_map() {
        let mut image = vec![0; 0x10000];
        image[..8].copy_from_slice(&SIGNATURE);
        let bytes = encode(&map());
        image[0x2345..0x2345 + bytes.len()].copy_from_slice(&bytes);
        assert_eq!(Fmap::find(&image).unwrap(), map());
        image[0x2345] = 0;
        assert_eq!(Fmap::find(&image), Err(FmapError::Version(0)));
    }

    #[test]
    fn areas_are_bounds_checked() {
        let image = vec![7; 0x10000];
        assert_eq!(map().area_bytes(&image, "COREBOOT").unwrap().len(), 0xf000);
        assert_eq!(map().area("NONE"), Err(FmapError::NoSuchArea("NONE".into())));
        let error = map().area_bytes(&image, "BAD").unwrap_err().to_string();
        assert_eq!(error, "FMAP area BAD: 0x1001 bytes at 0xf000 do not fit the image of 0x10000 bytes");
        assert!(matches!(
            map().area_bytes(&image[..0x8000], "COREBOOT"),
            Err(FmapError::OutOfBounds { image: 0x8000, .. })
        ));
    }

    #[test]
    fn a_truncated_map_says_what_is_missing() {
        let bytes = encode(&map());
        for len in 8..bytes.len() {
            let error = Fmap::parse(&bytes[..len]).unwrap_err();
            assert!(matches!(error, FmapError::Truncated { found, .. } if found == len), "{error}");
        }
    }

    proptest! {
        #[test]
        fn maps_survive_a_round_trip(
            base: u64,
            size: u32,
            name in "[A-Z_]{0,32}",
            areas in proptest::collection::vec(("[A-Z_]{0,32}", any::<u32>(), any::<u32>(), any::<u16>()), 0..20),
        ) {
            let areas = areas.into_iter()
                .map(|(name, offset, size, flags)| Area { name, offset, size, flags }).collect();
            let map = Fmap { base, size, name, areas };
            prop_assert_eq!(Fmap::parse(&encode(&map)).unwrap(), map);
        }

        #[test]
        fn mutated_maps_never_panic(at in 0_usize..182, value: u8, cut in 0_usize..183) {
            let mut bytes = encode(&map());
            bytes[at] = value;
            bytes.truncate(cut.max(1));
            if let Ok(map) = Fmap::find(&bytes) {
                for area in map.areas() {
                    let _ = map.area_bytes(&bytes, &area.name);
                }
            }
        }
    }
}
