//! A VHD image with any bytes, its checksums made right: what is written is read again, and nothing else changes.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use storage::testing::{RamDisk, wait};
use storage::vhd::Vhd;
use storage::{BlockDevice, Buffer};

/// Corrects the sum at `place` of the `len` bytes at `start`.
fn correct(bytes: &mut [u8], start: usize, len: usize, place: usize) {
    let Some(part) = bytes.get_mut(start..start + len) else { return };
    part[place..place + 4].fill(0);
    let sum = !part.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    part[place..place + 4].copy_from_slice(&sum.to_be_bytes());
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    bytes.resize(128 << 10, 0);
    correct(&mut bytes, 0, 512, 64);
    correct(&mut bytes, 512, 1024, 36);
    let file = Arc::new(RamDisk::new(512, bytes));
    let Ok(vhd) = wait(Vhd::open(file, None)) else { return };
    let read = |at: u64| {
        let sector = Buffer::zeroed(512);
        wait(vhd.read(at, sector.clone())).map(|()| sector.to_vec())
    };
    let sectors = vhd.geometry().blocks;
    for (place, value) in data.chunks_exact(3).take(8).map(|op| (u16::from_le_bytes([op[0], op[1]]), op[2])) {
        let at = u64::from(place).checked_rem(sectors).unwrap_or(0) * 512;
        let neighbour = (at / 512 + 1).checked_rem(sectors).unwrap_or(0) * 512;
        let before = read(neighbour);
        if wait(vhd.write(at, Buffer::holding(&[value; 512]))).is_err() {
            continue;
        }
        assert_eq!(read(at), Ok(vec![value; 512]));
        if neighbour != at {
            assert_eq!(read(neighbour), before);
        }
    }
});
