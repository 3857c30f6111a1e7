use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Pieces of memory by address.
#[derive(Default)]
struct Pieces(BTreeMap<u64, Vec<u8>>);

impl<'a> Memory<'a> for &'a Pieces {
    fn bytes(&self, at: u64, len: usize) -> Option<&'a [u8]> {
        let (start, piece) = self.0.range(..=at).next_back()?;
        let offset = usize::try_from(at - start).ok()?;
        piece.get(offset..offset.checked_add(len)?)
    }
}

fn with_checksum(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    bytes[at] = 0;
    bytes[at] = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    bytes
}

fn table_bytes(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..4].copy_from_slice(signature);
    bytes[4..8].copy_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    with_checksum(bytes, 9)
}

const RSDP: u64 = 0xe_0010;
const XSDT: u64 = 0x1000;

/// An RSDP, an XSDT and `tables` from 0x2000 on, a page each.
fn firmware(tables: &[Vec<u8>]) -> Pieces {
    let mut rsdp = vec![0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[15] = 2;
    rsdp[20] = 36;
    rsdp[24..32].copy_from_slice(&XSDT.to_le_bytes());
    let first = with_checksum(rsdp[..20].to_vec(), 8);
    rsdp[..20].copy_from_slice(&first);
    let rsdp = with_checksum(rsdp, 32);
    let address = |index: usize| 0x2000 + index as u64 * 0x1000;
    let entries: Vec<u8> = (0..tables.len()).flat_map(|index| address(index).to_le_bytes()).collect();
    let mut pieces = Pieces::default();
    let mut area = vec![0; 0x2_0000];
    area[0x10..0x10 + 36].copy_from_slice(&rsdp);
    pieces.0.insert(0xe_0000, area);
    pieces.0.insert(XSDT, table_bytes(b"XSDT", &entries));
    pieces.0.extend(tables.iter().cloned().enumerate().map(|(index, table)| (address(index), table)));
    pieces
}

/// The tables of real coreboot boots; `None` where they are not at hand.
fn fixture(board: &str) -> Option<(Pieces, u64)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/coreboot").join(board);
    let Ok(files) = std::fs::read_dir(&folder) else {
        eprintln!("skipped: {} is missing", folder.display());
        return None;
    };
    let mut pieces = Pieces::default();
    let mut rsdp = None;
    for file in files.flatten() {
        let name = file.file_name().into_string().unwrap();
        let Some((table, rest)) = name.strip_prefix("acpi-").and_then(|name| name.split_once("-at-0x"))
        else {
            continue;
        };
        let at = u64::from_str_radix(rest.strip_suffix(".bin").unwrap(), 16).unwrap();
        pieces.0.insert(at, std::fs::read(file.path()).unwrap());
        if table == "rsdp" {
            rsdp = Some(at);
        }
    }
    Some((pieces, rsdp.unwrap()))
}

#[test]
fn real_tables_are_read_and_the_bad_one_is_named() {
    for (board, cpus) in [("q35-i386-smp4", 4), ("q35-i386-framebuffer", 1), ("q35-x86_64-tseg-smp8-6g", 8)] {
        let Some((memory, rsdp)) = fixture(board) else { return };
        let acpi = Acpi::read(&&memory, rsdp).unwrap();
        let madt = acpi.madt.unwrap();
        assert_eq!(madt.local_apic, 0xfee0_0000, "{board}");
        assert_eq!(madt.cpus.iter().filter(|cpu| cpu.enabled).count(), cpus, "{board}");
        assert_eq!(madt.io_apics.iter().map(|chip| chip.address).collect::<Vec<_>>(), [0xfec0_0000]);
        assert_eq!(madt.isa_interrupt(0).gsi, 2, "QEMU wires the PIT to pin 2");
        assert_eq!(madt.isa_interrupt(4).gsi, 4);
        let ecam = Ecam { base: 0xb000_0000, segment: 0, first_bus: 0, last_bus: 255 };
        assert_eq!(acpi.ecam, [ecam]);
        assert_eq!(acpi.hpet, Some(0xfed0_0000));
        let fadt = acpi.fadt.unwrap();
        assert_eq!(fadt.pm_timer.map(|timer| timer.space), Some(Space::Port));
        assert!(fadt.reset.is_some());
        let bad = |problem: &Problem| matches!(problem, Problem::Checksum { table: Signature(b), .. } if b == b"SSDT");
        assert!(acpi.problems.iter().any(bad), "{board}: {:?}", acpi.problems);
    }
}

#[test]
fn the_rsdp_is_found_where_a_bios_leaves_it() {
    assert_eq!(find_rsdp(&&firmware(&[])), Some(RSDP));
    assert_eq!(find_rsdp(&&Pieces::default()), None);
}

#[test]
fn a_damaged_table_does_not_hide_the_others() {
    let mut bad = table_bytes(b"HPET", &[0; 20]);
    bad[40] ^= 1;
    let mut hpet = [0; 20];
    hpet[8..16].copy_from_slice(&0xfed0_0000_u64.to_le_bytes());
    let memory = firmware(&[bad, table_bytes(b"HPET", &hpet[..9]), table_bytes(b"HPET", &hpet)]);
    let acpi = Acpi::read(&&memory, RSDP).unwrap();
    assert_eq!(acpi.hpet, Some(0xfed0_0000));
    let table = Signature(*b"HPET");
    assert_eq!(
        acpi.problems,
        [Problem::Checksum { table, at: 0x2000 }, Problem::Short { table, at: 0x3000 }]
    );
}

#[test]
fn an_rsdp_of_revision_zero_leads_to_the_rsdt() {
    let mut rsdp = vec![0; 20];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[16..20].copy_from_slice(&0x1000_u32.to_le_bytes());
    let mut memory = Pieces::default();
    memory.0.insert(0xf_0000, with_checksum(rsdp, 8));
    memory.0.insert(0x1000, table_bytes(b"RSDT", &0x2000_u32.to_le_bytes()));
    memory.0.insert(0x2000, table_bytes(b"WAET", &[0; 4]));
    let acpi = Acpi::read(&&memory, 0xf_0000).unwrap();
    assert_eq!(acpi.tables.0, [Signature(*b"WAET")]);
}

#[test]
fn a_wrong_root_is_an_error() {
    let mut memory = firmware(&[]);
    memory.0.get_mut(&XSDT).unwrap()[8] ^= 1;
    assert!(matches!(Acpi::read(&&memory, RSDP), Err(Problem::Checksum { at: XSDT, .. })));
    assert_eq!(Acpi::read(&&memory, 0).err(), Some(Problem::Unreadable { at: 0 }));
    memory.0.get_mut(&0xe_0000).unwrap()[0x10 + 9] ^= 1;
    assert!(matches!(Acpi::read(&&memory, RSDP), Err(Problem::Checksum { at: RSDP, .. })));
}

#[test]
fn soft_off_is_found_by_its_bytes() {
    let qemu = b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00";
    assert_eq!(sleep::soft_off(qemu), Some(SleepType { pm1a: 0, pm1b: 0 }));
    let rooted = b"\x5b\x80\x08\\_S5_\x12\x08\x04\x0a\x05\x01\x00\x00";
    assert_eq!(sleep::soft_off(rooted), Some(SleepType { pm1a: 5, pm1b: 1 }));
    let long = b"\x08_S5_\x12\x47\x00\x02\x0a\x07\x0a\x06";
    assert_eq!(sleep::soft_off(long), Some(SleepType { pm1a: 7, pm1b: 6 }));
    assert_eq!(sleep::soft_off(b"_S5_\x12\x06\x04\x00\x00"), None, "a use of the name is no definition");
    assert_eq!(sleep::soft_off(b"\x08_S5_\x12"), None);
}

#[test]
fn overrides_say_how_a_line_is_wired() {
    let mut body = vec![0; 8];
    body.extend([2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]);
    body.extend([2, 10, 0, 4, 20, 0, 0, 0, 0x0f, 0]);
    body.extend([9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let madt = Madt::read(&table_bytes(b"APIC", &body)).unwrap();
    let nine = madt.isa_interrupt(9);
    assert_eq!((nine.gsi, nine.polarity, nine.trigger), (9, Polarity::High, Trigger::Level));
    let four = madt.isa_interrupt(4);
    assert_eq!((four.gsi, four.polarity, four.trigger), (20, Polarity::Low, Trigger::Level));
    let three = madt.isa_interrupt(3);
    assert_eq!((three.gsi, three.polarity, three.trigger), (3, Polarity::High, Trigger::Edge));
    assert_eq!(madt.cpus[0].apic_id, 0x100);
}

proptest! {
    /// Whatever a table that is needed holds, it is read or left out.
    #[test]
    fn no_table_panics(which in 0_usize..5, body in prop::collection::vec(any::<u8>(), 0..260)) {
        let signature = [b"APIC", b"FACP", b"MCFG", b"HPET", b"SSDT"][which];
        let memory = firmware(&[table_bytes(signature, &body)]);
        prop_assert!(Acpi::read(&&memory, RSDP).is_ok());
    }

    #[test]
    fn no_dsdt_panics(mut before in prop::collection::vec(any::<u8>(), 0..9), after in prop::collection::vec(any::<u8>(), 0..9)) {
        before.extend(b"\x08_S5_\x12");
        before.extend(after);
        let _ = sleep::soft_off(&before);
    }
}
