//! Coreboot tables: memory of arbitrary bytes, and records of arbitrary bytes under right checksums.
#![no_main]

use coreboot_config::{
    PhysicalMemory, Unreadable,
    tables::{CorebootTable, TableBuilder, internet_checksum},
};

/// Memory whose first bytes are these; there is no more.
struct Low<'a>(&'a [u8]);

impl PhysicalMemory for Low<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let len = buffer.len();
        let found =
            usize::try_from(address).ok().and_then(|start| self.0.get(start..start.checked_add(len)?));
        buffer.copy_from_slice(found.ok_or(Unreadable { address, len })?);
        Ok(())
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    look_at(CorebootTable::find(&Low(data), None).ok());

    let [entries, records @ ..] = data else { return };
    let table = with_checksums(records, *entries);
    look_at(CorebootTable::read(&Low(&table), 0).ok());
});

/// What was read and written again must read the same.
fn look_at(table: Option<CorebootTable>) {
    let Some(table) = table else { return };
    for problem in table.problems() {
        assert!(!problem.to_string().is_empty());
    }
    let mut again = TableBuilder::new();
    table.records().iter().for_each(|record| again.add(record));
    let again = again.finish();
    let again = CorebootTable::read(&Low(&again), 0).expect("our own table");
    assert!(again.problems().is_empty());
    // A vendor's name may be cut, so only the count of records is compared where there is a board.
    if table.mainboard().is_none() {
        assert_eq!(table.records(), again.records());
    }
    assert_eq!(table.records().len(), again.records().len());
}

fn with_checksums(records: &[u8], entries: u8) -> Vec<u8> {
    let words = |checksum: u16| {
        let body = u32::from(internet_checksum(records));
        let words = [24, checksum.into(), records.len() as u32, body, entries.into()];
        let words = words.into_iter().flat_map(u32::to_le_bytes);
        b"LBIO".iter().copied().chain(words).collect::<Vec<u8>>()
    };
    let checksum = internet_checksum(&words(0));
    [&words(checksum), records].concat()
}
