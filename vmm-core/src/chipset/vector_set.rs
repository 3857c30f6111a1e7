//! A local APIC's 256-bit registers: IRR, ISR and TMR.

/// A set of interrupt vectors that knows its highest member without a search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VectorSet {
    words: [u64; 4],
    /// Bit n: word n holds a member.
    occupied: u8,
}

#[expect(clippy::indexing_slicing, reason = "a vector's upper two bits, or n & 3, index four words")]
impl VectorSet {
    /// Adds `vector`.
    pub(super) fn insert(&mut self, vector: u8) {
        let word = vector >> 6;
        self.words[usize::from(word)] |= 1 << (vector & 63);
        self.occupied |= 1 << word;
    }

    /// Takes `vector` out.
    pub(super) fn remove(&mut self, vector: u8) {
        let word = vector >> 6;
        let bits = &mut self.words[usize::from(word)];
        *bits &= !(1 << (vector & 63));
        if *bits == 0 {
            self.occupied &= !(1 << word);
        }
    }

    /// Whether `vector` is a member.
    pub(super) fn contains(&self, vector: u8) -> bool {
        self.words[usize::from(vector >> 6)] & (1 << (vector & 63)) != 0
    }

    /// The highest member.
    pub(super) fn highest(&self) -> Option<u8> {
        let word = self.occupied.checked_ilog2()? as u8 & 3;
        let bit = self.words[usize::from(word)].checked_ilog2()? as u8;
        Some(word << 6 | bit)
    }

    /// Adds the members that the 32-bit register `n` (0 to 7) shows.
    pub(super) fn insert_register(&mut self, n: u32, bits: u32) {
        if bits != 0 {
            let word = n >> 1 & 3;
            self.words[word as usize] |= u64::from(bits) << ((n & 1) << 5);
            self.occupied |= 1 << word;
        }
    }

    /// A bit for each vector.
    pub(super) const fn words(&self) -> [u64; 4] {
        self.words
    }

    /// The 32-bit register `n` (0 to 7) of the eight that show the set.
    pub(super) fn register(&self, n: u32) -> u32 {
        (self.words[(n >> 1 & 3) as usize] >> ((n & 1) << 5)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), any::<u8>()), 0..200)) {
            let (mut set, mut model) = (VectorSet::default(), BTreeSet::new());
            for (add, vector) in steps {
                if add {
                    set.insert(vector);
                    model.insert(vector);
                } else {
                    set.remove(vector);
                    model.remove(&vector);
                }
                prop_assert_eq!(set.highest(), model.last().copied());
                prop_assert_eq!(set.contains(vector), add);
            }
            let mut copy = VectorSet::default();
            for n in 0..8u32 {
                let expected = model
                    .iter()
                    .filter(|&&v| u32::from(v) / 32 == n)
                    .fold(0u32, |bits, &v| bits | 1 << (v % 32));
                prop_assert_eq!(set.register(n), expected);
                copy.insert_register(n, expected);
            }
            prop_assert_eq!(copy, set);
        }
    }
}
