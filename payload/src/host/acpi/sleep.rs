//! How to power off: the `\_S5` package of the DSDT.
//!
//! AML is not interpreted: `Name (_S5, Package () {…})` is looked for by its bytes (ACPI 6.5, 20.2), which is
//! how every known firmware encodes it.

use super::bytes::Bytes;

const NAME_OP: u8 = 0x08;
const PACKAGE_OP: u8 = 0x12;
const ZERO_OP: u8 = 0x00;
const ONE_OP: u8 = 0x01;
const BYTE_PREFIX: u8 = 0x0a;

/// SLP_TYP values of a sleep state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepType {
    /// For PM1a_CNT.
    pub pm1a: u8,
    /// For PM1b_CNT.
    pub pm1b: u8,
}

/// The values that power the machine off.
pub fn soft_off(dsdt: &[u8]) -> Option<SleepType> {
    let names = dsdt.windows(4).enumerate().filter(|(_, window)| *window == b"_S5_");
    names.map(|(at, _)| at).find_map(|at| {
        let before = dsdt.get(..at)?.strip_suffix(b"\\").or(dsdt.get(..at))?;
        if before.last() != Some(&NAME_OP) {
            return None;
        }
        package(dsdt.get(at.checked_add(4)?..)?)
    })
}

/// The first two numbers of the package that `bytes` begins with; a package of one has both the same.
fn package(bytes: &[u8]) -> Option<SleepType> {
    if bytes.u8_at(0)? != PACKAGE_OP {
        return None;
    }
    // The top two bits of the length's first byte count its further bytes; the element count follows.
    let length_bytes = usize::from(bytes.u8_at(1)? >> 6).checked_add(1)?;
    let elements = bytes.get(length_bytes.checked_add(2)?..)?;
    let (pm1a, rest) = number(elements)?;
    let pm1b = number(rest).map_or(pm1a, |(value, _)| value);
    Some(SleepType { pm1a, pm1b })
}

fn number(bytes: &[u8]) -> Option<(u8, &[u8])> {
    match bytes.split_first()? {
        (&BYTE_PREFIX, rest) => rest.split_first().map(|(value, rest)| (*value, rest)),
        (&ZERO_OP, rest) => Some((0, rest)),
        (&ONE_OP, rest) => Some((1, rest)),
        _ => None,
    }
}
