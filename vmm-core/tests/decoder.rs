//! The instruction decoder against iced-x86, over byte strings that look like instructions.

mod against_iced;

use vmm_core::cpu::CodeSize;

const SIZES: [CodeSize; 3] = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64];

/// SplitMix64: the same strings in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[test]
fn every_opcode_with_every_mod_rm_byte() {
    const PREFIXES: [&[u8]; 16] = [
        &[],
        &[0x66],
        &[0x67],
        &[0xf2],
        &[0xf3],
        &[0xf0],
        &[0x66, 0xf3],
        &[0x66, 0xf0],
        &[0x2e, 0x67],
        &[0x64, 0x26],
        &[0x40],
        &[0x41],
        &[0x48],
        &[0x66, 0x4f],
        &[0xf3, 0x49],
        &[0x48, 0x66],
    ];
    let tail = [0x24, 0x81, 0x92, 0xa3, 0xb4, 0xc5, 0xd6, 0xe7, 0xf8];
    for size in SIZES {
        for prefix in PREFIXES {
            for map in [&[][..], &[0x0f]] {
                for opcode in 0..=255 {
                    for mod_rm in 0..=255 {
                        let code = [prefix, map, &[opcode, mod_rm], &tail].concat();
                        against_iced::check(&code, size);
                    }
                }
            }
        }
    }
}

#[test]
fn random_strings_of_prefixes_and_bytes() {
    const PREFIXES: [u8; 16] =
        [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x48, 0x44, 0x41, 0x42, 0x4f];
    let mut random = Random(1);
    for _ in 0..1_000_000 {
        let mut code = Vec::new();
        for _ in 0..random.below(5) {
            code.push(PREFIXES[random.below(16) as usize]);
        }
        if random.below(2) == 0 {
            code.push(0x0f);
        }
        let len = random.below(15);
        code.extend((0..len).map(|_| random.next() as u8));
        against_iced::check(&code, SIZES[random.below(3) as usize]);
    }
}

#[test]
fn an_instruction_ends_where_15_bytes_end() {
    for prefixes in 0..20 {
        for len in 0..24 {
            let mut code = vec![0x2e; prefixes];
            code.extend([0x81, 0x80, 1, 2, 3, 4, 5, 6, 7, 8]);
            code.truncate(len);
            SIZES.into_iter().for_each(|size| against_iced::check(&code, size));
        }
    }
}
