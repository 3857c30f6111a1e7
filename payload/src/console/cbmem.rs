//! coreboot's log in CBMEM, which ours continues, so that `cbmem -c` shows both.

use crate::host::lock::Lock;
use crate::host::memory::Range;
use crate::host::mmio::Mmio;
use crate::host::paging::{Cache, DeviceError, map_device};
use crate::log;
use coreboot_config::cbmem_console::{CURSOR_OFFSET, HEADER_LEN, Header};
use spin::Once;

static CONSOLE: Once<Lock<Console>> = Once::new();

struct Console {
    memory: Mmio,
    header: Header,
}

struct LogLines;

impl log::Sink for LogLines {
    fn wants_details(&self) -> bool {
        true
    }

    fn write(&self, text: &str) {
        let Some(mut console) = CONSOLE.get().and_then(Lock::lock) else { return };
        for piece in console.header.append(text.as_bytes()) {
            for (offset, byte) in (piece.offset..).zip(piece.bytes) {
                console.memory.write_u8(offset, *byte);
            }
        }
        console.memory.write_u32(CURSOR_OFFSET, console.header.cursor());
    }
}

/// Continues the console at `address`; whether there is one.
pub fn start(address: u64) -> Result<bool, DeviceError> {
    let header = map_device(Range::with_len(address, HEADER_LEN as u64), Cache::WriteBack)?;
    let Some(header) = Header::decode(&header.read_bytes::<HEADER_LEN>(0)) else { return Ok(false) };
    let len = HEADER_LEN as u64 + u64::from(header.size());
    let memory = map_device(Range::with_len(address, len), Cache::WriteBack)?;
    CONSOLE.call_once(|| Lock::new(Console { memory, header }));
    Ok(log::attach(&LogLines))
}
