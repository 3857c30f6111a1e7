//! What a disk says of itself (ATA Command Set 4, 7.12.7).

use crate::driver::Error;
use alloc::string::String;

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// How many blocks it has.
    pub blocks: u64,
    /// The size of a logical block in bytes: 512 or 4096.
    pub block_size: u32,
    /// It has the commands with 48 bits.
    pub lba48: bool,
    /// How many queued commands can be under way; 0 where it has none.
    pub queue: u8,
    /// It has a write cache that is on, or cannot say.
    pub volatile_cache: bool,
    /// It has the command that says which blocks nobody needs.
    pub trims: bool,
}

impl Identity {
    /// The size of its answer.
    pub const SIZE: usize = 512;

    /// Reads its answer.
    ///
    /// # Errors
    /// It is no disk, cannot do DMA or number blocks, or has blocks of another size.
    pub fn read(bytes: &[u8; Self::SIZE]) -> Result<Self, Error> {
        let word = |n: usize| match bytes.get(n.saturating_mul(2)..).and_then(<[u8]>::first_chunk) {
            Some(bytes) => u16::from_le_bytes(*bytes),
            None => 0,
        };
        let wide = |n: usize| u32::from(word(n)) | u32::from(word(n.saturating_add(1))) << 16;
        let bit = |n: usize, bit: u16| word(n) >> bit & 1 == 1;
        // Words that were added later are valid where their upper bits are 01.
        let valid = |n: usize| word(n) >> 14 == 0b01;
        if bit(0, 15) {
            return Err(Error::Unusable("it is no ATA disk"));
        }
        if !bit(49, 9) || !bit(49, 8) {
            return Err(Error::Unusable("it has no DMA, or does not number its blocks"));
        }
        let lba48 = valid(83) && bit(83, 10);
        let blocks = if lba48 {
            u64::from(wide(100)) | u64::from(wide(102) & 0xffff) << 32
        } else {
            u64::from(wide(60) & 0x0fff_ffff)
        };
        let block_size = match (valid(106) && bit(106, 12)).then(|| wide(117)) {
            None | Some(256) => 512,
            Some(2048) => 4096,
            Some(_) => return Err(Error::Unusable("its blocks are neither of 512 nor of 4096 bytes")),
        };
        if blocks == 0 {
            return Err(Error::Unusable("it has no blocks"));
        }
        Ok(Self {
            model: text(bytes, 27..47),
            serial: text(bytes, 10..20),
            blocks,
            block_size,
            lba48,
            queue: if lba48 && word(76) != 0xffff && bit(76, 8) {
                (word(75) as u8 & 0x1f).saturating_add(1)
            } else {
                0
            },
            volatile_cache: !valid(83) || bit(85, 5),
            trims: lba48 && bit(169, 0),
        })
    }
}

/// Printable ASCII in words, whose upper bytes come first, without padding.
fn text(bytes: &[u8], words: core::ops::Range<usize>) -> String {
    let mut text = String::new();
    for n in words {
        let at = n.saturating_mul(2);
        for at in [at.saturating_add(1), at] {
            text.extend(bytes.get(at).map(|byte| char::from(*byte)).filter(|c| matches!(c, ' '..='~')));
        }
    }
    text.trim().into()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What a disk with these properties answers.
    pub fn answer(identity: &Identity) -> [u8; Identity::SIZE] {
        let mut words = [0_u16; 256];
        let mut spell = |from: usize, len: usize, text: &str| {
            let text: Vec<u8> = text.bytes().chain(std::iter::repeat(b' ')).take(len * 2).collect();
            for (n, pair) in text.chunks(2).enumerate() {
                words[from + n] = u16::from_be_bytes([pair[0], pair[1]]);
            }
        };
        spell(10, 10, &identity.serial);
        spell(27, 20, &identity.model);
        words[49] = 1 << 8 | 1 << 9;
        let low = identity.blocks.min(0x0fff_ffff);
        (words[60], words[61]) = (low as u16, (low >> 16) as u16);
        words[75] = u16::from(identity.queue.saturating_sub(1));
        words[76] = u16::from(identity.queue > 0) << 8;
        words[83] = 1 << 14 | u16::from(identity.lba48) << 10;
        words[85] = u16::from(identity.volatile_cache) << 5;
        if identity.lba48 {
            for n in 0..4 {
                words[100 + n] = (identity.blocks >> (16 * n)) as u16;
            }
        }
        if identity.block_size != 512 {
            words[106] = 1 << 14 | 1 << 12;
            words[117] = (identity.block_size / 2) as u16;
        }
        words[169] = u16::from(identity.trims);
        let mut bytes = [0; Identity::SIZE];
        for (n, word) in words.iter().enumerate() {
            bytes[n * 2..n * 2 + 2].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// A disk with everything.
    pub fn modern(blocks: u64, block_size: u32) -> Identity {
        Identity {
            model: "A model".into(),
            serial: "SER1AL".into(),
            blocks,
            block_size,
            lba48: true,
            queue: 32,
            volatile_cache: true,
            trims: true,
        }
    }

    /// One from before the turn of the century.
    pub fn old(blocks: u64) -> Identity {
        Identity { lba48: false, queue: 0, trims: false, ..modern(blocks, 512) }
    }

    #[test]
    fn a_disk_says_what_it_can() {
        for identity in [
            modern(0x1_2345_6789, 512),
            modern(7, 4096),
            old(0x0fff_ffff),
            Identity { volatile_cache: false, queue: 1, ..modern(1, 512) },
        ] {
            assert_eq!(Identity::read(&answer(&identity)), Ok(identity));
        }
    }

    #[test]
    fn what_is_no_use_is_refused() {
        let refused = |change: &dyn Fn(&mut [u8; 512])| {
            let mut bytes = answer(&modern(8, 512));
            change(&mut bytes);
            assert!(matches!(Identity::read(&bytes), Err(Error::Unusable(_))));
        };
        refused(&|bytes| bytes[1] = 0x80);
        refused(&|bytes| bytes[99] = 1 << 1);
        refused(&|bytes| bytes[200] = 0);
        refused(&|bytes| (bytes[213], bytes[235]) = (0x50, 2));
        refused(&|bytes| bytes.fill(0xff));
        refused(&|bytes| bytes.fill(0));
    }
}
