//! ext4's checksum: CRC-32C, neither inverted before nor after.

use crc::{Algorithm, Crc};

const CASTAGNOLI: Algorithm<u32> = Algorithm {
    width: 32,
    poly: 0x1edc_6f41,
    init: 0,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0x58e3_fa20,
    residue: 0,
};
static CRC: Crc<u32> = Crc::<u32>::new(&CASTAGNOLI);

/// What `sum` becomes with these bytes.
pub fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    // The crate wants a reflected start.
    let mut digest = CRC.digest_with_initial(sum.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_go_on_where_they_ended() {
        // The check value of CRC-32C, less the inversions.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(crc32c(!0, b"1234"), b"56789"), crc32c(!0, b"123456789"));
    }
}
