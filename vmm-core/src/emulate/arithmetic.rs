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
