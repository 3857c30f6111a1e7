//! Memory type range registers (SDM 12.11). A guest may set them as it likes: under nested paging its memory
//! is write-back and its devices answer at each access, whatever they say.

/// MTRRcap: eight variable ranges, fixed ranges, write-combining.
pub const CAPABILITIES: u64 = VARIABLE_RANGES as u64 | (1 << 8) | (1 << 10);
const VARIABLE_RANGES: usize = 8;
const WRITE_BACK: u64 = 6;
const WRITE_PROTECTED: u64 = 5;
/// MTRRdefType: enabled, fixed ranges enabled, default write-back.
const DEFAULT_TYPE: u64 = (1 << 11) | (1 << 10) | WRITE_BACK;
/// The bits of MTRRdefType that are not reserved.
const DEFAULT_TYPE_BITS: u64 = 0xcff;

/// One vCPU's registers, as firmware would have left them: RAM write-back, the PCI hole uncacheable.
#[derive(Clone, Debug)]
pub struct Mtrrs {
    default_type: u64,
    fixed: [u64; 11],
    base_and_mask: [u64; VARIABLE_RANGES * 2],
}

/// Eight times the same memory type.
const fn eight(kind: u64) -> u64 {
    kind.wrapping_mul(0x0101_0101_0101_0101)
}

impl Mtrrs {
    /// For a guest whose physical addresses have `address_bits` bits, 32 to 52, and whose PCI hole is the
    /// GiB below 4 GiB.
    pub fn new(address_bits: u8) -> Self {
        let all = 1_u64.checked_shl(u32::from(address_bits)).unwrap_or(0).wrapping_sub(1);
        let mut base_and_mask = [0; VARIABLE_RANGES * 2];
        let [base, mask, ..] = &mut base_and_mask;
        const HOLE: u64 = 0xc000_0000;
        const VALID: u64 = 1 << 11;
        *base = HOLE;
        *mask = all & !(0x4000_0000 - 1) | VALID;
        let (ram, hole, rom) = (eight(WRITE_BACK), 0, eight(WRITE_PROTECTED));
        // 0 to 512 KiB, to 640 KiB, the VGA hole, then eight times 32 KiB of option ROMs and BIOS.
        let fixed = [ram, ram, hole, rom, rom, rom, rom, rom, rom, rom, rom];
        Self { default_type: DEFAULT_TYPE, fixed, base_and_mask }
    }

    /// The register at this index, if it is one of these.
    pub fn read(&self, index: u32) -> Option<u64> {
        match index {
            0xfe => Some(CAPABILITIES),
            0x2ff => Some(self.default_type),
            _ => self.slot(index).copied(),
        }
    }

    /// Writes the register at this index; `None` when it is none of these, or the value is not allowed (#GP).
    pub fn write(&mut self, index: u32, value: u64) -> Option<()> {
        match index {
            0x2ff => {
                let allowed = value & !DEFAULT_TYPE_BITS == 0 && is_memory_type(value & 0xff);
                self.default_type = allowed.then_some(value)?;
            }
            _ => {
                let fixed = !(0x200..=0x20f).contains(&index);
                let types_are_valid = if fixed {
                    value.to_le_bytes().iter().all(|kind| is_memory_type(u64::from(*kind)))
                } else {
                    true
                };
                let slot = match place_of(index)? {
                    Place::Fixed(slot) => self.fixed.get_mut(slot)?,
                    Place::Variable(slot) => self.base_and_mask.get_mut(slot)?,
                };
                *slot = types_are_valid.then_some(value)?;
            }
        }
        Some(())
    }

    fn slot(&self, index: u32) -> Option<&u64> {
        match place_of(index)? {
            Place::Fixed(slot) => self.fixed.get(slot),
            Place::Variable(slot) => self.base_and_mask.get(slot),
        }
    }
}

enum Place {
    Fixed(usize),
    Variable(usize),
}

const fn place_of(index: u32) -> Option<Place> {
    Some(match index {
        0x200..=0x20f => Place::Variable((index & 0xf) as usize),
        0x250 => Place::Fixed(0),
        0x258 => Place::Fixed(1),
        0x259 => Place::Fixed(2),
        0x268..=0x26f => Place::Fixed((index & 7).saturating_add(3) as usize),
        _ => return None,
    })
}

/// Uncacheable, write-combining, write-through, write-protected, write-back (SDM table 12-9).
const fn is_memory_type(kind: u64) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_keep_what_is_written() {
        let mut mtrrs = Mtrrs::new(40);
        assert_eq!(mtrrs.read(0x201), Some(0xff_c000_0800));
        assert_eq!(mtrrs.read(0x259), Some(0));
        for index in (0x200..=0x20f).chain([0x250, 0x258, 0x259]).chain(0x268..=0x26f) {
            mtrrs.write(index, 0x0606_0606_0606_0606).unwrap();
            assert_eq!(mtrrs.read(index), Some(0x0606_0606_0606_0606), "{index:#x}");
        }
        assert_eq!(mtrrs.write(0x2ff, 0xc02), None, "type 2 is reserved");
        assert_eq!(mtrrs.write(0x250, 7), None);
        assert_eq!(mtrrs.write(0xfe, 0), None);
        assert_eq!(mtrrs.read(0x251), None);
    }
}
