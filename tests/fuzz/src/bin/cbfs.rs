//! CBFS and what lies in it: files, attributes, compressed streams, payloads.
#![no_main]

use coreboot_config::{
    cbfs::{Cbfs, Compression},
    selfboot::Payload,
};

const LIMIT: usize = 64 << 10;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    look_at(Cbfs::new(data));
    if let Ok(cbfs) = Cbfs::in_image(data) {
        look_at(cbfs);
    }
    load(data);
    // The streams alone, which a file system around them would only hide from the fuzzer.
    if let [number, stream @ ..] = data {
        let mut output = vec![0; LIMIT];
        if let Ok(len) = Compression::from_number((number % 4).into()).decompress(stream, &mut output) {
            assert!(len <= LIMIT);
        }
    }
});

fn look_at(cbfs: Cbfs) {
    for file in cbfs.files() {
        match file {
            Ok(file) => {
                assert!(cbfs.find(file.name).is_ok() || cbfs.files().any(|file| file.is_err()));
                if let Ok(contents) = file.contents(LIMIT) {
                    assert!(contents.len() <= LIMIT);
                    load(&contents);
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn load(bytes: &[u8]) {
    let Ok(payload) = Payload::parse(bytes) else { return };
    for segment in payload.segments() {
        let mut memory = vec![0; (segment.memory_len as usize).min(LIMIT)];
        let _ = segment.compression.decompress(segment.data, &mut memory);
    }
}
