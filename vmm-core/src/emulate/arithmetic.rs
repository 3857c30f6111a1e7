//! Results and flags of the arithmetic instructions, as pure functions (SDM volume 1, appendix A).

use super::instruction::Arithmetic;
use crate::cpu::{Width, rflags};

/// The flags that arithmetic sets.
pub(super) const STATUS: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

/// A result, cut to its width, and the status flags; no other flag is set in `flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub value: u64,
    pub flags: u64,
}

/// `left` and `right` by `operation`, with the carry of `flags` where it counts. CMP's value is the
/// difference, which the caller drops.
pub(super) fn arithmetic(operation: Arithmetic, width: Width, left: u64, right: u64, flags: u64) -> Outcome {
    let carry = flags & rflags::CF;
    match operation {
        Arithmetic::Add => add(width, left, right, 0),
        Arithmetic::Adc => add(width, left, right, carry),
        Arithmetic::Sub | Arithmetic::Cmp => subtract(width, left, right, 0),
        Arithmetic::Sbb => subtract(width, left, right, carry),
        Arithmetic::And => logic(width, left & right),
        Arithmetic::Or => logic(width, left | right),
        Arithmetic::Xor => logic(width, left ^ right),
    }
}

/// `left` + `right` + `carry`, which is 0 or 1.
pub(super) fn add(width: Width, left: u64, right: u64, carry: u64) -> Outcome {
    let sum = left.wrapping_add(right).wrapping_add(carry);
    let carries = left & right | (left | right) & !sum;
    let overflows = (left ^ sum) & (right ^ sum);
    outcome(width, sum, left ^ right ^ sum, carries, overflows)
}

/// `left` - `right` - `borrow`, which is 0 or 1.
pub(super) fn subtract(width: Width, left: u64, right: u64, borrow: u64) -> Outcome {
    let difference = left.wrapping_sub(right).wrapping_sub(borrow);
    let borrows = !left & right | (!left | right) & difference;
    let overflows = (left ^ right) & (left ^ difference);
    outcome(width, difference, left ^ right ^ difference, borrows, overflows)
}

/// A bitwise result: CF and OF are clear, and AF, which the manual leaves open.
pub(super) fn logic(width: Width, value: u64) -> Outcome {
    outcome(width, value, 0, 0, 0)
}

/// INC and DEC: CF stays as it is in `flags`.
pub(super) fn keeping_carry(outcome: Outcome, flags: u64) -> Outcome {
    Outcome { flags: outcome.flags & !rflags::CF | flags & rflags::CF, ..outcome }
}

/// `half` has in bit 4 the carry out of bit 3; `carries` and `overflows` have in the sign bit what CF and OF
/// become.
fn outcome(width: Width, value: u64, half: u64, carries: u64, overflows: u64) -> Outcome {
    let value = value & width.mask();
    let sign = 1_u64.wrapping_shl(width.bits().wrapping_sub(1));
    let mut flags = half & rflags::AF;
    for (set, flag) in [
        (carries & sign != 0, rflags::CF),
        ((value as u8).count_ones() & 1 == 0, rflags::PF),
        (value == 0, rflags::ZF),
        (value & sign != 0, rflags::SF),
        (overflows & sign != 0, rflags::OF),
    ] {
        if set {
            flags |= flag;
        }
    }
    Outcome { value, flags }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

    /// The flags from the definition of each, by arithmetic wide enough to lose nothing: `unsigned` and
    /// `signed` are the exact results, `half` that of the low four bits alone.
    fn defined(width: Width, unsigned: i128, signed: i128, half: i128) -> Outcome {
        let value = (unsigned as u64) & width.mask();
        let limit = 1_i128 << (width.bits() - 1);
        let ones = (0..8).filter(|bit| value >> bit & 1 == 1).count();
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let flags = flag(!(0..2 * limit).contains(&unsigned), rflags::CF)
            | flag(!(-limit..limit).contains(&signed), rflags::OF)
            | flag(!(0..16).contains(&half), rflags::AF)
            | flag(value == 0, rflags::ZF)
            | flag(i128::from(value) >= limit, rflags::SF)
            | flag(ones % 2 == 0, rflags::PF);
        Outcome { value, flags }
    }

    fn signed(width: Width, value: u64) -> i128 {
        let value = i128::from(value);
        if value >> (width.bits() - 1) == 0 { value } else { value - (1_i128 << width.bits()) }
    }

    /// Numbers of every size, with many near the ends of each width.
    fn operand() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            (0_u32..64, -2_i64..3).prop_map(|(bit, add)| (1_u64 << bit).wrapping_add(add as u64))
        ]
    }

    proptest! {
        #[test]
        fn sums_and_differences_have_the_flags_of_their_definition(
            left in operand(), right in operand(), flags in any::<u64>(), which in 0..4_usize, number in 0..8_u8
        ) {
            let width = WIDTHS[which];
            let operation = Arithmetic::from_number(number);
            let (left, right) = (left & width.mask(), right & width.mask());
            let carry = match operation {
                Arithmetic::Adc | Arithmetic::Sbb => i128::from(flags & 1),
                _ => 0,
            };
            let (l, r) = (i128::from(left), i128::from(right));
            let (sl, sr) = (signed(width, left), signed(width, right));
            let expected = match operation {
                Arithmetic::Add | Arithmetic::Adc => {
                    defined(width, l + r + carry, sl + sr + carry, l % 16 + r % 16 + carry)
                }
                Arithmetic::Sub | Arithmetic::Sbb | Arithmetic::Cmp => {
                    defined(width, l - r - carry, sl - sr - carry, l % 16 - r % 16 - carry)
                }
                Arithmetic::And => defined(width, l & r, 0, 0),
                Arithmetic::Or => defined(width, l | r, 0, 0),
                Arithmetic::Xor => defined(width, l ^ r, 0, 0),
            };
            prop_assert_eq!(arithmetic(operation, width, left, right, flags), expected);
        }
    }

    #[test]
    fn increments_leave_the_carry() {
        let outcome = keeping_carry(add(Width::Byte, 0xff, 1, 0), 0);
        assert_eq!(outcome, Outcome { value: 0, flags: rflags::AF | rflags::PF | rflags::ZF });
        assert_eq!(keeping_carry(subtract(Width::Word, 1, 1, 0), rflags::CF).flags & rflags::CF, rflags::CF);
    }
}
