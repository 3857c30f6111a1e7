//! The root pointer that the coreboot table names: revision 2 with an XSDT, made from what QEMU's loader left.

use alloc::vec::Vec;
use core::fmt;

const RSDP_SIGNATURE: &[u8] = b"RSD PTR ";
/// Bytes of a revision-2 RSDP (ACPI 6.5, 5.2.5.3).
pub const RSDP_BYTES: usize = 36;
/// Bytes of the header that every table starts with (ACPI 6.5, 5.2.6).
const HEADER_BYTES: usize = 36;

/// Why no root pointer could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No "RSD PTR " where the RSDP should be.
    Rsdp,
    /// The table at this physical address is no RSDT or XSDT.
    Root(u64),
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AcpiError::Rsdp => write!(f, "ACPI: the emulator's RSDP has no signature"),
            AcpiError::Root(address) => write!(f, "ACPI: no RSDT or XSDT at {address:#x}"),
        }
    }
}

/// The physical address of the RSDT or XSDT that `rsdp` leads to.
pub fn root_address(rsdp: &[u8]) -> Result<u64, AcpiError> {
    if !rsdp.starts_with(RSDP_SIGNATURE) {
        return Err(AcpiError::Rsdp);
    }
    let narrow = rsdp.get(16..20).map_or(0, little_endian);
    match rsdp.get(24..32).map_or(0, little_endian) {
        0 if narrow == 0 => Err(AcpiError::Rsdp),
        0 => Ok(narrow),
        wide => Ok(wide),
    }
}

/// An XSDT with the entries of the RSDT or XSDT `root`, which lies at physical `address`.
pub fn xsdt(root: &[u8], address: u64) -> Result<Vec<u8>, AcpiError> {
    let width = match root.get(..4) {
        Some(b"RSDT") => 4,
        Some(b"XSDT") => 8,
        _ => return Err(AcpiError::Root(address)),
    };
    let length = root.get(4..8).map_or(0, little_endian) as usize;
    let header = root.get(..HEADER_BYTES).ok_or(AcpiError::Root(address))?;
    let entries = root.get(HEADER_BYTES..length).ok_or(AcpiError::Root(address))?;
    let mut table = header.to_vec();
    for entry in entries.chunks_exact(width) {
        table.extend(little_endian(entry).to_le_bytes());
    }
    let length = table.len() as u32;
    table[..4].copy_from_slice(b"XSDT");
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[8] = 1;
    table[9] = 0;
    table[9] = checksum(&table);
    Ok(table)
}

/// A revision-2 RSDP that leads to `xsdt`, with the vendor of the `old` one.
pub fn rsdp(old: &[u8], xsdt: u64) -> Result<[u8; RSDP_BYTES], AcpiError> {
    let mut rsdp = [0; RSDP_BYTES];
    let narrow = old.get(..20).ok_or(AcpiError::Rsdp)?;
    rsdp[..20].copy_from_slice(narrow);
    rsdp[8] = 0;
    rsdp[15] = 2;
    rsdp[20..24].copy_from_slice(&(RSDP_BYTES as u32).to_le_bytes());
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    Ok(rsdp)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// What makes `bytes` sum to zero when it is added.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rsdt() -> Vec<u8> {
        let mut table = vec![0; HEADER_BYTES];
        table[..8].copy_from_slice(&[b'R', b'S', b'D', b'T', 44, 0, 0, 0]);
        table.extend([0x00, 0x10, 0xE0, 0x7F, 0x00, 0x20, 0xE0, 0x7F]);
        table
    }

    #[test]
    fn an_rsdt_becomes_an_xsdt_that_sums_to_zero() {
        let table = xsdt(&rsdt(), 0).unwrap();
        assert_eq!(table.len(), HEADER_BYTES + 16);
        assert_eq!(checksum(&table), 0);
        assert_eq!(table[HEADER_BYTES..][..8], 0x7FE0_1000_u64.to_le_bytes());
        assert_eq!(table[HEADER_BYTES + 8..], 0x7FE0_2000_u64.to_le_bytes());
        assert_eq!(xsdt(&table, 0).unwrap(), table);
    }

    #[test]
    fn the_root_pointer_leads_to_the_xsdt() {
        let mut old = RSDP_SIGNATURE.to_vec();
        old.extend(*b"\0BOCHS \0\x34\x12\0\0");
        assert_eq!(root_address(&old), Ok(0x1234));
        let new = rsdp(&old, 0x7FE8_1064).unwrap();
        assert_eq!(root_address(&new), Ok(0x7FE8_1064));
        assert_eq!(checksum(&new[..20]), 0);
        assert_eq!(checksum(&new), 0);
        assert_eq!(new[15], 2);
    }

    #[test]
    fn what_is_no_table_is_refused() {
        assert_eq!(root_address(b"RSD PTR"), Err(AcpiError::Rsdp));
        assert_eq!(xsdt(b"FACP", 7), Err(AcpiError::Root(7)));
        assert_eq!(xsdt(&rsdt()[..40], 7), Err(AcpiError::Root(7)));
    }
}
