//! Tables that util-linux makes, whole and damaged.

use super::*;
use crate::testing::{RamDisk, wait};
use proptest::prelude::*;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const MIB: usize = 1 << 20;

/// What one of util-linux's programs makes of an empty disk of 64 MiB, told what to do by `script`.
fn partition(test: &str, program: &str, arguments: &[&str], script: &str) -> Vec<u8> {
    let file = std::env::temp_dir().join(format!("peerboot-partitions-{}-{test}", std::process::id()));
    fs::File::create(&file).unwrap().set_len(64 * MIB as u64).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).arg(&file).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().expect("Debian's package fdisk is installed");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{script}");
    let image = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    image
}

fn sfdisk(test: &str, script: &str) -> Vec<u8> {
    partition(test, "/sbin/sfdisk", &["--quiet"], script)
}

const GPT: &str = "\
label: gpt
label-id: 6A5D2F0E-2A4B-4B5C-9D1E-0123456789AB
size=8M, type=uefi, name=\"EFI system\", uuid=11111111-2222-3333-4444-555555555555
size=16M, type=linux, name=Wurzel
start=40M, size=4M, type=BC13C2FF-59E6-4262-A352-B275FD6F7172, name=\"größer\"
";

fn gpt() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| sfdisk("gpt", GPT))
}

const MBR: &str = "\
label: dos
label-id: 0xdeadbeef
size=8M, type=83, bootable
size=30M, type=5
size=4M, type=ef
size=1M, type=83
size=5M, type=83
size=6M, type=82
";

fn read(image: Vec<u8>, block_size: u32) -> Result<PartitionTable, TableError> {
    wait(PartitionTable::read(&RamDisk::new(block_size, image)))
}

fn places(table: &PartitionTable) -> Vec<(u32, u64, u64)> {
    table.partitions.iter().map(|p| (p.number, p.start / MIB as u64, p.len / MIB as u64)).collect()
}

#[test]
fn a_gpt_is_read() {
    let table = read(gpt().to_vec(), 512).unwrap();
    assert_eq!((table.scheme, table.problems.as_slice()), (Scheme::Gpt, [].as_slice()));
    assert_eq!(table.disk.unwrap().to_string(), "6a5d2f0e-2a4b-4b5c-9d1e-0123456789ab");
    assert_eq!(places(&table), [(1, 1, 8), (2, 9, 16), (3, 40, 4)]);
    let labels: Vec<_> = table.partitions.iter().flat_map(|p| p.label.as_deref()).collect();
    assert_eq!(labels, ["EFI system", "Wurzel", "größer"]);
    assert!(table.partitions[0].kind.is_efi_system() && table.partitions[2].kind.is_extended_boot());
    assert_eq!(table.partitions[0].id.to_string(), "11111111-2222-3333-4444-555555555555");
}

#[test]
fn blocks_may_have_4_kib() {
    let script = "g\nn\n1\n\n+8M\nn\n7\n\n+16M\nw\n";
    let image = partition("gpt-4k", "/sbin/fdisk", &["--sector-size", "4096"], script);
    let table = read(image.clone(), 4096).unwrap();
    assert_eq!((places(&table), table.problems), (vec![(1, 1, 8), (7, 9, 16)], vec![]));
    assert!(matches!(read(image, 512), Err(TableError::BothDamaged(..))), "the blocks are not these");
}

#[test]
fn an_mbr_is_read_with_its_logical_partitions() {
    let table = read(sfdisk("mbr", MBR), 512).unwrap();
    assert_eq!((table.scheme, table.problems.as_slice()), (Scheme::Mbr, [].as_slice()));
    assert_eq!(table.disk.unwrap().to_string(), "deadbeef");
    // Linux numbers a disk's partitions the same way; each logical one has a record of its own before it.
    assert_eq!(places(&table), [(1, 1, 8), (2, 9, 30), (3, 39, 4), (4, 43, 1), (5, 10, 5), (6, 16, 6)]);
    assert_eq!(table.partitions[5].id.to_string(), "deadbeef-06");
    assert!(table.partitions[2].kind.is_efi_system());
}

#[test]
fn partitions_are_found_by_number_label_and_identifier() {
    let table = read(gpt().to_vec(), 512).unwrap();
    let number = |wanted: &str| table.find(wanted).map(|partition| partition.number);
    assert_eq!(number("2"), Ok(2));
    assert_eq!(number("label:EFI system"), Ok(1));
    assert_eq!(number("label:größer"), Ok(3));
    assert_eq!(number("uuid:11111111-2222-3333-4444-555555555555"), Ok(1));
    assert_eq!(number("4"), Err(NotFound::None));
    assert_eq!(number("label:"), Err(NotFound::None));
    assert_eq!(number("two"), Err(NotFound::Syntax));
    assert_eq!(number("name:Wurzel"), Err(NotFound::Syntax));
    let mut twice = table.clone();
    twice.partitions.iter_mut().for_each(|partition| partition.label = Some("same".into()));
    assert_eq!(twice.find("label:same"), Err(NotFound::Several(3)));
}

#[test]
fn one_whole_copy_is_enough() {
    let (first, last) = (512, gpt().len() - 512);
    let damaged = |at: usize| {
        let mut image = gpt().to_vec();
        image[at] ^= 1;
        read(image, 512).unwrap().problems
    };
    assert_eq!(damaged(first), [TableProblem::FirstCopy(Damage::Signature)]);
    assert_eq!(damaged(first + 60), [TableProblem::FirstCopy(Damage::HeaderChecksum)]);
    assert_eq!(damaged(2 * 512 + 40), [TableProblem::FirstCopy(Damage::EntriesChecksum)]);
    assert_eq!(damaged(last + 20), [TableProblem::SecondCopy(Damage::HeaderChecksum)]);
    // Without the record that protects it, the table still counts.
    assert_eq!(damaged(510), []);
    let mut disk = RamDisk::new(512, gpt().to_vec());
    disk.bad = Some(512);
    let table = wait(PartitionTable::read(&disk)).unwrap();
    assert_eq!(table.problems, [TableProblem::FirstCopy(Damage::Unreadable(BlockError::Failed))]);
    assert_eq!(table.partitions.len(), 3);
}

#[test]
fn what_is_no_table_is_said_to_be_none() {
    assert_eq!(read(vec![0; MIB], 512), Err(TableError::NoTable));
    assert_eq!(read(Vec::new(), 512), Err(TableError::NoTable));
    let mut both = gpt().to_vec();
    let last = both.len() - 512;
    both[512] ^= 1;
    both[last + 60] ^= 1;
    let error = read(both, 512).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the GPT at the disk's beginning has no signature, and the one at its end has a header that does not \
         fit its checksum"
    );
}

#[test]
fn a_chain_of_logical_partitions_that_bites_its_tail_ends() {
    let mut image = sfdisk("mbr-chain", MBR);
    // The second record's link leads back to the first, at the extended partition's own beginning.
    let second = 15 * MIB;
    assert_eq!(image[second + 510..second + 512], [0x55, 0xaa]);
    image[second + 446 + 16..second + 446 + 32]
        .copy_from_slice(&[0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    let table = read(image, 512).unwrap();
    assert_eq!(table.problems, [TableProblem::EndlessChain]);
}

#[test]
fn partitions_outside_of_the_disk_are_left_out() {
    let mut image = sfdisk("mbr-outside", MBR);
    image[446 + 12..446 + 16].copy_from_slice(&u32::MAX.to_le_bytes());
    let table = read(image, 512).unwrap();
    assert_eq!(table.problems, [TableProblem::Entry(1)]);
    assert_eq!(table.partitions[0].number, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is changed, the table is read, or refused, and what it tells lies on the disk.
    #[test]
    fn no_disk_makes_the_reader_fail(
        changes in prop::collection::vec((0_usize..4096, any::<u8>()), 1..64),
        len in 0_usize..16384,
    ) {
        let mut image = gpt()[..len].to_vec();
        for (at, byte) in changes {
            if let Some(place) = image.get_mut(at) {
                *place = byte;
            }
        }
        let size = image.len() as u64 / 512 * 512;
        if let Ok(table) = read(image, 512) {
            prop_assert!(table.partitions.iter().all(|partition| partition.start + partition.len <= size));
        }
    }
}
