//! FMAP in arbitrary bytes.
#![no_main]

use coreboot_config::fmap::Fmap;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(map) = Fmap::find(data) {
        for area in map.areas() {
            if let Ok(bytes) = map.area_bytes(data, &area.name) {
                assert!(bytes.len() <= data.len());
            }
        }
    }
});
