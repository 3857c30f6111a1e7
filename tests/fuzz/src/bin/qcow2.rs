//! A qcow2 image with any bytes: what is written is read again, also after it was opened anew, and nothing else
//! changes.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use storage::qcow2::Qcow2;
use storage::testing::{RamDisk, wait};
use storage::{BlockDevice, BlockError, Buffer};

fn read(image: &Qcow2, at: u64) -> Result<Vec<u8>, BlockError> {
    let sector = Buffer::zeroed(512);
    wait(image.read(at, sector.clone())).map(|()| sector.to_vec())
}

fuzz_target!(|data: &[u8]| {
    let Some((operations, content)) = data.split_at_checked(48) else { return };
    let mut bytes = content.to_vec();
    bytes.resize(192 << 10, 0);
    let backing: Arc<dyn BlockDevice> = Arc::new(RamDisk::new(512, vec![0xbb; 64 << 10]));
    let sealed = Arc::new(RamDisk::new(512, bytes.clone()).sealed());
    // Whatever is wrong, reading alone comes to an end.
    if let Ok(image) = wait(Qcow2::open(sealed, Some(Arc::clone(&backing)))) {
        for at in [0, 512, 65536] {
            let _ = read(&image, at);
        }
    }
    let file = Arc::new(RamDisk::new(512, bytes));
    let Ok(image) = wait(Qcow2::open(Arc::clone(&file) as Arc<dyn BlockDevice>, Some(Arc::clone(&backing))))
    else {
        return;
    };
    let sectors = image.geometry().blocks;
    let mut written = Vec::new();
    for op in operations.chunks_exact(4) {
        let place = u64::from(u16::from_le_bytes([op[0], op[1]]));
        let at = place.checked_rem(sectors).unwrap_or(0) * 512;
        let neighbour = (at / 512 + 1).checked_rem(sectors).unwrap_or(0) * 512;
        let before = read(&image, neighbour);
        let (done, expected) = match op[2] % 4 {
            0 => (wait(image.write_zeroes(at, 512)), 0),
            1 => (wait(image.discard(at, 512)), 0),
            _ => (wait(image.write(at, Buffer::holding(&[op[3]; 512]))), op[3]),
        };
        if done.is_err() {
            continue;
        }
        if op[2] % 4 != 1 {
            assert_eq!(read(&image, at), Ok(vec![expected; 512]));
            written.retain(|(known, _)| *known != at);
            written.push((at, expected));
        } else {
            written.retain(|(known, _)| *known != at);
        }
        if neighbour != at {
            assert_eq!(read(&image, neighbour), before);
        }
    }
    if wait(image.flush()).is_ok() {
        drop(image);
        let again = wait(Qcow2::open(file, Some(backing))).expect("an image that was written");
        assert_eq!(again.repaired().uncounted, 0);
        for (at, value) in written {
            assert_eq!(read(&again, at), Ok(vec![value; 512]));
        }
    }
});
