//! Tables that a real coreboot wrote, dumped from QEMU q35, read in place beside the project.

use std::{
    fs,
    path::{Path, PathBuf},
};

use coreboot_config::{
    PhysicalMemory, Unreadable,
    tables::{CbmemEntry, ConsoleKind, CorebootTable, MemoryKind, SerialKind, StringTag, TableBuilder},
};

struct Dump(Vec<(u64, Vec<u8>)>);

impl Dump {
    /// All files of the folder whose name says at which physical address their bytes were.
    fn load(folder: &Path) -> Self {
        let pieces = fs::read_dir(folder).unwrap().filter_map(|entry| {
            let path = entry.unwrap().path();
            let (_, address) = path.file_stem()?.to_str()?.rsplit_once("-at-0x")?;
            Some((u64::from_str_radix(address, 16).unwrap(), fs::read(&path).unwrap()))
        });
        Self(pieces.collect())
    }
}

impl PhysicalMemory for Dump {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let len = buffer.len();
        let found = self.0.iter().find_map(|(start, bytes)| {
            let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
            bytes.get(offset..offset.checked_add(len)?)
        });
        buffer.copy_from_slice(found.ok_or(Unreadable { address, len })?);
        Ok(())
    }
}

/// The dump of this name; `None`, and a word why, where the fixtures are not there.
fn dump(name: &str) -> Option<(PathBuf, Dump)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/coreboot").join(name);
    if !folder.is_dir() {
        eprintln!("skipped: {} is missing", folder.display());
        return None;
    }
    let dump = Dump::load(&folder);
    Some((folder, dump))
}

const ALL: [&str; 3] = ["q35-i386-smp4", "q35-i386-framebuffer", "q35-x86_64-tseg-smp8-6g"];

#[test]
fn scanning_and_the_pointer_lead_to_the_same_table() {
    for (_, dump) in ALL.into_iter().filter_map(dump) {
        let scanned = CorebootTable::find(&dump, None).unwrap();
        let pointed = CorebootTable::find(&dump, Some(scanned.address())).unwrap();
        assert_eq!(scanned.records(), pointed.records());
        assert_eq!(scanned.problems(), []);
        assert!(dump.0.iter().any(|(start, _)| *start == scanned.address()));
    }
}

#[test]
fn every_record_says_what_coreboot_logged() {
    for (folder, dump) in ALL.into_iter().filter_map(dump) {
        let table = CorebootTable::find(&dump, None).unwrap();
        let log = fs::read_to_string(folder.join("console.log")).unwrap();

        let serial = table.serial().unwrap();
        assert_eq!((serial.kind, serial.base, serial.baud), (SerialKind::Port, 0x3f8, 115_200));
        assert!(table.consoles().eq([ConsoleKind::Serial8250]));
        assert_eq!(table.mainboard().unwrap().vendor, "Emulation");
        assert_eq!(table.mainboard().unwrap().part_number, "QEMU x86 q35/ich9");
        assert!(log.contains(table.version().unwrap()));
        assert!(log.contains(table.string(StringTag::Build).unwrap()));
        assert_eq!(table.boot_mode(), Some(0));
        assert_eq!(table.board_config().unwrap().board_id, u32::MAX);

        let rsdp = table.acpi_rsdp().unwrap();
        let mut signature = [0; 8];
        dump.read(rsdp, &mut signature).unwrap();
        assert_eq!(&signature, b"RSD PTR ");

        // coreboot logs the map before it joins neighbours of one kind: each end is in the log.
        for range in table.memory_ranges() {
            for end in [format!(" {:016x}-", range.start), format!("-{:016x}: ", range.end() - 1)] {
                assert!(log.contains(&end), "{end} is not in the log");
            }
        }
        assert!(table.memory_ranges().any(|range| range.kind == MemoryKind::Table && range.start == 0));
        assert!(table.memory_ranges().any(|range| range.kind == MemoryKind::Ram && range.start == 0x10_0000));

        let media = table.boot_media().unwrap();
        let fmap = format!("FMAP: area COREBOOT found @ {:x} ({} bytes)", media.cbfs_offset, media.cbfs_size);
        assert!(log.contains(&fmap), "{fmap}");
        assert_eq!(media.cbfs_offset + media.cbfs_size, media.boot_media_size);

        let entry = |id| table.cbmem_entries().find(|entry| entry.id == id).map(|entry| entry.address);
        assert_eq!(table.cbmem_console(), entry(CbmemEntry::CONSOLE));
        assert_eq!(table.timestamps(), entry(CbmemEntry::TIMESTAMP));
        assert_eq!(table.fmap(), entry(CbmemEntry::FMAP));
        assert_eq!(table.acpi_gnvs(), entry(CbmemEntry::ACPI_GNVS));
        assert_eq!(Some(table.address()), entry(CbmemEntry::COREBOOT_TABLE));
    }
}

#[test]
fn memory_above_4_gib_is_seen() {
    let Some((_, dump)) = dump("q35-x86_64-tseg-smp8-6g") else { return };
    let table = CorebootTable::find(&dump, None).unwrap();
    let high: u64 = table
        .memory_ranges()
        .filter(|range| range.kind == MemoryKind::Ram && range.start >= 1 << 32)
        .map(|range| range.size)
        .sum();
    assert_eq!(high, 4 << 30);
}

#[test]
fn the_framebuffer_is_described_where_there_is_one() {
    for name in ALL {
        let Some((_, dump)) = dump(name) else { continue };
        let framebuffer = CorebootTable::find(&dump, None).unwrap().framebuffer();
        assert_eq!(framebuffer.is_some(), name.ends_with("framebuffer"));
        let Some(framebuffer) = framebuffer else { continue };
        assert_eq!((framebuffer.width, framebuffer.height), (800, 600));
        assert_eq!((framebuffer.bits_per_pixel, framebuffer.bytes_per_line), (32, 3200));
        assert_eq!((framebuffer.red.position, framebuffer.green.position), (16, 8));
    }
}

/// What we write must be what coreboot writes: the same records give the same bytes, but for those of tags
/// that we do not know.
#[test]
fn our_encoding_is_coreboots() {
    for (_, dump) in ALL.into_iter().filter_map(dump) {
        let table = CorebootTable::find(&dump, None).unwrap();
        let (_, real) = dump.0.iter().find(|(start, _)| *start == table.address()).unwrap();
        let mut ours = TableBuilder::new();
        table.records().iter().for_each(|record| ours.add(record));
        assert_eq!(&ours.finish(), real);
        let (_, forwarder) = dump.0.iter().find(|(start, _)| *start == 0x500).unwrap();
        assert_eq!(&TableBuilder::forwarder(table.address()), forwarder);
    }
}
