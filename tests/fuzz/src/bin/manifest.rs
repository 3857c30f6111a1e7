//! Guest manifests: arbitrary bytes, and arbitrary structure and strings behind a right header.
#![no_main]

use coreboot_config::manifest::{Boot, DiskSource, MAX_CPUS, MIN_MEMORY, Manifest};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    look_at(data);
    if let [strings_len, rest @ ..] = data {
        let strings_at = rest.len().saturating_sub(4 * usize::from(*strings_len));
        let (structure, strings) = rest.split_at(strings_at);
        look_at(&blob(structure, strings));
    }
});

fn look_at(blob: &[u8]) {
    let manifest = match Manifest::parse(blob) {
        Ok(manifest) => manifest,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut names = Vec::new();
    for guest in manifest.guests {
        match guest {
            Ok(guest) => {
                assert!(guest.memory >= MIN_MEMORY && guest.memory % 4096 == 0);
                assert!((1..=MAX_CPUS).contains(&guest.cpus));
                match guest.boot {
                    Boot::Files(_) => assert!(guest.files().count() >= 1),
                    Boot::Disk(_) => assert!(!guest.disks.is_empty()),
                }
                for disk in &guest.disks {
                    assert_eq!(DiskSource::parse(&disk.source.to_string()).as_ref(), Some(&disk.source));
                }
                assert!(!names.contains(&guest.name));
                names.push(guest.name);
            }
            Err(error) => assert!(error.to_string().starts_with("manifest: node /")),
        }
    }
    for warning in manifest.warnings {
        assert!(warning.to_string().starts_with("manifest: node /"));
    }
}

fn blob(structure: &[u8], strings: &[u8]) -> Vec<u8> {
    const HEADER_LEN: usize = 40;
    let strings_at = HEADER_LEN + structure.len();
    let total = strings_at + strings.len();
    let header =
        [0xd00d_feed, total, HEADER_LEN, strings_at, HEADER_LEN, 17, 16, 0, strings.len(), structure.len()];
    let header = header.into_iter().flat_map(|word| (word as u32).to_be_bytes()).collect::<Vec<u8>>();
    [&header, structure, strings].concat()
}
