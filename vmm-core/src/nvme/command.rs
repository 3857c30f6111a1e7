//! What a submission queue's entry asks for, and what answers it (NVMe 1.4, 4.2 and 4.6).

/// The size of a submission queue entry in bytes.
pub(super) const ENTRY_BYTES: usize = 64;

/// A command, read once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    pub(super) opcode: u8,
    /// Its identifier, which its answer repeats.
    pub(super) id: u16,
    pub(super) namespace: u32,
    /// The two physical region pages (4.3).
    pub(super) prp: [u64; 2],
    /// Command dwords 10 to 13; no command here needs those behind.
    pub(super) words: [u32; 4],
    /// Whether it asks for what is not offered: to be one of a fused pair, or scatter-gather lists.
    odd: bool,
}

impl Command {
    /// The command in these bytes.
    pub(super) fn read(bytes: &[u8; ENTRY_BYTES]) -> Self {
        const FUSED: u32 = 0b11 << 8;
        const SCATTER_GATHER: u32 = 0b11 << 14;
        let (words, _) = bytes.as_chunks::<4>();
        let word = |n: usize| words.get(n).map_or(0, |word| u32::from_le_bytes(*word));
        let long = |n: usize| u64::from(word(n.saturating_add(1))) << 32 | u64::from(word(n));
        let first = word(0);
        Self {
            opcode: first as u8,
            id: (first >> 16) as u16,
            namespace: word(1),
            prp: [long(6), long(8)],
            words: [word(10), word(11), word(12), word(13)],
            odd: first & (FUSED | SCATTER_GATHER) != 0,
        }
    }

    /// Whether its first dword asks for nothing that is not offered.
    pub(super) fn check(&self) -> Result<(), Status> {
        if self.odd { Err(Status::INVALID_FIELD) } else { Ok(()) }
    }

    /// Dwords 10 and 11 as one number: where on the namespace.
    pub(super) fn first_block(&self) -> u64 {
        let [low, high, ..] = self.words;
        u64::from(high) << 32 | u64::from(low)
    }
}

/// How a command ended: status code, status code type, and whether trying again is of no use (4.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(u16);

impl Status {
    pub(super) const SUCCESS: Self = Self(0);
    pub(super) const INVALID_OPCODE: Self = Self::generic(0x01);
    pub(super) const INVALID_FIELD: Self = Self::generic(0x02);
    pub(super) const DATA_TRANSFER: Self = Self::generic(0x04);
    /// Trying again may help.
    pub(super) const INTERNAL: Self = Self(0x06);
    pub(super) const INVALID_NAMESPACE: Self = Self::generic(0x0b);
    pub(super) const INVALID_PRP_OFFSET: Self = Self::generic(0x13);
    pub(super) const WRITE_PROTECTED: Self = Self::generic(0x20);
    pub(super) const OUT_OF_RANGE: Self = Self::generic(0x80);
    pub(super) const CAPACITY_EXCEEDED: Self = Self::generic(0x81);
    pub(super) const INVALID_COMPLETION_QUEUE: Self = Self::specific(0x00);
    pub(super) const INVALID_QUEUE: Self = Self::specific(0x01);
    pub(super) const INVALID_QUEUE_SIZE: Self = Self::specific(0x02);
    pub(super) const TOO_MANY_EVENT_REQUESTS: Self = Self::specific(0x05);
    pub(super) const INVALID_VECTOR: Self = Self::specific(0x08);
    pub(super) const INVALID_LOG_PAGE: Self = Self::specific(0x09);
    pub(super) const INVALID_QUEUE_DELETION: Self = Self::specific(0x0c);
    pub(super) const FEATURE_NOT_SAVEABLE: Self = Self::specific(0x0d);
    pub(super) const FEATURE_NOT_CHANGEABLE: Self = Self::specific(0x0e);
    pub(super) const WRITE_FAULT: Self = Self(2 << 8 | 0x80);
    pub(super) const READ_ERROR: Self = Self(2 << 8 | 0x81);

    const DO_NOT_RETRY: u16 = 1 << 14;

    const fn generic(code: u16) -> Self {
        Self(Self::DO_NOT_RETRY | code)
    }

    const fn specific(code: u16) -> Self {
        Self(Self::DO_NOT_RETRY | 1 << 8 | code)
    }

    /// As a completion has it, above the phase tag.
    pub(super) const fn bits(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_fields_are_where_the_specification_puts_them() {
        let mut bytes = [0; ENTRY_BYTES];
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = n as u8;
        }
        (bytes[0], bytes[1]) = (0x02, 0);
        let command = Command::read(&bytes);
        assert_eq!((command.opcode, command.id, command.namespace), (0x02, 0x0302, 0x0706_0504));
        assert_eq!(command.prp, [0x1f1e_1d1c_1b1a_1918, 0x2726_2524_2322_2120]);
        assert_eq!(command.words[0], 0x2b2a_2928);
        assert_eq!(command.first_block(), 0x2f2e_2d2c_2b2a_2928);
        assert_eq!(command.check(), Ok(()));
        for odd in [0x01, 0x40, 0x80] {
            bytes[1] = odd;
            assert_eq!(Command::read(&bytes).check(), Err(Status::INVALID_FIELD));
        }
    }
}
