//! What a device says that it is (virtio 1.2, 5.2.3 and 5.2.4).

use crate::driver::Error;
use crate::platform::Registers;
use bitflags::bitflags;
use storage::Geometry;

bitflags! {
    /// What block devices can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct BlockFeature: u64 {
        /// It says how large a piece of memory may be.
        const SIZE_MAX = 1 << 1;
        /// It says how many pieces a request may have.
        const SEG_MAX = 1 << 2;
        /// It cannot be written.
        const RO = 1 << 5;
        /// It says how large its blocks are.
        const BLK_SIZE = 1 << 6;
        /// It has a cache that can be flushed.
        const FLUSH = 1 << 9;
        /// It may have several queues.
        const MQ = 1 << 12;
        /// It discards.
        const DISCARD = 1 << 13;
        /// It makes blocks zero.
        const WRITE_ZEROES = 1 << 14;

        /// All that we use.
        const WANTED = Self::SIZE_MAX.bits() | Self::SEG_MAX.bits() | Self::RO.bits() | Self::BLK_SIZE.bits()
            | Self::FLUSH.bits() | Self::MQ.bits() | Self::DISCARD.bits() | Self::WRITE_ZEROES.bits();
    }
}

/// The unit of places and sizes, whatever the size of blocks, in bytes.
pub const SECTOR: u64 = 512;

/// What the device says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// In sectors.
    capacity: u64,
    block_size: u32,
    read_only: bool,
    /// The longest piece of memory, in bytes.
    pub longest: u32,
    /// The most pieces of memory in a request.
    pub pieces: u32,
    /// How many queues it has.
    pub queues: u16,
    /// The most bytes that a request discards; 0 where it does not.
    pub discard: u64,
    /// The most bytes that a request makes zero; 0 where it does not.
    pub zeroes: u64,
}

impl Configuration {
    /// Reads the device's registers, as far as `features` say that there are some.
    pub fn read(registers: &dyn Registers, features: u64) -> Self {
        let features = BlockFeature::from_bits_truncate(features);
        let if_has = |feature, offset| features.contains(feature).then(|| registers.read_u32(offset));
        // A request's range counts sectors in 32 bits; whole blocks of 4096 bytes are to fit.
        let range =
            |feature, offset| u64::from(if_has(feature, offset).unwrap_or(0) & !7).saturating_mul(SECTOR);
        let capacity = u64::from(registers.read_u32(0)) | u64::from(registers.read_u32(4)) << 32;
        Self {
            capacity,
            block_size: if_has(BlockFeature::BLK_SIZE, 20).unwrap_or(SECTOR as u32),
            read_only: features.contains(BlockFeature::RO),
            longest: if_has(BlockFeature::SIZE_MAX, 8).filter(|size| *size > 0).unwrap_or(u32::MAX),
            pieces: if_has(BlockFeature::SEG_MAX, 12).filter(|count| *count > 0).unwrap_or(1),
            queues: if features.contains(BlockFeature::MQ) { registers.read_u16(34) } else { 1 },
            discard: range(BlockFeature::DISCARD, 36),
            zeroes: range(BlockFeature::WRITE_ZEROES, 48),
        }
    }

    /// What the disk looks like.
    ///
    /// # Errors
    /// Its blocks have a size that disks do not have.
    pub fn geometry(&self) -> Result<Geometry, Error> {
        if self.block_size != 512 && self.block_size != 4096 {
            return Err(Error::Unusable("its blocks have neither 512 nor 4096 bytes"));
        }
        // Half a block at the end is none; and places in bytes have 64 bits.
        let sectors = self.capacity.min(u64::MAX / SECTOR);
        let a_block = u64::from(self.block_size).checked_div(SECTOR).unwrap_or(1);
        Ok(Geometry {
            block_size: self.block_size,
            blocks: sectors.checked_div(a_block).unwrap_or(0),
            read_only: self.read_only,
            discards: self.discard > 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::RegisterFile;

    #[test]
    fn what_a_feature_does_not_promise_is_not_read() {
        let registers = RegisterFile::new(60);
        (0..15).for_each(|word| registers.write_u32(word * 4, 0x0101_0101 * (word as u32 + 1)));
        let plain = Configuration::read(&*registers, 0);
        let (queues, discard, zeroes) = (1, 0, 0);
        let capacity = 0x0202_0202_0101_0101;
        let expected = Configuration {
            capacity,
            block_size: 512,
            read_only: false,
            longest: u32::MAX,
            pieces: 1,
            queues,
            discard,
            zeroes,
        };
        assert_eq!(plain, expected);
        let all = Configuration::read(&*registers, u64::MAX);
        assert_eq!((all.longest, all.pieces, all.block_size), (0x0303_0303, 0x0404_0404, 0x0606_0606));
        assert_eq!((all.queues, all.discard, all.zeroes), (0x0909, 0x0a0a_0a08 * 512, 0x0d0d_0d08 * 512));
        assert!(all.read_only && all.geometry().is_err());
    }

    #[test]
    fn half_a_block_is_none() {
        let registers = RegisterFile::new(60);
        registers.write_u32(0, 23);
        registers.write_u32(20, 4096);
        let geometry = Configuration::read(&*registers, u64::MAX).geometry().unwrap();
        assert_eq!((geometry.block_size, geometry.blocks), (4096, 2));
        registers.write_u32(4, u32::MAX);
        let huge = Configuration::read(&*registers, u64::MAX).geometry().unwrap();
        assert_eq!(huge.size(), huge.blocks * 4096, "all places have 64 bits");
    }
}
