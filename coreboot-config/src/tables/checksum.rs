//! The checksum of the Internet Protocol (RFC 1071), which guards coreboot tables.

/// The ones' complement of the ones' complement sum of all little-endian 16-bit words; a last odd byte counts
/// as a word's low half.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    let rest = rest.first().map(|byte| u16::from(*byte));
    let words = words.iter().map(|word| u16::from_le_bytes(*word)).chain(rest);
    let sum = words.fold(0_u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum.wrapping_add(u16::from(carry))
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_as_rfc_1071_does() {
        // The example of RFC 1071, section 3, whose words are big-endian.
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_checksum(&example).swap_bytes(), !0xddf2);
        assert_eq!(internet_checksum(&[]), 0xffff);
        assert_eq!(internet_checksum(&[0x12]), !0x12);
        assert_eq!(internet_checksum(&[0xff; 7]), !0x00ff);
    }
}
