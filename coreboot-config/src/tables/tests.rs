use super::*;
use proptest::prelude::*;
use std::{string::String, vec::Vec};

/// Memory of these pieces; all else is unreadable.
struct Pieces(Vec<(u64, Vec<u8>)>);

impl PhysicalMemory for Pieces {
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

fn ranges() -> Vec<MemoryRange> {
    vec![
        MemoryRange { start: 0, size: 0x1000, kind: MemoryKind::Table },
        MemoryRange { start: 0x1000, size: 0x9f000, kind: MemoryKind::Ram },
        MemoryRange { start: 1 << 32, size: 1 << 32, kind: MemoryKind::Other(99) },
    ]
}

fn serial() -> Serial {
    Serial { kind: SerialKind::Port, base: 0x3f8, baud: 115_200, register_width: 1, input_hertz: 1_843_200 }
}

fn framebuffer() -> Framebuffer {
    let channel = |position| Channel { position, size: 8 };
    Framebuffer {
        address: 0xfd00_0000,
        width: 800,
        height: 600,
        bytes_per_line: 3200,
        bits_per_pixel: 32,
        red: channel(16),
        green: channel(8),
        blue: channel(0),
        reserved: channel(24),
    }
}

fn every_record() -> Vec<Record> {
    vec![
        Record::Memory(ranges()),
        Record::Mainboard(Mainboard { vendor: "Emulation".into(), part_number: "q35".into() }),
        Record::String(StringTag::Version, "26.06".into()),
        Record::String(StringTag::ExtraVersion, String::new()),
        Record::Serial(serial()),
        Record::Console(ConsoleKind::Serial8250),
        Record::Framebuffer(framebuffer()),
        Record::Pointer(PointerTag::Timestamps, 0x7ffd_d000),
        Record::Pointer(PointerTag::CbmemConsole, 0x7ffd_e000),
        Record::Pointer(PointerTag::AcpiGnvs, 0x7fff_e760),
        Record::Pointer(PointerTag::Fmap, 0x7fff_e900),
        Record::Pointer(PointerTag::AcpiRsdp, 0x7fe8_1040),
        Record::VersionTimestamp(1_795_149_822),
        Record::BootMediaParams(BootMediaParams {
            fmap_offset: 0,
            cbfs_offset: 0x1000,
            cbfs_size: 0xff_f000,
            boot_media_size: 0x100_0000,
        }),
        Record::BoardConfig(BoardConfig::NONE),
        Record::CbmemEntry(CbmemEntry { address: 0x7ffd_e000, size: 0x2_0000, id: CbmemEntry::CONSOLE }),
        Record::BootMode(0),
    ]
}

fn table(records: &[Record]) -> Vec<u8> {
    let mut builder = TableBuilder::new();
    records.iter().for_each(|record| builder.add(record));
    builder.finish()
}

/// The table with its checksums made right again after a change.
fn repaired(mut table: Vec<u8>) -> Vec<u8> {
    let body = internet_checksum(&table[24..]);
    table[16..20].copy_from_slice(&u32::from(body).to_le_bytes());
    table[8..12].fill(0);
    let header = internet_checksum(&table[..24]);
    table[8..12].copy_from_slice(&u32::from(header).to_le_bytes());
    table
}

#[test]
fn every_record_is_read_as_it_was_written() {
    let memory = Pieces(vec![(0x7fe9_9000, table(&every_record()))]);
    let table = CorebootTable::find(&memory, Some(0x7fe9_9000)).unwrap();
    assert_eq!(table.address(), 0x7fe9_9000);
    assert_eq!(table.records(), every_record());
    assert_eq!(table.problems(), []);
    assert!(table.memory_ranges().eq(ranges()));
    assert_eq!(table.serial(), Some(serial()));
    assert_eq!(table.framebuffer(), Some(framebuffer()));
    assert_eq!(table.cbmem_console(), Some(0x7ffd_e000));
    assert_eq!(table.timestamps(), Some(0x7ffd_d000));
    assert_eq!(table.acpi_gnvs(), Some(0x7fff_e760));
    assert_eq!(table.acpi_rsdp(), Some(0x7fe8_1040));
    assert_eq!(table.fmap(), Some(0x7fff_e900));
    assert_eq!(table.version(), Some("26.06"));
    assert_eq!(table.mainboard().unwrap().part_number, "q35");
    assert_eq!(table.boot_media().unwrap().cbfs_offset, 0x1000);
    assert_eq!(table.board_config(), Some(BoardConfig::NONE));
    assert_eq!(table.cbmem_entries().next().unwrap().id, CbmemEntry::CONSOLE);
    assert!(table.consoles().eq([ConsoleKind::Serial8250]));
    assert_eq!(table.boot_mode(), Some(0));
}

#[test]
fn a_missing_or_wrong_entry_pointer_falls_back_to_scanning() {
    for forwarder_at in [0x500, 0xf_6000] {
        let mut low = vec![0; 0x1000];
        let forwarder = TableBuilder::forwarder(0x7fe9_9000);
        low[..forwarder.len()].copy_from_slice(&forwarder);
        let memory = Pieces(vec![(forwarder_at, low), (0x7fe9_9000, table(&every_record()))]);
        for pointer in [None, Some(0x1234), Some(0x7fe9_9000), Some(forwarder_at)] {
            let table = CorebootTable::find(&memory, pointer).unwrap();
            assert_eq!(table.address(), 0x7fe9_9000, "{pointer:x?}");
        }
    }
    assert_eq!(CorebootTable::find(&Pieces(vec![]), None).unwrap_err(), TableError::NotFound);
    let nothing = vec![0; 0x1000];
    let error = CorebootTable::find(&Pieces(vec![(0, nothing)]), Some(0x100)).unwrap_err();
    assert_eq!(error, TableError::NoSignature(0x100));
}

#[test]
fn circles_of_forwarders_end() {
    let memory = Pieces(vec![(0x500, TableBuilder::forwarder(0x500))]);
    assert_eq!(CorebootTable::find(&memory, None).unwrap_err(), TableError::TooManyForwards(0x500));
}

#[test]
fn a_forwarder_to_nowhere_says_so() {
    let memory = Pieces(vec![(0x500, TableBuilder::forwarder(u64::MAX - 4))]);
    let error = CorebootTable::read(&memory, 0x500).unwrap_err();
    assert!(matches!(error, TableError::Unreadable(Unreadable { len: 24, .. })), "{error}");
}

#[test]
fn every_changed_bit_is_noticed() {
    let good = table(&every_record());
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            let error = CorebootTable::read(&Pieces(vec![(0x1000, bytes)]), 0x1000).unwrap_err();
            assert!(!error.to_string().is_empty(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn a_truncated_table_is_refused() {
    let good = table(&every_record());
    for len in 0..good.len() {
        let memory = Pieces(vec![(0x1000, good[..len].to_vec())]);
        assert!(CorebootTable::read(&memory, 0x1000).is_err(), "{len} bytes");
    }
}

#[test]
fn absurd_lengths_are_refused_before_anything_is_allocated() {
    let mut bytes = table(&[]);
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    bytes[8..12].fill(0);
    let checksum = internet_checksum(&bytes[..24]);
    bytes[8..12].copy_from_slice(&u32::from(checksum).to_le_bytes());
    let error = CorebootTable::read(&Pieces(vec![(0x1000, bytes)]), 0x1000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "coreboot table at 0x1000: found a length of 4294967295 bytes, expected 0 to 1048576"
    );
}

#[test]
fn a_malformed_record_costs_that_record() {
    // A serial record of an unknown kind between two good ones, and an unknown tag.
    let mut bytes =
        table(&[Record::BootMode(7), Record::Serial(serial()), Record::BootMode(8), Record::BootMode(9)]);
    let serial_at = 24 + 12;
    bytes[serial_at + 8] = 3;
    let unknown_at = serial_at + 28;
    bytes[unknown_at] = 0xee;
    let memory = Pieces(vec![(0x1000, repaired(bytes))]);
    let table = CorebootTable::read(&memory, 0x1000).unwrap();
    assert_eq!(table.records(), [Record::BootMode(7), Record::BootMode(9)]);
    assert_eq!(table.problems(), [RecordError { offset: 12, tag: 0xf, fault: RecordFault::Body(20) }]);
}

#[test]
fn a_record_of_impossible_size_keeps_those_before_it() {
    for size in [0_u32, 7, 13, u32::MAX] {
        let mut bytes = table(&[Record::BootMode(7), Record::BootMode(8)]);
        bytes[24 + 12 + 4..24 + 12 + 8].copy_from_slice(&size.to_le_bytes());
        let memory = Pieces(vec![(0x1000, repaired(bytes))]);
        let table = CorebootTable::read(&memory, 0x1000).unwrap();
        assert_eq!(table.records(), [Record::BootMode(7)]);
        assert_eq!(table.problems(), [RecordError { offset: 12, tag: 0xcd, fault: RecordFault::Size(size) }]);
    }
}

#[test]
fn a_count_beyond_the_table_is_reported() {
    let mut bytes = table(&[Record::BootMode(7)]);
    bytes[20] = 3;
    let table = CorebootTable::read(&Pieces(vec![(0x1000, repaired(bytes))]), 0x1000).unwrap();
    assert_eq!(table.records().len(), 1);
    assert_eq!(table.problems(), [RecordError { offset: 12, tag: 0, fault: RecordFault::Missing(1) }]);
}

fn any_record() -> impl Strategy<Value = Record> {
    let text = "[ -~]{0,40}";
    let range = (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(start, size, kind)| MemoryRange {
        start,
        size,
        kind: MemoryKind::from_number(kind),
    });
    let channel = (any::<u8>(), any::<u8>()).prop_map(|(position, size)| Channel { position, size });
    let framebuffer = (
        any::<u64>(),
        any::<[u32; 3]>(),
        any::<u8>(),
        [channel.clone(), channel.clone(), channel.clone(), channel],
    )
        .prop_map(
            |(address, [width, height, bytes_per_line], bits_per_pixel, [red, green, blue, reserved])| {
                Framebuffer {
                    address,
                    width,
                    height,
                    bytes_per_line,
                    bits_per_pixel,
                    red,
                    green,
                    blue,
                    reserved,
                }
            },
        );
    prop_oneof![
        proptest::collection::vec(range, 0..10).prop_map(Record::Memory),
        (text, text).prop_map(|(vendor, part_number)| Record::Mainboard(Mainboard { vendor, part_number })),
        text.prop_map(|text| Record::String(StringTag::Build, text)),
        (any::<bool>(), any::<[u32; 4]>()).prop_map(|(port, [base, baud, register_width, input_hertz])| {
            let kind = if port { SerialKind::Port } else { SerialKind::Memory };
            Record::Serial(Serial { kind, base, baud, register_width, input_hertz })
        }),
        any::<u16>().prop_map(|number| Record::Console(ConsoleKind::from_number(number))),
        framebuffer.prop_map(Record::Framebuffer),
        any::<u64>().prop_map(|address| Record::Pointer(PointerTag::Fmap, address)),
        any::<[u64; 4]>().prop_map(|[fmap_offset, cbfs_offset, cbfs_size, boot_media_size]| {
            Record::BootMediaParams(BootMediaParams { fmap_offset, cbfs_offset, cbfs_size, boot_media_size })
        }),
        (any::<u64>(), any::<[u32; 2]>()).prop_map(|(address, [size, id])| Record::CbmemEntry(CbmemEntry {
            address,
            size,
            id
        })),
        (any::<u64>(), any::<[u32; 3]>()).prop_map(|(fw_config, [board_id, ram_code, sku_id])| {
            Record::BoardConfig(BoardConfig { fw_config, board_id, ram_code, sku_id })
        }),
    ]
}

proptest! {
    #[test]
    fn tables_survive_a_round_trip(records in proptest::collection::vec(any_record(), 0..30)) {
        let memory = Pieces(vec![(0x1000, table(&records))]);
        let table = CorebootTable::read(&memory, 0x1000).unwrap();
        prop_assert_eq!(table.records(), records);
        prop_assert_eq!(table.problems(), []);
    }

    /// Whatever the records hold, reading ends, and what is not read is reported.
    #[test]
    fn mutated_records_never_panic(
        changes in proptest::collection::vec((24_usize..600, any::<u8>()), 1..8),
        entries: u8,
    ) {
        let mut bytes = table(&every_record());
        for (at, value) in changes {
            let at = at % (bytes.len() - 24) + 24;
            bytes[at] = value;
        }
        bytes[20] = entries;
        let memory = Pieces(vec![(0x1000, repaired(bytes))]);
        match CorebootTable::read(&memory, 0x1000) {
            Ok(table) => prop_assert!(table.records().len() + table.problems().len() <= usize::from(entries)),
            // The change made a forwarder.
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
